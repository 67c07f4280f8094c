"""Feature trees as nested `Node`s, and the checks that they are trees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toy.checks import quoted
from toy.features.magnitudes import MAX_MAGNITUDE, MIN_MAGNITUDE, fits_float32, log_factor

MAX_DEPTH = 256
MAX_NODES = 100_000
MAX_NAME = 1000  # characters
MAX_EXCESS = 1e-9  # by which rounding may bring the sum of exclusive probabilities above 1
_MOST_PATH = 120  # characters of a path that a message shows


class TreeError(ValueError):
    """A tree that cannot be built; the message names the path of the node and the fault."""


@dataclass(frozen=True)
class Node:
    """One node of a feature tree.

    `active_prob` is P(on | parent on). With `exclusive`, at most one child is on, and none with probability 1 − Σ of
    theirs. A feature's magnitude, when on, is |N(magnitude_mean, magnitude_std²)|, whose mean differs from
    `magnitude_mean` unless the standard deviation is small (`toy.features.tree.mean_magnitudes` is exact). With
    `scale_children_by_parent` each child's magnitude is multiplied by its parent's magnitude / magnitude_mean, as in
    SAELens. `feature_index` sets the feature's column; by default columns follow the order of the nodes.
    """

    active_prob: float
    children: tuple["Node", ...] = ()
    exclusive: bool = False
    name: str | None = None
    is_feature: bool = True
    magnitude_mean: float = 1.0
    magnitude_std: float = 0.0
    scale_children_by_parent: bool = False
    feature_index: int | None = None


def assembled(nodes: Sequence[tuple[int, dict[str, Any]]]) -> list[Node]:
    """Build nodes from (position of the parent or -1, fields), parents first, and return those without a parent.

    There is no recursion, for which trees of 256 levels would leave little stack.
    """
    below: list[list[Node]] = [[] for _ in nodes]
    roots: list[Node] = []
    for i in reversed(range(len(nodes))):
        parent, fields = nodes[i]
        node = Node(**{**fields, "children": tuple(reversed(below[i]))})
        (below[parent] if parent >= 0 else roots).append(node)
    return roots[::-1]


def walk(root: Node) -> list[tuple[str, int, Node]]:
    """Check a tree and list its nodes as (path, position of the parent or -1, node), parents first.

    Raises: TreeError for a wrong type, a probability outside [0, 1], exclusive probabilities that sum to more than 1,
    a magnitude that float32 cannot hold, a bad name, a node used twice (shared or in a cycle), more than `MAX_DEPTH`
    levels or `MAX_NODES` nodes, or no feature at all.
    """
    found: list[tuple[str, int, Node]] = []
    seen: set[int] = set()
    stack = [("root", -1, 0, root)]
    while stack:
        path, parent, depth, node = stack.pop()
        _check_node(path, depth, node)
        if id(node) in seen:
            raise TreeError(
                f"{shown(path)}: this node is also used elsewhere in the tree (shared, or a cycle); make a copy"
            )
        seen.add(id(node))
        found.append((path, parent, node))
        check_size(len(found) + len(node.children))
        position = len(found) - 1
        for i, child in reversed(list(enumerate(node.children))):
            stack.append((f"{path}.children[{i}]", position, depth + 1, child))
    if not any(node.is_feature for *_, node in found):
        raise TreeError("root: the tree has no feature; at least one node needs is_read_out true")
    _check_indices(found)
    _check_scaling(found)
    return found


def shown(path: str) -> str:
    """A path for a message, without the middle of a long one."""
    half = _MOST_PATH // 2
    return path if len(path) <= _MOST_PATH else f"{path[:half]}…{path[-half:]}"


def check_depth(path: str, depth: int) -> None:
    """Raises: TreeError for a node that is too deep."""
    if depth > MAX_DEPTH:
        raise TreeError(f"{shown(path)}: nests deeper than {MAX_DEPTH} levels; is there a cycle?")


def check_size(n_nodes: int) -> None:
    """Raises: TreeError for too many nodes."""
    if n_nodes > MAX_NODES:
        raise TreeError(
            f"the tree has at least {n_nodes:,} nodes, and at most {MAX_NODES:,} are allowed: make it smaller"
        )


def _check_node(path: str, depth: int, node: Any) -> None:
    _check_type(path, node)
    check_depth(path, depth)
    if not isinstance(node.children, tuple | list):
        raise TreeError(f"{shown(path)}.children: expected a list of nodes, got {type(node.children).__name__}")
    _check_number(path, node, "active_prob", 1)
    _check_number(path, node, "magnitude_mean", MAX_MAGNITUDE)
    _check_number(path, node, "magnitude_std", MAX_MAGNITUDE)
    for field in ("exclusive", "is_feature", "scale_children_by_parent"):
        if not isinstance(getattr(node, field), bool | np.bool_):
            raise TreeError(f"{shown(path)}.{field}: expected True or False, got {quoted(getattr(node, field))}")
    index = node.feature_index
    if index is not None and (isinstance(index, bool) or not isinstance(index, int | np.integer)):
        raise TreeError(f"{shown(path)}.feature_index: expected a whole number, got {quoted(index)}")
    _check_magnitude(path, node)
    _check_name(path, node.name)
    if node.exclusive:
        for i, child in enumerate(node.children):
            _check_type(f"{path}.children[{i}]", child)
            _check_number(f"{path}.children[{i}]", child, "active_prob", 1)
        total = math.fsum(child.active_prob for child in node.children)
        if total > 1 + MAX_EXCESS:
            raise TreeError(
                f"{shown(path)}.children: probabilities of mutually exclusive children sum to {total:.6g} > 1; lower "
                "them, or divide each by the sum"
            )


def _check_type(path: str, node: Any) -> None:
    if not isinstance(node, Node):
        raise TreeError(f"{shown(path)}: expected a Node, got {type(node).__name__}")


def _check_number(path: str, node: Node, field: str, most: float) -> None:
    value = getattr(node, field)
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TreeError(f"{shown(path)}.{field}: expected a number, got {type(value).__name__} {quoted(value)}")
    if not 0 <= value <= most:
        number = quoted(value if isinstance(value, int) else str(value))
        raise TreeError(f"{shown(path)}.{field}: {number} is outside [0, {most:g}]")


def _check_magnitude(path: str, node: Node) -> None:
    if node.is_feature and node.magnitude_mean + node.magnitude_std < MIN_MAGNITUDE:
        raise TreeError(
            f"{shown(path)}.magnitude_mean: a feature of magnitude {node.magnitude_mean:g} cannot be told from one "
            f"that is off; give it at least {MIN_MAGNITUDE:g}, or set is_read_out false if the node is no feature"
        )
    if node.scale_children_by_parent and node.magnitude_mean < MIN_MAGNITUDE:
        raise TreeError(
            f"{shown(path)}.magnitude_mean: children are scaled by the magnitude relative to this mean, so it cannot "
            f"be {node.magnitude_mean:g}; give it at least {MIN_MAGNITUDE:g}"
        )


def _check_name(path: str, name: Any) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TreeError(f"{shown(path)}.name: expected text, got {type(name).__name__} {quoted(name, 60)}")
    if len(name) > MAX_NAME:
        raise TreeError(
            f"{shown(path)}: the name {quoted(name, 40)} has {len(name):,} characters, more than {MAX_NAME:,}; "
            "shorten it"
        )
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise TreeError(
            f"{shown(path)}: the name {quoted(name, 60)} has half of a surrogate pair, which is no character; rename it"
        )


def _check_indices(found: list[tuple[str, int, Node]]) -> None:
    indices = {path: node.feature_index for path, _, node in found if node.is_feature}
    if set(indices.values()) == {None}:
        return
    expected = set(range(len(indices)))
    for path, index in indices.items():
        if index not in expected:
            raise TreeError(
                f"{shown(path)}.feature_index: {quoted(index)} is missing, repeated or not below the "
                f"{len(indices)} features"
            )
        expected.remove(index)


def _check_scaling(found: list[tuple[str, int, Node]]) -> None:
    """Raises: TreeError where scaled magnitudes multiply to numbers that float32 cannot hold."""
    factors: list[tuple[float, float]] = []  # mean and variance of the logarithm of each node's scale
    for path, parent, node in found:
        above = found[parent][2] if parent >= 0 else None
        if above is None or not above.scale_children_by_parent:
            factors.append((0.0, 0.0))
            continue
        own = log_factor(above.magnitude_mean, above.magnitude_std)
        factors.append((factors[parent][0] + own[0], factors[parent][1] + own[1]))
        if not fits_float32(node.magnitude_mean, node.magnitude_std, factors[-1]):
            raise TreeError(
                f"{shown(path)}: scaled by its ancestors, this magnitude can become 0 or infinite in float32; lower "
                "the ancestors' magnitude_std, or set scale_children_by_parent false"
            )


def features(root: Node) -> list[Node]:
    """The feature nodes, in the order of their columns."""
    nodes = [node for *_, node in walk(root) if node.is_feature]
    return sorted(nodes, key=lambda node: node.feature_index or 0)  # stable: keeps the order written


def feature_names(root: Node) -> list[str]:
    """The name of each feature: the node's own or, if it has none, its column."""
    return [node.name or str(column) for column, node in enumerate(features(root))]
