"""Figures of a sweep, from its record alone: phase diagrams over two axes, and every axis' main effect."""

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
from experiments.sweeps.columns import SHARES, SIGNED, Table, half_interval, interval, matched, off_target, table_of
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
WEIGHTING_COLOURS = ("#d1495b", "#00798c", "#edae49", "#66a182", "#2e4057", "#8d96a3")
FAILED, UNKNOWN = "////", "...."  # hatches


def title_of(metric: str) -> str:
    return TITLES.get(metric, metric.replace("_", " "))


# --- phase diagrams ---------------------------------------------------------------------------------------


def phase_diagram(record: dict[str, Any], metric: str, x: str, y: str | None) -> Figure:
    """A panel for every combination of the other axes: weightings and the shortest of them in columns."""
    table = table_of(record)
    others = [name for name in table.axes if name not in (x, y)]
    others.sort(key=lambda name: (name != "weighting", len(table.axes[name])))
    columns, rows = _parted(others, table)
    column_values, row_values = (
        list(itertools.product(*(range(len(table.axes[n])) for n in part))) for part in (columns, rows)
    )
    scale = _scale(metric, table.metrics[metric])
    n_x, n_y = len(table.axes[x]), 1 if y is None else len(table.axes[y])
    height = max(1.9, 0.75 + len(row_values) * (0.3 + min(0.24, 1.5 / n_y) * n_y))
    with plots.styled(height) as figure:
        panels = figure.subplots(len(row_values), len(column_values), sharex=True, sharey=True, squeeze=False)
        hatches = set()
        for i, row in enumerate(row_values):
            for j, column in enumerate(column_values):
                chosen = dict(zip(rows + columns, row + column, strict=True))
                ax = panels[i][j]
                hatches |= _panel(ax, table, metric, x, y, chosen, scale, small=n_x * len(column_values) > 24)
                told = [_label(name, table.axes[name][place]) for name, place in chosen.items()]
                ax.set_title("\n".join(textwrap.wrap(", ".join(told), 150 // len(column_values))), fontsize=6)
        image = ScalarMappable(Normalize(scale.low, scale.high), scale.colours)
        bar = figure.colorbar(image, ax=panels, shrink=min(1.0, 1.6 / height), aspect=18, pad=0.01)
        bar.ax.tick_params(labelsize=6)
        figure.supxlabel(x.replace("_", " "), fontsize=8)
        figure.supylabel("" if y is None else y.replace("_", " "), fontsize=8)
        told = [f"{title_of(metric)}: {_meaning(metric, len(np.unique(table.seeds)))}", *_keys(hatches), *_off(table)]
        figure.suptitle(textwrap.fill("; ".join(told), 120), fontsize=7.5, x=0.01, ha="left")
    return figure


def _parted(names: list[str], table: Table) -> tuple[list[str], list[str]]:
    """Axes of the columns, as many as give six panels side by side at the most, and of the rows."""
    columns: list[str] = []
    for name in names:
        if math.prod(len(table.axes[n]) for n in [*columns, name]) > 6:
            break
        columns.append(name)
    return columns, [name for name in names if name not in columns]


def _meaning(metric: str, n_seeds: int) -> str:
    if metric not in SHARES:
        return "mean over seeds, below it half of its 95% interval" if n_seeds > 1 else "of one seed"
    least, _ = interval(metric, np.ones(n_seeds))
    return (
        "seeds in which every feature is found and no parent has holes "
        f"({n_seeds} of {n_seeds}: at least {least:.2f}, 95% Wilson)"
    )


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
    small: bool,
) -> set[str]:
    """Where there is no such cell at all it stays empty. Returns: the hatches that stand in it."""
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
            text = {"color": "white" if dark else "#333333", "fontsize": 3.4 if small else 4.5, "linespacing": 0.95}
            ax.text(j, i, _cell_text(metric, values), ha="center", va="center", **text)
        elif here.any():
            hatch = FAILED if table.failed[here].any() else UNKNOWN
            hatches.add(hatch)
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, hatch=hatch, fill=False, edgecolor="#cccccc", linewidth=0))
    plots.heatmap(ax, means, low=scale.low, high=scale.high, colours=scale.colours)
    ax.set_ylim(-0.5, n_y - 0.5)
    ax.set_xticks(range(n_x), [_short(x, value) for value in table.axes[x]], fontsize=5.5)
    ax.set_yticks(range(n_y), ["" if value is None else _short(str(y), value) for value in of_y], fontsize=5.5)
    return hatches


def _cell_text(metric: str, values: np.ndarray) -> str:
    if metric in SHARES:
        return f"{int(values.sum())}/{len(values)}"
    mean = _two_digits(values.mean())
    return mean if len(values) < 2 else f"{mean}\n±{_two_digits(half_interval(values))}"


def _two_digits(value: float) -> str:
    """.05 and 10.05, and no -.00"""
    return re.sub(r"(?<!\d)0\.", ".", f"{round(float(value), 2) + 0:.2f}")


# --- main effects -----------------------------------------------------------------------------------------


def main_effects(record: dict[str, Any], metrics: Sequence[str]) -> Figure:
    """Every axis but weighting and seed in a column, every metric in a row, every weighting a line."""
    table = table_of(record)
    axes = [name for name in table.axes if name != "weighting"] or list(table.axes)
    with plots.styled(0.7 + 1.35 * len(metrics)) as figure:
        panels = figure.subplots(len(metrics), len(axes), sharex="col", sharey="row", squeeze=False)
        all_matched = True
        for i, metric in enumerate(metrics):
            for j, axis in enumerate(axes):
                all_matched &= _effect(panels[i][j], table, metric, axis)
                if j == 0:
                    panels[i][j].set_ylabel(title_of(metric), fontsize=7)
                if i == len(metrics) - 1:
                    panels[i][j].set_xlabel(axis.replace("_", " "), fontsize=7)
        if "weighting" in table.axes and axes != ["weighting"]:
            panels[0][0].legend(loc="best", fontsize=5.5)
        over = "Means over what of the other axes has a number at every value of the axis"
        over += "" if all_matched else " (where none has, over all cells: then other axes differ, too)"
        parts = [f"{over}; bars: 95% intervals over seeds (Student's t; of shares Wilson)", *_off(table)]
        text = f"{'; '.join(parts)}."
        figure.supxlabel(textwrap.fill(text, 150), fontsize=6, color="#555555")
    return figure


def _effect(ax: Axes, table: Table, metric: str, axis: str) -> bool:
    """Returns: whether like is compared with like."""
    values, n = table.metrics[metric], len(table.axes[axis])
    like = matched(table, metric, axis)
    lines = [("", table.having())] if axis == "weighting" else table.of_weightings()
    for k, (weighting, own) in enumerate(lines):
        shift = 0.35 * (k - (len(lines) - 1) / 2) / len(lines)
        middle, bars = np.full(n, np.nan), np.zeros((2, n))
        for place in range(n):
            here = own & table.having(**{axis: place}) & ~np.isnan(values) & (True if like is None else like)
            seeds = [values[here & (table.seeds == seed)].mean() for seed in np.unique(table.seeds[here])]
            if seeds:
                middle[place] = np.mean(seeds)
                low, high = interval(metric, np.array(seeds))
                bars[:, place] = middle[place] - low, high - middle[place]
        style = {"markersize": 2.5, "linewidth": 0.9, "elinewidth": 0.9, "label": weighting.replace("_", " ")}
        colour = WEIGHTING_COLOURS[k % len(WEIGHTING_COLOURS)]
        ax.errorbar(np.arange(n) + shift, middle, bars, fmt="o-", color=colour, **style)
    ax.set_xticks(range(n), [_short(axis, value) for value in table.axes[axis]], fontsize=6)
    if metric in SHARES:
        ax.set_ylim(-0.05, 1.05)
    return like is not None


def _label(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name.replace("_", " ") if value else f"not {name.replace('_', ' ')}"
    shown = _short(name, value)
    return shown if name in ("weighting", "tree") else f"{name.replace('_', ' ')} {shown}"


def _short(name: str, value: Any) -> str:
    """A value of the axis of this name."""
    if isinstance(value, list):
        return "–".join(_short(name, one) for one in value)
    if isinstance(value, float):
        return f"{value:g}"
    is_ours = name != "tree" or value in TREES
    return str(value).replace("_", " ") if is_ours else plots.shown_name(value)
