"""A padded run equals its unpadded one: the same random numbers, and sums that differ by rounding alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.sweeps.padding import TreeShape, pad_tree, pad_weighting, tree_shape
from toy import prefixes
from toy.data.source import TreeSource
from toy.features.directions import make_directions
from toy.features.named import RandomTree, RegularTree, forest, random_tree, reference_tree, regular_tree
from toy.features.node import Node
from toy.features.tree import Tree, build_tree, sample_features
from toy.methods import METHODS, Standard, named
from toy.prefixes import Weighting, inclusion
from toy.training.config import Hypers, TrainConfig
from toy.training.run import train
from toy.training.state import trained_sae

KEY = jax.random.key(3)
NAMED = {
    "reference": reference_tree(),
    "deep": regular_tree(RegularTree(n_roots=1, branching=2, depth=4, edge_prob=0.4, exclusive=False)),
    "not all features": forest(Node(0.5, (Node(0.5), Node(0.4)), is_feature=False), Node(0.3)),
    "noisy": forest(Node(0.5, (Node(0.5, magnitude_std=0.3),), magnitude_mean=2.0)),
    "scaled": forest(Node(0.5, (Node(0.5), Node(0.2)), magnitude_std=0.2, scale_children_by_parent=True)),
    "one feature": forest(Node(0.5)),
}


def larger(tree: Tree, more: int) -> TreeShape:
    own = tree_shape(tree)
    n_nodes = own.n_nodes + max(more, own.has_readout)
    n_features = own.n_features + more if own.has_readout else n_nodes
    return own._replace(
        n_nodes=n_nodes, n_features=n_features, n_draws=own.n_draws + more, n_gates=own.n_gates + more % 3
    )


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("more", [0, 1, 7])
def test_a_padded_tree_draws_the_same_features_and_then_none(name: str, more: int) -> None:
    tree = build_tree(NAMED[name])
    padded = pad_tree(tree, larger(tree, more))
    features, n = sample_features(KEY, padded, 500), tree.n_features
    np.testing.assert_array_equal(features[:, n:], 0)
    np.testing.assert_array_equal(features[:, :n], sample_features(KEY, tree, 500))
    assert tree_shape(padded) == larger(tree, more)
    assert np.all(padded.first[len(tree.parent) :] > padded.last[len(tree.parent) :])  # empty, not only narrow


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 20))
def test_any_random_tree_is_the_same_when_padded(seed: int, depth: int, more: int) -> None:
    tree = build_tree(random_tree(RandomTree(seed=seed, depth=depth, n_roots=3)))
    padded = pad_tree(tree, larger(tree, more))
    features = sample_features(KEY, padded, 200)
    np.testing.assert_array_equal(features[:, : tree.n_features], sample_features(KEY, tree, 200))
    np.testing.assert_array_equal(features[:, tree.n_features :], 0)


@pytest.mark.parametrize(
    "change",
    [{"n_nodes": 19, "n_features": 19}, {"n_draws": 1}, {"has_std": False, "n_nodes": 10, "n_features": 10}],
)
def test_a_shape_that_does_not_hold_the_tree_is_refused(change: dict[str, Any]) -> None:
    tree = build_tree(reference_tree())
    with pytest.raises(ValueError, match="does not hold a tree of"):
        pad_tree(tree, tree_shape(tree)._replace(**change))
    with pytest.raises(ValueError, match="n_features must be n_nodes"):
        pad_tree(tree, tree_shape(tree)._replace(n_nodes=24))


WEIGHTINGS = {
    "vanilla": lambda n: prefixes.full(n),
    "fixed": lambda n: prefixes.fixed(n, (2, 2, n - 1, n)),
    "all": prefixes.all_prefixes,
    "expected": prefixes.expected,
    "balanced": prefixes.balanced,
}


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("more", [0, 5])
def test_a_padded_weighting_weighs_latents_alike(name: str, more: int) -> None:
    weighting = WEIGHTINGS[name](12)
    padded = pad_weighting(weighting, 12 + more)
    own = jax.tree.map(jnp.asarray, weighting)
    assert isinstance(padded, prefixes.FixedWeights)
    np.testing.assert_allclose(inclusion(padded, jnp.arange(12 + more))[:12], inclusion(own, jnp.arange(12)), rtol=1e-6)
    np.testing.assert_allclose(inclusion(padded, jnp.arange(12 + more))[12:], 0, atol=1e-7)


@pytest.mark.parametrize(("n", "n_prefixes"), [(12, 5), (4, 10), (1, 3)])
def test_padded_sampled_prefixes_are_those_drawn_without_padding(n: int, n_prefixes: int) -> None:
    weighting = prefixes.sampled(n, n_prefixes)
    padded = pad_weighting(weighting, n + 6, n_prefixes)
    for i in range(50):
        key = jax.random.fold_in(KEY, i)
        own, other = (
            inclusion(prefixes.draw(key, jax.tree.map(jnp.asarray, w)), jnp.arange(n)) for w in (weighting, padded)
        )
        np.testing.assert_allclose(other, own, rtol=1e-6)


def test_a_weighting_that_cannot_be_padded_is_refused() -> None:
    with pytest.raises(ValueError, match="12 does not hold a weighting of 13"):
        pad_weighting(prefixes.all_prefixes(13), 12)
    with pytest.raises(ValueError, match="hybrid"):
        pad_weighting(prefixes.hybrid(20, n_exact=4), 30)


def run(tree: Tree, weighting: Weighting, n_latents: int, n_real: int | None, **options: Any) -> Any:
    """Trained SAE and history, long enough for restarts, the controller and new ranks. Training multiplies a difference
    of one bit by about 10^6 in these steps, so what is no rounding would be seen."""
    given: dict[str, Any] = {"n_steps": 120, "batch_size": 64, "reinit_every": 20} | options
    cfg = TrainConfig(n_latents, **given)
    W_feat = np.zeros((tree.n_features, 16))
    real = make_directions(KEY[None], 9, 16)[0]
    W_feat[:9] = real
    numbers: dict[str, Any] = {"learning_rate": 2e-2, "control_rate": 3e-4, "reinit_below": 0.9}
    numbers["target_l0"] = 1.0 if cfg.method.aims_at_l0 else None
    hypers = Hypers(jax.tree.map(jnp.asarray, weighting), n_latents=n_real, **numbers)
    state, history = train(KEY, TreeSource(tree, jnp.asarray(W_feat)), hypers, cfg=cfg)
    return trained_sae(state), history


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vanilla", "expected", "sampled"])
@pytest.mark.parametrize(("n", "size", "sparsity"), [(9, 12, "l1"), (5, 40, "log"), (12, 13, "l1")])
def test_a_padded_run_is_the_run(name: str, n: int, size: int, sparsity: str) -> None:
    method = Standard(sparsity)
    tree = build_tree(random_tree(RandomTree(n_roots=3, branching=(2, 2), depth=2, edge_prob=(0.3, 0.5))))
    assert tree.n_features == 9
    weighting = prefixes.sampled(n, 4) if name == "sampled" else WEIGHTINGS[name](n)
    with jax.enable_x64():
        own, history = run(tree, weighting, n, None, method=method)
        padded, padded_history = run(
            pad_tree(tree, larger(tree, 6)), pad_weighting(weighting, size, 4), size, n, method=method
        )
    for a, b in zip(history, padded_history, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-7)
    np.testing.assert_allclose(padded.W_dec[:n], own.W_dec, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(padded.W_enc[:, :n], own.W_enc, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(padded.W_enc[:, n:], 0)
    np.testing.assert_array_equal(padded.b_enc[n:], 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name != "rotated"])  # whose search multiplies rounding
def test_every_method_that_says_so_can_be_padded(name: str) -> None:
    method, weighting = named(name + (":k=2" if name.endswith("topk") and name != "batchtopk" else ""))[1:]
    assert method.allows_padding
    tree = build_tree(random_tree(RandomTree(n_roots=3, branching=(2, 2), depth=2, edge_prob=(0.3, 0.5))))
    given = {"method": method, "n_steps": 60}
    with jax.enable_x64():
        own, _ = run(tree, prefixes.named(weighting, 9), 9, None, **given)
        padded, _ = run(tree, pad_weighting(prefixes.named(weighting, 9), 13, 9), 13, 9, **given)
    for a, b in ((own.W_dec, padded.W_dec[:9]), (own.W_enc, padded.W_enc[:, :9]), (own.b_enc, padded.b_enc[:9])):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(padded.W_enc[:, 9:], 0)


@pytest.mark.slow
def test_as_many_latents_as_there_are_is_no_padding_at_all() -> None:
    tree = build_tree(random_tree(RandomTree(n_roots=3, branching=(2, 2), depth=2, edge_prob=(0.3, 0.5))))
    weighting = prefixes.expected(9)
    (own, _), (same, _) = run(tree, weighting, 9, None), run(tree, weighting, 9, 9)
    for a, b in zip(own, same, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n", [0, 10])
def test_more_latents_than_there_is_room_for_are_refused(n: int) -> None:
    tree = build_tree(random_tree(RandomTree(n_roots=3, branching=(2, 2), depth=2, edge_prob=(0.3, 0.5))))
    with pytest.raises(ValueError, match=r"hypers\.n_latents: must be from 1 to cfg\.n_latents = 9, got"):
        run(tree, prefixes.expected(9), 9, n)
