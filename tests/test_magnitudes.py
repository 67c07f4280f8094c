"""Magnitudes are folded: what is on is above 0, exact means are those of samples, and what float32 loses is refused."""

from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from oracles import nodes, within_binomial_bounds

from experiments.sweeps.padding import pad_tree, tree_shape
from toy.eval.against_tree import evaluate, feature_sizes
from toy.features.magnitudes import MIN_MAGNITUDE, folded_mean, log_factor, share_below_zero
from toy.features.named import forest
from toy.features.node import Node, TreeError
from toy.features.tree import build_tree, coactivation, edges, marginals, mean_l0, mean_magnitudes, sample_features
from toy.sae import SAE

KEY = jax.random.key(5)
N_ROWS = 200_000


def family(scaled: bool, std: float = 1.0) -> Node:
    """A parent and a child of magnitude 1 ± 1, and a grandchild: 16% of the parents' would be clipped at 0."""
    below = Node(0.5, magnitude_std=std)
    child = Node(0.6, (below,), magnitude_std=std, scale_children_by_parent=scaled)
    return forest(Node(0.4, (child,), magnitude_std=std, scale_children_by_parent=scaled), Node(0.2))


@pytest.mark.parametrize("scaled", [False, True])
def test_samples_of_noisy_magnitudes_agree_with_the_exact_statistics(scaled: bool) -> None:
    tree = build_tree(family(scaled))
    x = np.asarray(sample_features(KEY, tree, N_ROWS))
    on = x > 0
    for parent, child in edges(tree):
        assert not (on[:, child] & ~on[:, parent]).any()
    p, joint = marginals(tree), coactivation(tree)
    assert (abs(on.mean(axis=0) - p) <= 4 * np.sqrt(p * (1 - p) / N_ROWS)).all()
    assert (abs(on.T.astype(float) @ on / N_ROWS - joint) <= 4 * np.sqrt(joint * (1 - joint) / N_ROWS)).all()
    l0 = on.sum(axis=1)
    assert l0.mean() == pytest.approx(mean_l0(tree), abs=4 * l0.std() / sqrt(N_ROWS))
    W_feat = np.diag([1.0, 2.0, 3.0, 4.0])
    for i, size in enumerate(feature_sizes(tree, W_feat)):
        sizes = x[on[:, i], i] * W_feat[i, i]
        assert size == pytest.approx(sizes.mean(), abs=4 * sizes.std() / sqrt(len(sizes)) + 1e-6)
    if scaled:
        assert mean_magnitudes(tree)[2] == pytest.approx(folded_mean(1, 1) ** 3)


def test_the_features_themselves_leave_no_hole() -> None:
    tree, W = build_tree(family(scaled=True)), np.eye(4)
    sae = SAE(jnp.eye(4), jnp.zeros(4), jnp.eye(4), jnp.zeros(4))
    features = sample_features(KEY, tree, 20_000)
    result = evaluate(sae, W, tree, features, acts=features)
    assert result.l0 == pytest.approx(mean_l0(tree), abs=0.05)
    assert np.all(result.hole_rates == 0)
    assert result.recovered
    assert result.firing_recall == result.firing_precision == 1
    assert np.all(result.parent_with_child > 0.5)
    silent = np.asarray(features).copy()
    silent[:, 0][silent[:, 1] > 0] = 0  # absorbed: the parent's latent is silent where the child is on
    assert evaluate(sae, W, tree, features, acts=silent).hole_rates[0] == 1


@pytest.mark.slow
@given(root=nodes(with_magnitudes=True))
@settings(max_examples=30, deadline=None)
def test_what_is_on_is_above_0_and_noise_changes_nothing_of_which_features_are_on(root: Node) -> None:
    tree = build_tree(root)
    x = np.asarray(sample_features(KEY, tree, 2000))
    assert np.isfinite(x).all()
    plain = tree._replace(magnitude_std=None, parent_scale=None)
    assert ((x > 0) == (np.asarray(sample_features(KEY, plain, 2000)) > 0)).all()


def test_where_rounding_makes_noise_0_the_feature_is_still_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: -jnp.ones(shape))
    tree = build_tree(family(scaled=True))
    x = np.asarray(sample_features(KEY, tree, 1000))
    assert ((x > 0).mean(axis=0) > 0.05).all()
    assert (x > 0)[:, 1:3].sum() == (x != 0)[:, 1:3].sum()
    padded = pad_tree(tree, tree_shape(tree)._replace(n_nodes=6, n_features=6))
    np.testing.assert_array_equal(np.asarray(sample_features(KEY, padded, 1000))[:, :4], x)


def test_the_mean_of_a_folded_normal() -> None:
    assert folded_mean(3.0, 0.0) == 3.0
    assert folded_mean(0.0, 2.0) == pytest.approx(2 * sqrt(2 / np.pi))
    x = np.abs(0.7 + 1.3 * np.random.default_rng(0).standard_normal(10**6))
    assert folded_mean(0.7, 1.3) == pytest.approx(x.mean(), abs=4 * x.std() / 1e3)
    assert folded_mean(5.0, 0.1) == 5.0
    assert share_below_zero(1.0, 1.0) == pytest.approx(0.158655, abs=1e-6)
    assert share_below_zero(1.0, 0.21) < 1e-6


def test_the_logarithm_of_a_factor_has_the_moments_of_samples() -> None:
    logs = np.log(np.abs(1 + 0.5 * np.random.default_rng(0).standard_normal(10**6)))
    mean, variance = log_factor(2.0, 1.0)
    assert mean == pytest.approx(logs.mean(), abs=0.01)
    assert variance == pytest.approx(logs.var(), rel=0.02)
    assert log_factor(2.0, 0.0) == (0, 0)


def scaled_chain(n_levels: int, std: float, mean: float = 1.0) -> Node:
    node = Node(0.9)
    for _ in range(n_levels):
        node = Node(0.9, (node,), magnitude_mean=mean, magnitude_std=std, scale_children_by_parent=True)
    return node


BAD_MAGNITUDES = {
    "zero": (forest(Node(0.5), Node(0.5, magnitude_mean=0.0)), r"root\.children\[1\]\.magnitude_mean: a feature of"),
    "tiny": (forest(Node(0.5, magnitude_mean=1e-40)), r"root\.children\[0\]\.magnitude_mean: a feature of .* 1e-40"),
    "scaled by a tiny one": (
        Node(1.0, (Node(0.5),), is_feature=False, magnitude_mean=1e-40, scale_children_by_parent=True),
        r"root\.magnitude_mean: children are scaled by .* cannot be 1e-40",
    ),
    "a chain of much noise": (scaled_chain(200, 0.5), r"root.*: scaled by its ancestors, .* 0 or infinite in float32"),
    "a chain of more noise than magnitude": (scaled_chain(3, 1e6, 1e-6), "root.*: scaled by its ancestors"),
}


@pytest.mark.parametrize("fault", BAD_MAGNITUDES)
def test_magnitudes_that_float32_makes_0_or_infinite_are_refused(fault: str) -> None:
    root, message = BAD_MAGNITUDES[fault]
    with pytest.raises(TreeError, match=f"^{message}"):
        build_tree(root)


@pytest.mark.parametrize(("n_levels", "std"), [(200, 0.0), (200, 0.05), (20, 0.5), (5, 2.0)])
def test_chains_that_are_allowed_are_never_0_or_infinite(n_levels: int, std: float) -> None:
    x = np.asarray(sample_features(KEY, build_tree(scaled_chain(n_levels, std)), 2000))
    plain = np.asarray(sample_features(KEY, build_tree(scaled_chain(n_levels, 0.0)), 2000))
    assert np.isfinite(x**2).all()
    assert ((x > 0) == (plain > 0)).all()


def test_the_least_magnitude_and_one_of_noise_alone_are_seen() -> None:
    tree = build_tree(forest(Node(0.5, magnitude_mean=MIN_MAGNITUDE), Node(0.5, magnitude_mean=0.0, magnitude_std=1.0)))
    x = np.asarray(sample_features(KEY, tree, N_ROWS))
    assert within_binomial_bounds((x > 0).sum(axis=0), N_ROWS, np.array([0.5, 0.5])).all()
    assert (x[:, 0] ** 2).max() > 0


def test_the_coactivation_of_very_many_nodes_is_refused() -> None:
    tree = build_tree(forest(*(Node(0.001) for _ in range(20_000))))
    with pytest.raises(ValueError, match=r"tree: the co-activation of 20,000 nodes takes 3 GB"):
        coactivation(tree)
    assert marginals(tree).sum() == pytest.approx(20)
