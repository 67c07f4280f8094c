"""A parent and its children among lone features, and where the theory has each method fail to find them."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from experiments.theory.pair_order import mean_weights
from experiments.theory.rivals import outdone_from, rivals
from toy.eval.metrics import MIN_COSINE
from toy.features.directions import cosine_matrix
from toy.features.named import forest
from toy.features.node import Node
from toy.features.tree import build_tree
from toy.methods import named
from toy.methods.rotated import Rotated
from toy.theory import edge_limit, enumerate_states, first_latent_angle
from toy.training.config import Hypers

PARENT_PROB, LONE_PROB, N_LONE = 0.3, 0.05, 8
SPARSITY_COEF = Hypers._field_defaults["sparsity_coef"]  # the controller starts there, and stays near it


class Family(NamedTuple):
    """Trees that differ in P(child | parent)."""

    ratio: float  # a child's magnitude over its parent's
    n_children: int
    exclusive: bool
    lone_prob: float = LONE_PROB

    @property
    def name(self) -> str:
        if self.n_children == 1:
            return f"1, ratio {self.ratio:g}"
        name = f"{self.n_children} {'exclusive' if self.exclusive else 'independent'}"
        name += "" if self.ratio == 1 else f", ratio {self.ratio:g}"
        return name if self.lone_prob == LONE_PROB else f"{name}, lone {self.lone_prob:g}"

    @property
    def n_exclusive(self) -> int:
        """The number of children that exclude each other, or 1; its inverse is the greatest P(child | parent)."""
        return self.n_children if self.exclusive else 1

    def tree(self, prob: float) -> Node:
        """The parent, of magnitude 1, and its children among lone features."""
        children = [Node(prob, name=f"child{i}", magnitude_mean=self.ratio) for i in range(self.n_children)]
        parent = Node(PARENT_PROB, tuple(children), exclusive=self.exclusive, name="parent")
        return forest(parent, *(Node(self.lone_prob) for _ in range(N_LONE)))


def limit(method: str, family: Family) -> float:
    """The P(child | parent) from which on the theory has a method fail."""
    given = named(method)
    if isinstance(given.method, Rotated):
        return _sparsest_limit(family, given.method.how.offset)
    return matryoshka_limit(given.weighting, family) if is_matryoshka(method) else 0.0


def is_matryoshka(method: str) -> bool:
    return method.startswith("matryoshka")


def is_outdone(family: Family) -> bool:
    """Returns whether another code has the lower objective before a lone latent leans too far."""
    return limit("matryoshka", family) < first_latent_limit(family)


def outdone_by(family: Family) -> dict[str, Any]:
    """The code that has the lower objective from the limit on: its latents by rank, as cosines with the features.

    The latents of the lone features come after the first `n_before`.
    """
    prob = limit("matryoshka", family)
    weights = mean_weights(named("matryoshka").weighting, n_latents=1 + family.n_children + N_LONE)
    found = sorted(rivals(family.tree(prob), weights, SPARSITY_COEF), key=lambda one: one.loss)
    other = next(one for one in found if not one.is_recovery)
    truth = next((one.loss for one in found if one.is_recovery), None)  # the truth need not be a minimum any more
    cosines = cosine_matrix(np.asarray(other.sae.W_dec), np.eye(1 + family.n_children)).tolist()
    return {
        "edge_prob": prob,
        "loss": other.loss,
        "loss_of_truth": truth,
        "n_before": other.n_before,
        "cosines": cosines,
    }


@cache
def matryoshka_limit(weighting: str, family: Family) -> float:
    """The least P(child | parent) at which a lone latent leans too far, or another code has the lower objective."""
    weights = mean_weights(weighting, n_latents=1 + family.n_children + N_LONE)
    return outdone_from(family.tree, weights, SPARSITY_COEF, most=first_latent_limit(family))


def _sparsest_limit(family: Family, offset: float) -> float:
    """Returns where the truth stops being the sparsest code by the penalty of a search, whose ε is in units of E‖x‖."""
    prob = 0.5 / family.n_exclusive
    for _ in range(8):  # E‖x‖ hardly depends on the probability
        tree = build_tree(family.tree(prob))
        eps = offset * enumerate_states(tree).mean_norm
        prob = edge_limit(family.ratio, lambda act, eps=eps: act / (act + eps), family.n_exclusive)
    return prob


def first_latent_limit(family: Family) -> float:
    """The least P(child | parent) with which a lone latent's cosine with the parent is below that of a recovery."""
    probs = np.linspace(0, 1 / family.n_exclusive, 10_001)
    angles = first_latent_angle(probs, family.ratio, family.n_children, exclusive=family.exclusive)
    below = np.flatnonzero(np.cos(angles) < MIN_COSINE)
    return float(probs[below[0]]) if len(below) else 1 / family.n_exclusive
