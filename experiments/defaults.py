"""The settings that trees are recovered with: Matryoshka SAEs by steps, learning rate, input size and restarts.

Claim: 8,000 steps recover the reference tree in more than 99% of seeds. More steps, and up to a learning rate of .02
other learning rates and sizes of the inputs, change little on any tree; restarts of weak latents decide, and their
threshold has a narrow range.
Command: python -m experiments.defaults (about three hours on 2 cores). The committed record joins two runs: its grid
took 6 minutes on one H200 (`grid_made_by` in it), its restarts and the headline 13 on one core.
Expected: `TrainConfig` and `Hypers` have the defaults that follow from this record; see experiments/FINDINGS.md.
In the post: 20,000 steps, which `--preset post` keeps, and no restarts.

The L0 controller's rate is `CONTROL` over the number of steps, and the coefficient starts at the size of the inputs, so
that every run can reach the same coefficients. The grid came first, with the threshold of restarts that was the default
then; the threshold was chosen after it.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import beta

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import evaluate_seeds
from experiments.common.seeds import SeedConfig
from experiments.common.study import (
    StudyConfig,
    check_study,
    held_out_features,
    make_study,
    train_config,
    train_settings,
)
from toy.checks import NOT_NEGATIVE, POSITIVE, Whole, check_fields, check_some
from toy.features.named import RegularTree, reference_tree, regular_tree, three_level_tree
from toy.features.node import Node
from toy.features.tree import build_tree, mean_l0
from toy.prefixes import sampled
from toy.training.config import MAX_STEPS, Hypers

TREES: dict[str, Node] = {
    "reference": reference_tree(),
    "frequent children": regular_tree(RegularTree(edge_prob=0.3)),
    "independent children": regular_tree(RegularTree(exclusive=False)),
    "five children": regular_tree(RegularTree(branching=5, edge_prob=0.1)),
    "two levels": regular_tree(RegularTree(n_roots=2, branching=2, depth=2)),
    "three levels": three_level_tree(),
}
CONTROL = 6.0  # the coefficient can change by a factor of e^4.8 after the warm-up
OWN = {"tree": "trees", "target_l0": "targets", "control_rate": "a rate", "sparsity_coef": "coefficients"}  # options
KEPT = ("hole_rate", "min_cosine", "fvu", "l0")  # per seed


@dataclass(frozen=True)
class Config(StudyConfig):
    """Options of `defaults`."""

    n_seeds: int = 64
    """Number of seeds of every combination."""
    no_preset: ClassVar = tuple(OWN)
    steps: tuple[int, ...] = (2_000, 4_000, 8_000, 20_000)
    """Numbers of training steps."""
    learning_rates: tuple[float, ...] = (5e-3, 1e-2, 2e-2, 3e-2)
    """Adam's learning rates."""
    input_sizes: tuple[float, ...] = (0.2, 0.5, 1.0)
    """Mean norms of the inputs over the square root of d_in."""
    grid_restarts: float = 0.3
    """Threshold of restarts in the grid of steps, learning rates and input sizes."""
    restarts: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4)
    """Shares of the median contribution below which a latent starts anew, tried with the reference tree."""
    n_headline_seeds: int = 1_000
    """Number of seeds that train on the reference tree with the defaults."""
    n_eval_rows: int = 5_000
    """Held-out rows that every SAE is measured on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, learning_rates=POSITIVE, input_sizes=POSITIVE, restarts=NOT_NEGATIVE)
        check_fields(self, steps=Whole(most=MAX_STEPS), grid_restarts=NOT_NEGATIVE)
        check_some(self, "steps", "learning_rates", "input_sizes", "restarts")
        for name, own in OWN.items():
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name}: the study has {own} of its own; leave it out")
        SeedConfig(self.seed, self.n_headline_seeds)  # raises for a last seed that is too large

    @property
    def grid(self) -> list[dict[str, float]]:
        return [
            {"learning_rate": rate, "input_size": size, "reinit_below": self.grid_restarts}
            for rate in self.learning_rates
            for size in self.input_sizes
        ]

    @property
    def headline(self) -> "Config":
        return replace(self, n_seeds=self.n_headline_seeds)

    @property
    def chosen(self) -> dict[str, float]:
        return {"learning_rate": self.learning_rate, "input_size": 1.0, "reinit_below": self.reinit_below}


def check(cfg: Config) -> None:
    """Raises: ValueError saying what is wrong with the options, before any work."""
    for root in TREES.values():
        check_study(cfg, root, len(cfg.grid))
    check_study(cfg.headline, TREES["reference"])


def n_steps(cfg: Config) -> int:
    return len(TREES) * sum(cfg.steps) + 2 * cfg.n_steps


def run(cfg: Config, work: Work) -> dict[str, Any]:
    trees = {
        name: {str(n): measure(replace(cfg, n_steps=n), root, cfg.grid, work) for n in cfg.steps}
        for name, root in TREES.items()
    }
    restarts = [{**cfg.chosen, "reinit_below": below} for below in cfg.restarts]
    return {
        "trees": trees,
        "restarts": measure(cfg, TREES["reference"], restarts, work),
        "headline": measure(cfg.headline, TREES["reference"], [cfg.chosen], work)[0],
    }


def measure(cfg: StudyConfig, root: Node, combinations: list[dict[str, float]], work: Work) -> list[dict[str, Any]]:
    """An entry per combination of hyperparameters, with all seeds of all combinations trained at the same time."""
    study = make_study(cfg, build_tree(root))
    features = held_out_features(cfg, study.tree)
    train_cfg = train_config(cfg, study.tree)
    columns = {name: [c[name] for c in combinations] for name in combinations[0]}
    columns["sparsity_coef"] = columns["input_size"]
    hypers = Hypers(sampled(train_cfg.n_latents), mean_l0(study.tree), control_rate=CONTROL / cfg.n_steps)
    trained = train_settings(cfg, study, hypers, train_cfg, work, columns)
    parts = [evaluate_seeds(saes, study.W_feat, study.tree, features) for saes in trained]
    return [
        {
            **combination,
            "n_seeds": cfg.n_seeds,
            "recovered": sum(one.recovered for one in part),
            **{name: [getattr(one, name) for one in part] for name in KEPT},
        }
        for combination, part in zip(combinations, parts, strict=True)
    ]


def lower_bound(recovered: int, n_seeds: int) -> float:
    """The one-sided 95% lower bound of a share (Clopper-Pearson)."""
    return float(beta.ppf(0.05, recovered, n_seeds - recovered + 1)) if recovered else 0.0


def summary(record: dict[str, Any]) -> list[str]:
    results = record["results"]
    headline = results["headline"]
    lines = [
        f"defaults, reference tree: recovered {headline['recovered']}/{headline['n_seeds']} seeds, at least "
        f"{lower_bound(headline['recovered'], headline['n_seeds']):.2%} (one-sided 95% bound)"
    ]
    for tree, by_steps in results["trees"].items():
        counts = {
            int(steps): f"{min(c['recovered'] for c in cells)} to {max(c['recovered'] for c in cells)}"
            for steps, cells in by_steps.items()
        }
        told = ", ".join(f"{steps:,} steps {count}" for steps, count in counts.items())
        lines.append(f"{tree}: recovered seeds of {len(record['seeds'])}: {told}")
    counts = ", ".join(f"{c['reinit_below']:g}: {c['recovered']}" for c in results["restarts"])
    lines.append(f"reference tree, recovered seeds of {len(record['seeds'])} by threshold of restarts: {counts}")
    return lines


def caption(record: dict[str, Any]) -> str:
    results = record["results"]
    headline = results["headline"]
    made_by = results.get("grid_made_by")
    below = f"{record['config']['grid_restarts']:g} of the median contribution"
    parts = [
        f"Share of {len(record['seeds'])} seeds whose Matryoshka SAE recovers the tree",
        "rows of panels: trees; columns: numbers of steps",
        f"in a panel: learning rates and sizes of the inputs, with restarts below {below}",
        "last panel: thresholds of restarts with the defaults, with 95% Wilson intervals",
        f"with the defaults {headline['recovered']} of {headline['n_seeds']} seeds recover the reference tree",
        *([f"the grid was computed on {made_by['devices']}"] if made_by else []),
    ]
    return "; ".join(parts) + "."


def plot(record: dict[str, Any]) -> Figure:
    results, config, n_seeds = record["results"], record["config"], len(record["seeds"])
    rates, sizes, steps = config["learning_rates"], config["input_sizes"], config["steps"]
    with plots.styled(0.95 * len(results["trees"]) + 0.5) as figure:
        sides: Any = figure.subfigures(1, 2, width_ratios=[len(steps), 1.25])
        left, right = sides
        axes = left.subplots(len(results["trees"]), len(steps), squeeze=False, sharex=True, sharey=True)
        for row, (tree, by_steps) in zip(axes, results["trees"].items(), strict=True):
            for ax, cells in zip(row, by_steps.values(), strict=True):
                _draw_shares(ax, np.array([c["recovered"] for c in cells]).reshape(len(rates), -1).T / n_seeds)
            row[0].set_ylabel(f"{tree.replace(' ', chr(10))}\ninput size")
        for letter, ax, n in zip("abcdefgh", axes[0], steps, strict=False):
            ax.set_title(f"{letter}  {n:,} steps")
        for ax in axes[-1]:
            ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            ax.set_yticks(range(len(sizes)), [f"{size:g}" for size in sizes])
            ax.set_xlabel("learning rate")
        _draw_restarts(right.subplots(2, 1)[0], record, "abcdefgh"[len(steps)])
        right.axes[1].remove()
    return figure


def _draw_shares(ax: Axes, shares: np.ndarray) -> None:
    """A heatmap with the share of recovered seeds written in every cell."""
    plots.heatmap(ax, shares, low=0, high=1, colours="viridis")
    for (y, x), share in np.ndenumerate(shares):
        colour = "white" if share < 0.6 else "black"
        ax.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize=6, color=colour)


def _draw_restarts(ax: Axes, record: dict[str, Any], letter: str) -> None:
    """The share of seeds that recover the reference tree, by the threshold of restarts."""
    for entry in record["results"]["restarts"]:
        plots.share(ax, entry["reinit_below"], entry["recovered"], entry["n_seeds"], plots.COLOURS["matryoshka"])
    ax.set(title=f"{letter}  Restarts", xlabel="restart below,\nof the median", ylim=(-0.05, 1.05))
    ax.set_ylabel("recovered, reference tree")


EXPERIMENT = Experiment("defaults", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
