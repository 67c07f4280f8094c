"""The HTML page of a sweep, from its record and figures: what came out, the worst cells, the failures."""

import base64
import html
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments.sweeps import plots as sweep_plots
from experiments.sweeps.columns import SHARES, SIGNED, Table, off_target, table_of
from toy.checks import quoted

SHOWN = ("recovered", "hole_rate", "parent_to_child")
N_WORST = 10  # cells of each weighting
MOST_TOLD = 500  # characters of an error or a version of the code
LARGE_IS_GOOD = ("recovered", "min_cosine", "mcc", "uniqueness")
LARGE_IS_GOOD += ("firing_accuracy", "firing_precision", "firing_recall", "shrinkage")
FIGURES = {"effects": "main effects", "criteria": "which criterion fails"}
STYLE = """
:root { color-scheme: light dark; --text: #222; --back: #fff; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --back: #161616; --line: #444; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1250px; margin: 2em auto; padding: 0 1em; }
body { color: var(--text); background: var(--back); overflow-wrap: anywhere; }
.wide, pre { overflow-x: auto; overflow-wrap: normal; }
img { display: block; width: 100%; min-width: 850px; background: #fff; }
table { border-collapse: collapse; font-size: 12px; }
td, th { padding: 2px 6px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:last-child, th:last-child { text-align: left; }
code { font-size: 11px; }
@media (max-width: 600px) { body { margin: 1em auto; padding: 0 .7em; } h1 { font-size: 1.5em; } }
"""


def summary(record: dict[str, Any]) -> list[str]:
    """One line for each weighting, over all of its cells that did not fail."""
    results, table = record["results"], table_of(record)
    counts = ", ".join(f"{results[name]:,} {name[2:]}" for name in ("n_cells", "n_failed", "n_missing"))
    lines = [f"{record['name']}: {counts}"]
    for weighting, own in table.of_weightings():
        told = []
        for metric in [name for name in SHOWN if name in table.metrics]:
            values = table.metrics[metric][own]
            values = values[~np.isnan(values)]
            if metric in SHARES:
                told.append(f"{metric} {int(values.sum()):,}/{len(values):,}")
            elif len(values):
                told.append(f"{metric} {values.mean():.3f}")
        told += [off] if (off := off_target(table, own)) else []
        lines.append(f"  {weighting}: {', '.join(told)}")
    return lines


def page(record: dict[str, Any], images: dict[str, bytes], worst: str, path: Path) -> str:
    """`path` is where the record is, which commands read."""
    results = record["results"]
    figures = "\n".join(
        f"<h2>{html.escape(_capital(FIGURES.get(part, sweep_plots.title_of(part))))}</h2>"
        f'<div class="wide"><img alt="{html.escape(part)}" src="data:image/png;base64,{_base64(image)}"></div>'
        for part, image in images.items()
    )
    errors = "".join(
        f"<li>{one['n_cells']:,} cells: {_shown(one['error'], MOST_TOLD)}<br>{_command(path, one['first_cell'])}</li>"
        for one in results["errors"]
    )
    config = {name: value for name, value in record["config"].items() if name in ("axes", "fixed", "combine")}
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(record["name"])}</title><style>{STYLE}</style></head>
<body>
<h1>{html.escape(record["name"].removeprefix("sweep_"))}</h1>
<p>{"<br>".join(map(html.escape, summary(record)))}</p>
<p>{record["seconds"]:.0f} seconds of training, by {_shown(results["code"], MOST_TOLD)}.</p>
<pre>{html.escape(_yaml(config))}</pre>
{figures}
<h2>Worst cells by {html.escape(sweep_plots.title_of(worst))}</h2>
{worst_table(record, worst, path)}
<h2>Failures</h2>
<ul>{errors or "<li>none</li>"}</ul>
</body></html>
"""


def _base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=110)


def _shown(text: str, most: int = 60) -> str:
    """In the page: on one line, what cannot be seen escaped, and cut where it is long."""
    return html.escape(quoted(text, most))


def _command(path: Path, cell: str) -> str:
    """The command that runs a cell again."""
    file = path.as_posix()
    file = f"./{file}" if file.startswith("-") else file  # which is no option
    return f"<code>{html.escape(f'python -m experiments.sweep {for_shell(file)} --cell {for_shell(cell)}')}</code>"


def for_shell(text: str) -> str:
    """One word of a command; what cannot be seen as Bash, Zsh and Ksh write it: $'\\x0a'."""
    if text.isprintable():
        return shlex.quote(text)
    written = (_visible(character) for character in text)
    return f"$'{''.join(written)}'"


def _visible(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def badness(table: Table, metric: str) -> np.ndarray:
    """[n_cells] what is least where the metric is worst; mixing is bad either way."""
    values = np.abs(table.metrics[metric]) if metric in SIGNED else table.metrics[metric]
    return np.nan_to_num(values if metric in LARGE_IS_GOOD else -values)


def worst_table(record: dict[str, Any], metric: str, path: Path) -> str:
    """The cells with the worst value of the metric for each weighting, and the commands that run them again."""
    table, axes = table_of(record), record["config"]["axes"]
    shown = [name for name in dict.fromkeys((metric, *SHOWN, "min_cosine")) if name in table.metrics]
    order = [badness(table, name) for name in reversed(shown)]  # the last counts most
    seeds = list(dict.fromkeys(axes.get("seed", record["seeds"])))
    own_seed = [] if "seed" in table.axes else ["seed"]
    body = []
    for _, own in table.of_weightings():
        (cells,) = np.nonzero(own & ~np.isnan(table.metrics[metric]))
        for i in cells[np.lexsort([values[cells] for values in order])][:N_WORST]:
            values = [str(of_axis[place]) for of_axis, place in zip(table.axes.values(), table.places[i], strict=True)]
            values += [str(seeds[table.seeds[i]])] * len(own_seed)
            values += [f"{table.metrics[name][i]:.3f}" for name in shown]
            told = "".join(f"<td>{_shown(value)}</td>" for value in values)
            body.append(f"<tr>{told}<td>{_command(path, str(table.digests[i]))}</td></tr>")
    if not body:
        return f"<p>No cell has a number for {html.escape(metric)}.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*table.axes, *own_seed, *shown, "run it again"))
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>'
