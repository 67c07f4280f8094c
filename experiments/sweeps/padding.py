"""Trees and weightings of different sizes in arrays of one shape, so that one compiled program serves them all.

What is added is never on and weighs nothing. Random numbers are drawn one row per draw, latent or prefix, so those of
the real ones do not depend on how many are added: a padded run is the run itself, up to the order of its sums.
"""

from typing import NamedTuple

import numpy as np

from toy.features.tree import Tree
from toy.prefixes import FixedPrefixes, FixedWeights, SampledPrefixes, Weighting


class TreeShape(NamedTuple):
    """The sizes of a tree that fix a compiled program."""

    n_nodes: int
    n_features: int
    n_draws: int
    n_gates: int
    has_readout: bool  # whether some nodes are no features
    has_std: bool
    has_scale: bool


def tree_shape(tree: Tree) -> TreeShape:
    return TreeShape(
        n_nodes=len(tree.parent),
        n_features=tree.n_features,
        n_draws=len(tree.draw_root),
        n_gates=len(tree.gates),
        has_readout=tree.readout is not None,
        has_std=tree.magnitude_std is not None,
        has_scale=tree.parent_scale is not None,
    )


def pad_tree(tree: Tree, shape: TreeShape) -> Tree:
    """The same features, then features that are never on.

    Raises: ValueError if the shape does not hold the tree.
    """
    own = tree_shape(tree)
    n_nodes, more = shape.n_nodes, shape.n_nodes - own.n_nodes
    lacks_node = shape.has_readout and shape.n_features > own.n_features and not more  # to read padding from
    if any(a > b for a, b in zip(own, shape, strict=True)) or lacks_node:
        raise ValueError(f"shape: {shape} does not hold a tree of {own}")
    if not shape.has_readout and shape.n_features != n_nodes:
        raise ValueError(f"shape: every node is a feature, so n_features must be n_nodes, got {shape}")

    def padded(values: np.ndarray, value: float) -> np.ndarray:
        return np.append(values, np.full(more, value, values.dtype))

    readout = np.arange(own.n_nodes) if tree.readout is None else tree.readout
    std, scale = (
        np.zeros(own.n_nodes) if a is None else np.asarray(a) for a in (tree.magnitude_std, tree.parent_scale)
    )
    gates = np.tile(np.arange(n_nodes), (shape.n_gates, 1))  # a node that is its own gate has none
    gates[: own.n_gates, : own.n_nodes] = tree.gates
    return Tree(
        parent=padded(tree.parent, -1),
        prob=padded(tree.prob, 0),
        group=padded(tree.group, -1),
        magnitude_mean=padded(np.asarray(tree.magnitude_mean), 1),
        magnitude_std=padded(std, 0) if shape.has_std else None,
        parent_scale=padded(scale, 0) if shape.has_scale else None,
        readout=np.append(readout, np.full(shape.n_features - own.n_features, n_nodes - 1))
        if shape.has_readout
        else None,
        draw=padded(tree.draw, 0),
        first=padded(tree.first, 1),  # an interval that ends before it starts
        last=padded(tree.last, 0),
        draw_root=np.append(tree.draw_root, np.zeros(shape.n_draws - own.n_draws, tree.draw_root.dtype)),
        gates=gates,
    )


def pad_weighting(weighting: Weighting, n_latents: int, n_prefixes: int = 1) -> FixedWeights | SampledPrefixes:
    """The same prefixes of more latents, at least `n_prefixes` of them if sampled; the full prefix holds all latents.

    Raises: ValueError if there is no room, or the weighting is a hybrid one, whose tiles say how many latents it has.
    """
    n = weighting.n_latents
    if n > n_latents:
        raise ValueError(f"n_latents: {n_latents} does not hold a weighting of {n}")
    if isinstance(weighting, SampledPrefixes):
        rates, weights = np.asarray(weighting.rates), np.asarray(weighting.weights)
        return SampledPrefixes(
            np.append(rates, np.zeros(n_latents - n)),  # a clock of rate 0 never rings
            np.append(weights, np.zeros(max(n_prefixes - len(weights), 0))),
        )
    if isinstance(weighting, FixedPrefixes):
        weights = np.bincount(weighting.lengths, weighting.weights, n + 1)[1:]
    elif isinstance(weighting, FixedWeights):
        weights = np.asarray(weighting.weights)
    else:
        raise ValueError("weighting: a hybrid one cannot be padded; take `expected`")
    return FixedWeights(np.append(weights, np.zeros(n_latents - n)))
