"""Pieces of all figures: style, colours, intervals, heatmaps, and the drawn tree.

One policy for every interval, all of them 95%. A share of independent runs has a Wilson interval, with n the number of
runs (`wilson`). Rates, cosines, FVU and L0 over seeds have a percentile bootstrap of their mean, which stays inside
their range (`bootstrap`). A value per seed is one value: cells are averaged within a seed first, and n is the number
of seeds. A panel with nothing to show says why (`nothing`).
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import scipy  # loads its parts when they are first asked for
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from experiments.common.fonts import BASE, give_fonts
from toy.checks import quoted
from toy.features.node import Node, feature_names, features, walk

WIDTH = 7.0  # inches: the text width of a paper
LABELS = {"vanilla": "vanilla SAE", "matryoshka": "Matryoshka SAE"}
COLOURS = {"truth": "#444444", "vanilla": "#d1495b", "matryoshka": "#00798c", "other": "#edae49"}
STYLE: Any = {
    "text.usetex": False,  # user-supplied names are drawn as they are, not as formulas
    "text.parse_math": False,
    "font.family": BASE,
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def shown_name(name: str, most: int = 24) -> str:
    """A name as figures and pages show it: on one line, what cannot be seen escaped, and cut where it is long."""
    return quoted(name, most)


def shown_names(root: Node) -> list[str]:
    """The names of a tree's features, cut to what leaves room for the panels."""
    return [shown_name(name, 14) for name in feature_names(root)]


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The style of the figures from matplotlib's own defaults: a user's matplotlibrc has no say.

    It is to be in force when a figure is made, and when it is saved. `give_fonts` tells of characters without a font.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


@contextlib.contextmanager
def styled(height: float, **layout: Any) -> Iterator[Figure]:
    """A figure of the text width. It needs no window system, and pyplot does not keep it."""
    with style():
        figure = Figure(figsize=(WIDTH, height), **layout)
        yield figure
        give_fonts(figure)


def stacked(figure: Figure, *heights: float) -> list[SubFigure]:
    """Parts of a figure, one above the other."""
    return [figure.add_subfigure(place) for place in figure.add_gridspec(len(heights), 1, height_ratios=heights)]


def nothing(ax: Axes, text: str) -> None:
    """Say in a panel with nothing to show why."""
    ax.set_yticks([])
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=6, color="#777777", wrap=True)


def heatmap(
    ax: Axes, values: Any, *, low: float, high: float, colours: str | Colormap, empty: str = "nothing to show"
) -> Any:
    """One cell per value, blank where it is null; the words `empty` where there is none at all."""
    cells = np.array(values, float)
    if not np.isfinite(cells).any():
        nothing(ax, empty)
        cells = np.full((1, 1), np.nan) if not cells.size else cells
    image = ax.imshow(cells, vmin=low, vmax=high, cmap=colours, aspect="auto", interpolation="none")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


def table(
    ax: Axes,
    title: str,
    values: list[list[float]],
    text: list[list[str]],
    rows: list[str],
    columns: list[str],
    *,
    high: float,
) -> None:
    """Words in cells that are the darker the higher their values are; the darkest at `high` still lets them be read."""
    shades = np.array(values, float).reshape(len(rows), len(columns))
    ax.imshow(np.nan_to_num(shades), cmap="Greys", vmin=0, vmax=1.8 * high, aspect="auto", interpolation="none")
    size = 5.5 if len(columns) <= 12 else 66 / len(columns)
    for i, row in enumerate(text):
        for j, words in enumerate(row):
            ax.text(j, i, words, ha="center", va="center", fontsize=size)
    ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=size)
    ax.set_yticks(range(len(rows)), rows, fontsize=6)
    ax.set_title(title)
    ax.tick_params(length=0)


def label_columns(ax: Axes, names: list[str], size: float = 5.5) -> None:
    """Names under the columns: all of them, or every second, third … where there is no room for more."""
    shown = _apart(len(names), ax.get_window_extent().width / ax.figure.dpi, size)
    ax.set_xticks(shown, [names[i] for i in shown], rotation=90, fontsize=size)


def label_rows(ax: Axes, names: list[str], size: float = 5.5) -> None:
    """Names beside the rows, likewise."""
    shown = _apart(len(names), ax.get_window_extent().height / ax.figure.dpi, size)
    ax.set_yticks(shown, [names[i] for i in shown], fontsize=size)


def _apart(n_names: int, inches: float, size: float) -> list[int]:
    """Places of as many names as stand side by side on an axis, at equal distances."""
    room = max(1, int(inches * 72 / (1.05 * size)))
    return list(range(0, n_names, -(-n_names // room) or 1))


def log_scale(ax: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers: formulas are not drawn."""
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=5))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


class Interval(NamedTuple):
    """A mean or share with its 95% interval."""

    mean: float
    low: float
    high: float


def wilson(count: int, total: int) -> Interval:
    """The share of independent runs in which something is so. Raises: ValueError without any run."""
    interval = scipy.stats.binomtest(count, total).proportion_ci(method="wilson")
    return Interval(count / total, interval.low, interval.high)


def count_text(count: int, total: int, digits: int = 2) -> str:
    """A count of runs and the interval of its share, such as 5/16 [0.14, 0.56]."""
    interval = wilson(count, total)
    return f"{count}/{total} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def bootstrap(values: Iterable[float]) -> Interval:
    """The mean of one value per seed, with the percentiles of 2,000 resampled means. Raises: ValueError without any."""
    kept = np.array(list(values), float)
    means = np.random.default_rng(0).choice(kept, (2_000, len(kept))).mean(axis=1)
    return Interval(float(kept.mean()), *map(float, np.percentile(means, [2.5, 97.5])))


def spread(
    ax: Axes, x: float, values: Iterable[float | None], colour: str, *, width: float = 0.12, size: float = 9
) -> bool:
    """Every seed as a dot and their mean with its interval; returns whether any value is known, else draws nothing."""
    kept = np.array([value for value in values if value is not None], float)
    if not len(kept):
        return False
    aside = np.random.default_rng(0).uniform(-width, width, len(kept))
    ax.scatter(x + aside, kept, s=5, color=colour, alpha=0.35, linewidths=0, zorder=2)
    bar(ax, x, bootstrap(kept), colour, fmt="_", markersize=size, markeredgewidth=1.4, elinewidth=1.2, zorder=3)
    return True


def share(ax: Axes, x: float, count: int, total: int, colour: str, marker: str = "o", width: float = 1.4) -> None:
    """A share of seeds with its interval; nothing without any seed."""
    if total:
        bar(ax, x, wilson(count, total), colour, fmt=marker, markersize=4, capsize=2, elinewidth=width)


def bar(ax: Axes, x: float, interval: Interval, colour: str, **style: Any) -> None:
    """A mean with its interval as an error bar."""
    error = [[max(interval.mean - interval.low, 0)], [max(interval.high - interval.mean, 0)]]
    ax.errorbar(x, interval.mean, error, color=colour, **style)


class Mark(NamedTuple):
    """A kind of SAE in panels that compare kinds: its place, its entry of the record, and its colour."""

    x: float
    result: dict[str, Any]
    colour: str


OUTCOMES = {
    "recovered": "Recovered\n(share of seeds)",
    "hole_rate": "Hole rate",
    "fvu": "FVU",
    "l0": "L0",
    "shrinkage": "Shrinkage:\n‖recon‖ / ‖x‖",
}


def outcomes(axes: Sequence[Axes], letters: str, marks: Sequence[Mark], labels: list[str], no_holes: str) -> None:
    """Recovery and holes, and beside them their price, in five panels; `no_holes` says why no hole rate is known."""
    for ax, letter, (field, title) in zip(axes, letters, OUTCOMES.items(), strict=True):
        drawn = [_outcome(ax, mark, field) for mark in marks]
        if not any(drawn):
            nothing(ax, no_holes if field == "hole_rate" else "not known")
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
        ax.set(title=f"{letter}  {title}", xlim=(-0.6, len(labels) - 0.4))
        if field in ("recovered", "hole_rate"):
            ax.set_ylim(-0.05, 1.05)
        elif field == "fvu":
            ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))


def _outcome(ax: Axes, mark: Mark, field: str) -> bool:
    if field == "recovered":
        share(ax, mark.x, mark.result["recovered"], mark.result["n_seeds"], mark.colour)
        return True
    if field == "l0" and "target_l0" in mark.result:
        target = mark.result["target_l0"]
        ax.plot([mark.x - 0.25, mark.x + 0.25], [target] * 2, ":", color=COLOURS["truth"], linewidth=1.2, zorder=4)
    return spread(ax, mark.x, mark.result[field], mark.colour, size=6)


def label(method: str) -> str:
    """The name of a method in a figure."""
    return LABELS.get(method) or shown_name(method, 36)


def colour(method: str) -> str:
    return COLOURS.get(method, COLOURS["other"])


def name_kinds(figure: Any, methods: Iterable[str] = tuple(LABELS)) -> None:
    """A legend of the kinds of SAE above a figure's panels."""
    lines = [Line2D([], [], color=colour(method), label=label(method)) for method in methods]
    figure.legend(handles=lines, loc="outside upper right", ncols=len(lines))


def draw_tree(ax: Axes, root: Node, names: list[str]) -> None:
    """The tree from left to right: features as dots, other nodes as squares, exclusive children on dashed lines."""
    found = walk(root)
    depth, height = _places(found)
    column = {id(node): name for node, name in zip(features(root), names, strict=True)}
    per_leaf = ax.get_window_extent().height / ax.figure.dpi * 72 / (max(height) + 1)  # points
    size = float(np.clip(per_leaf, 2, 7))
    named = per_leaf >= 2  # smaller letters cannot be read
    for i, (_, parent, node) in enumerate(found):
        x, y = depth[i], height[i]
        if parent >= 0:
            style = "-" if not found[parent][2].exclusive else (0, (2, 1))
            elbow = [depth[parent], x - 0.45, x], [height[parent], y, y]
            ax.plot(*elbow, color="#999999", linewidth=0.7, linestyle=style, zorder=1)
            box = dict(facecolor="white", edgecolor="none", pad=0.3)
            ax.text(x - 0.25, y, f"{node.active_prob:g}", fontsize=0.8 * size, va="center", ha="center", bbox=box)
        marker, colour = ("o", COLOURS["truth"]) if node.is_feature else ("s", "white")
        ax.plot(
            x, y, marker, color=colour, markeredgecolor=COLOURS["truth"], markeredgewidth=0.5, markersize=0.5 * size
        )
        box = dict(facecolor="white", edgecolor="none", pad=0.6, alpha=0.9)
        if named:
            ax.text(x + 0.07, y, column.get(id(node), ""), fontsize=size, va="center", bbox=box)
    ax.set(xlim=(-0.15, max(depth) + 0.45), ylim=(-1, max(height) + 1))
    ax.axis("off")


def _places(found: list[tuple[str, int, Node]]) -> tuple[list[int], list[float]]:
    """Depth and height of each node of `walk`: leaves one above the other, parents amid their children."""
    children: list[list[int]] = [[] for _ in found]
    depth, height = [0] * len(found), [0.0] * len(found)
    for i, (_, parent, _) in enumerate(found):
        if parent >= 0:
            children[parent].append(i)
            depth[i] = depth[parent] + 1
    n_leaves = 0
    for i in reversed(range(len(found))):  # children come after their parents
        if children[i]:
            height[i] = float(np.mean([height[child] for child in children[i]]))
        else:
            height[i], n_leaves = float(n_leaves), n_leaves + 1
    return depth, height
