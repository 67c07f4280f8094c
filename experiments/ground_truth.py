"""The features: their tree, a batch of it, their directions, and how often each is on.

Claim: the generator draws what the tree says; sampled frequencies lie on the exact marginals.
Command: python -m experiments.ground_truth (seconds on 2 cores; nothing is trained).
Expected, seeds 0 to 31: mean L0 1.12 exactly; every cosine of two features 0 to rounding.
In the post: the figure of ground-truth features on a batch, all-zero entries filtered out.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.memory import FLOAT, check_fits
from experiments.common.study import MOST_SHOWN, TreeConfig, check_features, shown_batch
from toy.checks import Whole, check_fields
from toy.features.directions import cosine_matrix
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
    sample = jax.jit(partial(sample_features, batch_size=cfg.n_rows))
    frequencies, l0s, cosines = [], [], []
    for key, W_feat in zip(study.keys, study.W_feat, strict=True):
        on = np.asarray(sample(key, study.tree)) > 0
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


def plot(record: dict[str, Any]) -> Figure:
    results, root = record["results"], tree_from_dict(record["config"]["tree"])
    names = plots.shown_names(root)
    batch, frequency = np.array(results["batch"]), np.array(results["frequency"])
    with plots.styled(5.6) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=[1.25, 1])
        ax = figure.add_subplot(grid[0, 0])
        plots.draw_tree(ax, root, names)
        ax.set_title("a  The tree: P(child on | parent on);\n    dashed: at most one of the children")

        ax = figure.add_subplot(grid[0, 1])
        image = plots.heatmap(
            ax,
            batch,
            low=0,
            high=max(1.0, float(batch.max(initial=0))),
            colours="Greys",
            empty="no row has a feature on",
        )
        plots.label_columns(ax, names)
        ax.set(
            title=f"b  Features of a batch:\n    its {len(batch)} rows that are not all zero, sorted",
            xlabel="feature",
            ylabel="row",
        )
        figure.colorbar(image, ax=ax, label="magnitude", shrink=0.6)

        ax = figure.add_subplot(grid[1, 0])
        image = plots.heatmap(ax, np.array(results["cosines"]), low=-1, high=1, colours="RdBu_r")
        ax.set_aspect("equal")
        plots.label_columns(ax, names)
        plots.label_rows(ax, names)
        ax.set(title=f"c  Cosines of the directions (seed {record['seeds'][0]})", xlabel="feature", ylabel="feature")
        figure.colorbar(image, ax=ax, label="cosine", shrink=0.8)

        ax = figure.add_subplot(grid[1, 1])
        exact = np.array(results["marginals"])
        n_rows = record["config"]["n_rows"]
        error = (frequency - exact) / np.sqrt(np.maximum(exact * (1 - exact), 1e-12) / n_rows)
        for column in range(len(names)):
            plots.spread(ax, column, list(error[:, column]), plots.COLOURS["matryoshka"], width=0.2)
        ax.axhline(0, color=plots.COLOURS["truth"], linewidth=0.8)
        plots.label_columns(ax, names)
        ax.set(
            title=f"d  Sampled minus exact P(on), {n_rows:,} rows a seed",
            xlabel="feature",
            ylabel="binomial standard errors",
        )
        plots.caption(
            figure, record, f"Dots: seeds; bars: mean and 95% interval. Exact mean L0 {results['mean_l0']:.4g}"
        )
    return figure


EXPERIMENT = Experiment("ground_truth", Config, run, summary, plot, check, n_steps)

if __name__ == "__main__":
    main(EXPERIMENT)
