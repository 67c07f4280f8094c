"""The mixing of a recovered tree's latents: the objective's optimum against trained SAEs, cosine by cosine.

Claim: the three cosines that a Matryoshka SAE leaves (of a parent's latent with its child, of a child's with its
siblings and with its parent) are those of the objective's optimum among SAEs whose latents are on with their features.
It follows from the tree, the weights of the prefixes and the L1 coefficient; no training noise is needed. With
activations of 0 and 1 in place of the optimum's, the same objective gives the first two, and 0 for the third. The first
follows the weight of the prefixes with the parent's latent alone towards 0, until too little is left to keep the
child's latent from absorbing the parent's.
Command: python -m experiments.theory.mixing (about 5 minutes on 2 cores).
Expected, seeds 5000 to 5015: R² of .9986 and more, over 64 of 72 cells.
In the post: the first two cosines, with the reason; the third is not explained there.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from experiments.common.seeds import seeds_text
from experiments.sweeps.panels import MIXING, PanelConfig, PanelRun, Panels, check_panels, n_runs, recovered_only
from toy import prefixes
from toy.checks import POSITIVE, Real, check_fields, check_some
from toy.eval.metrics import mean_known
from toy.features.named import forest
from toy.features.node import Node
from toy.features.tree import build_tree
from toy.prefixes import FixedWeights, SampledPrefixes, inclusion
from toy.sae import sae_of_directions
from toy.theory import enumerate_states, minimum
from toy.training.loop import Progress

D_IN = 32
LONE = [Node(0.02) for _ in range(6)]  # with less energy than any child, so that the subtree's latents come first
SHAPES: dict[str, Node] = {
    "1 child": Node(0.3, (Node(0.2),)),
    "1 child, P .3": Node(0.3, (Node(0.3),)),
    "1 child, ratio .7": Node(0.3, (Node(0.3, magnitude_mean=0.7),)),
    "2 exclusive": Node(0.3, (Node(0.25), Node(0.15)), exclusive=True),
    "2 independent": Node(0.3, (Node(0.25), Node(0.15))),
    "3 exclusive": Node(0.3, (Node(0.25), Node(0.18), Node(0.12)), exclusive=True),
    "3 independent": Node(0.3, (Node(0.25), Node(0.18), Node(0.12))),
    "4 exclusive": Node(0.3, (Node(0.24), Node(0.18), Node(0.14), Node(0.1)), exclusive=True),
}  # children differ in P(child | parent), so that their order is certain
WEIGHTINGS = ("expected_10", "all", "balanced_0.5")
TREES = {name: forest(root, *LONE) for name, root in SHAPES.items()}
ALONE = ("1 child", "3 exclusive")  # shapes in which the weight of the parent's latent alone varies
N_RECOVERED = 8  # seeds of a cell that have to be recovered for its mean to count


@dataclass(frozen=True)
class Config(PanelConfig):
    """Options of `mixing`."""

    sparsity_coefs: tuple[float, ...] = (0.05, 0.2, 0.5)
    """L1 coefficients for inputs of mean norm √d_in, which stay as they are."""
    alone: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7)
    """Weights of the prefix with the parent's latent alone, beside the full one."""
    alone_coef: float = 2.0
    """L1 coefficient there, with which that latent is not worth its price on the lone features."""
    seed: int = 5_000
    """The first seed, which no tuning has seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, sparsity_coefs=POSITIVE, alone=Real(above=0, below=1), alone_coef=POSITIVE)
        check_some(self, "sparsity_coefs")

    @cached_property
    def cells(self) -> dict[str, tuple[str, str, float]]:
        """Shape, weighting and coefficient by the name of the cell."""
        return {
            f"{shape}; {weighting}; {coef:g}": (shape, weighting, coef)
            for shape in SHAPES
            for weighting in WEIGHTINGS
            for coef in self.sparsity_coefs
        }

    @cached_property
    def alone_cells(self) -> dict[str, tuple[str, str, float]]:
        """Likewise, with the weight of the parent's latent alone in the place of the weighting."""
        return {
            f"{shape}; {share:g} alone": (shape, f"levels:1={share!r},full={1 - share!r}", self.alone_coef)
            for shape in ALONE
            for share in self.alone
        }

    @cached_property
    def runs(self) -> list[PanelRun]:
        shared = {"d_in": D_IN, "norm_std": 0.0, "control_rate": 0.0, "learning_rate": self.learning_rate}
        return [
            PanelRun(_method(weighting), name, {"tree": shape, "sparsity_coef": coef, "seed": seed} | shared)
            for name, (shape, weighting, coef) in (self.cells | self.alone_cells).items()
            for seed in self.seeds
        ]

    @property
    def panels(self) -> Panels:
        return Panels("mixing", self.runs, TREES, self.n_steps)


def _method(weighting: str) -> str:
    return f"matryoshka:weighting={weighting}"


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    found = cfg.panels.results(cfg.store, progress)

    def outcome(name: str, shape: str, weighting: str, coef: float) -> dict[str, Any]:
        r = found[_method(weighting)][name]
        kept = {mixing: recovered_only(r, mixing) for mixing in MIXING}
        return {
            "recovered": r["recovered"],
            "hole_rate": known(mean_known(r["hole_rate"])),
            "measured": {mixing: known(mean_known(values)) for mixing, values in kept.items()},
            "predicted": predicted(SHAPES[shape], weighting, coef),
            "binary": binary(SHAPES[shape], weighting),
        }

    cells = {name: outcome(name, *cell) for name, cell in cfg.cells.items()}
    return {"cells": cells, "alone": {name: outcome(name, *cell) for name, cell in cfg.alone_cells.items()}}


def weights_of_subtree(root: Node, weighting: str) -> FixedWeights:
    """The weights of the prefixes of the subtree's latents alone, which come first: longer ones hold all of them."""
    n, n_all = 1 + len(root.children), 1 + len(root.children) + len(LONE)
    of_all = prefixes.named(weighting, n_all)
    assert not isinstance(of_all, SampledPrefixes)
    return prefixes.of_inclusion(inclusion(of_all, jnp.arange(n)))


def predicted(root: Node, weighting: str, coef: float) -> dict[str, float | None]:
    """The cosines at the optimum of SAEs whose latents are on with their features, in units of the trainer."""
    whole = build_tree(forest(root, *LONE))
    scale = enumerate_states(whole).input_scale(D_IN)
    states = enumerate_states(build_tree(forest(root)))
    n = states.features.shape[1]
    sae, _ = minimum(
        sae_of_directions(np.eye(n)),
        jnp.asarray(states.features * scale, jnp.float32),
        jnp.asarray(states.prob, jnp.float32),
        weights_of_subtree(root, weighting),
        sparsity_coef=coef,
        support=jnp.asarray(states.features > 0),
    )
    return cosines(np.asarray(sae.W_dec))


def binary(root: Node, weighting: str) -> dict[str, float | None]:
    """The cosines of the decoder for activations of 0 and 1, Σ_j min(s_i, s_j) E[a_i a_j] d_j = s_i E[a_i x]."""
    states = enumerate_states(build_tree(forest(root)))
    acts = (states.features > 0).astype(float)
    s = np.cumsum(np.asarray(weights_of_subtree(root, weighting).weights)[::-1])[::-1]
    moments = acts.T @ (states.prob[:, None] * acts)
    targets = s[:, None] * (acts.T @ (states.prob[:, None] * states.features))
    return cosines(np.linalg.solve(np.minimum(s[:, None], s) * moments, targets))


def cosines(W_dec: Float[np.ndarray, "n_latents n_features"]) -> dict[str, float | None]:
    """Means over a root's children of the cosines with the features, which are the axes; None without siblings."""
    found = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    n = len(found)
    siblings = [found[i, j] for i in range(1, n) for j in range(1, n) if i != j]
    values = (found[0, 1:].mean(), np.mean(siblings) if siblings else np.nan, found[1:, 0].mean())
    return dict(zip(MIXING, map(known, values), strict=True))


def known(value: Any) -> float | None:
    """A number for a record, which has None where nothing is known."""
    return None if np.isnan(value) else float(value)


def compared(record: dict[str, Any], mixing: str, theory: str) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured values of the cells with enough recovered seeds, in which both are known."""
    cells = [cell for cell in record["results"]["cells"].values() if cell["recovered"] >= N_RECOVERED]
    pairs = np.array([[cell[theory][mixing], cell["measured"][mixing]] for cell in cells], float).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    return pairs[:, 0], pairs[:, 1]


def r_squared(predicted: np.ndarray, measured: np.ndarray) -> float:
    """1 − Σ (measured − predicted)² / Σ (measured − mean)²; no line is fitted."""
    return float(1 - np.sum((measured - predicted) ** 2) / np.sum((measured - measured.mean()) ** 2))


def summary(record: dict[str, Any]) -> list[str]:
    cells = record["results"]["cells"].values()
    lines = [
        f"{sum(cell['recovered'] >= N_RECOVERED for cell in cells)} of {len(cells)} cells have enough recovered seeds"
    ]
    for mixing in MIXING:
        x, y = compared(record, mixing, "predicted")
        if not len(x):
            lines.append(f"{mixing}: no cell has enough recovered seeds")
            continue
        far = np.abs(y) > 0.03
        lines.append(
            f"{mixing}: R² {r_squared(x, y):.4f}, mean absolute error {np.mean(np.abs(x - y)):.4f}, sign right in "
            f"{int(np.sum(np.sign(x[far]) == np.sign(y[far])))} of {int(far.sum())} cells beyond .03; binary: R² "
            f"{r_squared(*compared(record, mixing, 'binary')):.3f}"
        )
    for name, cell in record["results"]["alone"].items():
        measured, expected = cell["measured"]["parent_to_child"], cell["predicted"]["parent_to_child"]
        told = "–" if measured is None else f"{measured:.3f}"
        of_runs = f"{cell['recovered']} recovered, hole rate {cell['hole_rate']:.2f}"
        lines.append(f"{name}: {of_runs}, parent to child {told}, predicted {expected:.3f}")
    return lines


def caption(record: dict[str, Any]) -> str:
    config = record["config"]
    return (
        f"Means over recovered seeds (of {config['n_seeds']}; cells with at least {N_RECOVERED}) against the optimum "
        f"of the objective: {len(SHAPES)} shapes, {len(WEIGHTINGS)} weightings, L1 coefficients "
        f"{', '.join(f'{coef:g}' for coef in config['sparsity_coefs'])}; crosses: activations of 0 and 1; "
        f"d: by the weight of the prefix with the parent's latent alone beside the full one, L1 "
        f"{config['alone_coef']:g} (line: optimum; dots: means; numbers: recovered seeds); "
        f"{config['n_steps']:,} steps; {seeds_text(record['seeds'])}."
    )


def plot(record: dict[str, Any]) -> Figure:
    with plots.styled(2.4) as figure:
        *panels, last = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.3])
        for ax, letter, mixing in zip(panels, "abc", MIXING, strict=True):
            for theory, marker, colour in (("binary", "x", "0.6"), ("predicted", "o", plots.COLOURS["matryoshka"])):
                x, y = compared(record, mixing, theory)
                ax.plot(x, y, marker, color=colour, markersize=3, label=theory)
            low, high = ax.get_xlim()
            ax.plot([low, high], [low, high], color=plots.COLOURS["truth"], linewidth=0.8, zorder=0)
            ax.set(title=f"{letter}  {mixing.replace('_to_', ' → ')}", xlabel="predicted cosine")
        figure.axes[0].set_ylabel("measured cosine")
        figure.axes[0].legend()
        _plot_alone(last, record)
    return figure


def _plot_alone(ax: Axes, record: dict[str, Any]) -> None:
    shares, cells = record["config"]["alone"], list(record["results"]["alone"].values())
    for i, (shape, colour) in enumerate(zip(ALONE, ("matryoshka", "vanilla"), strict=False)):
        of_shape = cells[i * len(shares) : (i + 1) * len(shares)]
        measured = np.array([cell["measured"]["parent_to_child"] for cell in of_shape], float)
        expected = [cell["predicted"]["parent_to_child"] for cell in of_shape]
        ax.plot(shares, expected, color=plots.COLOURS[colour], linewidth=1, label=shape)
        ax.plot(shares, measured, "o", color=plots.COLOURS[colour], markersize=3)
        for x, y, cell in zip(shares, expected, of_shape, strict=True):
            told = {"fontsize": 5, "color": plots.COLOURS[colour], "textcoords": "offset points"}
            ax.annotate(str(cell["recovered"]), (x, y), (-9, 3) if i else (3, -7), **told)
    ax.axhline(0, color=plots.COLOURS["truth"], linewidth=0.6, zorder=0)
    ax.set(title="d  parent → child", xlabel="weight of the parent alone", xlim=(-0.03, 0.78))
    ax.legend()


EXPERIMENT = Experiment("mixing", Config, run, summary, plot, check_panels, n_runs, caption, folder="theory.")

if __name__ == "__main__":
    main(EXPERIMENT)
