"""The SAE's functions: what they compute, and rewritings that leave the function as it is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays
from oracles import as_sae, random_arrays

import toy.sae
from toy.sae import (
    RELU,
    SAE,
    BatchTopK,
    TopK,
    decode,
    decoder_norms,
    encode,
    fold_decoder_norm,
    fold_input_scale,
    init_sae,
    is_finite,
    keep_largest,
    kth_largest,
    take_latents,
)

pytestmark = pytest.mark.usefixtures("x64")


def random_sae(d_in: int = 4, n_latents: int = 6) -> tuple[SAE, jax.Array]:
    arrays = random_arrays(0, 20, d_in, n_latents)
    return as_sae(arrays), jnp.array(arrays["x"])


def with_threshold(sae: SAE) -> SAE:
    return sae._replace(threshold=jnp.linspace(0.1, 1.0, sae.b_enc.shape[0]))


def test_acts_are_rectified_and_the_decoder_bias_is_only_added() -> None:
    sae = SAE(jnp.array([[1.0, -1.0]]), jnp.array([0.0, 0.5]), jnp.array([[2.0], [3.0]]), jnp.array([10.0]))
    x = jnp.array([[2.0], [-2.0]])
    assert encode(sae, x).tolist() == [[2.0, 0.0], [0.0, 2.5]]
    assert decode(sae, encode(sae, x)).tolist() == [[14.0], [17.5]]
    assert decoder_norms(sae).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("name", SAE._fields)
def test_an_sae_is_finite_where_every_number_of_all_parameters_is(name: str) -> None:
    sae = with_threshold(random_sae()[0])
    broken = sae._replace(**{name: getattr(sae, name).at[..., -1].set(jnp.nan)})
    assert is_finite(sae)
    assert not is_finite(broken)
    assert is_finite(jax.tree.map(lambda *leaves: jnp.stack(leaves), sae, broken, sae)).tolist() == [True, False, True]
    assert is_finite(sae._replace(threshold=None))


def test_a_new_sae_has_tied_directions_decoder_norm_a_tenth_and_no_biases() -> None:
    sae = init_sae(jax.random.key(0), 50, 40)
    np.testing.assert_allclose(decoder_norms(sae), 0.1)
    unit = sae.W_enc / jnp.linalg.norm(sae.W_enc, axis=0)
    np.testing.assert_allclose(sae.W_dec, 0.1 * unit.T, atol=1e-12)
    assert sae.W_enc.std() == pytest.approx(50**-0.5, rel=0.1)
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()
    assert (init_sae(jax.random.key(1), 50, 40).W_enc != sae.W_enc).any()


def test_reordering_moves_everything_a_latent_has_and_not_the_reconstruction() -> None:
    sae, x = random_sae()
    order = jnp.array([3, 1, 5, 0, 4, 2])
    moved = take_latents(sae, order)
    np.testing.assert_allclose(encode(moved, x), encode(sae, x)[:, order])
    np.testing.assert_allclose(decode(moved, encode(moved, x)), decode(sae, encode(sae, x)))
    assert (moved.W_dec[0] == sae.W_dec[3]).all()


def test_folding_the_input_scale_gives_the_same_function_in_the_units_of_x() -> None:
    sae, x = random_sae()
    scale = jnp.array(7.0)
    folded = fold_input_scale(sae, scale)
    np.testing.assert_allclose(encode(folded, x), encode(sae, scale * x) / scale)
    np.testing.assert_allclose(decode(folded, encode(folded, x)), decode(sae, encode(sae, scale * x)) / scale)


def test_folding_decoder_norms_gives_the_same_function_with_unit_rows() -> None:
    sae, x = random_sae()
    folded = fold_decoder_norm(sae)
    np.testing.assert_allclose(decoder_norms(folded), 1)
    np.testing.assert_allclose(encode(folded, x), encode(sae, x) * decoder_norms(sae))
    np.testing.assert_allclose(decode(folded, encode(folded, x)), decode(sae, encode(sae, x)))


def test_folding_a_decoder_row_of_zeros_gives_no_nan() -> None:
    sae, x = random_sae()
    folded = fold_decoder_norm(sae._replace(W_dec=sae.W_dec.at[2].set(0)))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(folded))
    assert not encode(folded, x)[:, 2].any()


# --- activations ------------------------------------------------------------------------------------------


def test_with_a_threshold_acts_above_it_are_on_as_they_are() -> None:
    sae, x = random_sae()
    acts, jump = encode(sae, x), encode(with_threshold(sae), x)
    threshold = np.linspace(0.1, 1.0, 6)
    np.testing.assert_array_equal(jump, np.where(acts > threshold, acts, 0))
    assert 0 < (jump > 0).sum() < (acts > 0).sum()
    at = sae._replace(threshold=jnp.max(acts, axis=0))
    assert not encode(at, x).any()  # above, not at


def test_training_s_activation_is_not_that_of_the_threshold() -> None:
    sae, x = random_sae()
    for activation in (TopK(2), BatchTopK(1.5)):
        np.testing.assert_array_equal(encode(with_threshold(sae), x, activation), encode(sae, x, activation))


def test_a_threshold_moves_with_its_latent_and_scales_with_its_acts() -> None:
    sae, x = with_threshold(random_sae()[0]), random_sae()[1]
    order, scale, norms = jnp.array([3, 1, 5, 0, 4, 2]), jnp.array(7.0), decoder_norms(sae)
    acts = encode(sae, x)
    np.testing.assert_allclose(encode(take_latents(sae, order), x), acts[:, order])
    np.testing.assert_allclose(encode(fold_input_scale(sae, scale), x), encode(sae, scale * x) / scale)
    np.testing.assert_allclose(encode(fold_decoder_norm(sae), x), acts * norms)


SIZES = st.integers(0, 4).map(lambda i: i / 2) | st.floats(0, 100)  # ties, zeros


@given(
    values=numpy_arrays(np.float64, (3, 7), elements=SIZES | st.floats(0, 1e300)),
    k=st.integers(1, 30),
    in_float32=st.booleans(),
)
def test_the_kth_largest_is_that_of_sorting(values: np.ndarray, k: int, in_float32: bool) -> None:
    values = np.minimum(values, 1e30).astype(np.float32) if in_float32 else values
    found = KTH(jnp.asarray(values), k)
    assert found.dtype == values.dtype
    assert found == np.sort(values, axis=None)[::-1][min(k, values.size) - 1]


KTH: Callable[..., jax.Array] = jax.jit(kth_largest, static_argnums=1)


KEEP: Callable[..., jax.Array] = jax.jit(keep_largest, static_argnums=2)
KEEP_BY_SORTING: Callable[..., jax.Array] = jax.jit(lambda *args: keep_largest(*args), static_argnums=2)
ACTS = numpy_arrays(np.float64, (4, 6), elements=SIZES)
NORMS = numpy_arrays(np.float64, 6, elements=st.sampled_from([0.5, 1.0, 2.0]))


@given(acts=ACTS, norms=NORMS, k=st.sampled_from([1, 2, 6]))
def test_topk_keeps_the_k_largest_of_each_sample_and_all_that_tie_with_the_last(
    acts: np.ndarray, norms: np.ndarray, k: int
) -> None:
    kept = np.asarray(KEEP(acts, norms, TopK(k)))
    for before, after, size in zip(acts, kept, acts * norms, strict=True):
        least = np.sort(size)[::-1][k - 1]
        np.testing.assert_array_equal(after, np.where(size >= least, before, 0))
        assert (after > 0).sum() >= min(k, (before > 0).sum())
        if len(set(size)) == len(size):
            assert (after > 0).sum() == min(k, (before > 0).sum())


@given(acts=ACTS, norms=NORMS, k=st.sampled_from([1, 2, 6]))
def test_topk_by_pairs_and_by_sorting_are_equal(acts: np.ndarray, norms: np.ndarray, k: int) -> None:
    by_pairs = KEEP(acts, norms, TopK(k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.sae, "MOST_PAIRS", 0)
        by_sorting = KEEP_BY_SORTING(acts, norms, TopK(k))
    np.testing.assert_array_equal(by_pairs, by_sorting)


@given(acts=ACTS, norms=NORMS, k=st.sampled_from([0.1, 0.5, 1.5, 6.0, 9.0]))
def test_batchtopk_keeps_the_largest_of_the_batch_and_all_that_tie_with_the_last(
    acts: np.ndarray, norms: np.ndarray, k: float
) -> None:
    kept, sizes, n_on = np.asarray(KEEP(acts, norms, BatchTopK(k))), acts * norms, max(1, round(4 * k))
    least = np.sort(sizes, axis=None)[::-1][min(n_on, 24) - 1]
    np.testing.assert_array_equal(kept, np.where(sizes >= least, acts, 0))
    assert (kept > 0).sum() >= min(n_on, (acts > 0).sum())


@pytest.mark.parametrize("n_latents", [6, 150])
@pytest.mark.parametrize("k", [1_000, 2.0e9], ids=["TopK", "BatchTopK"])
def test_asking_for_more_latents_than_there_are_keeps_all(n_latents: int, k: float) -> None:
    sae, x = random_sae(4, n_latents)
    activation = TopK(k) if isinstance(k, int) else BatchTopK(k)
    np.testing.assert_array_equal(encode(sae, x, activation), encode(sae, x, RELU))


def test_no_gradient_flows_through_the_choice() -> None:
    sae, x = random_sae()
    kept = encode(sae, x, TopK(2)) > 0
    grads = jax.grad(lambda sae: encode(sae, x, TopK(2)).sum())(sae)
    np.testing.assert_allclose(grads.b_enc, kept.sum(axis=0))
    assert not grads.W_dec.any()


def test_batchtopk_counts_a_batch_and_its_slots() -> None:
    assert [BatchTopK(k).n_on(8) for k in (0.01, 0.5, 2.5, 3.0)] == [1, 4, 20, 24]
    assert [BatchTopK(k).n_slots for k in (2.0, 16.0, 32.0)] == [18, 32, 64]
    assert BatchTopK(2.0, slots=5).n_slots == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), "k: must be at least 1, got 0"),
        (lambda: BatchTopK(0.0), "k: must be above 0, got 0.0"),
        (lambda: TopK(True), "k: must be a whole number, got True"),
        (lambda: BatchTopK(float("inf")), "k: must be finite, got inf"),
        (lambda: BatchTopK(float("nan")), "k: must be finite, got nan"),
        (lambda: BatchTopK(4.0, slots=3), "slots: must be at least k = 4.0, got 3"),
    ],
)
def test_an_activation_that_cannot_be_is_refused_by_name(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
