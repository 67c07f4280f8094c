"""Trees of ours as SAELens (6.54) hierarchies of the same distribution: the inverse of `toy.features.saelens_tree`.

SAELens keeps one, at random, of the exclusive siblings that are on, so it needs larger probabilities than the tree's;
`drawn_for` solves for them. A node that is no feature must be on whenever its parent is.
"""

from typing import Any, NamedTuple

import numpy as np

from toy.features.magnitudes import share_below_zero
from toy.features.node import Node, TreeError, features, shown, walk
from toy.features.saelens_tree import MAX_CLIPPED, Firing, few, gauss_legendre, kept_one

_MOST_RIVALS = 1_000  # whose equations are solved together
_N_STEPS, _EXACT = 200, 1e-9


class Forest(NamedTuple):
    """A hierarchy as SAELens saves it, what it draws before exclusion, and notes on numbers that changed."""

    roots: list[dict[str, Any]]
    firing: Firing
    notes: list[str]


def forest_of_tree(root: Node) -> Forest:
    """The SAELens hierarchy of a tree. Raises: `TreeError` naming the node that SAELens cannot express."""
    found, column = walk(root), {id(node): i for i, node in enumerate(features(root))}
    prob, notes = _drawn_probs(found)
    scales = _scales(found)
    written: list[dict[str, Any]] = []
    for i, (path, parent, node) in enumerate(found):
        _check(path, parent, node, prob[i])
        data = {
            "feature_index": column.get(id(node)),
            "mutually_exclusive_children": node.exclusive and len(node.children) > 1,
            "scale_children_by_parent": scales[i],
            "feature_id": node.name,
            "children": [],
        }
        written.append(data)
        if parent >= 0:
            written[parent]["children"].append(data)
    of_features = sorted((column[id(node)], prob[i], node) for i, (*_, node) in enumerate(found) if node.is_feature)
    mean, std = ([getattr(node, f"magnitude_{name}") for *_, node in of_features] for name in ("mean", "std"))
    plain = not root.is_feature and not written[0]["mutually_exclusive_children"]
    return Forest(
        written[0]["children"] if plain else written[:1], Firing([p for _, p, _ in of_features], mean, std), notes
    )


def drawn_for(kept: list[float]) -> np.ndarray:
    """Probabilities p with `kept_one(p)` = kept, by Newton's method from p = kept, which is below.

    Raises: ValueError for what is not found, with the nearest that is.
    """
    target, s, weights = np.asarray(kept, float), *gauss_legendre()
    p = target.copy()
    for _ in range(_N_STEPS):
        missing = target - kept_one(p)
        if np.max(np.abs(missing)) < 1e-15:
            break
        inverse = 1 / (1 - np.outer(s, p))  # [points n]
        rest = weights * np.exp(-np.log(inverse).sum(axis=1))  # Π_j (1 − p_j s) ds
        slope = -p[:, None] * ((inverse * (rest * s)[:, None]).T @ inverse)
        np.fill_diagonal(slope, rest @ inverse)
        p = np.clip(p + np.linalg.lstsq(slope, missing)[0], 0, 1)
    found = kept_one(p)
    if np.max(np.abs(found - target)) > _EXACT:
        raise ValueError(
            f"SAELens cannot produce the exclusive probabilities {few(target)}; the nearest found are {few(found)}"
        )
    return p


def _drawn_probs(found: list[tuple[str, int, Node]]) -> tuple[list[float], list[str]]:
    """Returns the probability of each node, given its parent."""
    prob, place = [float(node.active_prob) for *_, node in found], {id(node): i for i, (*_, node) in enumerate(found)}
    changed: list[str] = []
    for path, _, node in found:
        if not node.exclusive or len(node.children) < 2:
            continue
        if not all(child.is_feature for child in node.children):
            raise TreeError(f"{shown(path)}.children: in SAELens only features exclude each other; make them features")
        if len(node.children) > _MOST_RIVALS:
            raise TreeError(f"{shown(path)}.children: at most {_MOST_RIVALS:,} exclusive children can be converted")
        before = [float(child.active_prob) for child in node.children]
        try:
            after = drawn_for(before).tolist()
        except ValueError as error:
            raise TreeError(f"{shown(path)}.children: {error}") from None
        for child, p in zip(node.children, after, strict=True):
            prob[place[id(child)]] = p
        changed.append(f"{shown(path)}: {few(before)} become {few(after)}")
    if not changed:
        return prob, []
    more = f" (and {len(changed) - 1} more groups)" if len(changed) > 1 else ""
    return prob, [f"SAELens keeps one of the exclusive children that are on, and draws more; of {changed[0]}{more}"]


def _scales(found: list[tuple[str, int, Node]]) -> list[bool]:
    """Returns whether a node scales its children in SAELens: by the nearest feature at or above it, not by itself."""
    through: list[bool] = []  # whether the scale of the nearest feature reaches a node's children
    for path, parent, node in found:
        own = node.scale_children_by_parent
        if own and not node.is_feature and node.magnitude_std:
            raise TreeError(f"{shown(path)}.magnitude_std: in SAELens only features scale children; make it a feature")
        through.append(own and (node.is_feature or (parent >= 0 and through[parent])))
    return through


def _check(path: str, parent: int, node: Node, prob: float) -> None:
    if not node.is_feature and prob != 1:
        raise TreeError(
            f"{shown(path)}: in SAELens a node that is no feature is on whenever its parent is; give it active_prob 1, "
            "or make it a feature"
        )
    if (
        node.is_feature
        and node.magnitude_std
        and share_below_zero(node.magnitude_mean, node.magnitude_std) > MAX_CLIPPED
    ):
        raise TreeError(
            f"{shown(path)}.magnitude_std: SAELens clips magnitudes below 0 where they are folded here; make it at "
            "most 0.21 of magnitude_mean"
        )
