"""Pieces of figures: style, heatmaps, the drawn tree, intervals, the caption line."""

import contextlib
import textwrap
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from scipy.stats import binomtest

from toy.checks import quoted
from toy.node import Node, features, walk

WIDTH = 7.0  # inches: the text width of a paper
COLOURS = {"truth": "#444444", "vanilla": "#d1495b", "matryoshka": "#00798c", "other": "#edae49"}
STYLE: Any = {
    "text.usetex": False,  # names of users are drawn as they are, not as formulas
    "text.parse_math": False,
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


@contextlib.contextmanager
def styled(height: float, **layout: Any) -> Iterator[Figure]:
    """A figure of the text width; closed when drawn, so that many can be made in one process."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(WIDTH, height), **layout)
        yield figure
        plt.close(figure)


def caption(figure: Figure, record: dict[str, Any], text: str) -> None:
    """Under the figure: what is shown, seeds and configuration."""
    config, seeds = record["config"], record["seeds"]
    parts = [text, f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"]
    if "n_steps" in config:
        sparsity = {"l1": "L1", "log": "log"}[config["sparsity"]]
        parts.append(f"{config['n_steps']:,} steps, {sparsity} sparsity")
    parts.append(f"d_in {config['d_in']}")
    figure.supxlabel(textwrap.fill("; ".join(parts) + ".", 150), fontsize=6.5, color="#555555")


def heatmap(ax: Axes, values: np.ndarray, *, low: float, high: float, colours: str | Colormap) -> Any:
    """One cell a value."""
    image = ax.imshow(values, vmin=low, vmax=high, cmap=colours, aspect="auto", interpolation="none")
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


def spread(ax: Axes, x: float, values: list[float | None], colour: str, *, width: float = 0.12) -> None:
    """Every seed a dot, and their mean with its 95% interval (percentile bootstrap over seeds)."""
    kept = np.array([value for value in values if value is not None], float)
    if not len(kept):
        return
    rng = np.random.default_rng(0)
    ax.scatter(x + rng.uniform(-width, width, len(kept)), kept, s=5, color=colour, alpha=0.35, linewidths=0, zorder=2)
    means = rng.choice(kept, (2_000, len(kept))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    mean = kept.mean()
    error = [[max(mean - low, 0)], [max(high - mean, 0)]]
    ax.errorbar(x, mean, error, fmt="_", color=colour, markersize=9, markeredgewidth=1.4, elinewidth=1.2, zorder=3)


def share(ax: Axes, x: float, count: int, total: int, colour: str, marker: str = "o", width: float = 1.4) -> None:
    """A share of seeds with its 95% Wilson interval."""
    interval = binomtest(count, total).proportion_ci(method="wilson")
    value = count / total
    error = [[max(value - interval.low, 0)], [max(interval.high - value, 0)]]
    ax.errorbar(x, value, error, fmt=marker, color=colour, markersize=4, capsize=2, elinewidth=width)


def draw_tree(ax: Axes, root: Node, names: list[str]) -> None:
    """The tree from left to right: features as dots, other nodes as squares, exclusive children on a common bar."""
    found = walk(root)
    children: dict[int, list[int]] = {i: [] for i in range(len(found))}
    depth = [0] * len(found)
    for i, (_, parent, _) in enumerate(found):
        if parent >= 0:
            children[parent].append(i)
            depth[i] = depth[parent] + 1
    height: dict[int, float] = {}
    n_leaves = 0
    for i in reversed(range(len(found))):  # children come after their parents
        if children[i]:
            height[i] = float(np.mean([height[c] for c in children[i]]))
        else:
            height[i], n_leaves = float(n_leaves), n_leaves + 1
    column = {id(node): name for node, name in zip(features(root), names, strict=True)}
    size = min(7.0, 150 / max(n_leaves, 1))
    for i, (_, parent, node) in enumerate(found):
        x, y = depth[i], height[i]
        if parent >= 0:
            style = "-" if not found[parent][2].exclusive else (0, (2, 1))
            ax.plot(
                [depth[parent], x - 0.45, x], [height[parent], y, y], color="#999999", linewidth=0.7, linestyle=style
            )
            ax.text(x - 0.42, y + 0.08, f"{node.active_prob:g}", fontsize=size - 1, color="#777777", va="bottom")
        colour = COLOURS["matryoshka"] if node.is_feature else "white"
        ax.plot(
            x,
            y,
            "o" if node.is_feature else "s",
            color=colour,
            markeredgecolor="#555555",
            markeredgewidth=0.5,
            markersize=4,
        )
        box = dict(facecolor="white", edgecolor="none", pad=0.6, alpha=0.9)
        ax.text(x + 0.07, y, column.get(id(node), ""), fontsize=size, va="center", bbox=box)
    ax.set_xlim(-0.15, max(depth) + 0.45)
    ax.axis("off")
