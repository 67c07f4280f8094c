"""Laws of feature trees: what can be on together, how often, how large, and which trees are refused."""

from dataclasses import replace
from functools import cache
from math import erf, exp, pi, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from oracles import nodes, tree_states, within_binomial_bounds

from toy.features import named as trees
from toy.features.node import MAX_DEPTH, Node, TreeError, feature_names, features, walk
from toy.features.tree import (
    Tree,
    build_tree,
    coactivation,
    edges,
    feature_parents,
    marginals,
    mean_l0,
    sample_features,
)

KEY = jax.random.key(0)
N_ROWS = 100_000
NAMED = {
    "reference": trees.reference_tree(),
    "three_level": trees.three_level_tree(),
    "ordering": trees.ordering_tree(),
    "random": trees.random_tree(trees.RandomTree(depth=4, edge_prob=(0.2, 0.7), root_prob=(0.3, 0.6), seed=3)),
}


@cache
def sample(name: str) -> np.ndarray:
    """Which features are on in each row of a large batch."""
    return np.asarray(sample_features(KEY, build_tree(NAMED[name]), N_ROWS)) > 0


def exclusive_pairs(root: Node) -> list[tuple[int, int]]:
    """Columns of sibling features of which at most one is on."""
    column = {id(node): i for i, node in enumerate(features(root))}
    groups = [[column[id(c)] for c in node.children if c.is_feature] for *_, node in walk(root) if node.exclusive]
    return [(a, b) for group in groups for a in group for b in group if a < b]


# --- exact statistics ---------------------------------------------------------------------------------------


@given(root=nodes())
@settings(max_examples=200)
def test_marginals_coactivation_and_mean_l0_are_those_of_the_enumerated_states(root: Node) -> None:
    tree, states = build_tree(root), tree_states(root)
    joint = np.zeros((tree.n_features, tree.n_features))
    for state, p in states.items():
        joint[np.ix_(sorted(state), sorted(state))] += p
    np.testing.assert_allclose(coactivation(tree), joint, rtol=0, atol=1e-12)
    np.testing.assert_allclose(marginals(tree), np.diag(joint), rtol=0, atol=1e-12)
    assert mean_l0(tree) == pytest.approx(sum(len(state) * p for state, p in states.items()), abs=1e-12)


@given(root=nodes())
@settings(max_examples=100)
def test_a_feature_s_parent_is_its_nearest_ancestor_that_is_a_feature(root: Node) -> None:
    column = {id(node): i for i, node in enumerate(features(root))}
    expected = {}

    def visit(node: Node, above: int) -> None:
        if node.is_feature:
            expected[column[id(node)]] = above
        for child in node.children:
            visit(child, column[id(node)] if node.is_feature else above)

    visit(root, -1)
    tree = build_tree(root)
    assert feature_parents(tree).tolist() == [expected[i] for i in range(tree.n_features)]
    assert edges(tree) == [(expected[i], i) for i in range(tree.n_features) if expected[i] >= 0]


def test_the_columns_follow_feature_index_and_else_the_order_written() -> None:
    written = Node(1.0, (Node(0.1, (Node(0.2, name="b"),), name="a"), Node(0.3, name="c")), is_feature=False)
    assert feature_names(written) == ["a", "b", "c"]
    np.testing.assert_allclose(marginals(build_tree(written)), [0.1, 0.02, 0.3])
    indexed = Node(
        1.0,
        (Node(0.1, (Node(0.2, name="b", feature_index=0),), feature_index=2), Node(0.3, name="c", feature_index=1)),
        is_feature=False,
    )
    assert feature_names(indexed) == ["b", "c", "2"]
    np.testing.assert_allclose(marginals(build_tree(indexed)), [0.02, 0.3, 0.1])
    frequency = (sample_features(KEY, build_tree(indexed), N_ROWS) > 0).sum(axis=0)
    assert within_binomial_bounds(np.asarray(frequency), N_ROWS, np.array([0.02, 0.3, 0.1])).all()


# --- samples ------------------------------------------------------------------------------------------------


@given(root=nodes())
def test_every_set_of_features_is_sampled_as_often_as_the_enumeration_says_and_no_other_ever(root: Node) -> None:
    n_rows, states = 20_000, tree_states(root)
    on = np.asarray(sample_features(KEY, build_tree(root), n_rows)) > 0
    rows, counts = np.unique(on, axis=0, return_counts=True)
    sampled = {frozenset(np.flatnonzero(row).tolist()): int(n) for row, n in zip(rows, counts, strict=True)}
    assert sampled.keys() <= states.keys()
    for state, p in states.items():
        assert within_binomial_bounds(sampled.get(state, 0), n_rows, p), (sorted(state), p)


@pytest.mark.parametrize("name", NAMED)
def test_a_child_is_on_only_with_its_parent(name: str) -> None:
    on, pairs = sample(name), edges(build_tree(NAMED[name]))
    assert len(pairs) > 0
    for parent, child in pairs:
        assert on[:, child].any()
        assert on[on[:, child], parent].all()


@pytest.mark.parametrize("name", ["reference", "three_level", "random"])
def test_mutually_exclusive_siblings_are_never_on_together(name: str) -> None:
    on, pairs = sample(name), exclusive_pairs(NAMED[name])
    assert len(pairs) > 0
    for a, b in pairs:
        assert not (on[:, a] & on[:, b]).any()


@pytest.mark.parametrize("name", NAMED)
def test_frequencies_of_features_and_of_pairs_are_within_binomial_bounds(name: str) -> None:
    on, tree = sample(name), build_tree(NAMED[name])
    assert within_binomial_bounds(on.sum(axis=0), N_ROWS, marginals(tree)).all()
    both = on.T.astype(float) @ on.astype(float)
    assert within_binomial_bounds(both, N_ROWS, coactivation(tree)).all()


def test_the_reference_tree_samples_its_mean_l0() -> None:
    l0 = sample("reference").sum(axis=1)
    assert l0.mean() == pytest.approx(1.12, abs=5 * l0.std() / sqrt(N_ROWS))


def interval_probabilities(tree: Tree) -> np.ndarray:
    """P(node on) from the integer intervals alone: one factor for each draw on the way to the root."""
    width = (tree.last.astype(float) - tree.first + 1) / 2**32
    prob = width.copy()
    for gate in tree.gates:
        prob *= np.where(gate != np.arange(len(gate)), width[gate], 1.0)
    return prob


def test_a_chain_of_any_depth_keeps_its_edge_probabilities_by_taking_new_draws() -> None:
    for prob in (0.9, 0.3, 1e-3):
        node = Node(prob)
        for _ in range(60):
            node = Node(prob, (node, Node(0.5)))
        tree = build_tree(node)
        on = interval_probabilities(tree)
        edge = on[1:] / on[tree.parent[1:]]
        assert len(tree.draw_root) > 1
        np.testing.assert_allclose(edge, tree.prob[1:], rtol=0, atol=1e-6)


def test_a_child_of_a_rare_parent_is_on_half_of_the_time() -> None:
    tree = build_tree(Node(2e-4, (Node(0.5, (Node(0.5),)),)))
    n_rows = 2_000_000
    on = np.asarray(sample_features(KEY, tree, n_rows)) > 0
    assert len(tree.draw_root) == 2  # the parent's interval is too narrow to share
    assert within_binomial_bounds(on.sum(axis=0), n_rows, np.array([2e-4, 1e-4, 5e-5])).all()
    assert not (on[:, 1:] & ~on[:, :-1]).any()


def test_different_keys_give_different_rows_and_the_same_key_the_same() -> None:
    tree = build_tree(trees.reference_tree())
    first, again, other = (sample_features(key, tree, 100) for key in (KEY, KEY, jax.random.key(1)))
    assert (first == again).all()
    assert (first != other).any()
    assert len(np.unique(np.asarray(sample_features(KEY, tree, 1000)), axis=0)) > 20


def test_jit_and_vmap_over_keys_give_what_eager_gives() -> None:
    rare = Node(1e-4, (Node(0.5), Node(0.5)), exclusive=True)
    noisy = Node(0.5, (Node(0.5, magnitude_std=0.5), rare), magnitude_std=0.5, scale_children_by_parent=True)
    tree, keys = build_tree(Node(0.5, (noisy, trees.reference_tree()))), jax.random.split(KEY, 3)
    assert len(tree.gates) > 0
    assert tree.readout is not None
    eager = np.stack([sample_features(key, tree, 64) for key in keys])
    jitted = jax.jit(sample_features, static_argnames="batch_size")
    np.testing.assert_allclose(np.stack([jitted(key, tree, batch_size=64) for key in keys]), eager, rtol=1e-5)
    mapped = jax.vmap(sample_features, in_axes=(0, None, None))(keys, tree, 64)
    np.testing.assert_allclose(mapped, eager, rtol=1e-5)


def test_vmap_over_trees_of_different_magnitudes_gives_each_tree_s_batch() -> None:
    alone = [build_tree(trees.ordering_tree(ratio=ratio)) for ratio in (0.5, 2.0, 5.0)]
    stacked = alone[0]._replace(magnitude_mean=np.stack([tree.magnitude_mean for tree in alone]))
    axes = Tree(*[None] * len(Tree._fields))._replace(magnitude_mean=0)  # type: ignore[arg-type]
    batches = jax.vmap(lambda tree: sample_features(KEY, tree, 500), in_axes=(axes,))(stacked)
    assert np.asarray(batches).max(axis=(1, 2)).tolist() == [2.0, 4.0, 10.0]
    for batch, tree in zip(batches, alone, strict=True):
        assert (batch == sample_features(KEY, tree, 500)).all()


# --- magnitudes ---------------------------------------------------------------------------------------------


def test_a_magnitude_is_the_size_of_a_normal_number_where_the_feature_is_on() -> None:
    tree = build_tree(Node(1.0, (Node(1.0, magnitude_mean=3.0, magnitude_std=0.5), Node(0.5, magnitude_mean=2.0))))
    root, noisy, plain = np.asarray(sample_features(KEY, tree, N_ROWS)).T
    assert (root == 1).all()
    assert noisy.mean() == pytest.approx(3.0, abs=5 * 0.5 / sqrt(N_ROWS))
    assert noisy.std() == pytest.approx(0.5, rel=0.02)
    assert set(plain.tolist()) == {0.0, 2.0}

    folded = np.asarray(sample_features(KEY, build_tree(Node(1.0, magnitude_std=1.0)), N_ROWS))[:, 0]
    below_zero, density = (1 + erf(-1 / sqrt(2))) / 2, exp(-1 / 2) / sqrt(2 * pi)
    assert folded.min() > 0
    assert folded.mean() == pytest.approx(1 - 2 * below_zero + 2 * density, abs=5 / sqrt(N_ROWS))
    assert (folded**2).mean() == pytest.approx(2, abs=5 * sqrt(6 / N_ROWS))


def test_the_noise_of_different_features_is_independent() -> None:
    tree = build_tree(Node(1.0, (Node(1.0, magnitude_std=0.1), Node(1.0, magnitude_std=0.1)), is_feature=False))
    a, b = np.asarray(sample_features(KEY, tree, N_ROWS)).T
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / sqrt(N_ROWS)


def test_children_scaled_by_their_parent_follow_its_magnitude_all_the_way_down() -> None:
    grandchild = Node(1.0, magnitude_mean=5.0)
    scaled = Node(1.0, (grandchild,), magnitude_mean=3.0, scale_children_by_parent=True)
    free = Node(1.0, magnitude_mean=7.0)
    tree = build_tree(
        Node(
            1.0,
            (Node(1.0, (scaled,), magnitude_mean=2.0, magnitude_std=0.3, scale_children_by_parent=True), free),
            is_feature=False,
        )
    )
    parent, child, below, beside = np.asarray(sample_features(KEY, tree, 1000)).T
    assert parent.std() > 0.2
    np.testing.assert_allclose(child, 3 * parent / 2, rtol=1e-5)
    np.testing.assert_allclose(below, 5 * parent / 2, rtol=1e-5)
    assert (beside == 7).all()


def test_an_always_on_root_that_is_no_feature_lends_its_noise_to_the_children_it_scales() -> None:
    children = (Node(1.0, magnitude_mean=1.0), Node(1.0, magnitude_mean=4.0))
    root = Node(1.0, children, is_feature=False, magnitude_mean=2.0, scale_children_by_parent=True)
    assert (sample_features(KEY, build_tree(root), 10) == jnp.array([1.0, 4.0])).all()
    a, b = np.asarray(sample_features(KEY, build_tree(replace(root, magnitude_std=0.5)), 1000)).T
    np.testing.assert_allclose(b, 4 * a, rtol=1e-5)
    assert a.std() == pytest.approx(0.25, rel=0.1)


# --- trees that cannot be built -----------------------------------------------------------------------------


def broken(node: Node, **fields: Any) -> Node:
    """A node with a value that the checked constructor would refuse, as an unchecked program can make it."""
    for field, value in fields.items():
        object.__setattr__(node, field, value)
    return node


def cycle() -> Node:
    inner = Node(0.5)
    return broken(inner, children=(Node(0.5, (inner,)),))


def chain(n_levels: int) -> Node:
    node = Node(0.5)
    for _ in range(n_levels):
        node = Node(0.5, (node,))
    return node


SHARED = Node(0.5)
BAD_TREES = {
    "probability above 1": (Node(0.5, (Node(1.5),)), r"root\.children\[0\]\.active_prob: 1\.5 is outside \[0, 1\]"),
    "probability below 0": (Node(-0.1), r"root\.active_prob: -0\.1 is outside \[0, 1\]"),
    "probability NaN": (
        Node(0.5, (Node(0.1), Node(float("nan")))),
        r"root\.children\[1\]\.active_prob: nan is outside",
    ),
    "probability no number": (broken(Node(0.5), active_prob="0.5"), r"root\.active_prob: expected a number, got str"),
    "probability a bool": (broken(Node(0.5), active_prob=True), r"root\.active_prob: expected a number, got bool"),
    "exclusive sum over 1": (
        Node(1.0, (Node(0.5, (Node(0.6), Node(0.6)), exclusive=True),)),
        r"root\.children\[0\]\.children: .*exclusive children sum to 1\.2 > 1",
    ),
    "negative magnitude": (Node(0.5, magnitude_mean=-1.0), r"root\.magnitude_mean: -1\.0 is outside"),
    "infinite magnitude": (Node(0.5, magnitude_mean=float("inf")), r"root\.magnitude_mean: inf is outside"),
    "negative spread": (Node(0.5, (Node(0.5, magnitude_std=-1.0),)), r"root\.children\[0\]\.magnitude_std: -1\.0"),
    "scaled by zero": (
        Node(0.5, (Node(0.5),), magnitude_mean=0.0, scale_children_by_parent=True),
        r"root\.magnitude_mean: a feature of magnitude 0 cannot be told",
    ),
    "no feature": (Node(1.0, (Node(0.5, is_feature=False),), is_feature=False), "root: the tree has no feature"),
    "shared node": (Node(1.0, (SHARED, Node(0.5, (SHARED,)))), r"root\.children\[1\]\.children\[0\]: .*used elsewhere"),
    "cycle": (cycle(), r"root\.children\[0\]\.children\[0\]: .*cycle"),
    "no node": (broken(Node(0.5), children=(Node(0.5), "A")), r"root\.children\[1\]: expected a Node, got str"),
    "no list": (broken(Node(0.5), children="A"), r"root\.children: expected a list of nodes, got str"),
    "too deep": (chain(MAX_DEPTH + 1), r"root\.children\[0\]\.children.*nests deeper than 256 levels"),
    "index missing": (Node(0.5, (Node(0.5, feature_index=0),)), r"root\.feature_index: None is missing"),
    "index repeated": (
        Node(0.5, (Node(0.5, feature_index=0),), feature_index=0),
        r"root\.children\[0\]\.feature_index: 0 is missing, repeated",
    ),
    "index too large": (Node(0.5, feature_index=1), r"root\.feature_index: 1 .*not below the 1 features"),
}


@pytest.mark.parametrize("fault", BAD_TREES)
def test_a_tree_that_cannot_be_is_refused_with_the_path_and_the_fault(fault: str) -> None:
    root, message = BAD_TREES[fault]
    with pytest.raises(TreeError, match=f"^{message}"):
        build_tree(root)


def test_the_deepest_allowed_tree_is_built_and_sampled() -> None:
    tree = build_tree(chain(MAX_DEPTH))
    assert tree.n_features == MAX_DEPTH + 1
    assert sample_features(KEY, tree, 4).shape == (4, MAX_DEPTH + 1)


def test_exclusive_probabilities_may_sum_to_1_in_floating_point() -> None:
    tree = build_tree(Node(1.0, tuple(Node(p) for p in [0.1] * 10), exclusive=True))
    on = np.asarray(sample_features(KEY, tree, 10_000))[:, 1:]
    assert (on.sum(axis=1) == 1).all()
