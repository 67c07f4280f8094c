"""Feature trees as flat arrays: `build_tree`, `sample_features`, and their exact statistics.

A child can only be on with its parent. The root is usually always on and no feature.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num, UInt32

from toy.compiled import compiled
from toy.features.magnitudes import folded_mean
from toy.features.node import Node, walk

_RANGE = 1 << 32  # values of one uniform draw
_MIN_NESTED = 1 << 20  # narrower intervals get a draw of their own: edge probabilities are exact to 1e-6
_LEAST_NOISY = 2.0**-26  # noisy magnitudes are at least this share of mean + std, since rounding could make them 0
_MOST_PAIRWISE = 10_000  # nodes: a matrix of their pairs takes 800 MB


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


def build_tree(root: Node) -> Tree:
    """Flattens a tree. Branches without any feature and an always-on root that is no feature are left out.

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
    # The root that is left out scales no magnitude of its children, since its own magnitude is its mean.
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
    """Gives each node an interval of a draw: exclusive siblings side by side, the first child inside its parent."""
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


def held_out_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """A key for rows that training from `key` has not seen: trainers split the key, this folds a number into it."""
    return jax.random.fold_in(key, 1)


@compiled(static_argnames="batch_size", inline=True)
def sample_features(key: Key[Array, ""], tree: Tree, batch_size: int) -> Float[Array, "batch n_features"]:
    """A batch of independent draws from the tree: each feature's magnitude where it is on, else 0.

    Pure; vmap over keys, or over trees of one structure.
    """
    key_draws, key_magnitudes = jax.random.split(key)
    # Nodes are rows while sampling: a gather of rows is many times cheaper than one of columns on a CPU.
    bits = jax.random.bits(key_draws, (tree.draw_root.shape[0], batch_size), jnp.uint32)[jnp.asarray(tree.draw)]
    on = (bits >= jnp.asarray(tree.first)[:, None]) & (bits <= jnp.asarray(tree.last)[:, None])
    if len(tree.gates):
        on = _gated(on, jnp.asarray(tree.gates))
    magnitude = jnp.asarray(tree.magnitude_mean, jnp.result_type(float))[:, None]
    if tree.magnitude_std is not None:
        noise = jax.random.normal(key_magnitudes, on.shape)
        std = jnp.asarray(tree.magnitude_std)[:, None]
        # Folded, not clipped: a feature that is on is above 0, and so is what it scales.
        magnitude = jnp.maximum(jnp.abs(magnitude + std * noise), _LEAST_NOISY * (magnitude + std))
    if tree.parent_scale is not None:
        magnitude = _scale_by_parents(tree, jnp.broadcast_to(magnitude, on.shape))
    values = on * magnitude
    return (values if tree.readout is None else values[jnp.asarray(tree.readout)]).T


def _gated(inside: Bool[Array, "n_nodes batch"], gates: Int[Array, "n_gates n_nodes"]) -> Bool[Array, "n_nodes batch"]:
    """The nodes inside their interval whose gates are so, too.

    Only levels that gate anything are passed over: padding has none. A loop written out would draw all random bits
    again for each level, since XLA computes what a gather reads inside the loop that reads it.
    """
    n_levels = jnp.sum(jnp.any(gates != jnp.arange(gates.shape[1]), axis=1))  # later ones gate nothing
    return jax.lax.fori_loop(0, n_levels, lambda i, on: on & inside[gates[i]], inside)


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


def mean_magnitudes(tree: Tree) -> Float[np.ndarray, " n_features"]:
    """E[magnitude | feature on], exactly: the mean of |N(mean, std²)| times the mean of the factor that scales it.

    The factor is the parent's magnitude / magnitude_mean, which is independent of the child's own noise.
    """
    own = np.array(tree.magnitude_mean, float)
    if tree.magnitude_std is None:
        return _features_only(tree, own)
    stds = np.asarray(tree.magnitude_std, float).tolist()
    own = np.array([folded_mean(*pair) for pair in zip(own.tolist(), stds, strict=True)])
    if tree.parent_scale is not None:
        for i, scale in enumerate(np.asarray(tree.parent_scale, float)):  # parents come first
            if scale > 0:
                own[i] *= scale * own[tree.parent[i]]
    return _features_only(tree, own)


def coactivation(tree: Tree) -> Float[np.ndarray, "n_features n_features"]:
    """P(feature i and feature j on), exactly; the diagonal holds the marginals.

    Given its parent p, node j is independent of every node i outside its own branch: P(i, j) = P(i, p) P(j | p). It
    is 0 where i is in the branch of a sibling that excludes j.

    Raises: ValueError for a tree of more than 10,000 nodes, whose pairs would not fit into memory.
    """
    marginal = _node_marginals(tree)
    n_nodes = len(marginal)
    if n_nodes > _MOST_PAIRWISE:
        raise ValueError(
            f"tree: the co-activation of {n_nodes:,} nodes takes {n_nodes**2 * 8 / 1e9:.0f} GB; it is computed of "
            f"{_MOST_PAIRWISE:,} nodes at most, so take a smaller tree"
        )
    joint = np.diag(marginal)
    branch = np.eye(n_nodes, dtype=bool)  # [i, j]: j is i, or below it
    for j, p in enumerate(tree.parent):
        if p >= 0:
            branch[:, j] |= branch[:, p]
        row = (joint[p, :j] if p >= 0 else marginal[:j]) * tree.prob[j]
        rivals = np.flatnonzero((tree.group[:j] == tree.group[j]) & (tree.group[j] >= 0))
        row[branch[rivals, :j].any(axis=0)] = 0.0
        joint[j, :j] = joint[:j, j] = row
    return joint if tree.readout is None else joint[np.ix_(tree.readout, tree.readout)]


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
