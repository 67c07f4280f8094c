"""The states of a finite tree, with their probabilities: nothing is sampled."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from toy.features.tree import Tree

MOST_STATES = 2**16


class Population(NamedTuple):
    """Every combination of features that can be on, and its probability."""

    features: Float[np.ndarray, "n_states n_features"]  # the magnitudes of those that are on
    prob: Float[np.ndarray, " n_states"]

    @property
    def mean_norm(self) -> float:
        """E‖x‖ where directions are orthonormal."""
        return float(self.prob @ np.linalg.norm(self.features, axis=1))

    def input_scale(self, d_in: int) -> float:
        """The factor by which the trainer scales inputs, to a mean norm of √d_in."""
        return math.sqrt(d_in) / self.mean_norm


def enumerate_states(tree: Tree) -> Population:
    """The states of a tree whose features have magnitudes without noise.

    Raises: ValueError if magnitudes are random, or if there are more than `MOST_STATES` states.
    """
    if tree.magnitude_std is not None:
        raise ValueError("tree: states are finitely many only where no magnitude has a standard deviation")
    on, prob = np.zeros((1, len(tree.parent)), bool), np.ones(1)
    for i, parent in enumerate(tree.parent):
        siblings = [i] if tree.group[i] < 0 else np.flatnonzero(tree.group == tree.group[i]).tolist()
        if siblings[0] != i:
            continue
        possible = np.ones(len(on), bool) if parent < 0 else on[:, parent]
        rest = max(0.0, 1 - float(tree.prob[siblings].sum()))
        states, probs = [on], [prob * np.where(possible, rest, 1.0)]
        for j in siblings:
            states.append(on[possible] | (np.arange(on.shape[1]) == j))
            probs.append(prob[possible] * tree.prob[j])
        on, prob = np.concatenate(states), np.concatenate(probs)
        on, prob = on[prob > 0], prob[prob > 0]
        if len(on) > MOST_STATES:
            raise ValueError(f"tree: it has more than {MOST_STATES:,} states, which are too many to enumerate")
    features = on * tree.magnitude_mean
    return Population(features if tree.readout is None else features[:, tree.readout], prob)
