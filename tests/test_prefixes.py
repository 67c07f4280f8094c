"""Prefix weights: exact expectations, their sampler, and the reductions that tie the weightings together."""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dense_weights, random_arrays, slow_inclusion, within_binomial_bounds

import toy.prefixes
from toy.loss.gram import gram_mse
from toy.prefixes import (
    FixedPrefixes,
    FixedWeights,
    HybridWeights,
    Prefixes,
    SampledPrefixes,
    Weighting,
    all_prefixes,
    balanced,
    draw,
    expected,
    fixed,
    full,
    hybrid,
    inclusion,
    inclusion_probabilities,
    levels,
    named,
    of_inclusion,
    pareto_rates,
    sampled,
)

KEYS = jax.random.split(jax.random.key(0), 20_000)


def draws(weighting: Weighting, n_draws: int = 20_000) -> np.ndarray:
    """Each draw's weight of every length, whatever the type that it is given as."""
    n = weighting.n_latents

    def one(key: jax.Array) -> jax.Array:
        drawn = draw(key, jax.tree.map(jnp.asarray, weighting))
        if isinstance(drawn, FixedWeights):
            return jnp.asarray(drawn.weights)
        assert isinstance(drawn, FixedPrefixes)
        return jnp.zeros(n).at[jnp.asarray(drawn.lengths) - 1].add(drawn.weights)

    return np.asarray(jax.jit(jax.vmap(one))(KEYS[:n_draws]))


@pytest.mark.parametrize(
    "make",
    [
        full,
        all_prefixes,
        lambda n: fixed(n, (1, n)),
        lambda n: fixed(n, (1, 1, n)),
        expected,
        balanced,
        lambda n: balanced(n, 0.9, 3),
    ],
    ids=["full", "all", "fixed", "fixed with a repeat", "expected", "balanced", "balanced 0.9"],
)
@pytest.mark.parametrize("n_latents", [1, 2, 7, 40])
def test_weights_are_at_least_0_and_sum_to_1(make: Callable, n_latents: int) -> None:
    weighting = make(n_latents)
    assert (weighting.weights >= 0).all()
    assert weighting.weights.sum() == pytest.approx(1, abs=1e-12)
    assert weighting.n_latents == n_latents
    if isinstance(weighting, FixedWeights):
        assert weighting.weights.shape == (n_latents,)
    else:
        assert weighting.lengths.shape == weighting.weights.shape
        assert (np.diff(weighting.lengths) > 0).all()
        assert weighting.lengths[-1] == n_latents


def test_prefixes_without_the_full_one_get_it_with_a_warning() -> None:
    with pytest.warns(
        UserWarning, match=r"^widths: \(5, 10\) leaves latents 11 to 20 untrained: the full length 20 is"
    ):
        weighting = fixed(20, (5, 10))
    assert weighting.lengths.tolist() == [5, 10, 20]
    assert (inclusion(weighting, jnp.arange(20)) > 0).all()
    np.testing.assert_allclose(weighting.weights, 1 / 3, rtol=1e-12)


def test_the_weights_of_the_simple_weightings_are_those_written_down() -> None:
    assert dense_weights(full(4), 4).tolist() == [0, 0, 0, 1]
    assert full(4).lengths.tolist() == [4]
    assert dense_weights(fixed(4, (3, 1, 4, 3)), 4).tolist() == [0.25, 0, 0.5, 0.25]
    assert dense_weights(all_prefixes(4), 4).tolist() == [0.25] * 4
    assert sampled(4).n_latents == 4
    assert sampled(4).weights.tolist() == [0.25] * 4
    assert isinstance(sampled(4, 2), SampledPrefixes)


def test_pareto_rates_are_the_decreases_of_one_minus_the_root() -> None:
    n = 5
    survival = [1 - np.sqrt(k / n) for k in range(n)]
    steps = np.array([survival[k - 1] - survival[k] for k in range(1, n)])
    np.testing.assert_allclose(pareto_rates(n), steps / steps.sum(), rtol=1e-12)
    np.testing.assert_allclose(pareto_rates(n, power=1.0), [0.25] * 4, rtol=1e-12)


@given(
    rates=st.lists(st.floats(0.01, 1), min_size=1, max_size=6).map(np.array),
    n_drawn=st.integers(0, 7),
)
def test_inclusion_probabilities_are_those_of_drawing_one_by_one(rates: np.ndarray, n_drawn: int) -> None:
    expected_probabilities = slow_inclusion(rates, min(n_drawn, len(rates)))
    np.testing.assert_allclose(inclusion_probabilities(rates, n_drawn), expected_probabilities, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n_latents", "n_prefixes"), [(2, 2), (20, 10), (20, 19), (100, 2), (100, 60), (300, 10)])
def test_inclusion_probabilities_sum_to_the_number_drawn_and_fall_with_the_rate(
    n_latents: int, n_prefixes: int
) -> None:
    probabilities = inclusion_probabilities(pareto_rates(n_latents), n_prefixes - 1)
    assert probabilities.sum() == pytest.approx(n_prefixes - 1, rel=1e-9)
    assert (np.diff(probabilities) <= 1e-12).all()
    assert ((probabilities >= 0) & (probabilities <= 1 + 1e-12)).all()


@pytest.mark.parametrize(("n_latents", "n_prefixes", "power"), [(6, 3, 0.5), (20, 10, 0.5), (50, 5, 1.5)])
def test_a_draw_has_n_prefixes_different_lengths_equally_weighted_with_the_full_one(
    n_latents: int, n_prefixes: int, power: float
) -> None:
    weights = draws(sampled(n_latents, n_prefixes, power), 2_000)
    assert (weights[:, -1] > 0).all()
    assert ((weights > 0).sum(axis=1) == n_prefixes).all()
    np.testing.assert_allclose(weights[weights > 0], 1 / n_prefixes, rtol=1e-6)
    assert len(np.unique(weights, axis=0)) >= 10  # all C(5, 2) of the smallest case


@pytest.mark.parametrize(("n_latents", "n_prefixes", "power"), [(6, 3, 0.5), (20, 10, 0.5), (20, 5, 1.5)])
def test_expected_is_the_mean_of_the_draws(n_latents: int, n_prefixes: int, power: float) -> None:
    included = draws(sampled(n_latents, n_prefixes, power)) > 0
    exact = expected(n_latents, n_prefixes, power).weights * n_prefixes
    assert within_binomial_bounds(included.sum(axis=0), len(included), np.asarray(exact)).all()


@pytest.mark.parametrize("n_prefixes", [5, 6, 100])
def test_sampling_as_many_prefixes_as_there_are_is_every_prefix(n_prefixes: int) -> None:
    np.testing.assert_allclose(draws(sampled(5, n_prefixes), 10), np.tile(all_prefixes(5).weights, (10, 1)), rtol=1e-6)
    np.testing.assert_allclose(expected(5, n_prefixes).weights, all_prefixes(5).weights, rtol=1e-12)


@pytest.mark.parametrize("n_latents", [1, 5])
def test_sampling_one_prefix_is_vanilla(n_latents: int) -> None:
    vanilla = dense_weights(full(n_latents), n_latents)
    assert (draws(sampled(n_latents, 1), 10) == vanilla).all()
    assert expected(n_latents, 1).weights.tolist() == vanilla.tolist()
    assert balanced(n_latents, full_share=0.2, n_prefixes=1).weights.tolist() == vanilla.tolist()


def test_fixed_weights_are_drawn_as_they_are_whatever_the_key() -> None:
    np.testing.assert_allclose(draws(fixed(4, (1, 2, 4)), 3), np.tile([1 / 3, 1 / 3, 0, 1 / 3], (3, 1)), rtol=1e-6)


def test_balanced_moves_weight_between_the_full_prefix_and_the_others_alone() -> None:
    plain, moved = np.asarray(expected(8, 4).weights), np.asarray(balanced(8, 0.7, 4).weights)
    assert moved[-1] == pytest.approx(0.7)
    np.testing.assert_allclose(moved[:-1] / moved[:-1].sum(), plain[:-1] / plain[:-1].sum(), rtol=1e-12)


@st.composite
def any_prefixes(draw: st.DrawFn) -> tuple[Prefixes, int]:
    """Draws prefixes of any type, with repeated lengths and weights of 0 and, as nothing here needs it, of any sum."""
    n, m = draw(st.sampled_from([1, 8])), 3  # few shapes
    weights = np.array(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    few = np.array(draw(st.lists(st.floats(0, 1), min_size=m, max_size=m)))
    lengths = np.array([*sorted(draw(st.lists(st.integers(1, n), min_size=m - 1, max_size=m - 1))), n])
    n_exact = min(draw(st.sampled_from([1, 5])), n)
    hybrid_of = HybridWeights(weights[:n_exact], lengths, few)
    return draw(st.sampled_from([FixedWeights(weights), FixedPrefixes(lengths, few), hybrid_of])), n


@given(prefixes_and_n=any_prefixes(), seed=st.integers(0, 99))
def test_inclusion_is_the_weight_of_the_prefixes_that_hold_a_latent(
    prefixes_and_n: tuple[Prefixes, int], seed: int
) -> None:
    prefixes, n = prefixes_and_n
    ranks = np.random.default_rng(seed).permutation(n)
    slow = [sum(w for k, w in enumerate(dense_weights(prefixes, n), start=1) if k > rank) for rank in ranks]
    ours = inclusion(jax.tree.map(jnp.asarray, prefixes), jnp.array(ranks))
    np.testing.assert_allclose(ours, slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0], [0.2, 0.5, 0.3]])
def test_weights_follow_from_the_inclusion_that_they_give(weights: list[float]) -> None:
    s = inclusion(FixedWeights(jnp.array(weights)), jnp.arange(len(weights)))
    np.testing.assert_allclose(of_inclusion(s).weights, weights, rtol=1e-6)


# --- the two ways to draw ---------------------------------------------------------------------------------

UNEQUAL = np.array([0.4, 0.3, 0.2, 0.1])  # of the full prefix, of the first drawn, of the second, of the third


@pytest.mark.parametrize("n_latents", [4, 128])
def test_a_draw_given_as_lengths_is_the_same_as_one_given_as_weights(n_latents: int) -> None:
    weighting = SampledPrefixes(pareto_rates(n_latents), UNEQUAL)
    as_weights = draws(weighting, 300)
    assert isinstance(draw(KEYS[0], weighting), FixedWeights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.prefixes, "MOST_PAIRS", 1)
        assert isinstance(draw(KEYS[0], weighting), FixedPrefixes)
        np.testing.assert_array_equal(draws(weighting, 300), as_weights)


def test_at_width_a_draw_is_distinct_ascending_lengths_the_full_one_last() -> None:
    n_latents = 129
    weighting = jax.tree.map(jnp.asarray, SampledPrefixes(pareto_rates(n_latents), UNEQUAL))
    drawn = jax.jit(jax.vmap(draw, in_axes=(0, None)))(KEYS[:2_000], weighting)
    assert isinstance(drawn, FixedPrefixes)
    lengths, weights = np.asarray(drawn.lengths), np.asarray(drawn.weights)
    assert lengths.shape == weights.shape == (2_000, 4)
    assert (np.diff(lengths, axis=1) > 0).all()
    assert (lengths >= 1).all()
    assert (lengths[:, -1] == n_latents).all()
    assert (weights[:, -1] == UNEQUAL[0].astype(np.float32)).all()
    np.testing.assert_array_equal(np.sort(weights, axis=1)[:, ::-1], np.tile(UNEQUAL.astype(np.float32), (2_000, 1)))
    assert len({tuple(row) for row in weights}) == 6  # every order of the three


@pytest.mark.parametrize("n_latents", [6, 129])
def test_the_weights_of_the_others_are_in_the_order_of_drawing(n_latents: int) -> None:
    weighting = SampledPrefixes(pareto_rates(n_latents), UNEQUAL)
    weights = draws(weighting)
    assert (weights[:, -1] == UNEQUAL[0].astype(np.float32)).all()
    first = (weights[:, :-1] == UNEQUAL[1].astype(np.float32)).sum(axis=0)
    assert first.sum() == len(weights)
    assert within_binomial_bounds(first, len(weights), np.asarray(weighting.rates)).all()
    second = (weights[:, :-1] == UNEQUAL[2].astype(np.float32)).sum(axis=0)
    two = inclusion_probabilities(np.asarray(weighting.rates), 2)
    assert within_binomial_bounds(first + second, len(weights), two).all()


@pytest.mark.parametrize("make", [all_prefixes, lambda n: fixed(n, (1, 2, n)), lambda n: hybrid(n, n_exact=2, tile=2)])
def test_what_is_not_sampled_is_drawn_as_it_is(make: Callable) -> None:
    weighting = make(7)
    drawn = draw(KEYS[0], weighting)
    assert type(drawn) is type(weighting)
    for ours, theirs in zip(drawn, weighting, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_inclusion_probabilities_at_width_are_the_frequencies_of_draws() -> None:
    n_latents, n_prefixes, n_draws = 2_000, 10, 4_000
    weighting = jax.tree.map(jnp.asarray, sampled(n_latents, n_prefixes))
    drawn = jax.jit(jax.vmap(draw, in_axes=(0, None)))(KEYS[:n_draws], weighting)
    assert isinstance(drawn, FixedPrefixes)
    counts = np.bincount(np.asarray(drawn.lengths)[:, :-1].ravel(), minlength=n_latents)[1:]
    probabilities = inclusion_probabilities(pareto_rates(n_latents), n_prefixes - 1)
    assert probabilities.sum() == pytest.approx(n_prefixes - 1, rel=1e-9)
    assert within_binomial_bounds(counts, n_draws, probabilities).all()
    # Groups of lengths show smaller errors. Without replacement items crowd each other out: the variance is less.
    starts = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 1_500])
    errors = np.add.reduceat(counts - n_draws * probabilities, starts)
    assert (np.abs(errors) <= 4.5 * np.sqrt(n_draws * np.add.reduceat(probabilities, starts))).all()


# --- the hybrid -------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(n_latents=st.integers(2, 60), n_exact=st.integers(1, 59), tile=st.integers(1, 70), n_prefixes=st.integers(1, 5))
def test_the_hybrid_is_expected_on_its_head_and_a_tile_s_sum_at_each_tile_s_end(
    n_latents: int, n_exact: int, tile: int, n_prefixes: int
) -> None:
    n_exact = min(n_exact, n_latents - 1)
    exact = np.asarray(expected(n_latents, n_prefixes).weights)
    ours = hybrid(n_latents, n_prefixes, n_exact=n_exact, tile=tile)
    assert ours.n_latents == n_latents
    np.testing.assert_array_equal(ours.head, exact[:n_exact])
    assert np.sum(ours.head) + np.sum(ours.tail) == pytest.approx(1, abs=1e-12)
    bounds = [n_exact, *np.asarray(ours.lengths).tolist()]
    sums = [exact[start:end].sum() for start, end in pairwise(bounds)]
    np.testing.assert_allclose(ours.tail, sums, rtol=1e-12)

    width = -(-(n_latents - n_exact) // len(ours.lengths))  # as the loss infers it
    assert width <= tile
    assert ours.lengths.tolist() == [*range(n_exact + width, n_latents, width), n_latents]


def test_the_gradient_of_the_hybrid_is_nearer_to_the_expected_one_than_a_draw_s_is() -> None:
    n_latents = 400
    arrays = {name: jnp.asarray(a, jnp.float32) for name, a in random_arrays(6, 32, 8, n_latents).items()}
    acts = jax.nn.relu(arrays["x"] @ arrays["W_enc"] - 3.0)  # about an eighth is on
    with_gradient = jax.jit(jax.grad(gram_mse, argnums=(0, 1)))

    def gradient(prefixes: Prefixes) -> np.ndarray:
        s = inclusion(jax.tree.map(jnp.asarray, prefixes), jnp.arange(n_latents))
        return np.concatenate([np.ravel(g) for g in with_gradient(acts, 0.05 * arrays["W_dec"], arrays["x"], s)])

    exact = gradient(expected(n_latents))
    near = np.linalg.norm(gradient(hybrid(n_latents, n_exact=128, tile=32)) - exact)
    sampled_400 = jax.tree.map(jnp.asarray, sampled(n_latents))
    far = [np.linalg.norm(gradient(draw(key, sampled_400)) - exact) for key in KEYS[:8]]
    assert 0 < near < 0.6 * min(far)
    assert near < 0.3 * np.mean(far)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fixed(4, ()), "widths: need lengths between 1 and n_latents = 4"),
        (lambda: fixed(4, (0, 4)), "widths: must be at least 1, got 0"),
        (lambda: sampled(4, 2, power=float("nan")), "power: must be finite, got nan"),
        (lambda: fixed(4, (5,)), "widths: need lengths between 1 and n_latents = 4"),
        (lambda: full(0), "n_latents: must be at least 1, got 0"),
        (lambda: sampled(4, 0), "n_prefixes: must be at least 1"),
        (lambda: expected(4, -1), "n_prefixes: must be at least 1"),
        (lambda: sampled(0), "n_latents: must be at least 1"),
        (lambda: sampled(4, 2, power=0.0), "power: must be above 0"),
        (lambda: hybrid(8, n_exact=8), "n_exact: must be from 1 to n_latents - 1 = 7, got 8"),
        (lambda: hybrid(8, n_exact=0), "n_exact: must be at least 1, got 0"),
        (lambda: hybrid(8, n_exact=4, tile=0), "tile: must be at least 1, got 0"),
        (lambda: balanced(4, full_share=1.5), "full_share: must be at most 1, got 1.5"),
        (lambda: balanced(4, full_share=0), "full_share: must be above 0, got 0"),
        (lambda: levels(4, {"inf%": 1, "full": 1}), "length in %: must be finite, got inf"),
        (lambda: levels(4, {"-50%": 1, "full": 1}), "length in %: must be above 0, got -50"),
        (lambda: levels(4, {"abc": 1, "full": 1}), "length: expected a number of latents, .* got 'abc'"),
        (lambda: named("levels:1=.25,1=.5,full=1", 4), "weighting: expected"),
    ],
)
def test_a_weighting_that_cannot_be_is_refused_by_name(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(
    ("name", "weighting"),
    [
        ("vanilla", full(7)),
        ("all", all_prefixes(7)),
        ("sampled_3", sampled(7, 3)),
        ("expected_4", expected(7, 4)),
        ("balanced_.5", balanced(7, 0.5)),
    ],
)
def test_a_name_gives_its_weighting(name: str, weighting: Weighting) -> None:
    found = named(name, 7)
    assert type(found) is type(weighting)
    for own, same in zip(found, weighting, strict=True):
        np.testing.assert_array_equal(own, same)


@pytest.mark.parametrize("name", ["matryoshka", "", "sampled", "sampled_0", "expected_x", "balanced_2", "all_3"])
def test_a_name_of_no_weighting_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=f"^weighting: expected vanilla, all, sampled_N.*, got '{name}'$"):
        named(name, 7)
