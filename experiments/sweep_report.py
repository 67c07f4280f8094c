"""Draw a sweep's store: phase diagrams, main effects, the worst cells, in one HTML page that needs nothing else.

Command: python -m experiments.sweep_report STORE. Writes sweep_NAME.json (every number shown), a figure for each
metric, one of main effects, and sweep_NAME.html to --out; --redraw makes them again from the record.
"""

import base64
import html
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import tyro
import yaml

from experiments import sweep_plots
from experiments.cli import DEFAULT_OUT, as_png, check_writable, clean_exit, load_record, parse, versions, write_figure
from toy.io import plain, save_json, writing
from toy.sweep.cell import cell_key
from toy.sweep.lanes import METRICS
from toy.sweep.spec import Sweep, parse_sweep
from toy.sweep.store import SweepStore, open_sweep_store

SHOWN = ("recovered", "hole_rate", "parent_to_child")
N_WORST = 10  # of each objective
LARGE_IS_GOOD = ("recovered", "min_cosine", "mcc", "uniqueness")
LARGE_IS_GOOD += ("firing_accuracy", "firing_precision", "firing_recall", "shrinkage")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1250px; margin: 2em auto; padding: 0 1em; color: #222; }
img { width: 100%; } table { border-collapse: collapse; font-size: 12px; } caption { text-align: left; }
td, th { padding: 2px 6px; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
td:last-child, th:last-child { text-align: left; }
code { font-size: 11px; } .wide { overflow-x: auto; }
"""


@dataclass(frozen=True)
class Options:
    """Which store, and what is shown of it."""

    store: Annotated[Path, tyro.conf.Positional]
    """SQLite file that `experiments.sweep` filled; with --redraw the record, sweep_NAME.json."""
    out: Path = DEFAULT_OUT
    """Folder for the record, the figures and the page."""
    metrics: tuple[str, ...] | None = None
    """Metrics that get a phase diagram and a row of main effects; default: recovered, hole_rate and parent_to_child, or
    the sweep's first three."""
    x: str | None = None
    """Horizontal axis of the phase diagrams; default: the one with most numbers."""
    y: str | None = None
    """Vertical axis; default: the next."""
    worst: str | None = None
    """Metric by which the worst cells are found; default: hole_rate, or the first that is shown."""
    redraw: bool = False
    """Draw again from a record, without the store."""


def main() -> None:
    with clean_exit():
        options = parse(Options, prog="python -m experiments.sweep_report", description=__doc__)
        check_writable(options.out)
        record = load_record(options.store) if options.redraw else plain(make_record(open_sweep_store(options.store)))
        known = list(record["results"]["columns"])
        metrics = options.metrics or tuple(name for name in SHOWN if name in known) or tuple(known[:3])
        worst = options.worst or ("hole_rate" if "hole_rate" in known else metrics[0])
        table = sweep_plots.table_of(record)
        check((*metrics, worst), known, "metrics")
        check((options.x, options.y), list(table.axes), "axes")
        matplotlib.use("Agg")
        x, y = sweep_plots.default_axes(table)
        x, y = options.x or x, options.y or y
        images = {name: as_png(sweep_plots.phase_diagram(record, name, x, y)) for name in metrics}
        images["effects"] = as_png(sweep_plots.main_effects(record, metrics))
        name = record["name"]
        if not options.redraw:
            save_json(options.out / f"{name}.json", record)
        for part, image in images.items():
            write_figure(options.out / f"{name}_{part}.png", image)
        with writing(options.out / f"{name}.html") as file:
            file.write(page(record, images, worst).encode())
        print("\n".join(summary(record)))
        print(f"{name}: {options.out / name}.html, .json and {len(images)} figures")


def make_record(store: SweepStore) -> dict[str, Any]:
    """Of the rows by the code that made the latest. Raises: ValueError if there are none."""
    about = store.about()
    sweep = parse_sweep(about["sweep"], lambda name: _no_file(name))
    codes = store.codes()
    if not codes:
        raise ValueError(f"{store.path}: has no rows yet; run the sweep first")
    rows = {row.key: row for row in store.rows() if row.code == codes[0]}
    keys = [cell_key(cell, codes[0]) for cell in sweep.cells()]
    found = [rows.get(key) for key in keys]
    columns = {
        metric: [None if row is None or row.metrics is None else row.metrics.get(metric) for row in found]
        for metric in sweep.metrics
    }
    errors = Counter(row.error for row in found if row is not None and row.error is not None)
    return {
        "name": f"sweep_{sweep.name}",
        "config": about["sweep"],
        "seeds": seeds_of(sweep),
        "versions": versions(),
        "seconds": sum(row.seconds for row in found if row is not None),
        "results": {
            "file": about.get("file"),
            "code": codes[0],
            "n_cells": len(found),
            "n_missing": sum(row is None for row in found),
            "n_failed": sum(errors.values()),
            "errors": dict(errors.most_common()),
            "columns": columns,
            "keys": [key[:12] for key in keys],
        },
    }


def seeds_of(sweep: Sweep) -> list[int]:
    return list(sweep.axes.get("seed", (sweep.fixed.get("seed", 0),)))


def _no_file(name: str) -> Any:
    raise ValueError(f"{name}: the store does not have this tree")


def check(asked: Sequence[str | None], known: Sequence[str], what: str) -> None:
    """Raises: ValueError if something is asked for that the record has not."""
    for name in asked:
        if name is not None and name not in known:
            raise ValueError(f"{what}: {name!r} is not in this sweep, which has {', '.join(known)}")


def summary(record: dict[str, Any]) -> list[str]:
    """One line an objective: over all of its cells that did not fail."""
    results, table = record["results"], sweep_plots.table_of(record)
    names = list(table.axes)
    objectives = table.axes.get("objective", ["all cells"])
    counts = ", ".join(f"{results[name]:,} {name[2:]}" for name in ("n_cells", "n_failed", "n_missing"))
    lines = [f"{record['name']}: {counts}"]
    for k, objective in enumerate(objectives):
        own = table.places[:, names.index("objective")] == k if "objective" in names else slice(None)
        told = []
        for metric in [metric for metric in METRICS if metric in table.metrics and metric in SHOWN]:
            values = table.metrics[metric][own]
            values = values[~np.isnan(values)]
            if metric in sweep_plots.SHARES:
                told.append(f"{metric} {int(values.sum()):,}/{len(values):,}")
            elif len(values):
                told.append(f"{metric} {values.mean():.3f}")
        lines.append(f"  {objective}: {', '.join(told)}")
    return lines


# --- the page ---------------------------------------------------------------------------------------------


def page(record: dict[str, Any], images: dict[str, bytes], worst: str) -> str:
    results = record["results"]
    figures = "\n".join(
        f"<h2>{html.escape('Main effects' if part == 'effects' else sweep_plots.title_of(part).capitalize())}</h2>"
        f'<img alt="{html.escape(part)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        for part, image in images.items()
    )
    errors = "".join(f"<li>{count:,} cells: {html.escape(error)}</li>" for error, count in results["errors"].items())
    config = {name: value for name, value in record["config"].items() if name in ("axes", "fixed", "combine")}
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{html.escape(record["name"])}</title><style>{STYLE}</style></head>
<body>
<h1>{html.escape(record["name"].removeprefix("sweep_"))}</h1>
<p>{"<br>".join(map(html.escape, summary(record)))}</p>
<p>{record["seconds"]:.0f} seconds of training; code version {html.escape(results["code"])};
{html.escape(", ".join(f"{name} {value}" for name, value in record["versions"].items()))}.</p>
<pre>{html.escape(_yaml(config))}</pre>
{figures}
<h2>Worst cells</h2>
{worst_table(record, worst)}
<h2>Failures</h2>
<ul>{errors or "<li>none</li>"}</ul>
</body></html>
"""


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=110)


def sign(metric: str) -> int:
    """What makes the worst value the least."""
    return 1 if metric in LARGE_IS_GOOD else -1


def worst_table(record: dict[str, Any], metric: str) -> str:
    """Of each objective the cells with the worst value of the metric, and the commands that run them again."""
    results, table = record["results"], sweep_plots.table_of(record)
    axes, shown = record["config"]["axes"], list(dict.fromkeys((metric, *SHOWN, "min_cosine")))
    shown = [name for name in shown if name in table.metrics]
    names = list(table.axes)
    badness = {name: np.nan_to_num(sign(name) * table.metrics[name]) for name in shown}
    ranked = list(reversed(shown))  # the last counts most
    own_seed = [] if "seed" in names else ["seed"]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*names, *own_seed, *shown, "run it again"))
    body = []
    for k in range(len(table.axes.get("objective", [0]))):
        own = (
            table.places[:, names.index("objective")] == k if "objective" in names else np.ones(len(table.seeds), bool)
        )
        (cells,) = np.nonzero(own & ~np.isnan(table.metrics[metric]))
        for i in cells[np.lexsort([badness[name][cells] for name in ranked])][:N_WORST]:
            values = [str(table.axes[name][place]) for name, place in zip(names, table.places[i], strict=True)]
            values += [str(axes["seed"][table.seeds[i]] if "seed" in axes else record["seeds"][0])] * len(own_seed)
            values += [f"{table.metrics[name][i]:.3f}" for name in shown]
            command = f"python -m experiments.sweep {results['file']} --cell {results['keys'][i]}"
            cells_of_row = "".join(f"<td>{html.escape(value)}</td>" for value in values)
            body.append(f"<tr>{cells_of_row}<td><code>{html.escape(command)}</code></td></tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>'


if __name__ == "__main__":
    sys.exit(main())
