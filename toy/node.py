"""A feature tree as a person writes it: nested `Node`s, and what makes them a tree."""

import math
from dataclasses import dataclass

import numpy as np

MAX_DEPTH = 256
MAX_MAGNITUDE = 1e6


class TreeError(ValueError):
    """A tree that cannot be built; the message names the path of the node and the fault."""


@dataclass(frozen=True)
class Node:
    """One node of a feature tree as a person writes it.

    `active_prob` is P(on | parent on). With `exclusive`, at most one of the children is on and the leftover
    probability is "none". A feature's magnitude, when on, is max(0, N(magnitude_mean, magnitude_std²));
    with `scale_children_by_parent` each child's is multiplied by its parent's magnitude / magnitude_mean
    (as in SAELens). `feature_index` fixes the feature's column; by default columns follow the order written.
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


def walk(root: Node) -> list[tuple[str, int, Node]]:
    """Check a tree and list its nodes as (path, position of the parent or -1, node), parents first.

    Raises `TreeError` for a wrong type, a probability outside [0, 1], exclusive children that sum over 1,
    a node used twice (shared or in a cycle), more than `MAX_DEPTH` levels, or no feature at all.
    """
    found: list[tuple[str, int, Node]] = []
    seen: set[int] = set()
    stack = [("root", -1, 0, root)]
    while stack:
        path, parent, depth, node = stack.pop()
        _check_node(path, depth, node)
        if id(node) in seen:
            raise TreeError(f"{path}: this node is also used elsewhere in the tree (shared, or a cycle); make a copy")
        seen.add(id(node))
        found.append((path, parent, node))
        position = len(found) - 1
        for i, child in reversed(list(enumerate(node.children))):
            stack.append((f"{path}.children[{i}]", position, depth + 1, child))
    if not any(node.is_feature for *_, node in found):
        raise TreeError("root: the tree has no feature; at least one node needs is_read_out true")
    _check_indices(found)
    return found


def _check_node(path: str, depth: int, node: Node) -> None:
    if not isinstance(node, Node):
        raise TreeError(f"{path}: expected a Node, got {type(node).__name__}")
    if depth > MAX_DEPTH:
        raise TreeError(f"{path[:60]}…: nests deeper than {MAX_DEPTH} levels; is there a cycle?")
    if not isinstance(node.children, tuple | list):
        raise TreeError(f"{path}.children: expected a list of nodes, got {type(node.children).__name__}")
    for field, low, high in (
        ("active_prob", 0, 1),
        ("magnitude_mean", 0, MAX_MAGNITUDE),
        ("magnitude_std", 0, MAX_MAGNITUDE),
    ):
        value = getattr(node, field)
        if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
            raise TreeError(f"{path}.{field}: expected a number, got {type(value).__name__} {value!r}")
        if not low <= value <= high:
            raise TreeError(f"{path}.{field}: {value} is outside [{low}, {high:g}]")
    if node.scale_children_by_parent and node.magnitude_mean == 0:
        raise TreeError(f"{path}.magnitude_mean: children are scaled by this magnitude, so it cannot be 0")
    for i, child in enumerate(node.children):
        if not isinstance(child, Node):
            raise TreeError(f"{path}.children[{i}]: expected a Node, got {type(child).__name__}")
    if node.exclusive:
        for i, child in enumerate(node.children):
            _check_node(f"{path}.children[{i}]", depth, Node(child.active_prob))
        total = math.fsum(child.active_prob for child in node.children)
        if total > 1 + 1e-9:
            raise TreeError(f"{path}.children: probabilities of mutually exclusive children sum to {total:.6g} > 1")


def _check_indices(found: list[tuple[str, int, Node]]) -> None:
    indices = {path: node.feature_index for path, _, node in found if node.is_feature}
    if set(indices.values()) == {None}:
        return
    expected = set(range(len(indices)))
    for path, index in indices.items():
        if index not in expected:
            raise TreeError(
                f"{path}.feature_index: {index} is missing, repeated or not below the {len(indices)} features"
            )
        expected.remove(index)


def features(root: Node) -> list[Node]:
    """The feature nodes, in the order of their columns."""
    nodes = [node for *_, node in walk(root) if node.is_feature]
    return sorted(nodes, key=lambda node: node.feature_index or 0)  # stable: keeps the order written


def feature_names(root: Node) -> list[str]:
    """A name a feature: the node's own or, where it has none, its column."""
    return [node.name or str(column) for column, node in enumerate(features(root))]
