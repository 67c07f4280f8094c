"""The named trees of the figures, and random ones for sweeps."""

from dataclasses import dataclass, replace

import numpy as np

from toy.node import MAX_DEPTH, MAX_NODES, Node, TreeError


def forest(*roots: Node) -> Node:
    """Trees side by side under an always-on root that is no feature."""
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
    """The same tree with the mean magnitude of every child feature `ratio` times that of its parent feature."""

    def scaled(node: Node, above: float | None) -> Node:
        mean = node.magnitude_mean
        if node.is_feature:
            mean = mean if above is None else ratio * above
            above = mean
        return replace(node, magnitude_mean=mean, children=tuple(scaled(child, above) for child in node.children))

    return scaled(root, None)


@dataclass(frozen=True)
class RegularTree:
    """Trees in which every node that has children has as many, beside lone features; the defaults are the reference.

    `depth` counts the levels below a root, which is a feature itself. With all nodes expanded there are
    (branching^(depth + 1) − 1) / (branching − 1) features a root, 1,555 for 6 and 4; with one, 1 + branching · depth.
    """

    n_roots: int = 3
    root_prob: float = 0.15
    branching: int = 3
    depth: int = 1
    edge_prob: float = 0.2
    exclusive: bool = True  # children of one node
    expanded: int | None = None  # how many children of a node have children themselves; None: all
    n_lone: int = 8
    lone_prob: float = 0.05

    def __post_init__(self) -> None:
        for name, least in (("n_roots", 1), ("branching", 1), ("depth", 0), ("n_lone", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        for name in ("root_prob", "edge_prob", "lone_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is outside [0, 1]")
        if self.expanded is not None and self.expanded < 1:
            raise ValueError(f"expanded: must be at least 1, got {self.expanded}")


def regular_tree(spec: RegularTree) -> Node:
    """Not every one can be built: exclusive children's probabilities may sum over 1.

    Raises: TreeError if there are more than `MAX_NODES`, or levels than a tree may have.
    """
    n_expanded = spec.branching if spec.expanded is None else min(spec.expanded, spec.branching)
    n_nodes = spec.n_roots + spec.n_lone
    n_growing = spec.n_roots  # nodes of a level that have children
    _check_size(n_nodes)
    for _ in range(min(spec.depth, MAX_DEPTH)):
        n_nodes, n_growing = n_nodes + n_growing * spec.branching, n_growing * n_expanded
        _check_size(n_nodes)
    if spec.depth > MAX_DEPTH:
        raise TreeError(f"depth: {spec.depth} is more than {MAX_DEPTH}")

    def grow(level: int, prob: float) -> Node:
        n_children = spec.branching if level < spec.depth else 0
        levels = (level + 1 if i < n_expanded else spec.depth for i in range(n_children))
        return Node(prob, tuple(grow(below, spec.edge_prob) for below in levels), exclusive=spec.exclusive)

    lone = (Node(spec.lone_prob) for _ in range(spec.n_lone))
    return forest(*(grow(0, spec.root_prob) for _ in range(spec.n_roots)), *lone)


@dataclass(frozen=True)
class RandomTree:
    """What `random_tree` draws from. Ranges are inclusive; `depth` counts the levels of features."""

    n_roots: int = 5
    branching: tuple[int, int] = (2, 4)
    depth: int = 2
    edge_prob: tuple[float, float] = (0.1, 0.3)
    root_prob: tuple[float, float] = (0.05, 0.2)
    exclusive_share: float = 0.5  # of the nodes with children
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("edge_prob", "root_prob"):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= 1:
                raise ValueError(f"{name}: needs 0 <= low <= high <= 1, got {(low, high)}")
        if not 0 <= self.branching[0] <= self.branching[1]:
            raise ValueError(f"branching: needs 0 <= low <= high, got {self.branching}")
        if self.n_roots < 1 or self.depth < 1:
            raise ValueError(f"n_roots and depth must be at least 1, got {self.n_roots} and {self.depth}")
        if not 0 <= self.exclusive_share <= 1:
            raise ValueError(f"exclusive_share: {self.exclusive_share} is outside [0, 1]")
        if self.seed < 0:
            raise ValueError(f"seed: must not be negative, got {self.seed}")


def random_tree(spec: RandomTree) -> Node:
    """A random forest. Exclusive children whose probabilities sum over 1 are scaled down to sum to 1.

    Raises: TreeError if it grows to more than `MAX_NODES`, or levels than a tree may have.
    """
    if spec.depth > MAX_DEPTH:
        raise TreeError(f"depth: {spec.depth} is more than {MAX_DEPTH}")
    rng = np.random.default_rng(spec.seed)
    n_nodes = spec.n_roots
    _check_size(n_nodes)

    def grow(level: int, prob: float) -> Node:
        nonlocal n_nodes
        n_children = int(rng.integers(spec.branching[0], spec.branching[1] + 1)) if level < spec.depth else 0
        n_nodes += n_children
        _check_size(n_nodes)
        probs = rng.uniform(*spec.edge_prob, n_children)
        exclusive = n_children > 1 and rng.random() < spec.exclusive_share
        if exclusive:
            probs = probs / max(1.0, probs.sum())
        return Node(prob, tuple(grow(level + 1, float(p)) for p in probs), exclusive=exclusive)

    return forest(*(grow(1, float(p)) for p in rng.uniform(*spec.root_prob, spec.n_roots)))


def _check_size(n_nodes: int) -> None:
    if n_nodes > MAX_NODES:
        raise TreeError(f"the tree would have {n_nodes:,} features and more, at most {MAX_NODES:,} are built")
