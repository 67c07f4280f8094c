"""Draw a sweep's store: phase diagrams, main effects, the worst cells, in one HTML page that needs nothing else.

Command: python -m experiments.sweep_report STORE. Writes sweep_NAME.json (every number shown), a figure for each
metric, one of main effects, and sweep_NAME.html to --out; --redraw makes them again from the record.
"""

import base64
import html
import shlex
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
from experiments.sweep_table import SHARES, SIGNED, Table, default_axes, table_of
from toy.io import plain, save_json, writing
from toy.sweep.cell import cell_digest, cell_key
from toy.sweep.drive import read_store, sweep_of
from toy.sweep.lanes import code_version
from toy.sweep.spec import Sweep
from toy.sweep.store import SweepStore

SHOWN = ("recovered", "hole_rate", "parent_to_child")
N_WORST = 10  # of each objective
N_DIGITS = 12  # of a cell's digest
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
    """Metric by which the worst cells are found; default: hole_rate, or the first that some cell has."""
    redraw: bool = False
    """Draw again from a record, without the store."""


def main() -> None:
    with clean_exit():
        options = parse(Options, prog="python -m experiments.sweep_report", description=__doc__)
        check_writable(options.out)
        record = load_record(options.store) if options.redraw else plain(make_record(read_store(options.store)))
        table = table_of(record)
        known = list(table.metrics)
        metrics = options.metrics or tuple(name for name in SHOWN if name in known) or tuple(known[:3])
        worst = options.worst or default_worst(table, metrics)
        check((*metrics, worst), known, "metrics")
        check((options.x, options.y), list(table.axes), "axes")
        matplotlib.use("Agg")
        x, y = choose_axes(table, options.x, options.y)
        images = {name: as_png(sweep_plots.phase_diagram(record, name, x, y)) for name in metrics}
        images["effects"] = as_png(sweep_plots.main_effects(record, metrics))
        name = record["name"]
        if not options.redraw:
            save_json(options.out / f"{name}.json", record)
        for part, image in images.items():
            write_figure(options.out / f"{name}_{part}.png", image)
        with writing(options.out / f"{name}.html") as file:
            file.write(page(record, images, worst, options.out / f"{name}.json").encode())
        print("\n".join(summary(record)))
        print(f"{name}: {options.out / name}.html, .json and {len(images)} figures")


def make_record(store: SweepStore) -> dict[str, Any]:
    """Of the rows by this code if there are any, else by the code of the latest. Raises: ValueError without rows."""
    sweep = sweep_of(store)
    codes = store.codes()
    if not codes:
        raise ValueError(f"{store.path}: has no rows yet; run the sweep first")
    code = code_version() if code_version() in codes else codes[0]
    if len(codes) > 1:
        print(f"{store.path}: also has rows by other code, which are left out: {'; '.join(set(codes) - {code})}")
    rows = {row.key: row for row in store.rows() if row.code == code}
    cells = list(sweep.cells())
    found = [rows.get(cell_key(cell, code)) for cell in cells]
    columns = {
        metric: [None if row is None or row.metrics is None else row.metrics.get(metric) for row in found]
        for metric in sweep.metrics
    }
    digests = [cell_digest(cell)[:N_DIGITS] for cell in cells]
    errors = {i: row.error for i, row in enumerate(found) if row is not None and row.error is not None}
    told = [
        {"error": error, "n_cells": n, "first_cell": next(digests[i] for i in errors if errors[i] == error)}
        for error, n in Counter(errors.values()).most_common()
    ]
    return {
        "name": f"sweep_{sweep.name}",
        "config": sweep.as_data(),
        "seeds": seeds_of(sweep),
        "versions": versions(),
        "seconds": sum(row.seconds for row in found if row is not None),
        "results": {
            "code": code,
            "n_cells": len(found),
            "n_missing": sum(row is None for row in found),
            "n_failed": len(errors),
            "errors": told,
            "failed": list(errors),
            "columns": columns,
            "cells": digests,
        },
    }


def seeds_of(sweep: Sweep) -> list[int]:
    return list(sweep.axes.get("seed", (sweep.fixed.get("seed", 0),)))


def check(asked: Sequence[str | None], known: Sequence[str], what: str) -> None:
    """Raises: ValueError if something is asked for that the record has not."""
    for name in asked:
        if name is not None and name not in known:
            raise ValueError(f"{what}: {name!r} is not in this sweep, which has {', '.join(known)}")


def choose_axes(table: Table, x: str | None, y: str | None) -> tuple[str, str | None]:
    """Those that are asked for; in place of others the default ones that are left."""
    default_x, default_y = default_axes(table)
    if x is None:
        x = default_y if y == default_x and default_y is not None else default_x
    if y is None:
        y = default_x if x == default_y else default_y
    return x, None if x == y else y


def default_worst(table: Table, metrics: Sequence[str]) -> str:
    known = [name for name in ("hole_rate", *metrics) if not np.isnan(table.metrics.get(name, np.nan)).all()]
    return known[0] if known else metrics[0]


def summary(record: dict[str, Any]) -> list[str]:
    """One line an objective: over all of its cells that did not fail."""
    results, table = record["results"], table_of(record)
    counts = ", ".join(f"{results[name]:,} {name[2:]}" for name in ("n_cells", "n_failed", "n_missing"))
    lines = [f"{record['name']}: {counts}"]
    for objective, own in table.of_objectives():
        told = []
        for metric in [name for name in SHOWN if name in table.metrics]:
            values = table.metrics[metric][own]
            values = values[~np.isnan(values)]
            if metric in SHARES:
                told.append(f"{metric} {int(values.sum()):,}/{len(values):,}")
            elif len(values):
                told.append(f"{metric} {values.mean():.3f}")
        lines.append(f"  {objective}: {', '.join(told)}")
    return lines


# --- the page ---------------------------------------------------------------------------------------------


def page(record: dict[str, Any], images: dict[str, bytes], worst: str, path: Path) -> str:
    """`path` is where the record is, which commands read."""
    results = record["results"]
    figures = "\n".join(
        f"<h2>{html.escape('Main effects' if part == 'effects' else _capital(sweep_plots.title_of(part)))}</h2>"
        f'<img alt="{html.escape(part)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        for part, image in images.items()
    )
    errors = "".join(
        f"<li>{one['n_cells']:,} cells: {html.escape(one['error'])}<br>{_command(path, one['first_cell'])}</li>"
        for one in results["errors"]
    )
    config = {name: value for name, value in record["config"].items() if name in ("axes", "fixed", "combine")}
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{html.escape(record["name"])}</title><style>{STYLE}</style></head>
<body>
<h1>{html.escape(record["name"].removeprefix("sweep_"))}</h1>
<p>{"<br>".join(map(html.escape, summary(record)))}</p>
<p>{record["seconds"]:.0f} seconds of training, by {html.escape(results["code"])}.</p>
<pre>{html.escape(_yaml(config))}</pre>
{figures}
<h2>Worst cells by {html.escape(sweep_plots.title_of(worst))}</h2>
{worst_table(record, worst, path)}
<h2>Failures</h2>
<ul>{errors or "<li>none</li>"}</ul>
</body></html>
"""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=110)


def _command(path: Path, cell: str) -> str:
    """What runs a cell again."""
    command = f"python -m experiments.sweep {shlex.quote(path.as_posix())} --cell {cell}"
    return f"<code>{html.escape(command)}</code>"


def badness(table: Table, metric: str) -> np.ndarray:
    """[n_cells] what is least where the metric is worst; mixing is bad either way."""
    values = np.abs(table.metrics[metric]) if metric in SIGNED else table.metrics[metric]
    return np.nan_to_num(values if metric in LARGE_IS_GOOD else -values)


def worst_table(record: dict[str, Any], metric: str, path: Path) -> str:
    """Of each objective the cells with the worst value of the metric, and the commands that run them again."""
    table, axes = table_of(record), record["config"]["axes"]
    shown = [name for name in dict.fromkeys((metric, *SHOWN, "min_cosine")) if name in table.metrics]
    order = [badness(table, name) for name in reversed(shown)]  # the last counts most
    seeds = list(dict.fromkeys(axes.get("seed", record["seeds"])))
    own_seed = [] if "seed" in table.axes else ["seed"]
    body = []
    for _, own in table.of_objectives():
        (cells,) = np.nonzero(own & ~np.isnan(table.metrics[metric]))
        for i in cells[np.lexsort([values[cells] for values in order])][:N_WORST]:
            values = [str(of_axis[place]) for of_axis, place in zip(table.axes.values(), table.places[i], strict=True)]
            values += [str(seeds[table.seeds[i]])] * len(own_seed)
            values += [f"{table.metrics[name][i]:.3f}" for name in shown]
            told = "".join(f"<td>{html.escape(value)}</td>" for value in values)
            body.append(f"<tr>{told}<td>{_command(path, str(table.digests[i]))}</td></tr>")
    if not body:
        return f"<p>No cell has a number for {html.escape(metric)}.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*table.axes, *own_seed, *shown, "run it again"))
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>'


if __name__ == "__main__":
    sys.exit(main())
