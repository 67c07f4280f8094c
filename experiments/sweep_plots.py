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
from scipy.stats import norm, t

from experiments import plots

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
SHARES = ("recovered",)  # of seeds: 0 or 1 a cell
SIGNED = ("parent_to_child", "child_to_sibling", "child_to_parent")
OBJECTIVE_COLOURS = ("#d1495b", "#00798c", "#edae49", "#66a182", "#2e4057", "#8d96a3")


class Table(NamedTuple):
    """A sweep's cells as columns; NaN where a cell failed or the metric is not known."""

    axes: dict[str, list[Any]]  # without seeds, unless there is nothing else
    places: np.ndarray  # [n_cells n_axes] which value each cell has
    seeds: np.ndarray  # [n_cells]
    metrics: dict[str, np.ndarray]


def table_of(record: dict[str, Any]) -> Table:
    config, results = record["config"], record["results"]
    alone = list(config["axes"]) == ["seed"]  # then seeds are an axis like others
    axes = {name: values for name, values in config["axes"].items() if name != "seed" or alone}
    lengths = [len(values) for values in config["axes"].values()]
    if config["combine"] == "product":
        places = np.array(list(itertools.product(*map(range, lengths))), int).reshape(-1, len(lengths))
    else:
        places = np.tile(np.arange(lengths[0])[:, None], (1, len(lengths)))
    names = list(config["axes"])
    own = [i for i, name in enumerate(names) if name in axes]
    seeds = places[:, names.index("seed")] if "seed" in names and not alone else np.zeros(len(places), int)
    metrics = {name: np.array(column, float) for name, column in results["columns"].items()}
    return Table(axes, places[:, own], seeds, metrics)


def title_of(metric: str) -> str:
    return TITLES.get(metric, metric.replace("_", " "))


def default_axes(table: Table) -> tuple[str, str]:
    """Those with numbers and most values; then any."""
    counts = {name: len(values) for name, values in table.axes.items() if name != "objective"}
    numeric = [name for name in counts if all(isinstance(v, int | float) for v in table.axes[name])]
    ranked = sorted(counts, key=lambda name: (name not in numeric, -counts[name]))
    ranked += [name for name in table.axes if name not in ranked]
    return ranked[0], ranked[1] if len(ranked) > 1 else ranked[0]


# --- phase diagrams ---------------------------------------------------------------------------------------


def phase_diagram(record: dict[str, Any], metric: str, x: str, y: str) -> Figure:
    """A panel for every combination of the other axes: objectives and the shortest of them in columns."""
    table = table_of(record)
    others = [name for name in table.axes if name not in (x, y)]
    others.sort(key=lambda name: (name != "objective", len(table.axes[name])))
    columns, rows = _parted(others, table)
    column_values, row_values = (
        list(itertools.product(*(range(len(table.axes[n])) for n in part))) for part in (columns, rows)
    )
    values = table.metrics[metric]
    scale = _scale(metric, values)
    n_x, n_y = len(table.axes[x]), len(table.axes[y])
    height = max(1.9, 0.75 + len(row_values) * (0.3 + min(0.24, 1.5 / n_y) * n_y))
    with plots.styled(height) as figure:
        panels = figure.subplots(len(row_values), len(column_values), sharex=True, sharey=True, squeeze=False)
        for i, row in enumerate(row_values):
            for j, column in enumerate(column_values):
                chosen = dict(zip(rows + columns, row + column, strict=True))
                ax = panels[i][j]
                _panel(ax, table, metric, x, y, chosen, scale, small=n_x * len(column_values) > 24)
                told = [_label(name, table.axes[name][place]) for name, place in chosen.items()]
                ax.set_title("\n".join(textwrap.wrap(", ".join(told), 150 // len(column_values))), fontsize=6)
        image = ScalarMappable(Normalize(scale.low, scale.high), scale.colours)
        bar = figure.colorbar(image, ax=panels, shrink=min(1.0, 1.6 / height), aspect=18, pad=0.01)
        bar.ax.tick_params(labelsize=6)
        figure.supxlabel(x.replace("_", " "), fontsize=8)
        figure.supylabel(y.replace("_", " "), fontsize=8)
        n_seeds = len(np.unique(table.seeds))
        told = f"{title_of(metric)}: {_meaning(metric, n_seeds)}"
        figure.suptitle(textwrap.fill(told, 120), fontsize=7.5, x=0.01, ha="left")
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
        return "mean over seeds, below it half of its 95% interval; hatched: no number"
    least, _ = interval(metric, np.ones(n_seeds))
    return (
        "seeds in which every feature is found and no parent has holes "
        f"({n_seeds} of {n_seeds}: at least {least:.2f}, 95% Wilson); hatched: no number"
    )


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
    y: str,
    chosen: dict[str, int],
    scale: Scale,
    *,
    small: bool,
) -> None:
    names = list(table.axes)
    rows = np.all([table.places[:, names.index(n)] == place for n, place in chosen.items()], axis=0) if chosen else True
    n_x, n_y = len(table.axes[x]), len(table.axes[y])
    means = np.full((n_y, n_x), np.nan)
    for i, j in itertools.product(range(n_y), range(n_x)):
        here = rows & (table.places[:, names.index(x)] == j) & (table.places[:, names.index(y)] == i)
        values = table.metrics[metric][here]
        values = values[~np.isnan(values)]
        if not len(values):
            ax.add_patch(
                Rectangle((j - 0.5, i - 0.5), 1, 1, hatch="////", fill=False, edgecolor="#cccccc", linewidth=0)
            )
            continue
        means[i, j] = values.mean()
        height = (means[i, j] - scale.low) / (scale.high - scale.low)
        dark = abs(height - 0.5) > 0.3 if metric in SIGNED else height > 0.6
        size = 3.4 if small else 4.5
        ax.text(
            j,
            i,
            _cell_text(metric, values),
            fontsize=size,
            ha="center",
            va="center",
            color="white" if dark else "#333333",
            linespacing=0.95,
        )
    plots.heatmap(ax, means, low=scale.low, high=scale.high, colours=scale.colours)
    ax.set_ylim(-0.5, n_y - 0.5)
    ax.set_xticks(range(n_x), [_short(value) for value in table.axes[x]], fontsize=5.5)
    ax.set_yticks(range(n_y), [_short(value) for value in table.axes[y]], fontsize=5.5)


def _cell_text(metric: str, values: np.ndarray) -> str:
    if metric in SHARES:
        return f"{int(values.sum())}/{len(values)}"
    mean = _two_digits(values.mean())
    return mean if len(values) < 2 else f"{mean}\n±{_two_digits(half_interval(values))}"


def _two_digits(value: float) -> str:
    """.05 and 10.05, and no -.00"""
    return re.sub(r"(?<!\d)0\.", ".", f"{round(float(value), 2) + 0:.2f}")


def half_interval(values: np.ndarray) -> float:
    """Half of the 95% interval of the mean, by Student's t."""
    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def interval(metric: str, values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean over seeds; of a share Wilson's, every seed counting once."""
    n, mean = len(values), float(values.mean())
    if metric not in SHARES:
        half = half_interval(values) if n > 1 else 0.0
        return mean - half, mean + half
    z = float(norm.ppf(0.975))
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    return min(mean, centre - half), max(mean, centre + half)


# --- main effects -----------------------------------------------------------------------------------------


def main_effects(record: dict[str, Any], metrics: Sequence[str]) -> Figure:
    """Every axis but objective and seed in a column, every metric in a row, every objective a line."""
    table = table_of(record)
    axes = [name for name in table.axes if name != "objective"] or list(table.axes)
    with plots.styled(0.7 + 1.35 * len(metrics)) as figure:
        panels = figure.subplots(len(metrics), len(axes), sharex="col", sharey="row", squeeze=False)
        for i, metric in enumerate(metrics):
            for j, axis in enumerate(axes):
                _effect(panels[i][j], table, metric, axis)
                if j == 0:
                    panels[i][j].set_ylabel(title_of(metric), fontsize=7)
                if i == len(metrics) - 1:
                    panels[i][j].set_xlabel(axis.replace("_", " "), fontsize=7)
        if "objective" in table.axes:
            panels[0][0].legend(loc="best", fontsize=5.5)
        text = (
            "Means over what of the other axes has a number at every value of the axis; bars: 95% intervals over seeds "
            "(Student's t of their means; of shares Wilson's)."
        )
        figure.supxlabel(text, fontsize=6, color="#555555")
    return figure


def _effect(ax: Axes, table: Table, metric: str, axis: str) -> None:
    names, values = list(table.axes), table.metrics[metric]
    objectives = table.axes.get("objective", [""])
    n = len(table.axes[axis])
    matched = _matched(table, metric, axis)
    for k, objective in enumerate(objectives):
        own = table.places[:, names.index("objective")] == k if "objective" in names else np.ones(len(values), bool)
        shift = 0.35 * (k - (len(objectives) - 1) / 2) / len(objectives)
        middle, bars = np.full(n, np.nan), np.zeros((2, n))
        for place in range(n):
            here = own & matched & (table.places[:, names.index(axis)] == place) & ~np.isnan(values)
            seeds = [values[here & (table.seeds == seed)].mean() for seed in np.unique(table.seeds[here])]
            if seeds:
                middle[place] = np.mean(seeds)
                low, high = interval(metric, np.array(seeds))
                bars[:, place] = middle[place] - low, high - middle[place]
        colour = OBJECTIVE_COLOURS[k % len(OBJECTIVE_COLOURS)]
        ax.errorbar(
            np.arange(n) + shift,
            middle,
            bars,
            fmt="o-",
            color=colour,
            markersize=2.5,
            linewidth=0.9,
            elinewidth=0.9,
            label=objective.replace("_", " "),
        )
    ax.set_xticks(range(n), [_short(value) for value in table.axes[axis]], fontsize=6)
    if metric in SHARES:
        ax.set_ylim(-0.05, 1.05)


def _matched(table: Table, metric: str, axis: str) -> np.ndarray:
    """Cells whose values on the other axes have a number at every value of this one, so that like is compared with
    like; all cells where there are no such."""
    i, known = list(table.axes).index(axis), ~np.isnan(table.metrics[metric])
    others = np.delete(table.places, i, axis=1)
    _, group = np.unique(others, axis=0, return_inverse=True)
    found = np.zeros((group.max() + 1, len(table.axes[axis])), bool)
    found[group.ravel()[known], table.places[known, i]] = True
    whole = np.asarray(found.all(axis=1))[group.ravel()]
    return whole if whole.any() else np.ones(len(known), bool)


def _label(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name.replace("_", " ") if value else f"not {name.replace('_', ' ')}"
    return (
        str(value).replace("_", " ") if name in ("objective", "tree") else f"{name.replace('_', ' ')} {_short(value)}"
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "–".join(_short(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")
