"""Metrics on SAEs made by hand, whose answers can be written down."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toy.eval import metrics
from toy.eval.against_tree import Evaluation, evaluate, feature_sizes, inference_gap
from toy.features.named import forest
from toy.features.node import Node
from toy.features.tree import build_tree
from toy.sae import SAE, BatchTopK, TopK

# A parent with two exclusive children, and a lone feature; the directions are the axes, so d_in = 4.
TREE = build_tree(forest(Node(0.5, (Node(0.4), Node(0.4)), exclusive=True), Node(0.2)))
SIZES = np.array([1.0, 2.0, 0.5, 3.0])  # norms of the directions
W_FEAT = np.diag(SIZES)
ROWS = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 1]], float)
EYE = np.eye(4)


def sae(W_enc: np.ndarray, W_dec: np.ndarray, b_enc: np.ndarray | float = 0.0) -> SAE:
    return SAE(W_enc, np.broadcast_to(b_enc, W_enc.shape[1]), W_dec, np.zeros(4))  # type: ignore[arg-type]


def absorbed() -> SAE:
    """The parent's latent is off where a child is on, and each child's latent stands for child and parent."""
    W_enc = EYE.copy()
    W_enc[1, 0], W_enc[2, 0] = -1 / SIZES[1], -1 / SIZES[2]  # a child switches the parent's latent off
    W_dec = np.diag(np.ones(4))
    W_dec[1, 0], W_dec[2, 0] = 1 / SIZES[1], 1 / SIZES[2]
    return sae(W_enc, W_dec)


def measured(some: SAE) -> Evaluation:
    return evaluate(some, W_FEAT, TREE, ROWS)


def test_a_perfect_sae_is_perfect_by_every_metric() -> None:
    e = measured(sae(EYE, EYE))
    assert e.recovered
    assert e.match.latent.tolist() == [0, 1, 2, 3]
    assert e.match.cosine.tolist() == [1, 1, 1, 1]
    assert e.hole_rates.tolist() == [0, 0]
    assert (e.hole_rate, e.min_cosine, e.mcc, e.uniqueness, e.shrinkage) == (0, 1, 1, 1, 1)
    assert (e.firing_accuracy, e.firing_precision, e.firing_recall) == (1, 1, 1)
    assert e.mixing == (0, 0, 0, 0)
    assert (e.fvu, e.prefix_fvu[-1], e.dead_latents) == (0, 0, 0)
    assert e.l0 == ROWS.sum() / 6


def test_an_absorbed_sae_rebuilds_everything_and_has_only_holes() -> None:
    e = measured(absorbed())
    assert e.fvu == pytest.approx(0)
    assert e.shrinkage == pytest.approx(1)
    assert e.hole_rates.tolist() == [1, 1]
    assert not e.recovered
    assert e.match.cosine == pytest.approx([1, 2 / np.sqrt(5), 0.5 / np.sqrt(1.25), 1])
    # Of the 4 rows with the parent 3 have a child, where its latent is off; all else is right.
    assert (e.firing_accuracy, e.firing_precision) == (pytest.approx(21 / 24), 1)
    assert e.firing_recall == pytest.approx(1 - 3 / 9)
    assert e.mixing.child_to_parent == pytest.approx((1 / np.sqrt(5) + 1 / np.sqrt(1.25)) / 2)
    assert e.mixing.parent_to_child == 0
    assert e.mixing.child_to_sibling == 0
    assert e.mixing.max_off_diagonal == pytest.approx(1 / np.sqrt(1.25))


def test_the_order_and_the_scale_of_latents_do_not_matter() -> None:
    order, scale = [2, 0, 3, 1], np.array([0.01, 5.0, 100.0, 1.0])
    e = measured(sae(EYE[:, order] * scale, EYE[order] / scale[:, None]))
    assert e.match.latent.tolist() == [1, 3, 0, 2]
    assert e.recovered
    assert (e.firing_accuracy, e.mcc, e.hole_rate) == (1, 1, 0)
    assert e.fvu == pytest.approx(0)


def test_a_dead_latent_is_counted_and_costs_its_feature() -> None:
    e = measured(sae(EYE, EYE, b_enc=np.array([-100.0, 0, 0, 0])))
    assert e.dead_latents == 1
    assert e.hole_rates.tolist() == [1, 1]
    assert e.firing_recall == pytest.approx(5 / 9)
    assert e.l0 == pytest.approx(5 / 6)
    x = ROWS @ W_FEAT
    assert e.fvu == pytest.approx((x[:, 0] ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum())


def test_latents_with_swapped_decoders_point_well_and_fire_wrongly() -> None:
    swapped = [3, 1, 2, 0]  # the parent's direction fires on the lone feature and the other way round
    e = measured(sae(EYE, EYE[swapped]))
    assert e.mcc == e.min_cosine == 1
    assert e.hole_rates.tolist() == [0.5, 1]  # child 1 is present in 2 rows, one of them with the lone feature
    assert e.firing_accuracy < 1
    assert not e.recovered


@pytest.mark.parametrize(("share", "on"), [(0.19, False), (0.21, True)])
def test_a_latent_that_leaks_below_a_fifth_of_its_feature_s_mean_size_is_off(share: float, on: bool) -> None:
    for magnitude in (1.0, 4.0):
        tree = build_tree(Node(0.5, magnitude_mean=magnitude))
        x = np.array([[magnitude]])
        weak = SAE(np.array([[share]]), np.zeros(1), np.array([[3.0]]) / 3, np.zeros(1))  # type: ignore[arg-type]
        assert evaluate(weak, np.ones((1, 1)), tree, x).firing_recall == on


def test_a_firing_latent_is_measured_with_its_decoder_norm() -> None:
    match = metrics.Match(np.array([1, -1]), np.array([1.0, 0.0]))
    matched = metrics.matched_acts(np.array([[5.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 3.0]]), match)
    assert matched.tolist() == [[6.0, 0.0]]  # a feature without latent is off


def test_feature_sizes_are_mean_magnitude_times_norm_in_the_order_of_the_columns() -> None:
    tree = build_tree(
        forest(Node(0.5, magnitude_mean=3.0, feature_index=1), Node(0.5, magnitude_mean=2.0, feature_index=0))
    )
    assert feature_sizes(tree, np.diag([10.0, 100.0])).tolist() == [20, 300]


def test_with_fewer_latents_than_features_the_rest_have_none() -> None:
    e = measured(sae(EYE[:, [3, 1]], EYE[[3, 1]]))
    assert e.match.latent.tolist() == [-1, 1, -1, 0]
    assert e.match.cosine.tolist() == [0, 1, 0, 1]
    assert e.min_cosine == 0
    assert not e.recovered
    assert e.hole_rates.tolist() == [1, 1]
    assert e.mcc == 1  # over the pairs that there are
    assert e.uniqueness == 1
    assert e.mixing.max_off_diagonal == 0
    assert len(e.prefix_fvu) == 2


def test_with_more_latents_than_features_the_best_are_matched() -> None:
    decoder = np.vstack([0.1 * np.ones((2, 4)), EYE])
    e = measured(sae(decoder.T * np.array([0, 0, 1, 1, 1, 1]), decoder))
    assert e.match.latent.tolist() == [2, 3, 4, 5]
    assert e.recovered
    assert e.dead_latents == 2
    assert e.uniqueness == pytest.approx(4 / 6)


def test_matching_finds_the_greatest_sum_and_not_the_greedy_one() -> None:
    # Latent 0 is the best of both features; greedily feature 0 takes it and feature 1 is left with nothing.
    W_dec = np.array([[1.0, 0.9], [1.0, 0.0]])
    match = metrics.match_features(W_dec, np.eye(2))
    assert match.latent.tolist() == [1, 0]


def test_an_opposite_direction_matches_mcc_and_not_the_feature() -> None:
    assert metrics.mcc(-EYE, W_FEAT) == 1
    assert metrics.match_features(-EYE, W_FEAT).cosine.max() <= 0


def test_uniqueness_counts_the_features_that_are_some_latent_s_best() -> None:
    assert metrics.uniqueness(np.array([[1.0, 0.1], [1.0, 0.2], [-0.1, -1.0]]), np.eye(2)) == pytest.approx(2 / 3)


def test_mixing_means_are_over_edges_and_over_ordered_pairs_of_siblings() -> None:
    cosines = np.arange(16.0).reshape(4, 4)
    mixing = metrics.mixing(cosines, TREE)
    assert mixing == ((1 + 2) / 2, (6 + 9) / 2, (4 + 8) / 2, 14)
    two_families = build_tree(forest(Node(0.5, (Node(0.5),)), Node(0.5, (Node(0.5),))))
    assert np.isnan(metrics.mixing(cosines, two_families).child_to_sibling)  # cousins are no siblings
    lone = metrics.mixing(-0.5 * np.ones((2, 2)), build_tree(forest(Node(0.5), Node(0.5))))
    assert np.isnan(lone[:3]).all()
    assert lone.max_off_diagonal == 0.5


def test_precision_and_recall_tell_wrong_firing_from_missing_firing() -> None:
    present = np.array([[True, False], [True, False], [False, True], [False, False]])
    eager = np.array([[True, True], [True, True], [True, True], [False, False]])
    assert metrics.firing_precision(eager, present) == 0.5
    assert metrics.firing_recall(eager, present) == 1
    assert metrics.firing_precision(present, eager) == 1
    assert metrics.firing_recall(present, eager) == 0.5
    assert metrics.firing_accuracy(eager, present) == 5 / 8
    assert np.isnan(metrics.firing_precision(present & False, present))


def test_a_hole_rate_is_over_the_rows_with_the_child_and_nan_without_any() -> None:
    present = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], bool)
    on = present.copy()
    on[0, 0] = on[4, 0] = False  # only the first is a hole
    rates = metrics.hole_rates(on, present, TREE)
    assert rates[0] == 0.25
    assert np.isnan(rates[1])
    e = evaluate(sae(EYE, EYE), W_FEAT, TREE, present.astype(float))
    assert e.hole_rate == 0  # the mean is over the edges that occur
    assert e.recovered


@given(seed=st.integers(0, 99), shift=st.floats(-1e3, 1e3))
def test_fvu_does_not_change_when_inputs_and_reconstructions_are_shifted(seed: int, shift: float) -> None:
    x, error = np.random.default_rng(seed).normal(size=(2, 50, 3))
    base = metrics.fvu(x, x + error)
    assert base == pytest.approx((error**2).sum() / (x.var(axis=0).sum() * 50))
    assert metrics.fvu(x + shift, x + shift + error) == pytest.approx(base, rel=1e-6)


def test_predicting_the_mean_explains_nothing_and_constant_inputs_have_no_fvu() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3)) + 10
    assert metrics.fvu(x, np.broadcast_to(x.mean(axis=0), x.shape)) == pytest.approx(1)
    assert metrics.fvu(x, x) == 0
    assert np.isnan(metrics.fvu(np.ones((5, 2)), np.zeros((5, 2))))


def test_prefix_fvu_is_the_fvu_of_each_truncated_sae() -> None:
    rng = np.random.default_rng(0)
    x, acts, W_dec, b_dec = rng.normal(size=(9, 3)), rng.random((9, 4)), rng.normal(size=(4, 3)), rng.normal(size=3)
    slow = [metrics.fvu(x, acts[:, :k] @ W_dec[:k] + b_dec) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(metrics.prefix_fvu(x, acts, W_dec, b_dec), slow)


def thresholded(threshold: float) -> SAE:
    rng = np.random.default_rng(0)
    W_enc, W_dec = rng.normal(size=(2, 4, 6)).astype(np.float32)
    return SAE(W_enc, np.zeros(6, np.float32), W_dec.T, np.ones(4, np.float32), np.full(6, threshold, np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [0.2, 1.0])
def test_the_inference_gap_is_the_threshold_s_l0_and_fvu_over_those_of_the_training_batches_less_one(
    threshold: float,
) -> None:
    some, x = thresholded(threshold), np.random.default_rng(1).normal(size=(23, 4)).astype(np.float32)
    gap = inference_gap(some, x, BatchTopK(1.5), batch_size=5)

    x = x[:20]  # 4 whole batches
    pre_acts = x @ some.W_enc
    sizes = np.maximum(pre_acts, 0) * np.linalg.norm(some.W_dec, axis=1)
    least = np.sort(sizes.reshape(4, 30), axis=1)[:, -8]  # round(1.5 · 5) = 8 are on
    inference = np.where(pre_acts > threshold, pre_acts, 0)
    training = np.where(sizes >= np.repeat(least, 5)[:, None], np.maximum(pre_acts, 0), 0)
    assert (training > 0).sum() == 32

    def fvu(acts: np.ndarray) -> float:
        return ((x - acts @ some.W_dec - 1) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()

    assert gap.l0 == pytest.approx((inference > 0).sum() / 32 - 1)
    assert gap.fvu == pytest.approx(fvu(inference) / fvu(training) - 1, rel=1e-3)
    assert min(abs(gap.l0), abs(gap.fvu)) > 0.01


def test_an_inference_gap_needs_a_whole_batch_of_rows() -> None:
    with pytest.raises(ValueError, match="x: needs at least batch_size = 5 rows, got 4"):
        inference_gap(thresholded(1.0), np.ones((4, 4), np.float32), BatchTopK(1.5), batch_size=5)


def test_a_topk_sae_is_evaluated_with_its_activation() -> None:
    x = ROWS * SIZES
    e = evaluate(sae(EYE, EYE), W_FEAT, TREE, ROWS, TopK(1))
    assert e.l0 == pytest.approx(5 / 6)  # one a row, and none where nothing is present
    left_out = np.sort(x, axis=1)[:, :-1]
    assert e.fvu == pytest.approx((left_out**2).sum() / ((x - x.mean(axis=0)) ** 2).sum())


def test_l0_dead_latents_and_shrinkage_are_what_they_say() -> None:
    acts = np.array([[0.0, 1e-9, 2.0], [0.0, 0.0, 3.0]])
    assert metrics.l0(acts) == 1.5
    assert metrics.dead_latents(acts) == 1
    x = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    assert metrics.shrinkage(x, x * np.array([[0.5], [9.0], [1.0]])) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("cosine", "holes", "expected"),
    [
        ([0.9, 1.0], [0.0, 0.019], True),
        ([0.9, 1.0], [0.0, 0.021], False),
        ([0.89, 1.0], [0.0], False),
        ([0.95], [], True),
        ([0.95], [np.nan, 0.0], True),
    ],
)
def test_recovered_needs_every_cosine_and_the_mean_hole_rate(
    cosine: list[float], holes: list[float], expected: bool
) -> None:
    assert metrics.recovered(np.array(cosine), np.array(holes)) is expected


def test_the_parent_s_activation_is_told_apart_without_children_and_with_each() -> None:
    present = ROWS > 0
    matched = np.array([0, 1, 2, 3, 4, 5], float)[:, None] * np.ones(4)  # the row's number, whatever the latent
    alone, with_child = metrics.parent_activations(matched, present, 2 * np.ones(4), TREE)
    assert alone.tolist() == [0.5, 0.5]  # row 1 alone has the parent without a child
    assert with_child.tolist() == [(2 + 4) / 2 / 2, 3 / 2]
    e = measured(absorbed())
    assert e.parent_alone.tolist() == [1, 1]
    assert e.parent_with_child.tolist() == [0, 0]
