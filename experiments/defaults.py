"""How few steps recover a tree? Recovery of Matryoshka SAEs by steps, learning rate and size of the inputs.

Claim: the reference tree needs far fewer than 20,000 steps, and no tree here needs as many at the best learning rate.
Command: python -m experiments.defaults (about 70 minutes on 2 cores, 3 on an H100). The L0 controller's rate is
inversely proportional to the number of steps, and the coefficient starts at the size of the inputs, so that every run
can reach the same coefficients.
Expected: the defaults of `TrainConfig` and `StudyConfig` follow from this record; see experiments/FINDINGS.md.
In the post: 20,000 steps and no study of them.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.study import Progress, StudyConfig, check_study, held_out_features, make_study, train_config
from toy.checks import POSITIVE, Whole, check_fields
from toy.data.source import TreeSource
from toy.eval.against_tree import evaluate
from toy.features.named import RegularTree, regular_tree, three_level_tree
from toy.features.node import Node
from toy.features.tree import mean_l0
from toy.prefixes import sampled
from toy.training.config import Hypers
from toy.training.grid import train_grid, trained_saes

TREES: dict[str, Node] = {
    "reference": regular_tree(RegularTree()),
    "frequent children": regular_tree(RegularTree(edge_prob=0.3)),
    "independent children": regular_tree(RegularTree(exclusive=False)),
    "five children": regular_tree(RegularTree(branching=5, edge_prob=0.1)),
    "two levels": regular_tree(RegularTree(n_roots=2, branching=2, depth=2)),
    "three levels": three_level_tree(),
}
CONTROL = 6.0  # the controller's rate times the number of steps: the coefficient can change by a factor of e^4.8


@dataclass(frozen=True)
class Config(StudyConfig):
    """Options of `defaults`."""

    n_seeds: int = 64
    """Number of seeds of every combination."""
    steps: tuple[int, ...] = (2_000, 4_000, 8_000, 20_000)
    """Numbers of training steps."""
    learning_rates: tuple[float, ...] = (5e-3, 1e-2, 2e-2, 3e-2)
    """Adam's learning rates."""
    input_sizes: tuple[float, ...] = (0.2, 0.5, 1.0)
    """Mean norms of the inputs over the square root of d_in."""
    n_eval_rows: int = 5_000
    """Held-out rows that every SAE is measured on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, steps=Whole(), learning_rates=POSITIVE, input_sizes=POSITIVE)


def check(cfg: Config) -> None:
    """Raises: ValueError saying what is wrong with the options, before any work."""
    for root in TREES.values():
        check_study(cfg, root, len(cfg.learning_rates) * len(cfg.input_sizes))


def n_steps(cfg: Config) -> int:
    return len(TREES) * sum(cfg.steps)


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    return {
        name: {str(n): _measure(replace(cfg, n_steps=n), root, progress) for n in cfg.steps}
        for name, root in TREES.items()
    }


def _measure(cfg: Config, root: Node, progress: Progress) -> list[dict[str, Any]]:
    """One entry per combination of learning rate and size of the inputs, all trained at the same time."""
    study = make_study(cfg, root)
    features = held_out_features(cfg, study.tree)
    combinations = [(rate, size) for rate in cfg.learning_rates for size in cfg.input_sizes]
    rates, sizes = (jnp.repeat(jnp.array(column), cfg.n_seeds) for column in zip(*combinations, strict=True))
    train_cfg = train_config(cfg, study.tree)
    hypers = Hypers(
        sampled(train_cfg.n_latents),
        target_l0=mean_l0(study.tree),
        learning_rate=rates,
        sparsity_coef=sizes,
        control_rate=CONTROL / cfg.n_steps,
        input_size=sizes,
    )
    shared = Hypers(*[None] * len(Hypers._fields))  # type: ignore[arg-type]
    in_axes = (TreeSource(None, 0), shared._replace(learning_rate=0, sparsity_coef=0, input_size=0))  # type: ignore[arg-type]
    lanes = np.tile(np.arange(cfg.n_seeds), len(combinations))
    source = TreeSource(study.tree, jnp.asarray(study.W_feat[lanes]))
    state, _ = train_grid(study.keys[lanes], source, hypers, cfg=train_cfg, in_axes=in_axes, progress=progress)
    saes = jax.device_get(trained_saes(state))
    found = [
        evaluate(jax.tree.map(lambda leaf, i=i: leaf[i], saes), study.W_feat[lane], study.tree, features)
        for i, lane in enumerate(lanes)
    ]
    parts = [found[i : i + cfg.n_seeds] for i in range(0, len(found), cfg.n_seeds)]
    return [
        {
            "learning_rate": rate,
            "input_size": size,
            "recovered": sum(one.recovered for one in part),
            **{name: [getattr(one, name) for one in part] for name in ("hole_rate", "min_cosine", "fvu", "l0")},
        }
        for (rate, size), part in zip(combinations, parts, strict=True)
    ]


def summary(record: dict[str, Any]) -> list[str]:
    n_seeds = len(record["seeds"])
    lines = []
    for tree, by_steps in record["results"].items():
        for steps, cells in by_steps.items():
            best = max(cells, key=lambda cell: cell["recovered"])
            lines.append(
                f"{tree}, {int(steps):,} steps: at best {best['recovered']}/{n_seeds}, with learning rate "
                f"{best['learning_rate']:g} and inputs of size {best['input_size']:g}"
            )
    return lines


def plot(record: dict[str, Any]) -> Figure:
    results, config, n_seeds = record["results"], record["config"], len(record["seeds"])
    rates, sizes = config["learning_rates"], config["input_sizes"]
    with plots.styled(1.05 * len(results) + 0.5) as figure:
        axes = figure.subplots(len(results), len(config["steps"]), squeeze=False, sharex=True, sharey=True)

        for row, (tree, by_steps) in zip(axes, results.items(), strict=True):
            for ax, (steps, cells) in zip(row, by_steps.items(), strict=True):
                shares = np.array([cell["recovered"] for cell in cells]).reshape(len(rates), len(sizes)).T / n_seeds
                plots.heatmap(ax, shares, low=0, high=1, colours="viridis")
                for (y, x), share in np.ndenumerate(shares):
                    colour = "white" if share < 0.6 else "black"
                    ax.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize=6, color=colour)
                if ax in axes[0]:
                    ax.set_title(f"{int(steps):,} steps")
                ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
                ax.set_yticks(range(len(sizes)), [f"{size:g}" for size in sizes])
            row[0].set_ylabel(f"{tree}\ninput size")
        for ax in axes[-1]:
            ax.set_xlabel("learning rate")
        figure.colorbar(
            axes[0, 0].images[0], ax=axes, label=f"share of {n_seeds} seeds that recover the tree", shrink=0.5
        )
    return figure


if __name__ == "__main__":
    main("defaults")
