"""The named trees are what their sources say, and random ones are valid and repeatable."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toy.features import node as trees
from toy.features.named import (
    TREES,
    RandomTree,
    RegularTree,
    ordering_tree,
    random_tree,
    reference_tree,
    regular_tree,
    scale_children,
    three_level_tree,
)
from toy.features.node import Node, TreeError, feature_names, walk
from toy.features.tree import build_tree, coactivation, edges, marginals, mean_l0


@pytest.mark.parametrize("name", TREES)
def test_every_named_tree_builds_and_names_each_feature_once(name: str) -> None:
    root = TREES[name]()
    names = feature_names(root)
    assert len(set(names)) == len(names) == build_tree(root).n_features


def test_the_reference_tree_has_3_exclusive_families_and_8_lone_features() -> None:
    tree = build_tree(reference_tree())
    assert tree.n_features == 20
    assert mean_l0(tree) == pytest.approx(1.12)
    assert edges(tree) == [(p, p + i) for p in (0, 4, 8) for i in (1, 2, 3)]
    np.testing.assert_allclose(marginals(tree), [0.15, 0.03, 0.03, 0.03] * 3 + [0.05] * 8)
    assert coactivation(tree)[1, 2] == 0
    assert coactivation(tree)[1, 5] == pytest.approx(0.03**2)


def test_the_three_level_tree_has_18_features_and_grandchildren() -> None:
    tree = build_tree(three_level_tree())
    parents = dict((child, parent) for parent, child in edges(tree))
    assert tree.n_features == 18
    assert sum(parents.get(parents.get(i, -1), -1) >= 0 for i in range(18)) == 8
    assert sorted(set(np.round(marginals(tree), 6))) == [0.0225, 0.05, 0.075, 0.25]


def test_the_ordering_tree_is_the_example_of_the_post_s_comments() -> None:
    tree = build_tree(ordering_tree())
    np.testing.assert_allclose(marginals(tree), [0.3, 0.15])
    assert np.asarray(tree.magnitude_mean).tolist() == [2.0, 10.0]
    assert np.asarray(build_tree(ordering_tree(magnitude=3.0, ratio=0.5)).magnitude_mean).tolist() == [3.0, 1.5]


def test_scaled_children_are_ratio_times_their_parent_feature_at_every_level() -> None:
    tree = build_tree(scale_children(three_level_tree(), 0.5))
    mean = np.asarray(tree.magnitude_mean)
    assert all(mean[child] == 0.5 * mean[parent] for parent, child in edges(tree))
    assert sorted(set(mean.tolist())) == [0.25, 0.5, 1.0]
    assert marginals(tree).tolist() == marginals(build_tree(three_level_tree())).tolist()


@given(
    fields=st.fixed_dictionaries(
        {
            "n_roots": st.integers(1, 4),
            "branching": st.sampled_from([(0, 0), (0, 3), (2, 4), (5, 5)]),
            "depth": st.integers(1, 4),
            "edge_prob": st.sampled_from([(0.0, 0.0), (0.1, 0.3), (0.6, 1.0)]),
            "root_prob": st.sampled_from([(0.05, 0.2), (1.0, 1.0)]),
            "exclusive_share": st.sampled_from([0.0, 0.5, 1.0]),
            "seed": st.integers(0, 2**32 - 1),
        }
    )
)
def test_a_random_tree_is_valid_within_its_ranges_and_repeatable(fields: dict[str, Any]) -> None:
    spec = RandomTree(**fields)
    root = random_tree(spec)
    assert root == random_tree(spec)
    assert len(root.children) == spec.n_roots
    for path, parent, node in walk(root):
        level = path.count("children")
        assert level <= spec.depth
        if parent == 0:
            assert spec.root_prob[0] <= node.active_prob <= spec.root_prob[1]
        if 0 < level < spec.depth:
            assert spec.branching[0] <= len(node.children) <= spec.branching[1]
            assert not node.exclusive or spec.exclusive_share > 0
            assert node.exclusive or len(node.children) < 2 or spec.exclusive_share < 1
        for child in node.children if parent >= 0 and not node.exclusive else ():
            assert spec.edge_prob[0] <= child.active_prob <= spec.edge_prob[1]


def test_another_seed_gives_another_tree() -> None:
    assert random_tree(RandomTree(seed=1)) != random_tree(RandomTree(seed=2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"edge_prob": (0.3, 0.1)}, r"edge_prob: must be a pair \(low, high\) with low <= high"),
        ({"root_prob": (0.5, 1.5)}, "root_prob: must be at most 1, got 1.5"),
        ({"branching": (3, 1)}, "branching: must be a pair"),
        ({"branching": (-1, 1)}, "branching: must not be negative, got -1"),
        ({"n_roots": 0}, "n_roots: must be at least 1, got 0"),
        ({"depth": 0}, "depth: must be at least 1, got 0"),
        ({"exclusive_share": 1.5}, "exclusive_share: must be at most 1, got 1.5"),
        ({"branching": (2, 3, 4)}, "branching: must be a pair"),
        ({"branching": 3}, "branching: must be a pair"),
        ({"branching": (2, 2.5)}, "branching: must be a whole number, got 2.5"),
        ({"edge_prob": (0.1, float("nan"))}, "edge_prob: must be finite, got nan"),
        ({"edge_prob": ("a", "b")}, "edge_prob: must be a number, got a"),
        ({"n_roots": 2.0}, "n_roots: must be a whole number, got 2.0"),
        ({"depth": True}, "depth: must be a whole number, got True"),
        ({"seed": 2**32}, "seed: must be at most 4,294,967,295"),
        ({"seed": -1}, "seed: must not be negative"),
    ],
)
def test_a_range_that_cannot_be_is_refused_by_name(fields: dict, message: str) -> None:
    spec = RandomTree()  # types are checked without the type checker of the tests
    for name, value in fields.items():
        object.__setattr__(spec, name, value)
    with pytest.raises(ValueError, match=f"^{message}"):
        spec.__post_init__()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_roots", 1.5, "must be a whole number, got 1.5"),
        ("branching", 0, "must be at least 1, got 0"),
        ("expanded", 0, "must be at least 1, got 0"),
        ("root_prob", float("nan"), "must be finite, got nan"),
        ("edge_prob", -0.5, "must not be negative, got -0.5"),
        ("exclusive", "no", "must be True or False, got no"),
    ],
)
def test_a_regular_tree_that_cannot_be_is_refused_by_name(name: str, value: object, message: str) -> None:
    spec = RegularTree()
    object.__setattr__(spec, name, value)
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        spec.__post_init__()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regular_tree(RegularTree(branching=10**6, depth=5)), "has at least 3,000,011 nodes"),
        (lambda: regular_tree(RegularTree(n_roots=10**12)), "nodes, and at most 100,000 are allowed"),
        (lambda: regular_tree(RegularTree(branching=1, depth=10**9)), "depth: 1000000000 is more than 256"),
        (lambda: random_tree(RandomTree(branching=(10**6, 10**6), depth=5)), "nodes, and at most 100,000 are allowed"),
        (lambda: random_tree(RandomTree(n_roots=10**12)), "nodes, and at most 100,000 are allowed"),
        (lambda: random_tree(RandomTree(branching=(1, 1), depth=10**9)), "depth: 1000000000 is more than 256"),
    ],
)
def test_a_tree_far_too_large_is_refused_before_it_is_built(make: Callable[[], Node], message: str) -> None:
    with pytest.raises(TreeError, match=message):
        make()


def test_the_size_of_a_regular_tree_is_counted_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (
        RegularTree(branching=3, depth=3),
        RegularTree(branching=3, depth=3, expanded=1),
        RegularTree(depth=0),
    ):
        n = build_tree(regular_tree(spec)).n_features
        monkeypatch.setattr(trees, "MAX_NODES", n)
        regular_tree(spec)
        monkeypatch.setattr(trees, "MAX_NODES", n - 1)
        with pytest.raises(TreeError, match=f"has at least {n} nodes"):
            regular_tree(spec)
        monkeypatch.undo()
