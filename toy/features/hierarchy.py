"""SAELens' hierarchies as the arrays of `toy.features.synthetic`."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy  # loads its parts when they are first asked for
from jaxtyping import Float

from toy.features.json_nodes import entries
from toy.features.node import TreeError, shown
from toy.features.saelens_tree import KEYS
from toy.features.synthetic import Layout, Synthetic

_MOST_BRANCHES = 10**7  # entries of the table of children


class Drawn(NamedTuple):
    """The draws of each feature before the hierarchy; without correlations `loading` has no columns."""

    prob: Float[np.ndarray, " n_features"]
    mean: Float[np.ndarray, " n_features"]
    std: Float[np.ndarray, " n_features"]
    loading: Float[np.ndarray, "n_features rank"]
    variance: Float[np.ndarray, " n_features"]  # of the feature's own noise


class Place(NamedTuple):
    """A feature's place in the hierarchy: its nearest ancestor that is a node here, and what that does to it."""

    parent: int  # -1: none
    group: int  # of mutually exclusive siblings; -1: none
    scaled: bool


def synthetic(roots: list[Any], drawn: Drawn) -> Synthetic:
    """The features of a SAELens hierarchy, `roots` of nodes. Raises: `TreeError` naming the node and the fault."""
    places = _places(roots, len(drawn.prob))
    n_nodes = len(places) + 1
    below: list[list[int]] = [[] for _ in range(n_nodes)]
    for node, place in enumerate(places):
        if place.parent >= 0:
            below[place.parent].append(node)
    for place in places:
        if place.scaled and not drawn.mean[place.parent] > 0:
            raise TreeError(f"feature {place.parent}: children are scaled by its mean magnitude, which must be above 0")
    n_branches = max(map(len, below))
    if n_nodes * n_branches > _MOST_BRANCHES:
        raise TreeError(f"the hierarchy: {n_branches:,} children of one node are more than fit; spread them over nodes")
    children = np.full((n_nodes, n_branches), n_nodes - 1)
    for node, own in enumerate(below):
        children[node, : len(own)] = own
    top = [node for node, place in enumerate(places) if place.parent < 0]
    top.sort(key=lambda node: not below[node])  # stable: features keep their order
    n_parents = sum(bool(below[node]) for node in top)
    prob = np.append(drawn.prob, np.ones(n_nodes))[top]
    with np.errstate(divide="ignore", invalid="ignore"):
        arrays = {
            "threshold": _padded(scipy.special.ndtri(1 - drawn.prob.astype(float)), n_nodes, -np.inf, np.inf),
            "loading": _padded(drawn.loading, n_nodes, 0, 0),
            "noise": _padded(np.sqrt(drawn.variance), n_nodes, 1, 1),
            "mean": _padded(drawn.mean, n_nodes, 1, 1),
            "std": _padded(drawn.std, n_nodes, 0, 0),
            "visible": _padded(
                np.where(drawn.std > 0, scipy.special.ndtr(drawn.mean / drawn.std), drawn.mean > 0), n_nodes, 1, 1
            ),
        }
    return Synthetic(
        **{name: jnp.asarray(values) for name, values in arrays.items()},
        scaled=jnp.asarray([place.scaled for place in places] + [False]),
        children=jnp.asarray(children, jnp.int32),
        group=jnp.asarray([place.group for place in places] + [-1], jnp.int32),
        top=jnp.asarray(top, jnp.int32),
        layout=Layout(
            n_features=len(drawn.prob),
            exclusive=_levels(top, below, places),
            n_groups=1 + max(place.group for place in places),
            n_parents=n_parents,
            n_slots=(_n_slots(prob[:n_parents]), _n_slots(prob[n_parents:])),
        ),
    )


def _n_slots(prob: np.ndarray) -> int:
    return math.ceil(2 * float(prob.sum())) + 8


def _padded(of_features: np.ndarray, n_nodes: int, of_others: float, of_none: float) -> np.ndarray:
    padding = np.full((n_nodes - len(of_features), *of_features.shape[1:]), of_others)
    padding[-1] = of_none
    return np.concatenate([of_features, padding]).astype(np.float32)


def _places(roots: list[Any], n_features: int) -> list[Place]:
    """The places of all features, and then of nodes that stand for a group of exclusive features without a parent."""
    found = entries([(f"root.roots[{i}]", root) for i, root in enumerate(roots)], 1, KEYS)
    lone = Place(-1, -1, False)
    places, others, used = [lone] * n_features, [], set()
    groups: dict[int, int] = {}  # the number of groups that each node has
    node_of: list[int] = []  # the nearest node at or above each entry
    group_of: list[tuple[int, int]] = []  # the node and the number of the group of each entry's children
    for entry in found:
        index, above = entry.data.get("feature_index"), -1 if entry.parent < 0 else node_of[entry.parent]
        if index is not None:
            if not 0 <= index < n_features or index in used:
                raise TreeError(f"{shown(entry.path)}.feature_index: {index} is repeated, or not below {n_features}")
            used.add(index)
            scaled = above >= 0 and bool(found[entry.parent].data.get("scale_children_by_parent"))
            holder, number = (above, -1) if entry.parent < 0 else group_of[entry.parent]
            places[index] = Place(holder, number, scaled)
        node = above if index is None else index
        node_of.append(node)
        rivals = [c for c in entry.data.get("children", []) if c.get("feature_index") is not None]
        if not entry.data.get("mutually_exclusive_children") or len(rivals) < 2:
            group_of.append((node, -1))
            continue
        if node < 0:
            node = n_features + len(others)
            others.append(lone)
        groups[node] = groups.get(node, -1) + 1
        group_of.append((node, groups[node]))
    return places + others


def _levels(top: Sequence[int], below: list[list[int]], places: list[Place]) -> tuple[bool, ...]:
    """Returns whether at most one child of each node can be on, level by level."""
    levels, nodes = [], [node for node in top if below[node]]
    while nodes:
        levels.append(all(len(below[n]) == 1 or {places[c].group for c in below[n]} == {0} for n in nodes))
        nodes = [child for node in nodes for child in below[node] if below[child]]
    return tuple(levels)
