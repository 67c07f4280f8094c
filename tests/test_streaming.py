"""Measures streamed over chunks of rows are those of all rows at once."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toy.eval import metrics
from toy.eval.streaming import concatenate, equivalent_width, max_correlation, measure_fit
from toy.sae import RELU, SAE, TopK, decode, encode

D_IN = 6
X = np.random.default_rng(0).normal(size=(200, D_IN)).astype(np.float32)


def a_sae(seed: int, n_latents: int, *, threshold: bool = False) -> SAE:
    """Random; latent 2 is on nowhere, latent 3 everywhere as much."""
    keys = jax.random.split(jax.random.key(seed), 4)
    W_enc = jax.random.normal(keys[0], (D_IN, n_latents)).at[:, 2:4].set(0)
    b_enc = (0.3 * jax.random.normal(keys[1], (n_latents,))).at[2].set(-1).at[3].set(7.7)
    W_dec, b_dec = jax.random.normal(keys[2], (n_latents, D_IN)), jax.random.normal(keys[3], (D_IN,))
    return SAE(W_enc, b_enc, W_dec, b_dec, jnp.full(n_latents, 0.8) if threshold else None)


def chunks(size: int, x: np.ndarray = X) -> list[np.ndarray]:
    return [x[i : i + size] for i in range(0, len(x), size)]


def acts_of(sae: SAE) -> np.ndarray:
    return np.asarray(encode(sae, jnp.asarray(X)), float)


def slow_max_correlation(reference: SAE, other: SAE) -> tuple[np.ndarray, np.ndarray]:
    a, b = acts_of(reference), acts_of(other)
    found = np.full((a.shape[1], b.shape[1]), -np.inf)
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            if np.ptp(a[:, i]) > 0 and np.ptp(b[:, j]) > 0:
                found[i, j] = np.corrcoef(a[:, i], b[:, j])[0, 1]
    known = found.max(axis=1) > -np.inf
    return np.where(known, found.max(axis=1), np.nan), np.where(known, found.argmax(axis=1), -1)


@pytest.mark.parametrize(
    ("size", "block", "threshold"), [(200, 100, False), (67, 3, False), (67, 3, True), (50, 1, True)]
)
def test_the_max_correlation_is_numpys_in_any_chunks_and_blocks(size: int, block: int, threshold: bool) -> None:
    reference, other = a_sae(1, 7, threshold=threshold), a_sae(2, 9, threshold=threshold)
    correlation, latent = slow_max_correlation(reference, other)
    found = max_correlation(reference, other, chunks(size), block=block)
    assert np.flatnonzero(np.isnan(correlation)).tolist() == [2, 3]
    assert found.latent.tolist() == latent.tolist()
    np.testing.assert_allclose(found.correlation, correlation, atol=1e-5)


def test_a_threshold_changes_what_is_compared() -> None:
    plain, with_threshold = a_sae(1, 7), a_sae(1, 7, threshold=True)
    found = max_correlation(plain, with_threshold, chunks(100))
    assert found.latent.tolist() == [0, 1, -1, -1, 4, 5, 6]
    assert (found.correlation[[0, 1, 4, 5, 6]] < 0.999).all()


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 1.3, 7.7])
def test_a_latent_that_is_always_as_much_on_is_like_no_other(constant: float) -> None:
    sae = a_sae(1, 7)
    sae = sae._replace(b_enc=sae.b_enc.at[3].set(constant))
    found = max_correlation(sae, sae, chunks(67))
    assert found.latent.tolist() == [0, 1, -1, -1, 4, 5, 6]
    assert np.isnan(found.correlation[[2, 3]]).all()
    np.testing.assert_allclose(found.correlation[[0, 1, 4, 5, 6]], 1, atol=1e-5)


def test_the_same_latents_in_another_order_and_size_are_found() -> None:
    sae, order = a_sae(1, 7), np.array([6, 5, 4, 3, 2, 1, 0])
    other = SAE(3 * sae.W_enc[:, order], 3 * sae.b_enc[order], sae.W_dec[order], sae.b_dec)
    found = max_correlation(sae, other, chunks(50), block=4)
    assert found.latent.tolist() == [6, 5, -1, -1, 2, 1, 0]


def test_the_activation_is_that_of_both() -> None:
    reference, other = a_sae(1, 7), a_sae(2, 9)
    found = max_correlation(reference, other, chunks(200), TopK(2))
    a, b = (np.asarray(encode(sae, jnp.asarray(X), TopK(2)), float) for sae in (reference, other))
    expected = [max(np.corrcoef(a[:, i], b[:, j])[0, 1] for j in range(9) if np.ptp(b[:, j])) for i in (0, 1)]
    np.testing.assert_allclose(found.correlation[:2], expected, atol=1e-5)
    assert abs(found.correlation[0] - max_correlation(reference, other, chunks(200)).correlation[0]) > 0.01
    in_blocks = max_correlation(reference, other, chunks(200), TopK(2), block=2)
    np.testing.assert_allclose(in_blocks.correlation, found.correlation, rtol=1e-6)


def test_latents_of_several_saes_are_compared_in_one_pass() -> None:
    parts = [a_sae(seed, n, threshold=True) for seed, n in ((1, 5), (2, 7))]
    parts[1] = parts[1]._replace(threshold=jnp.full(7, 0.2))
    whole = concatenate(parts)
    np.testing.assert_allclose(acts_of(whole), np.hstack([acts_of(part) for part in parts]), atol=1e-5)
    np.testing.assert_array_equal(whole.W_dec, np.vstack([part.W_dec for part in parts]))
    assert concatenate([a_sae(1, 5), a_sae(2, 5)]).threshold is None
    alone = [max_correlation(part, a_sae(3, 9), chunks(50)).correlation for part in parts]
    together = max_correlation(whole, a_sae(3, 9), chunks(50)).correlation
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)
    with pytest.raises(ValueError, match="saes: some have a threshold and some have not"):
        concatenate([a_sae(1, 5), parts[0]])


@pytest.mark.parametrize("activation", [RELU, TopK(2)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_fit_in_chunks_is_that_of_the_rows_at_once(activation: TopK, offset: float) -> None:
    sae, x = a_sae(1, 7, threshold=activation == RELU), X + np.float32(offset)
    acts = encode(sae, jnp.asarray(x), activation)
    recon = np.asarray(decode(sae, acts), float)
    found = [measure_fit(sae, chunks(size, x), activation) for size in (200, 67)]
    for fit in found:
        assert fit.fvu == pytest.approx(metrics.fvu(x.astype(float), recon), rel=1e-5)
        assert fit.l0 == pytest.approx(metrics.l0(np.asarray(acts)))
        np.testing.assert_allclose(fit.density, np.mean(np.asarray(acts) > 0, axis=0))
        assert fit.dead() == metrics.dead_latents(np.asarray(acts)) >= 1


def test_nothing_and_constants_are_no_fit() -> None:
    for call in (lambda: measure_fit(a_sae(1, 7), []), lambda: max_correlation(a_sae(1, 7), a_sae(1, 7), [])):
        with pytest.raises(ValueError, match="chunks: there are no rows to measure on"):
            call()
    assert np.isnan(measure_fit(a_sae(1, 7), [np.ones((5, D_IN), np.float32)]).fvu)


@given(st.floats(0.1, 5), st.floats(-2, -0.05), st.permutations([100, 250, 1_000, 3_000]), st.floats(101, 2_999))
def test_the_equivalent_width_is_exact_where_errors_are_linear_in_log_width(
    at_1: float, slope: float, widths: Sequence[int], width: float
) -> None:
    def error(n: float) -> float:
        return at_1 + slope * np.log(n)

    fvus = [error(n) for n in widths]
    assert equivalent_width(error(width), widths, fvus) == pytest.approx(width, rel=1e-6)
    assert equivalent_width(error(99), widths, fvus) == 0
    assert equivalent_width(error(3_010), widths, fvus) == np.inf


def test_the_equivalent_width_of_a_given_sae_is_its_own_and_lies_between_its_neighbours() -> None:
    widths, fvus = [100, 200, 800], [0.5, 0.4, 0.1]
    assert [equivalent_width(fvu, widths, fvus) for fvu in fvus] == pytest.approx(widths)
    assert equivalent_width(0.25, widths, fvus) == pytest.approx(400)
    assert equivalent_width(0.5, [100], [0.5]) == pytest.approx(100)


def test_no_width_is_equivalent_where_a_wider_sae_is_no_better() -> None:
    for fvus in ([0.3, 0.4, 0.1], [0.5, 0.2, 0.2], [0.1, 0.2, 0.4]):
        assert np.isnan(equivalent_width(0.25, [100, 200, 800], fvus))
    assert np.isnan(equivalent_width(float("nan"), [100, 200], [0.5, 0.4]))
