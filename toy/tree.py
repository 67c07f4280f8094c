"""Feature trees: `Node` as a person writes one, `Tree` as flat arrays, and exact statistics of both.

A child can only be on with its parent. The root is usually always on and no feature.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num, UInt32

MAX_DEPTH = 256
MAX_MAGNITUDE = 1e6
_RANGE = 1 << 32  # values of one uniform draw
_MIN_NESTED = 1 << 20  # narrower intervals get a draw of their own: edge probabilities are exact to 1e-6


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


class Tree(NamedTuple):
    """A forest of nodes as flat arrays, parents first: a pytree that can be jitted over and vmapped.

    Each node holds an interval [first, last] of one of `n_draws` uniform 32-bit draws and is on when the
    draw falls into it and every gating ancestor is on. A parent and its first group of children share a
    draw (nested intervals), so most trees need no gates. `None` stands for "nowhere in this tree".
    """

    parent: Int[np.ndarray, " n_nodes"]  # -1 for a root
    prob: Float[np.ndarray, " n_nodes"]  # P(on | parent on)
    group: Int[np.ndarray, " n_nodes"]  # shared by mutually exclusive siblings; -1 if independent
    magnitude_mean: Num[Array | np.ndarray, " n_nodes"]
    magnitude_std: Num[Array | np.ndarray, " n_nodes"] | None
    parent_scale: Num[Array | np.ndarray, " n_nodes"] | None  # 1 / parent's mean if scaled by it, else 0
    readout: Int[np.ndarray, " n_features"] | None  # node of each feature; None: every node, in order
    draw: Int[np.ndarray, " n_nodes"]
    first: UInt32[np.ndarray, " n_nodes"]
    last: UInt32[np.ndarray, " n_nodes"]
    draw_root: Int[np.ndarray, " n_draws"]  # the first node of each draw
    gates: Int[np.ndarray, "n_gates n_nodes"]  # ancestors in other draws; a node itself where it has no more

    @property
    def n_features(self) -> int:
        return (self.parent if self.readout is None else self.readout).shape[-1]


# --- from nodes to arrays -----------------------------------------------------------------------------


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


def build_tree(root: Node) -> Tree:
    """Flatten a tree. Branches without any feature and an always-on root that is no feature are left out.

    Raises: `TreeError` (see `walk`).
    """
    found = walk(root)
    keep = [node.is_feature for *_, node in found]
    for i in reversed(range(1, len(found))):  # a branch is kept for the sake of the features below it
        keep[found[i][1]] |= keep[i]
    if not root.is_feature and root.active_prob == 1 and root.magnitude_std == 0:
        keep[0] = False
    kept = np.flatnonzero(keep)
    position = {int(old): new for new, old in enumerate(kept)} | {-1: -1}

    nodes = [found[i][2] for i in kept]
    parent = np.array([position.get(found[i][1], -1) for i in kept])
    prob = np.array([node.active_prob for node in nodes], float)
    group = np.array([found[i][1] if i and found[found[i][1]][2].exclusive else -1 for i in kept])
    mean = np.array([node.magnitude_mean for node in nodes], float)
    std = np.array([node.magnitude_std for node in nodes], float)
    scaled = np.array([p >= 0 and nodes[p].scale_children_by_parent for p in parent])
    readout = np.flatnonzero([node.is_feature for node in nodes])
    readout = readout[np.argsort([nodes[i].feature_index or 0 for i in readout], kind="stable")]
    # What the always-on root does to the magnitudes of its children is nothing: its own is its mean.
    return Tree(
        parent,
        prob,
        group,
        magnitude_mean=mean,
        magnitude_std=std if std.any() else None,
        parent_scale=np.where(scaled, 1 / np.where(scaled, mean[parent], 1), 0.0) if scaled.any() else None,
        readout=None if np.array_equal(readout, np.arange(len(nodes))) else readout,
        **_assign_draws(parent, prob, group),
    )


def _assign_draws(parent: np.ndarray, prob: np.ndarray, group: np.ndarray) -> dict[str, np.ndarray]:
    """Give each node an interval of a draw: exclusive siblings side by side, the first child inside its parent."""
    n_nodes = len(parent)
    draw = np.zeros(n_nodes, int)
    start, stop = np.zeros(n_nodes, int), np.zeros(n_nodes, int)  # half open, out of _RANGE
    draw_root: list[int] = []
    shares: dict[object, list] = {}  # siblings in one interval -> [draw, start, stop, probability given away]
    nested: set[int] = set()  # parents whose own interval is already divided among children
    for i in range(n_nodes):
        siblings = ("group", int(group[i])) if group[i] >= 0 else ("node", i)
        if siblings not in shares:
            p = int(parent[i])
            if p >= 0 and p not in nested and stop[p] - start[p] >= _MIN_NESTED:
                nested.add(p)
                shares[siblings] = [draw[p], start[p], stop[p], 0.0]
            else:
                draw_root.append(i)
                shares[siblings] = [len(draw_root) - 1, 0, _RANGE, 0.0]
        share = shares[siblings]
        draw[i], width = share[0], share[2] - share[1]
        start[i] = share[1] + round(share[3] * width)
        share[3] += prob[i]
        stop[i] = share[1] + round(min(share[3], 1.0) * width)
    empty = stop <= start
    root_of = np.array(draw_root)
    levels, gate = [], parent[root_of[draw]]
    while (gate >= 0).any():
        levels.append(np.where(gate >= 0, gate, np.arange(n_nodes)))
        gate = np.where(gate >= 0, parent[root_of[draw[gate]]], -1)
    return dict(
        draw=draw,
        first=np.where(empty, 1, start).astype(np.uint32),
        last=np.where(empty, 0, stop - 1).astype(np.uint32),
        draw_root=root_of,
        gates=np.array(levels, int).reshape(len(levels), n_nodes),
    )


# --- sampling -------------------------------------------------------------------------------------------


def sample_features(key: Key[Array, ""], tree: Tree, batch_size: int) -> Float[Array, "batch n_features"]:
    """A batch of independent draws from the tree: each feature's magnitude where it is on, else 0.

    Pure; jit with `batch_size` static; vmap over keys, or over trees of one structure.
    """
    key_draws, key_magnitudes = jax.random.split(key)
    # Nodes are rows while sampling: a gather of rows is many times cheaper than one of columns on a CPU.
    bits = jax.random.bits(key_draws, (tree.draw_root.shape[0], batch_size), jnp.uint32)[jnp.asarray(tree.draw)]
    on = (bits >= jnp.asarray(tree.first)[:, None]) & (bits <= jnp.asarray(tree.last)[:, None])
    inside = on
    for gate in jnp.asarray(tree.gates):
        on = on & inside[gate]
    magnitude = jnp.asarray(tree.magnitude_mean, jnp.result_type(float))[:, None]
    if tree.magnitude_std is not None:
        noise = jax.random.normal(key_magnitudes, on.shape)
        magnitude = jnp.maximum(magnitude + jnp.asarray(tree.magnitude_std)[:, None] * noise, 0)
    if tree.parent_scale is not None:
        magnitude = _scale_by_parents(tree, jnp.broadcast_to(magnitude, on.shape))
    values = on * magnitude
    return (values if tree.readout is None else values[jnp.asarray(tree.readout)]).T


def _scale_by_parents(tree: Tree, magnitude: Float[Array, "n_nodes batch"]) -> Float[Array, "n_nodes batch"]:
    scale, parent = jnp.asarray(tree.parent_scale), jnp.asarray(tree.parent)

    def one(i: Array, magnitude: Array) -> Array:  # parents come first, so one pass is enough
        factor = jnp.where(scale[i] > 0, scale[i] * magnitude[parent[i]], 1.0)
        return magnitude.at[i].multiply(factor)

    return jax.lax.fori_loop(0, magnitude.shape[0], one, magnitude)


# --- exact statistics (host, float64) -------------------------------------------------------------------


def _features_only(tree: Tree, nodes: np.ndarray) -> np.ndarray:
    return nodes if tree.readout is None else nodes[tree.readout]


def _node_marginals(tree: Tree) -> np.ndarray:
    marginal = np.array(tree.prob, float)
    for i, p in enumerate(tree.parent):
        if p >= 0:
            marginal[i] *= marginal[p]
    return marginal


def marginals(tree: Tree) -> Float[np.ndarray, " n_features"]:
    """P(feature on): the product of the edge probabilities above it, exactly."""
    return _features_only(tree, _node_marginals(tree))


def mean_l0(tree: Tree) -> float:
    """E[number of features on], exactly: the sum of the marginals."""
    return float(marginals(tree).sum())


def coactivation(tree: Tree) -> Float[np.ndarray, "n_features n_features"]:
    """P(feature i and feature j on), exactly; the diagonal holds the marginals.

    Branches below the lowest common ancestor a are independent, so it is P(i) P(j) / P(a), or 0 where
    the two branches are mutually exclusive.
    """
    marginal = _node_marginals(tree)
    n_nodes = len(marginal)
    joint = np.zeros((n_nodes, n_nodes))
    for j in range(n_nodes):
        p = tree.parent[j]
        for i in range(j):
            if i == p or p < 0:
                joint[i, j] = marginal[j] if i == p else marginal[i] * marginal[j]
            else:  # given its parent, j is independent of everything outside its own branch and rivals
                joint[i, j] = joint[i, p] * tree.prob[j]
            if tree.group[j] >= 0 and _below_rival(tree, i, j):
                joint[i, j] = 0.0
            joint[j, i] = joint[i, j]
        joint[j, j] = marginal[j]
    return joint if tree.readout is None else joint[np.ix_(tree.readout, tree.readout)]


def _below_rival(tree: Tree, i: int, j: int) -> bool:
    """Whether i is, or is below, a sibling of j that excludes j."""
    while i >= 0 and i != j:
        if tree.group[i] == tree.group[j]:
            return True
        i = tree.parent[i]
    return False


def feature_parents(tree: Tree) -> Int[np.ndarray, " n_features"]:
    """The column of each feature's nearest ancestor that is a feature, or -1."""
    readout = np.arange(len(tree.parent)) if tree.readout is None else tree.readout
    column = {int(node): i for i, node in enumerate(readout)}
    parents = []
    for node in readout:
        ancestor = tree.parent[node]
        while ancestor >= 0 and ancestor not in column:
            ancestor = tree.parent[ancestor]
        parents.append(column.get(int(ancestor), -1))
    return np.array(parents)


def edges(tree: Tree) -> list[tuple[int, int]]:
    """(parent, child) columns of every feature that has a parent feature."""
    return [(int(p), c) for c, p in enumerate(feature_parents(tree)) if p >= 0]
