"""The named trees of the figures, and regular and random trees for sweeps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from toy.checks import POSITIVE, SEED, SHARE, Whole, check_fields, check_numbers, quoted
from toy.features.node import MAX_DEPTH, Node, TreeError, assembled, check_size, walk


def forest(*roots: Node) -> Node:
    """Trees side by side, under a root that is always on and is not a feature."""
    return Node(1.0, roots, is_feature=False)


def reference_tree() -> Node:
    """The 20 features of the post: 3 parents with 3 mutually exclusive children each, and 8 lone features.

    Mean L0 3 · 0.15 · 1.6 + 8 · 0.05 = 1.12. Source: `tree.json` of the reference code.
    """
    parents = [Node(0.15, tuple(Node(0.2, name=f"{p}{i}") for i in (1, 2, 3)), exclusive=True, name=p) for p in "ABC"]
    lone = [Node(0.05, name=f"L{i}") for i in range(1, 9)]
    return forest(*parents, *lone)


def three_level_tree() -> Node:
    """Two grandparents, each with two parents of two mutually exclusive children, and 4 lone features (18)."""

    def parent(name: str) -> Node:
        return Node(0.3, (Node(0.3, name=name + "1"), Node(0.3, name=name + "2")), exclusive=True, name=name)

    grand = [Node(0.25, (parent(g + "a"), parent(g + "b")), exclusive=True, name=g) for g in "AB"]
    return forest(*grand, *(Node(0.05, name=f"L{i}") for i in range(1, 5)))


def ordering_tree(prob: float = 0.3, edge_prob: float = 0.5, magnitude: float = 2.0, ratio: float = 5.0) -> Node:
    """A parent and one child whose magnitude is `ratio` times the parent's.

    The defaults are the example of the post's comments: parent p 0.3 and magnitude 2, child p 0.15 and 10.
    """
    child = Node(edge_prob, name="child", magnitude_mean=magnitude * ratio)
    return forest(Node(prob, (child,), name="parent", magnitude_mean=magnitude))


TREES = {"reference": reference_tree, "three_level": three_level_tree, "ordering": ordering_tree}


def scale_children(root: Node, ratio: float) -> Node:
    """The same tree with the mean magnitude of every child feature `ratio` times that of its parent feature.

    Raises: ValueError for a ratio that is not above 0; TreeError for a tree that is refused.
    """
    check_numbers({"ratio": ratio}, {"ratio": POSITIVE})
    nodes: list[tuple[int, dict[str, Any]]] = []
    above: list[float | None] = []  # mean magnitude of the nearest feature at or above each node
    for _, parent, node in walk(root):
        mean, inherited = node.magnitude_mean, None if parent < 0 else above[parent]
        if node.is_feature:
            mean = mean if inherited is None else ratio * inherited
            inherited = mean
        above.append(inherited)
        nodes.append((parent, {**vars(node), "magnitude_mean": mean}))
    return assembled(nodes)[0]


@dataclass(frozen=True)
class RegularTree:
    """Trees in which all nodes with children have equally many, and lone features; by default, the reference tree.

    `depth` counts the levels below a root, which is itself a feature. A root has (branching^(depth + 1) − 1) /
    (branching − 1) features if all nodes are expanded (1,555 for 6 and 4), and 1 + branching · depth if one is.
    """

    n_roots: int = 3
    root_prob: float = 0.15
    branching: int = 3
    depth: int = 1
    edge_prob: float = 0.2
    exclusive: bool = True  # whether children of one node exclude each other
    expanded: int | None = None  # number of children of a node that have children themselves; None for all
    n_lone: int = 8
    lone_prob: float = 0.05

    def __post_init__(self) -> None:
        check_fields(self, n_roots=Whole(1), branching=Whole(1), depth=Whole(0), n_lone=Whole(0), expanded=Whole(1))
        check_fields(self, root_prob=SHARE, edge_prob=SHARE, lone_prob=SHARE)
        if not isinstance(self.exclusive, bool | np.bool_):
            raise ValueError(f"exclusive: must be True or False, got {quoted(self.exclusive)}")


def regular_tree(spec: RegularTree) -> Node:
    """The tree that a `RegularTree` describes. Raises: TreeError if it has too many nodes or levels."""
    n_expanded = spec.branching if spec.expanded is None else min(spec.expanded, spec.branching)
    n_nodes = spec.n_roots + spec.n_lone
    n_growing = spec.n_roots  # nodes of a level that have children
    check_size(n_nodes)
    for _ in range(min(spec.depth, MAX_DEPTH)):
        n_nodes, n_growing = n_nodes + n_growing * spec.branching, n_growing * n_expanded
        check_size(n_nodes)
    _check_depth(spec.depth)

    def grow(level: int, prob: float) -> Grown:
        n_children = spec.branching if level < spec.depth else 0
        levels = (level + 1 if i < n_expanded else spec.depth for i in range(n_children))
        return spec.exclusive, [(below, spec.edge_prob) for below in levels]

    lone = (Node(spec.lone_prob) for _ in range(spec.n_lone))
    return forest(*_grown([(0, spec.root_prob)] * spec.n_roots, grow), *lone)


@dataclass(frozen=True)
class RandomTree:
    """The distribution of `random_tree`. Ranges are inclusive; `depth` counts the levels of features."""

    n_roots: int = 5
    branching: tuple[int, int] = (2, 4)
    depth: int = 2
    edge_prob: tuple[float, float] = (0.1, 0.3)
    root_prob: tuple[float, float] = (0.05, 0.2)
    exclusive_share: float = 0.5  # of the nodes with children
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, n_roots=Whole(1), branching=Whole(0), depth=Whole(1), seed=SEED)
        check_fields(self, edge_prob=SHARE, root_prob=SHARE, exclusive_share=SHARE)
        for name in ("branching", "edge_prob", "root_prob"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or len(value) != 2 or not value[0] <= value[1]:
                raise ValueError(f"{name}: must be a pair (low, high) with low <= high, got {quoted(value)}")


def random_tree(spec: RandomTree) -> Node:
    """A random forest, in which exclusive probabilities that sum to more than 1 are divided by their sum.

    Raises: TreeError if it has too many nodes or levels.
    """
    _check_depth(spec.depth)
    rng = np.random.default_rng(spec.seed)
    n_nodes = spec.n_roots
    check_size(n_nodes)

    def grow(level: int, prob: float) -> Grown:
        nonlocal n_nodes
        n_children = int(rng.integers(spec.branching[0], spec.branching[1] + 1)) if level < spec.depth else 0
        n_nodes += n_children
        check_size(n_nodes)
        probs = rng.uniform(*spec.edge_prob, n_children)
        exclusive = n_children > 1 and rng.random() < spec.exclusive_share
        if exclusive:
            probs = probs / max(1.0, probs.sum())
        return exclusive, [(level + 1, float(p)) for p in probs]

    return forest(*_grown([(1, float(p)) for p in rng.uniform(*spec.root_prob, spec.n_roots)], grow))


Grown = tuple[bool, list[tuple[int, float]]]  # whether children exclude each other; level and probability of each


def _grown(roots: list[tuple[int, float]], grow: Callable[[int, float], Grown]) -> list[Node]:
    """Grow nodes from roots in depth-first order."""
    nodes: list[tuple[int, dict[str, Any]]] = []
    stack = [(-1, level, prob) for level, prob in reversed(roots)]
    while stack:
        parent, level, prob = stack.pop()
        exclusive, children = grow(level, prob)
        nodes.append((parent, {"active_prob": prob, "exclusive": exclusive}))
        stack += [(len(nodes) - 1, *child) for child in reversed(children)]
    return assembled(nodes)


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TreeError(f"depth: {depth} is more than {MAX_DEPTH}")
