"""Figures of a sweep from its record alone: phase diagrams over two axes, main effects, and which criterion fails."""

import itertools
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.common import plots
from experiments.sweeps.columns import KINDS, SHARES, SIGNED, Table, matched, off_target, table_of
from toy.features.named import TREES

TITLES = {
    "recovered": "recovered",
    "hole_rate": "hole rate",
    "parent_to_child": "mixing, parent → child",
    "child_to_sibling": "mixing, child → sibling",
    "child_to_parent": "mixing, child → parent",
    "max_off_diagonal": "largest |mixing|",
    "min_cosine": "smallest matched cosine",
    "mcc": "MCC",
    "fvu": "FVU",
    "l0": "L0",
}
COLOURS = {"vanilla": plots.COLOURS["vanilla"]} | dict.fromkeys(
    ("sampled_10", "expected_10"), plots.COLOURS["matryoshka"]
)
OTHER_COLOURS = ("#66a182", "#2e4057", "#8d96a3")  # of other weightings, in turn
CRITERIA = {"recovered": "#c8c8c8", "cosine below .9": "#b2abd2", "holes": "#f1a340", "both": "#8c510a"}
CODES = {1: "c", 2: "h", 3: "ch"}  # of the criteria in a cell of a phase diagram
MOST_INTERVALS = 12  # side by side, which are wider than means
MOST_OF_METHOD = 60  # characters, since long names differ at their ends
FAILED, UNKNOWN = "////", "...."  # hatches


def title_of(metric: str) -> str:
    return TITLES.get(metric, metric.replace("_", " "))


# --- phase diagrams ---------------------------------------------------------------------------------------


def phase_diagram(record: dict[str, Any], metric: str, x: str, y: str | None) -> Figure:
    """A panel for every combination of the other axes, with weightings and the shortest axes in columns."""
    table = table_of(record)
    others = [name for name in table.axes if name not in (x, y)]
    others.sort(key=lambda name: (name not in KINDS, len(table.axes[name])))
    columns, rows = _parted(others, table)
    column_values, row_values = (
        list(itertools.product(*(range(len(table.axes[n])) for n in part))) for part in (columns, rows)
    )
    scale = _scale(metric, table.metrics[metric])
    n_x, n_y = len(table.axes[x]), 1 if y is None else len(table.axes[y])
    height = max(1.9, 0.75 + len(row_values) * (0.3 + min(0.24, 1.5 / n_y) * n_y))
    with plots.styled(height) as figure:
        panels = figure.subplots(len(row_values), len(column_values), sharex=True, sharey=True, squeeze=False)
        hatches, n_side = set(), n_x * len(column_values)
        for i, row in enumerate(row_values):
            for j, column in enumerate(column_values):
                chosen = dict(zip(rows + columns, row + column, strict=True))
                ax = panels[i][j]
                hatches |= _panel(ax, table, metric, x, y, chosen, scale, n_side=n_side)
                told = [_label(name, table.axes[name][place]) for name, place in chosen.items()]
                ax.set_title("\n".join(textwrap.wrap(", ".join(told), 150 // len(column_values))), fontsize=6)
        image = ScalarMappable(Normalize(scale.low, scale.high), scale.colours)
        bar = figure.colorbar(image, ax=panels, shrink=min(1.0, 1.6 / height), aspect=18, pad=0.01)
        bar.ax.tick_params(labelsize=6)
        figure.supxlabel(x.replace("_", " "), fontsize=8)
        figure.supylabel("" if y is None else y.replace("_", " "), fontsize=8)
        told = [f"{title_of(metric)}: {_meaning(table, metric, n_side=n_side)}", *_keys(hatches), *_off(table)]
        figure.suptitle(textwrap.fill("; ".join(told), 120), fontsize=7.5, x=0.01, ha="left")
    return figure


def _parted(names: list[str], table: Table) -> tuple[list[str], list[str]]:
    """The axes of the columns, which give at most six panels side by side, and those of the rows."""
    columns: list[str] = []
    for name in names:
        if math.prod(len(table.axes[n]) for n in [*columns, name]) > 6:
            break
        columns.append(name)
    return columns, [name for name in names if name not in columns]


def _meaning(table: Table, metric: str, *, n_side: int) -> str:
    if metric in SHARES:
        failed = "; c, h: in some of the others a matched cosine is below .9, parents have holes"
        return "runs in which every feature is found and no parent has holes" + failed * (table.criteria() is not None)
    if len(np.unique(table.seeds)) == 1:
        return "of one seed"
    return "mean over seeds" if n_side > MOST_INTERVALS else "mean over seeds, below it its 95% interval (bootstrap)"


def _off(table: Table) -> list[str]:
    told = off_target(table, table.having())
    return [f"cells with {told}"] if told else []


def _keys(hatches: set[str]) -> list[str]:
    meanings = {FAILED: "hatched: failed, as an impossible tree does", UNKNOWN: "dotted: not known, or not yet run"}
    return [meaning for hatch, meaning in meanings.items() if hatch in hatches]


class Scale(NamedTuple):
    low: float
    high: float
    colours: str


def _scale(metric: str, values: np.ndarray) -> Scale:
    known = values[~np.isnan(values)]
    if metric in SIGNED:
        most = max(float(np.abs(known).max(initial=0.0)), 1e-9)
        return Scale(-most, most, "PuOr")
    low, high = float(known.min(initial=0.0)), float(known.max(initial=1.0))
    return Scale(0.0, 1.0, "YlGnBu") if metric in SHARES or (low >= 0 and high <= 1) else Scale(low, high, "YlGnBu")


def _panel(
    ax: Axes,
    table: Table,
    metric: str,
    x: str,
    y: str | None,
    chosen: dict[str, int],
    scale: Scale,
    *,
    n_side: int,
) -> set[str]:
    """Draw one panel, empty where there is no cell. Returns the hatches in it."""
    of_y = [None] if y is None else table.axes[y]
    n_x, n_y = len(table.axes[x]), len(of_y)
    means, hatches = np.full((n_y, n_x), np.nan), set()
    for i, j in itertools.product(range(n_y), range(n_x)):
        here = table.having(**chosen, **{x: j}, **({} if y is None else {y: i}))
        values = table.metrics[metric][here]
        values = values[~np.isnan(values)]
        if len(values):
            means[i, j] = values.mean()
            height = (means[i, j] - scale.low) / (scale.high - scale.low)
            dark = abs(height - 0.5) > 0.3 if metric in SIGNED else height > 0.6
            text = {
                "color": "white" if dark else "#333333",
                "fontsize": 3.4 if n_side > 24 else 4.5,
                "linespacing": 0.95,
            }
            ax.text(j, i, _cell_text(table, metric, here, n_side=n_side), ha="center", va="center", **text)
        elif here.any():
            hatch = FAILED if table.failed[here].any() else UNKNOWN
            hatches.add(hatch)
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, hatch=hatch, fill=False, edgecolor="#cccccc", linewidth=0))
    plots.heatmap(ax, means, low=scale.low, high=scale.high, colours=scale.colours)
    ax.set_ylim(-0.5, n_y - 0.5)
    ax.set_xticks(range(n_x), [_short(x, value) for value in table.axes[x]], fontsize=5.5)
    ax.set_yticks(range(n_y), ["" if value is None else _short(str(y), value) for value in of_y], fontsize=5.5)
    return hatches


def _cell_text(table: Table, metric: str, here: np.ndarray, *, n_side: int) -> str:
    values = table.metrics[metric][here]
    values = values[~np.isnan(values)]
    if metric in SHARES:
        criteria = table.criteria()
        missed = 0 if criteria is None else np.bitwise_or.reduce(np.maximum(criteria[here], 0))
        return "\n".join([f"{int(values.sum())}/{len(values)}", *([CODES[missed]] if missed else [])])
    mean = _two_digits(values.mean())
    if n_side > MOST_INTERVALS or len(values) < 2:
        return mean
    interval = plots.bootstrap(values)
    return f"{mean}\n{_two_digits(interval.low)} to {_two_digits(interval.high)}"


def _two_digits(value: float) -> str:
    """.05 and 10.05, and no -.00"""
    return re.sub(r"(?<!\d)0\.", ".", f"{round(float(value), 2) + 0:.2f}")


# --- main effects -----------------------------------------------------------------------------------------


def main_effects(record: dict[str, Any], metrics: Sequence[str]) -> Figure:
    """A column for each axis but weighting and seed, a row for each metric, a line for each weighting."""
    table = table_of(record)
    axes = _columns(table)
    with plots.styled(0.7 + 1.35 * len(metrics)) as figure:
        panels = figure.subplots(len(metrics), len(axes), sharex="col", sharey="row", squeeze=False)
        all_matched = True
        for (i, metric), (j, axis) in itertools.product(enumerate(metrics), enumerate(axes)):
            all_matched &= _effect(panels[i][j], table, metric, axis)
            if j == 0:
                panels[i][j].set_ylabel(title_of(metric), fontsize=7)
            if i == len(metrics) - 1:
                panels[i][j].set_xlabel(axis.replace("_", " "), fontsize=7)
        if len(table.of_weightings()) > 1 and not set(axes) <= set(KINDS):
            figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=6, fontsize=5.5)
        over = "Means over the runs whose setting of the other axes has a number at every value of the axis"
        over += "" if all_matched else " (where none has, over all runs: then other axes differ, too)"
        spread = "dots: means over seeds, one per setting of the other axes"
        alone = "bars, where there is one such setting: 95% intervals over seeds (of shares Wilson, else bootstrap)"
        text = f"{'; '.join([over, spread, alone, *_off(table)])}."
        figure.supxlabel(textwrap.fill(text, 150), fontsize=6, color="#555555")
    return figure


def _columns(table: Table) -> list[str]:
    return [name for name in table.axes if name not in KINDS] or list(table.axes)


def _lines(table: Table, axis: str) -> list[tuple[str, np.ndarray, str]]:
    """The lines of a panel: a weighting, its cells and its colour."""
    others = itertools.cycle(OTHER_COLOURS)
    if axis in KINDS:
        return [("", table.having(), plots.COLOURS["truth"])]
    return [(name, own, COLOURS.get(name) or next(others)) for name, own in table.of_weightings()]


def _effect(ax: Axes, table: Table, metric: str, axis: str) -> bool:
    """Returns whether like is compared with like."""
    values, n = table.metrics[metric], len(table.axes[axis])
    like = matched(table, metric, axis)
    known = ~np.isnan(values) & (True if like is None else like)
    lines = _lines(table, axis)
    for k, (weighting, own, colour) in enumerate(lines):
        shift = 0.5 * (k - (len(lines) - 1) / 2) / len(lines)
        means = np.full(n, np.nan)
        for place in range(n):
            here = own & known & table.having(**{axis: place})
            if here.any():
                means[place] = values[here].mean()
                _spread(ax, table, metric, here, place + shift, colour)
        label = weighting.replace("_", " ")
        ax.plot(np.arange(n) + shift, means, "o-", color=colour, markersize=2.5, linewidth=0.9, label=label)
    ax.set_xticks(range(n), [_short(axis, value) for value in table.axes[axis]], fontsize=6)
    if metric in SHARES:
        ax.set_ylim(-0.05, 1.05)
    return like is not None


def _spread(ax: Axes, table: Table, metric: str, here: np.ndarray, x: float, colour: str) -> None:
    """The settings of the other axes as dots; of a single one the interval over its seeds."""
    values, (settings, group) = table.metrics[metric][here], np.unique(table.places[here], axis=0, return_inverse=True)
    if len(settings) == 1:
        of_share = metric in SHARES
        interval = plots.wilson(int(values.sum()), len(values)) if of_share else plots.bootstrap(values)
        plots.bar(ax, x, interval, colour, fmt="none", elinewidth=0.9)
        return
    means = np.bincount(group.ravel(), values) / np.bincount(group.ravel())
    aside = np.random.default_rng(0).uniform(-0.04, 0.04, len(means))
    ax.scatter(x + aside, means, s=2, color=colour, alpha=0.3, linewidths=0, zorder=1)


# --- criteria ---------------------------------------------------------------------------------------------


def criteria(record: dict[str, Any]) -> Figure | None:
    """The criteria that runs fail, over all cells with a value of an axis; None if the record does not tell."""
    table = table_of(record)
    found = table.criteria()
    if found is None:
        return None
    axes, weightings = _columns(table), table.of_weightings()
    with plots.styled(0.7 + 0.9 * len(weightings)) as figure:
        panels = figure.subplots(len(weightings), len(axes), sharex="col", sharey=True, squeeze=False)
        for (i, (weighting, own)), (j, axis) in itertools.product(enumerate(weightings), enumerate(axes)):
            _criteria_panel(panels[i][j], table, found, own, axis)
            if j == 0:
                panels[i][j].set_ylabel(f"{weighting.replace('_', ' ')}\nshare of runs", fontsize=6)
            if i == len(weightings) - 1:
                panels[i][j].set_xlabel(axis.replace("_", " "), fontsize=7)
        handles = [Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour in CRITERIA.items()]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=6)
        figure.supxlabel("All runs that have numbers, by the criterion of recovery that they fail.", fontsize=6)
    return figure


def _criteria_panel(ax: Axes, table: Table, found: np.ndarray, own: np.ndarray, axis: str) -> None:
    bottom, n = np.zeros(len(table.axes[axis])), len(table.axes[axis])
    cells = [own & table.having(**{axis: place}) & (found >= 0) for place in range(n)]
    for code, colour in enumerate(CRITERIA.values()):
        share = np.array([np.mean(found[here] == code) if here.any() else 0.0 for here in cells])
        ax.bar(range(n), share, 0.8, bottom, color=colour)
        bottom += share
    ax.set_xticks(range(n), [_short(axis, value) for value in table.axes[axis]], fontsize=6)
    ax.set_ylim(0, 1)


def _label(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name.replace("_", " ") if value else f"not {name.replace('_', ' ')}"
    shown = _short(name, value)
    return shown if name in (*KINDS, "tree") else f"{name.replace('_', ' ')} {shown}"


def _short(name: str, value: Any) -> str:
    """A value of an axis as figures show it."""
    if isinstance(value, list):
        return "–".join(_short(name, one) for one in value)
    if isinstance(value, float):
        return f"{value:g}"
    if name == "method":
        return plots.shown_name(str(value), MOST_OF_METHOD)
    is_ours = name != "tree" or value in TREES
    return str(value).replace("_", " ") if is_ours else plots.shown_name(value)
