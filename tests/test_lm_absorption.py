"""Absorption on SAEs made by hand: which latent is off, on which words, and which other stands for it there."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toy.lm.absorption import (
    MIN_ROWS,
    NO_WORD,
    Absorption,
    average_precision,
    best_latents,
    find_words,
    fit_probe,
    measure_absorption,
)
from toy.lm.corpus import make_stories
from toy.lm.pieces import words as words_of
from toy.lm.tokens import Rows, make_rows, train_tokenizer
from toy.sae import SAE, TopK, encode

D = 6  # direction 0 is the concept's, 1 to 3 its members', 4 another's
EYE = np.eye(D, dtype=np.float32)
MEMBERS = np.repeat([0, 1, 2, NO_WORD, NO_WORD], 30)
X = np.concatenate(
    [np.repeat((EYE[0] + EYE[1 + m])[None], 30, axis=0) for m in range(3)]
    + [np.repeat(EYE[4:5], 30, axis=0), np.zeros((30, D), np.float32)]
)


def sae(W_enc: np.ndarray, W_dec: np.ndarray, b_enc: np.ndarray | None = None) -> SAE:
    b_enc = np.zeros(len(W_dec)) if b_enc is None else b_enc
    return SAE(*(jnp.asarray(values, jnp.float32) for values in (W_enc, b_enc, W_dec, np.zeros(D))))


def absorbing(share: float = 1.0, parent: float = 1.0) -> SAE:
    """Latent 0 is the concept's; on member 1 (direction 2) it is off, and latent 2 stands for both."""
    W_enc, W_dec = EYE.copy(), EYE.copy()
    W_enc[2, 0] = -share
    W_dec[2, 0] = parent
    return sae(W_enc, W_dec)


def measure(some: SAE, x: np.ndarray = X, members: np.ndarray = MEMBERS, n: int = 3, latent: int = 0) -> Absorption:
    return measure_absorption(some, x, members, n, latent, EYE[0].astype(float))


def test_a_concepts_latent_that_is_on_where_its_members_are_has_no_holes() -> None:
    found = measure(sae(EYE, EYE))
    assert found.latent == 0
    assert found.hole_rates.tolist() == found.absorbed_rates.tolist() == [0, 0, 0]
    assert (found.hole_rate, found.absorbed_rate, found.precision, found.parent_cosine) == (0, 0, 1, 1)
    assert found.absorbers.tolist() == [-1, -1, -1]
    assert np.isnan(found.cosines).all()


@pytest.mark.parametrize("parent", [1.0, 0.5])
def test_a_members_latent_that_stands_for_the_concept_too_has_absorbed_it(parent: float) -> None:
    found = measure(absorbing(parent=parent))
    assert found.hole_rates.tolist() == found.absorbed_rates.tolist() == [0, 1, 0]
    assert found.hole_rate == found.absorbed_rate == pytest.approx(1 / 3)
    assert found.absorbers.tolist() == [-1, 2, -1]
    assert found.cosines[1] == pytest.approx(parent / np.hypot(1, parent))
    assert np.isnan(found.cosines[[0, 2]]).all()
    assert (found.parent_cosine, found.precision) == (1, 1)


def test_a_hole_in_which_no_latent_has_the_concepts_direction_is_not_absorbed() -> None:
    for parent in (0.0, -1.0):
        found = measure(absorbing(parent=parent))
        assert found.hole_rates.tolist() == [0, 1, 0]
        assert found.absorbed_rates.tolist() == [0, 0, 0]
        assert found.absorbers.tolist() == [-1, -1, -1]


def test_the_absorber_adds_most_in_the_holes_and_is_not_the_one_with_the_largest_decoder() -> None:
    some = absorbing(parent=0.6)
    louder = some._replace(W_dec=some.W_dec.at[4, 0].set(50.0).at[5, 0].set(0.2), W_enc=some.W_enc.at[2, 5].set(1.0))
    found = measure(louder)  # latent 4 is off in the hole, 5 adds less than 2
    assert found.absorbers.tolist() == [-1, 2, -1]
    assert found.cosines[1] == pytest.approx(0.6 / np.hypot(1, 0.6))


def test_what_the_concepts_latent_leaks_in_a_hole_absorbs_nothing() -> None:
    x = X.copy()
    x[33:60, 3] = 0.0
    x[30:33, 3] = 1.0  # on a tenth of the holes another latent stands for the concept, on all it leaks a little more
    some = absorbing(share=0.88, parent=0.0)
    found = measure(some._replace(W_dec=some.W_dec.at[3, 0].set(1.0)), x)
    assert found.hole_rates.tolist() == [0, 1, 0]
    assert found.absorbers.tolist() == [-1, 3, -1]
    assert found.absorbed_rates[1] == pytest.approx(0.1)


@pytest.mark.parametrize(("parent", "absorbs"), [(0.45, True), (0.35, False)])
def test_an_absorber_makes_up_for_a_fair_share_of_what_the_concepts_latent_adds(parent: float, absorbs: bool) -> None:
    found = measure(absorbing(parent=parent))
    assert found.hole_rates.tolist() == [0, 1, 0]
    assert found.absorbed_rates.tolist() == [0, float(absorbs), 0]
    assert found.absorbers.tolist() == [-1, 2 if absorbs else -1, -1]


def test_an_absorber_points_along_the_probe() -> None:
    some = absorbing(parent=1.0)
    for other, absorbs in ((9.0, True), (11.0, False)):  # cosines of .11 and .09
        found = measure(some._replace(W_dec=some.W_dec.at[2, 4].set(other).at[2, 2].set(0.0)))
        assert (found.absorbers[1] == 2) == absorbs


def test_a_members_own_direction_is_no_absorption_though_a_probe_points_along_it() -> None:
    rng = np.random.default_rng(0)
    x = (X + 0.05 * rng.normal(size=X.shape)).astype(np.float32)
    probe = fit_probe(x, MEMBERS >= 0)
    assert (probe[1:4] > 0.1).all()
    silenced = measure_absorption(absorbing(share=1.5, parent=0.0), x, MEMBERS, 3, 0, probe)
    assert silenced.hole_rates[1] == 1
    assert silenced.absorbed_rates[1] == 0
    absorbed = measure_absorption(absorbing(share=1.5), x, MEMBERS, 3, 0, probe)
    assert (absorbed.absorbed_rates[1], absorbed.absorbers[1]) == (1, 2)


def test_where_the_concepts_latent_adds_nothing_along_the_probe_no_absorption_is_told() -> None:
    some = absorbing()
    for other in (some._replace(W_dec=some.W_dec.at[0, 0].set(-1.0)), some._replace(b_enc=some.b_enc.at[0].set(-9.0))):
        found = measure(other)
        assert found.hole_rates[1] == 1
        assert np.isnan(found.absorbed_rates[1])
        assert found.absorbers[1] == -1


def test_a_topk_saes_latents_are_on_where_they_are_among_the_k_largest() -> None:
    W_enc = EYE.copy()
    W_enc[2, 2] = 3.0  # on member 1 its own latent is the largest, on the others the concept's
    some, top = sae(1.5 * W_enc - 0.5 * EYE, EYE), TopK(1)
    some = some._replace(W_enc=some.W_enc.at[0, 0].set(2.0))
    assert measure(some).hole_rates.tolist() == [0, 0, 0]
    found = measure_absorption(some, X, MEMBERS, 3, 0, EYE[0].astype(float), top)
    assert found.hole_rates.tolist() == [0, 1, 0]
    assert found.precision == 1
    assert found.average_precision < measure(some).average_precision == 1  # it is silent on member 1 as elsewhere
    present = (MEMBERS >= 0)[:, None]
    assert best_latents(some, X, present)[1][0] == pytest.approx(1)
    assert best_latents(some, X, present, top)[1][0] < 0.9


@pytest.mark.parametrize(("left", "is_hole"), [(0.15, True), (0.3, False)])
def test_a_latent_that_is_on_by_less_than_a_fifth_of_its_mean_is_off(left: float, is_hole: bool) -> None:
    # Of the mean of 1, 1 and `left`, where it is on: a fifth is 0.14 for 0.15 and 0.15 for 0.3.
    mean = (2 + left) / 3
    some = absorbing(1 - 0.95 * 0.2 * mean if is_hole else 1 - left)
    found = measure(some)
    assert found.hole_rates.tolist() == [0, float(is_hole), 0]


def test_a_member_that_is_a_hole_on_some_rows_counts_those_alone() -> None:
    x = X.copy()
    x[30:40, 2] = 0  # on 10 of the 30 rows member 1's own direction is missing: the concept's latent is on
    found = measure(absorbing(), x)
    assert found.hole_rates.tolist() == found.absorbed_rates.tolist() == pytest.approx([0, 2 / 3, 0])


def test_the_absorbed_rate_is_of_rows_on_which_the_absorber_is_on() -> None:
    x = X.copy()
    x[30:40, 0] = 0
    x[30:40, 2] = 0  # neither the concept's latent nor the absorber
    found = measure(absorbing(), x)
    assert found.hole_rates[1] == 1
    assert found.absorbed_rates[1] == pytest.approx(2 / 3)


def test_a_member_on_too_few_rows_says_nothing() -> None:
    keep = np.ones(len(X), bool)
    keep[30 + MIN_ROWS - 1 : 60] = False
    found = measure(absorbing(), X[keep], MEMBERS[keep], n=4)
    np.testing.assert_array_equal(found.hole_rates, [0, np.nan, 0, np.nan])
    assert (found.hole_rate, found.absorbed_rate) == (0, 0)
    assert found.absorbers.tolist() == [-1] * 4
    keep[30 + MIN_ROWS - 1] = True
    assert measure(absorbing(), X[keep], MEMBERS[keep]).hole_rates.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="members: no row is of a member"):
        measure(absorbing(), X[90:], MEMBERS[90:])


def test_precision_is_the_share_of_the_latents_rows_that_are_members() -> None:
    W_enc = EYE.copy()
    W_enc[4, 0] = 1  # also on the 30 rows of another
    found = measure(sae(W_enc, EYE))
    assert found.precision == pytest.approx(90 / 120)
    assert found.hole_rate == 0
    W_enc[4, 0] = 0.1  # on, but by less than a fifth of what it is on members
    assert measure(sae(W_enc, EYE)).precision == 1
    never = measure(absorbing(), latent=5)
    assert np.isnan(never.precision)
    assert never.hole_rate == 1


def test_a_threshold_of_the_sae_makes_holes() -> None:
    some = absorbing(share=0.5)
    assert measure(some).hole_rate == 0
    with_threshold = some._replace(threshold=jnp.full(D, 0.7))
    found = measure(with_threshold)
    assert found.hole_rates.tolist() == [0, 1, 0]
    assert found.absorbers[1] == 2
    assert found.precision == 1


# --- which latent, which direction --------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1_000, 37])
def test_the_best_latent_is_the_one_that_correlates_most(chunk: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, D)).astype(np.float32)
    W = rng.normal(size=(D, 8))
    W[:, 6:] = 0
    b_enc = np.array([0, 0, -0.5, 0.3, 0, 0, -1, 7.7])  # the last but one is never on, the last always as much
    some = sae(W, W.T, b_enc)
    present = np.stack([x[:, 0] > 0.5, x @ W[:, 3] > 1, x[:, 1] + x[:, 2] > 0], axis=1)
    acts = np.asarray(encode(some, jnp.asarray(x)), float)[:, :6]
    expected = np.array([[np.corrcoef(acts[:, i], present[:, c])[0, 1] for c in range(3)] for i in range(6)])
    latent, correlation = best_latents(some, x, present, chunk=chunk)
    assert latent.tolist() == expected.argmax(axis=0).tolist()
    np.testing.assert_allclose(correlation, expected.max(axis=0), atol=1e-5)
    assert latent[1] == 3


def test_a_latent_that_is_always_as_much_on_is_never_the_best() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3_001, D)).astype(np.float32)
    W, b_enc = np.zeros((D, 200)), np.linspace(0.01, 10, 200)
    W[0, 0], b_enc[0] = 1, 0
    latent, correlation = best_latents(sae(W, W.T, b_enc), x, x[:, :1] + 5 * rng.normal(size=(3_001, 1)) > 0)
    assert latent.tolist() == [0]
    assert 0.05 < correlation[0] < 0.3


def test_without_rows_no_latent_is_best() -> None:
    with pytest.raises(ValueError, match="x: there are no rows"):
        best_latents(sae(EYE, EYE), X[:0], np.zeros((0, 1), bool))


def classes(seed: int = 0, n: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """Rows that overlap, and which of them have the concept."""
    rng = np.random.default_rng(seed)
    present = np.arange(n) < 300
    x = rng.normal(size=(n, 4)) * [1, 2, 1, 1] + present[:, None] * [1, 1, 0, 0]
    return x.astype(np.float32), present


def test_a_probe_turns_and_scales_with_the_activations() -> None:
    x, present = classes()
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    probe = fit_probe(x, present, 0.1)
    np.testing.assert_allclose(fit_probe((x @ turn).astype(np.float32), present, 0.1), probe @ turn, atol=1e-3)
    np.testing.assert_allclose(fit_probe(100 * x + 5, present, 0.1), probe, atol=1e-3)


def test_a_class_of_more_rows_has_no_more_weight_in_a_probe() -> None:
    x, present = classes()
    x[present, 2] += 3 * (np.arange(300) < 150)  # else the boundary's place would not turn it
    often = np.concatenate([x[present]] * 5 + [x[~present]])
    labels = np.repeat([True, False], [5 * 300, 1_700])
    np.testing.assert_allclose(fit_probe(x, present), fit_probe(often, labels), atol=0.02)


def test_a_probe_is_penalised() -> None:
    x, present = classes()
    x[:, 3] = 0.01 * present  # tells the classes apart, but takes large weights
    assert fit_probe(x, present, 1e-2)[3] < 0.2
    assert 0.7 < fit_probe(x, present)[3] < 0.9
    assert fit_probe(x, present, 0.0)[3] > 0.99


@pytest.mark.parametrize("n_present", [400, 150])
def test_a_probe_finds_the_direction_that_separates_two_classes(n_present: int) -> None:
    rng = np.random.default_rng(0)
    direction = rng.normal(size=D)
    direction /= np.linalg.norm(direction)
    present = np.arange(2_000) < n_present
    x = (rng.normal(size=(2_000, D)) + 2.5 * present[:, None] * direction + 10).astype(np.float32)
    probe = fit_probe(x, present)
    assert np.linalg.norm(probe) == pytest.approx(1)
    assert probe @ direction > 0.95
    assert fit_probe(x, ~present) @ direction < -0.95
    for one in (np.ones(2_000, bool), np.zeros(2_000, bool)):
        with pytest.raises(ValueError, match="a probe needs rows with the concept and rows without it"):
            fit_probe(x, one)


# --- where words are ----------------------------------------------------------------------------------------


STORIES = make_stories(12, seed=0)
TOKENIZER = train_tokenizer(STORIES[:6], 330)
PIECES = TOKENIZER.pieces()


@given(st.integers(3, 40), st.permutations(range(4)))
def test_words_are_found_at_their_places_however_a_story_is_cut_into_rows(context: int, order: list[int]) -> None:
    wanted = ("Lily", "said", "he", "nowhere")
    rows = make_rows(STORIES[:4], TOKENIZER, context)
    places = find_words(rows, PIECES, wanted)
    for i, ids in enumerate(TOKENIZER.encode(STORIES[:4])):
        expected = np.full(len(ids) + 2, NO_WORD)
        for place, word in words_of(ids, PIECES):
            if word in ("lily", "said", "he"):
                expected[place + 1] = ("lily", "said", "he").index(word)  # after the begin
        np.testing.assert_array_equal(places.of(np.full(len(expected), i), np.arange(len(expected))), expected)
    assert (places.found == 0).sum() == sum(story.count("Lily") for story in STORIES[:4])
    document, position = np.array(order), np.array([3, 1, 40, 7])
    np.testing.assert_array_equal(
        places.of(document, position),
        [places.found[places.begins[d] + p] for d, p in zip(document, position, strict=True)],
    )


def test_a_word_across_two_rows_is_found_where_it_ends_and_its_parts_are_not() -> None:
    pieces = ["", " mot", "her", " a", " cat", "s"]
    ids = np.array([[0, 3, 1], [2, 4, 5], [4, 0, 0]], np.int32)
    rows = Rows(ids, np.array([3, 3, 1], np.int32), np.array([0, 0, 1], np.int32), np.array([0, 3, 0], np.int32))
    places = find_words(rows, pieces, ("her", "mother", "Cat"))
    assert places.words == ("her", "mother", "Cat")
    assert places.found.tolist() == [-1, -1, -1, 1, -1, -1, 2]
    assert places.begins.tolist() == [0, 6]
    again = find_words(Rows(*(column[::-1] for column in rows)), pieces, ("her", "mother", "Cat"))
    np.testing.assert_array_equal(again.found, places.found)


def test_one_long_story_among_many_short_ones_takes_no_more_memory_than_its_tokens() -> None:
    lengths = np.append(np.ones(20_000, np.int32), 1)
    starts = np.append(np.zeros(20_000, np.int32), 2**20).astype(np.int32)
    document = np.arange(20_001, dtype=np.int32)
    places = find_words(Rows(np.zeros((20_001, 4), np.int32), lengths, document, starts), ["cat"], ("cat",))
    assert len(places.found) == 20_000 + 2**20 + 1
    assert places.of(np.array([7, 20_000]), np.array([0, 2**20])).tolist() == [0, 0]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_its_sum_over_thresholds(rows: list[tuple[int, bool]]) -> None:
    values, present = np.array([v for v, _ in rows], np.float32), np.array([p for _, p in rows])
    expected, recall = 0.0, 0.0
    for threshold in sorted(set(values.tolist()), reverse=True):
        on = values >= threshold
        now = (on & present).sum() / max(present.sum(), 1)
        expected += (now - recall) * (on & present).sum() / on.sum()
        recall = now
    found = average_precision(values, present)
    assert np.isnan(found) if not present.any() else found == pytest.approx(expected)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_allclose(average_precision(values[shuffled], present[shuffled]), found)


def test_a_latent_that_is_on_everywhere_has_no_holes_and_a_low_average_precision() -> None:
    perfect = measure(sae(EYE, EYE))
    everywhere = measure(sae(0 * EYE, EYE, np.ones(D)))
    assert (perfect.hole_rate, perfect.average_precision) == (0, 1)
    assert (everywhere.hole_rate, everywhere.average_precision) == (0, pytest.approx(90 / 150))
