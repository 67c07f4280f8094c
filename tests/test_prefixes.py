"""Prefix weights: exact expectations, their sampler, and the reductions that tie the weightings together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import slow_inclusion, within_binomial_bounds

from toy.prefixes import (
    Weighting,
    all_prefixes,
    balanced,
    draw_weights,
    expected,
    fixed,
    full,
    inclusion,
    inclusion_probabilities,
    pareto_rates,
    sampled,
)

KEYS = jax.random.split(jax.random.key(0), 20_000)


def draws(weighting: Weighting, n_draws: int = 20_000) -> np.ndarray:
    return np.asarray(jax.vmap(draw_weights, in_axes=(0, None))(KEYS[:n_draws], weighting))


@pytest.mark.parametrize(
    "make",
    [full, all_prefixes, lambda n: fixed(n, (1, n)), expected, balanced, lambda n: balanced(n, 0.9, 3)],
    ids=["full", "all", "fixed", "expected", "balanced", "balanced 0.9"],
)
@pytest.mark.parametrize("n_latents", [1, 2, 7, 40])
def test_weights_are_at_least_0_and_sum_to_1(make: Callable, n_latents: int) -> None:
    weights = make(n_latents).weights
    assert weights.shape == (n_latents,)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert make(n_latents).n_latents == n_latents


def test_the_weights_of_the_simple_weightings_are_those_written_down() -> None:
    assert full(4).weights.tolist() == [0, 0, 0, 1]
    assert fixed(4, (4,)).weights.tolist() == full(4).weights.tolist()
    assert fixed(4, (1, 3, 3, 4)).weights.tolist() == [0.25, 0, 0.5, 0.25]
    assert all_prefixes(4).weights.tolist() == [0.25] * 4
    assert sampled(4).n_latents == 4


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
    assert (draws(sampled(n_latents, 1), 10) == full(n_latents).weights).all()
    assert expected(n_latents, 1).weights.tolist() == full(n_latents).weights.tolist()
    assert balanced(n_latents, full_share=0.2, n_prefixes=1).weights.tolist() == full(n_latents).weights.tolist()


def test_fixed_weights_are_drawn_as_they_are_whatever_the_key() -> None:
    np.testing.assert_allclose(draws(fixed(4, (1, 2, 4)), 3), np.tile([1 / 3, 1 / 3, 0, 1 / 3], (3, 1)), rtol=1e-6)


def test_balanced_moves_weight_between_the_full_prefix_and_the_others_alone() -> None:
    plain, moved = np.asarray(expected(8, 4).weights), np.asarray(balanced(8, 0.7, 4).weights)
    assert moved[-1] == pytest.approx(0.7)
    np.testing.assert_allclose(moved[:-1] / moved[:-1].sum(), plain[:-1] / plain[:-1].sum(), rtol=1e-12)


@given(weights=st.lists(st.floats(0, 1), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_inclusion_is_the_weight_of_the_prefixes_that_hold_a_latent(weights: list[float], seed: int) -> None:
    n = len(weights)
    ranks = np.random.default_rng(seed).permutation(n)
    slow = [sum(w for k, w in enumerate(weights, start=1) if k > rank) for rank in ranks]
    np.testing.assert_allclose(inclusion(jnp.array(weights), jnp.array(ranks)), slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fixed(4, ()), "widths: need lengths between 1 and n_latents = 4"),
        (lambda: fixed(4, (0, 4)), "widths: need lengths between 1 and n_latents = 4"),
        (lambda: fixed(4, (5,)), "widths: need lengths between 1 and n_latents = 4"),
        (lambda: full(0), "widths: need lengths"),
        (lambda: sampled(4, 0), "n_prefixes: must be at least 1"),
        (lambda: expected(4, -1), "n_prefixes: must be at least 1"),
        (lambda: sampled(0), "n_latents: must be at least 1"),
        (lambda: sampled(4, 2, power=0.0), "power: must be above 0"),
        (lambda: balanced(4, full_share=1.5), "full_share: 1.5 is outside"),
    ],
)
def test_a_weighting_that_cannot_be_is_refused_by_name(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
