"""What all figures share: style, colours, intervals, heatmaps, and the drawn tree.

One policy for every interval, all of them 95%. A share of independent runs has a Wilson interval, with n the number of
runs (`wilson`). Rates, cosines, FVU and L0 over seeds have a percentile bootstrap of their mean, which stays inside
their range (`bootstrap`). A value per seed is one value: cells are averaged within a seed first, and n is the number
of seeds. A panel with nothing to show says why (`nothing`).
"""

import contextlib
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from scipy.stats import binomtest

from experiments.common.fonts import BASE, give_fonts
from toy.checks import quoted
from toy.features.node import Node, feature_names, features, walk

WIDTH = 7.0  # inches: the text width of a paper
COLOURS = {"truth": "#444444", "vanilla": "#d1495b", "matryoshka": "#00798c", "other": "#edae49"}
STYLE: Any = {
    "text.usetex": False,  # names of users are drawn as they are, not as formulas
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
    """The names of a tree's features as figures show them."""
    return [shown_name(name) for name in feature_names(root)]


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


def caption(figure: Figure, record: dict[str, Any], text: str) -> None:
    """Under the figure: what is shown, seeds and configuration."""
    config, seeds = record["config"], record["seeds"]
    parts = [text, f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"]
    if "n_steps" in config:
        sparsity = {"l1": "L1", "log": "log"}[config["sparsity"]]
        parts.append(f"{config['n_steps']:,} steps, {sparsity} sparsity")
    parts.append(f"d_in {config['d_in']}")
    figure.supxlabel(textwrap.fill("; ".join(parts) + ".", 150), fontsize=6.5, color="#555555")


def nothing(ax: Axes, text: str) -> None:
    """Say in a panel with nothing to show why."""
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


def label_columns(ax: Axes, names: list[str], size: float = 6.5) -> None:
    """Feature names under the columns, while they are few enough to be read."""
    if len(names) <= 30:
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=size)


def label_rows(ax: Axes, names: list[str], size: float = 6.5) -> None:
    """Feature names beside the rows, likewise."""
    if len(names) <= 30:
        ax.set_yticks(range(len(names)), names, fontsize=size)


class Interval(NamedTuple):
    """A mean or share with its 95% interval."""

    mean: float
    low: float
    high: float


def wilson(count: int, total: int) -> Interval:
    """The share of independent runs in which something is so. Raises: ValueError without any run."""
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return Interval(count / total, interval.low, interval.high)


def bootstrap(values: Iterable[float]) -> Interval:
    """The mean of one value per seed, with the percentiles of 2,000 resampled means. Raises: ValueError without any."""
    kept = np.array(list(values), float)
    means = np.random.default_rng(0).choice(kept, (2_000, len(kept))).mean(axis=1)
    return Interval(float(kept.mean()), *map(float, np.percentile(means, [2.5, 97.5])))


def spread(ax: Axes, x: float, values: Iterable[float | None], colour: str, *, width: float = 0.12) -> bool:
    """Every seed as a dot and their mean with its interval; returns whether any value is known, else draws nothing."""
    kept = np.array([value for value in values if value is not None], float)
    if not len(kept):
        return False
    aside = np.random.default_rng(0).uniform(-width, width, len(kept))
    ax.scatter(x + aside, kept, s=5, color=colour, alpha=0.35, linewidths=0, zorder=2)
    bar(ax, x, bootstrap(kept), colour, fmt="_", markersize=9, markeredgewidth=1.4, elinewidth=1.2, zorder=3)
    return True


def share(ax: Axes, x: float, count: int, total: int, colour: str, marker: str = "o", width: float = 1.4) -> None:
    """A share of seeds with its interval; nothing without any seed."""
    if total:
        bar(ax, x, wilson(count, total), colour, fmt=marker, markersize=4, capsize=2, elinewidth=width)


def bar(ax: Axes, x: float, interval: Interval, colour: str, **style: Any) -> None:
    """A mean with its interval as an error bar."""
    error = [[max(interval.mean - interval.low, 0)], [max(interval.high - interval.mean, 0)]]
    ax.errorbar(x, interval.mean, error, color=colour, **style)


def draw_tree(ax: Axes, root: Node, names: list[str]) -> None:
    """The tree from left to right: features as dots, other nodes as squares, exclusive children on a common bar."""
    found = walk(root)
    depth, height = _places(found)
    column = {id(node): name for node, name in zip(features(root), names, strict=True)}
    size = float(np.clip(150 / (max(height) + 1), 2, 7))
    for i, (_, parent, node) in enumerate(found):
        x, y = depth[i], height[i]
        if parent >= 0:
            style = "-" if not found[parent][2].exclusive else (0, (2, 1))
            elbow = [depth[parent], x - 0.45, x], [height[parent], y, y]
            ax.plot(*elbow, color="#999999", linewidth=0.7, linestyle=style)
            ax.text(x - 0.42, y + 0.08, f"{node.active_prob:g}", fontsize=size - 1, color="#777777", va="bottom")
        marker, colour = ("o", COLOURS["matryoshka"]) if node.is_feature else ("s", "white")
        ax.plot(x, y, marker, color=colour, markeredgecolor="#555555", markeredgewidth=0.5, markersize=4)
        box = dict(facecolor="white", edgecolor="none", pad=0.6, alpha=0.9)
        ax.text(x + 0.07, y, column.get(id(node), ""), fontsize=size, va="center", bbox=box)
    ax.set_xlim(-0.15, max(depth) + 0.45)
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
