"""The SAE's functions: what they compute, and rewritings that leave the function as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import random_arrays

from toy.sae import SAE, decode, decoder_norms, encode, fold_decoder_norm, fold_input_scale, init_sae, reorder

pytestmark = pytest.mark.usefixtures("x64")


def random_sae(d_in: int = 4, n_latents: int = 6) -> tuple[SAE, jax.Array]:
    arrays = random_arrays(0, 20, d_in, n_latents)
    return SAE(*(jnp.array(arrays[name]) for name in SAE._fields)), jnp.array(arrays["x"])


def test_acts_are_rectified_and_the_decoder_bias_is_only_added() -> None:
    sae = SAE(jnp.array([[1.0, -1.0]]), jnp.array([0.0, 0.5]), jnp.array([[2.0], [3.0]]), jnp.array([10.0]))
    x = jnp.array([[2.0], [-2.0]])
    assert encode(sae, x).tolist() == [[2.0, 0.0], [0.0, 2.5]]
    assert decode(sae, encode(sae, x)).tolist() == [[14.0], [17.5]]
    assert decoder_norms(sae).tolist() == [2.0, 3.0]


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
    moved = reorder(sae, order)
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
    assert all(jnp.isfinite(leaf).all() for leaf in folded)
    assert not encode(folded, x)[:, 2].any()
