"""The features: their tree, a batch of it, their directions, and how often each is on.

Claim: the generator draws what the tree says; sampled frequencies lie on the exact marginals.
Command: python -m experiments.ground_truth (seconds on 2 cores; nothing is trained).
Expected, seeds 0 to 31: mean L0 1.12 exactly; every cosine of two features 0 to rounding.
In the post: the figure of ground-truth features on a batch, all-zero entries filtered out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import caption_text
from experiments.common.memory import FLOAT, check_fits
from experiments.common.study import MOST_SHOWN, TreeConfig, check_features, shown_batch
from toy.checks import Whole, check_fields
from toy.features.directions import cosine_matrix
from toy.features.node import walk
from toy.features.tree import marginals, mean_l0, sample_features
from toy.features.tree_json import tree_from_dict


@dataclass(frozen=True)
class Config(TreeConfig):
    """Options of `ground_truth`."""

    batch_size: int = 200
    """Rows of the batch that is shown, before all-zero rows are dropped."""
    n_rows: int = 20_000
    """Rows per seed for the frequencies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, batch_size=Whole(most=MOST_SHOWN), n_rows=Whole())


def check(cfg: Config) -> None:
    """Raises: ValueError saying what is wrong with the options, before any work."""
    check_features(cfg, cfg.tree.tree)
    check_fits({"n_rows": FLOAT * cfg.n_rows * cfg.tree.tree.n_features})


def n_steps(cfg: Config) -> int:
    return cfg.n_seeds


def run(cfg: Config, work: Work) -> dict[str, Any]:
    study = cfg.study
    frequencies, l0s, cosines = [], [], []
    for key, W_feat in zip(study.keys, study.W_feat, strict=True):
        on = np.asarray(sample_features(key, study.tree, cfg.n_rows)) > 0
        frequencies.append(on.mean(axis=0))
        l0s.append(on.sum(axis=1).mean())
        cosines.append(cosine_matrix(W_feat, W_feat))
        work(1)
    off_diagonal = np.abs(cosines) * (1 - np.eye(study.tree.n_features))
    return {
        "n_seeds": cfg.n_seeds,
        "marginals": marginals(study.tree),
        "mean_l0": mean_l0(study.tree),
        "frequency": frequencies,
        "l0": l0s,
        "max_cosine": off_diagonal.max(axis=(1, 2)),
        "batch": shown_batch(cfg.seed, study.tree, cfg.batch_size),
        "cosines": cosines[0],
    }


def summary(record: dict[str, Any]) -> list[str]:
    results = record["results"]
    return [
        f"mean L0 {results['mean_l0']:.4g} exactly, {np.mean(results['l0']):.4g} sampled; "
        f"largest |cosine| of two features {max(results['max_cosine']):.2g}"
    ]


def caption(record: dict[str, Any]) -> str:
    results, n_rows = record["results"], record["config"]["n_rows"]
    text = (
        "a: the tree, on the lines P(child on | parent on), dashed where at most one of the children is on; b: the "
        f"{len(results['batch'])} rows of a batch that are not all zero, sorted; c: cosines of the directions of the "
        f"first seed; d: sampled minus exact P(on) in binomial standard errors, {n_rows:,} rows per seed; dots: seeds; "
        f"bars: mean with 95% interval; exact mean L0 {results['mean_l0']:.4g}"
    )
    return caption_text(record, text)


def plot(record: dict[str, Any]) -> Figure:
    results, root = record["results"], tree_from_dict(record["config"]["tree"])
    names = plots.shown_names(root)
    n_leaves = sum(not node.children for _, _, node in walk(root))
    with plots.styled(float(np.clip(0.09 * n_leaves, 6.4, 9.2))) as figure:
        grid = figure.add_gridspec(3, 2, width_ratios=[1, 1.15], height_ratios=[1.2, 1.2, 1])
        ax = figure.add_subplot(grid[:, 0])
        ax.set_title("a  The tree")
        plots.draw_tree(ax, root, names)
        _plot_batch(figure.add_subplot(grid[0, 1]), results, names)
        _plot_cosines(figure.add_subplot(grid[1, 1]), results, names)
        _plot_frequencies(figure.add_subplot(grid[2, 1]), results, names, record["config"]["n_rows"])
    return figure


def _plot_batch(ax: Axes, results: dict[str, Any], names: list[str]) -> None:
    high = max([1.0, *(value for row in results["batch"] for value in row)])
    image = plots.heatmap(ax, results["batch"], low=0, high=high, colours="Greys", empty="no row has a feature on")
    plots.label_columns(ax, names)
    ax.set(title="b  Features of a batch", xlabel="feature", ylabel="row")
    ax.figure.colorbar(image, ax=ax, label="magnitude", shrink=0.8)


def _plot_cosines(ax: Axes, results: dict[str, Any], names: list[str]) -> None:
    image = plots.heatmap(ax, results["cosines"], low=-1, high=1, colours="RdBu_r")
    plots.label_columns(ax, names)
    plots.label_rows(ax, names)
    ax.set(title="c  Cosines of the directions", xlabel="feature", ylabel="feature")
    ax.figure.colorbar(image, ax=ax, label="cosine", shrink=0.8)


def _plot_frequencies(ax: Axes, results: dict[str, Any], names: list[str], n_rows: int) -> None:
    exact = np.array(results["marginals"])
    error = (results["frequency"] - exact) / np.sqrt(np.maximum(exact * (1 - exact), 1e-12) / n_rows)
    size = float(np.clip(150 / len(names), 1, 9))
    for column, seeds in enumerate(error.T):
        plots.spread(ax, column, seeds, plots.COLOURS["truth"], width=0.2, size=size)
    ax.axhline(0, color=plots.COLOURS["truth"], linewidth=0.8)
    plots.label_columns(ax, names)
    ax.set(title="d  Sampled minus exact P(on)", xlabel="feature", ylabel="standard errors")


EXPERIMENT = Experiment("ground_truth", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
