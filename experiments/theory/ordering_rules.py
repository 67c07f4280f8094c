"""Does another order of the latents find a child that is larger than its parent? Ratio × P(child | parent) × rule.

Claim: PLACEHOLDER
Command: python -m experiments.theory.ordering_rules (about 12 minutes on 2 cores).
Expected, seeds 7000 to 7015: PLACEHOLDER
In the post: a comment's example of a child that is larger than its parent, for latents ordered by energy.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cache import user_cache
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from experiments.sweeps.cell import D_IN, Start
from experiments.sweeps.panels import PanelConfig, Run, check_runs, mean, panel_sweep, run_panels
from experiments.sweeps.spec import Sweep
from toy import prefixes
from toy.checks import POSITIVE, Real, Whole, check_fields
from toy.eval.metrics import MIN_COSINE
from toy.features.named import forest, ordering_tree
from toy.features.node import Node
from toy.features.tree import Tree, build_tree, marginals
from toy.prefixes import FixedWeights, inclusion
from toy.sae import decoder_norms, sae_of_directions
from toy.theory import enumerate_states, first_latent_angle, minimised
from toy.training.loop import Progress

SPARSITY_COEF = 0.1  # of the optimum, for inputs of mean norm √d_in
LEAST_ACT = 0.2  # of a parent's latent with the child, over the parent's size, that is no hole


class Rule(NamedTuple):
    """What puts a latent before others."""

    method: str
    power: float | None  # features have the order of P(on) · magnitude^power; None: that of the tree, parents first
    weighting: str = "all"  # which is what ten sampled prefixes of ten latents are
    start: Start = "random"


RULES = {
    "energy": Rule("matryoshka", 2),
    "normalised": Rule("matryoshka:order=normalised", 1),
    "frequency": Rule("matryoshka:order=frequency", 0),
    "learned": Rule("matryoshka:order=fixed", 2),  # nothing is sorted; the first place learns what has most energy
    "given": Rule("matryoshka:order=fixed", None, start="features"),
    "frequency, half full": Rule("matryoshka:order=frequency,weighting=balanced_0.5", 0, "balanced_0.5"),
}
ORDERS = {"energy": 2, "normalised": 1, "frequency": 0}


def among(edge_prob: float, ratio: float, lone: Node) -> Node:
    """A parent of magnitude 1 and its child among 8 lone features."""
    pair = ordering_tree(edge_prob=edge_prob, magnitude=1.0, ratio=ratio)
    return forest(*pair.children, *[Node(lone.active_prob, magnitude_mean=lone.magnitude_mean) for _ in range(8)])


SCENES: dict[str, Node | str] = {
    "reference": "reference",
    "random": "random",
    "pair, ratio 2": among(0.2, 2.0, Node(0.05)),
    "rare, large lone": among(0.3, 1.0, Node(0.01, magnitude_mean=4.0)),
    "frequent, small lone": among(0.3, 1.0, Node(0.15, magnitude_mean=0.5)),
}  # trees on which orders are compared; by hand their features have …


@dataclass(frozen=True)
class Config(PanelConfig):
    """Options of `ordering_rules`."""

    edge_probs: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    """P(child | parent)."""
    ratios: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)
    """The child's magnitude over the parent's."""
    seed: int = 7_000
    """The first seed, which no tuning has seen."""
    n_scene_seeds: int = 32
    """Number of seeds of each tree on which orders are compared."""
    store: Path = field(default_factory=lambda: user_cache("sweeps", "ordering_rules.sqlite"))
    """SQLite file of what was trained before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, ratios=POSITIVE, edge_probs=Real(above=0, below=1), n_scene_seeds=Whole())
        if not self.edge_probs or not self.ratios:
            raise ValueError("edge_probs and ratios: need at least one of each")

    @cached_property
    def trees(self) -> dict[str, Node]:
        """A pair among lone features, and the scenes that have no name elsewhere."""
        pairs = {_name(r, q): among(q, r, Node(0.05)) for r in self.ratios for q in self.edge_probs}
        return pairs | {name: root for name, root in SCENES.items() if isinstance(root, Node)}

    @cached_property
    def runs(self) -> list[Run]:
        shared = {"learning_rate": self.learning_rate, "reinit_below": 0.2}
        return [
            Run(rule.method, f"{name}: {tree}", shared | {"tree": tree, "start": rule.start, "seed": seed})
            for name, rule in RULES.items()
            for tree in (_name(r, q) for r in self.ratios for q in self.edge_probs)
            for seed in self.seeds
        ] 


def _name(ratio: float, prob: float) -> str:
    return f"ratio {ratio:g}, P {prob:g}"


def places(tree: Tree, power: float | None) -> Int[np.ndarray, " n_features"]:
    """The place of each feature under a rule, from 0; of equals the first in the tree comes first."""
    importance = np.zeros(tree.n_features) if power is None else marginals(tree) * tree.magnitude_mean**power
    return np.argsort(np.argsort(-importance, kind="stable"))


class Optimum(NamedTuple):
    """What is left of a pair at the optimum of SAEs whose latents are on with their features."""

    cosines: tuple[float, float]  # of the parent's and of the child's latent with their features
    act: float  # of the parent's latent with the child, over the parent's size
    parent_to_child: float

    @property
    def is_recovered(self) -> bool:
        return min(self.cosines) >= MIN_COSINE and self.act >= LEAST_ACT


def optimum(root: Node, power: float | None, weighting: str) -> Optimum:
    """Of the first two features of a tree, on prefixes that hold the rule's first features."""
    tree = build_tree(root)
    scale = np.sqrt(D_IN) / enumerate_states(tree).mean_norm(np.eye(tree.n_features))
    states = enumerate_states(build_tree(forest(root.children[0])))
    s = np.asarray(inclusion(prefixes.named(weighting, tree.n_features), jnp.asarray(places(tree, power)[:2])))
    order = np.argsort(-s, kind="stable")
    x = states.features * scale
    starts = jax.tree.map(lambda leaf: leaf[None], sae_of_directions(np.eye(2)[order]))
    saes, _ = minimised(
        starts,
        jnp.asarray(x, jnp.float32),
        jnp.asarray(states.prob, jnp.float32),
        FixedWeights(jnp.asarray([np.ptp(s), s.min()], jnp.float32)),
        sparsity_coef=SPARSITY_COEF,
        support=jnp.asarray(states.features[:, order] > 0),
        n_steps=8_000,
    )
    sae = jax.tree.map(lambda leaf: np.asarray(leaf[0]), saes)
    norms, latent = np.asarray(decoder_norms(sae)), np.argsort(order)
    found = sae.W_dec / norms[:, None]
    both = np.argmax(states.features[:, 1] > 0)
    act = (x[both] @ sae.W_enc + sae.b_enc) * norms / scale
    return Optimum(*[...])
