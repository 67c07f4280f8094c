"""The order that a rule gives a pair's latents, and the optimum of the objective in that order."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from experiments.sweeps.cell import D_IN
from toy import prefixes
from toy.features.named import forest
from toy.features.node import Node
from toy.features.tree import Tree, build_tree, marginals
from toy.prefixes import Prefixes, SampledPrefixes, inclusion
from toy.sae import sae_of_directions
from toy.theory import enumerate_states, minimum


def places(tree: Tree, power: float | None) -> Int[np.ndarray, " n_features"]:
    """The place of each feature under a rule, from 0; of equals the first in the tree comes first."""
    importance = np.zeros(tree.n_features) if power is None else marginals(tree) * tree.magnitude_mean**power
    return np.argsort(np.argsort(-importance, kind="stable"))


def mean_weights(weighting: str, n_latents: int) -> Prefixes:
    """The prefixes of a weighting's name, where the mean weights of all lengths stand for sampled lengths."""
    weights = prefixes.named(weighting.replace("sampled", "expected"), n_latents)
    assert not isinstance(weights, SampledPrefixes)
    return weights


class Optimum(NamedTuple):
    """The best code of a parent and its child whose latents are on with their features and otherwise free."""

    cosines: tuple[float, float]  # of the parent's and the child's latent with their features
    parent_to_child: float
    has_hole: bool  # whether the optimum has the parent's latent off where the child is on


def optimum(root: Node, power: float | None, weighting: str, sparsity_coef: float) -> Optimum:
    """The optimum for a tree's first two features at the prefixes that the rule gives them.

    Its other features must be lone. The coefficient is that of the L1 penalty for inputs of mean norm √d_in.
    """
    tree = build_tree(root)
    scale = enumerate_states(tree).input_scale(D_IN)
    states = enumerate_states(build_tree(forest(root.children[0])))
    at = places(tree, power)[:2]
    weights = mean_weights(weighting, tree.n_features)
    order = np.argsort(at)  # so that the latent of the first place is the first
    features = states.features[:, order] * scale
    sae, _ = minimum(
        sae_of_directions(np.eye(2)),
        jnp.asarray(features, jnp.float32),
        jnp.asarray(states.prob, jnp.float32),
        prefixes.of_inclusion(inclusion(weights, jnp.asarray(at[order]))),
        sparsity_coef=sparsity_coef,
        support=jnp.asarray(features > 0),
        n_steps=8_000,
    )
    W_enc, b_enc, W_dec = map(np.asarray, sae[:3])
    found = (W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True))[order][:, order]  # [parent child]²
    both = features[features.all(axis=1)][0]
    parent, child, mixing = map(float, (found[0, 0], found[1, 1], found[0, 1]))
    return Optimum((parent, child), mixing, bool((both @ W_enc + b_enc)[order][0] <= 0))
