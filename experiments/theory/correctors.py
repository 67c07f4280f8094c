"""Correctors: how a trained SAE's are told from its other latents, and the features that it has lost."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from toy.features.directions import cosine_matrix
from toy.features.tree import Tree, edges
from toy.sae import SAE, encode

NEAR = 0.6  # a latent of the parent that has no part of its three children has a cosine of 1/2 with parent − Σ children
ON = 0.01  # a‖d‖ of less is a leak; correctors have more than .1


class Corrector(NamedTuple):
    """A latent that a parent has beside its own, on inputs without other features."""

    parent: int
    rank: int
    cosine: float  # of its decoder with parent − Σ children
    to_parent: float  # its decoder's cosine with the parent, …
    to_children: float  # … and the mean of those with the children
    act: float  # a‖d‖ where the parent is on alone


def families(tree: Tree) -> dict[int, list[int]]:
    """The children of every feature that has some."""
    found: dict[int, list[int]] = {}
    for parent, child in edges(tree):
        found.setdefault(parent, []).append(child)
    return found


def correctors(sae: SAE, W_feat: Float[np.ndarray, "n_features d_in"], tree: Tree) -> list[Corrector]:
    """The latents with a cosine of `NEAR` to parent − Σ children that are on for it alone, and off with each child.

    The features have a magnitude of 1 and no grandchildren.
    """
    W_dec, found = np.asarray(sae.W_dec), []
    cosines, norms = cosine_matrix(W_dec, W_feat), np.linalg.norm(W_dec, axis=1)
    for parent, children in families(tree).items():
        along = cosine_matrix(W_dec, W_feat[[parent]] - W_feat[children].sum(axis=0))[:, 0]
        x = W_feat[parent] + np.concatenate([np.zeros_like(W_feat[:1]), W_feat[children]])
        alone, *with_child = np.asarray(encode(sae, jnp.asarray(x))) * norms
        is_one = (along > NEAR) & (alone > ON) & ~(np.array(with_child) > ON).any(axis=0)
        for i in np.flatnonzero(is_one).tolist():
            values = along[i], cosines[i, parent], cosines[i, children].mean(), alone[i]
            found.append(Corrector(parent, i, *map(float, values)))
    return found


def lost(sae: SAE, W_feat: Float[np.ndarray, "n_features d_in"]) -> list[int]:
    """The features that no latent is near to."""
    return np.flatnonzero(cosine_matrix(np.asarray(sae.W_dec), W_feat).max(axis=0) < NEAR).tolist()
