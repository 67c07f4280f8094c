"""The TopK family at width: slots for the latents that are on, and the auxiliary loss that wakes dead ones."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import QUICK, as_sae, naive_acts, random_arrays

from toy.loss import Form, auxk_mse, reconstruct
from toy.loss.topk import select
from toy.sae import RELU, SAE, Activation, BatchTopK, TopK, decoder_norms, encode

pytestmark = pytest.mark.usefixtures("x64")

N_ROWS, D_IN, N_LATENTS = 6, 4, 20
ACTIVATIONS = [TopK(1), TopK(3), TopK(20), TopK(50), BatchTopK(2.5, slots=20), BatchTopK(0.5, slots=20)]


def some(seed: int) -> tuple[SAE, jax.Array]:
    arrays = random_arrays(seed, N_ROWS, D_IN, N_LATENTS)
    return as_sae(arrays), jnp.asarray(arrays["x"])


def dense_of_slots(sae: SAE, x: jax.Array, activation: TopK | BatchTopK) -> jax.Array:
    values, latents, _ = select(x, sae.W_enc, sae.b_enc, decoder_norms(sae), activation)
    return jnp.zeros((len(x), N_LATENTS)).at[jnp.arange(len(x))[:, None], latents].add(values)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), share_dead=st.sampled_from([0.0, 0.7, 1.0]))
def test_slots_hold_what_encode_turns_on_and_pass_the_same_gradient(
    activation: TopK | BatchTopK, seed: int, share_dead: float
) -> None:
    sae, x = some(seed)
    rng = np.random.default_rng(seed)
    sae = sae._replace(b_enc=jnp.where(rng.uniform(size=N_LATENTS) < share_dead, -1e3, sae.b_enc))
    cotangent = jnp.asarray(rng.normal(size=(N_ROWS, N_LATENTS)))
    of_slots, pull_slots = slots_vjp(sae, x, cotangent, activation)
    of_encode, pull_encode = encode_vjp(sae, x, cotangent, activation)
    np.testing.assert_allclose(of_slots, of_encode, rtol=1e-12)
    assert (of_encode > 0).any() == (share_dead < 1)
    for ours, theirs in zip(pull_slots[:2], pull_encode[:2], strict=True):  # in W_enc and b_enc
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * max(1.0, float(np.abs(theirs).max())))


@partial(jax.jit, static_argnames="activation", compiler_options=QUICK)
def slots_vjp(sae: SAE, x: jax.Array, cotangent: jax.Array, activation: TopK | BatchTopK) -> tuple[jax.Array, SAE]:
    acts, pull = jax.vjp(lambda sae: dense_of_slots(sae, x, activation), sae)
    return acts, pull(cotangent)[0]


@partial(jax.jit, static_argnames="activation", compiler_options=QUICK)
def encode_vjp(sae: SAE, x: jax.Array, cotangent: jax.Array, activation: TopK | BatchTopK) -> tuple[jax.Array, SAE]:
    acts, pull = jax.vjp(lambda sae: encode(sae, x, activation), sae)
    return acts, pull(cotangent)[0]


@pytest.mark.parametrize("activation", [TopK(3), BatchTopK(2.5, slots=4)], ids=str)
def test_sizes_of_slots_are_activation_times_norm_in_descending_order(activation: TopK | BatchTopK) -> None:
    sae, x = some(0)
    values, latents, sizes = select(x, sae.W_enc, sae.b_enc, decoder_norms(sae), activation)
    acts, norms = np.asarray(encode(sae, x)), np.linalg.norm(sae.W_dec, axis=1)
    n_slots = sizes.shape[1]
    np.testing.assert_allclose(sizes, np.sort(acts * norms, axis=1)[:, ::-1][:, :n_slots], rtol=1e-12)
    taken = np.asarray(values) > 0
    np.testing.assert_allclose(np.where(taken, values * norms[latents], sizes), sizes, rtol=1e-12)
    assert all(len(set(row)) == n_slots for row in np.asarray(latents).tolist())


@pytest.mark.parametrize("slots", [3, 4])
def test_with_too_few_slots_the_batch_keeps_the_largest_that_have_one(slots: int) -> None:
    sae, x = some(1)
    x = x.at[0].mul(100)  # a sample that would take most of the batch's
    activation = BatchTopK(2.5, slots=slots)
    sizes = np.asarray(encode(sae, x) * decoder_norms(sae))
    held = np.where(sizes >= np.sort(sizes, axis=1)[:, -slots][:, None], sizes, 0)
    on = held >= np.sort(held, axis=None)[-activation.n_on(N_ROWS)]
    unlimited = np.asarray(dense_of_slots(sae, x, BatchTopK(2.5, slots=N_LATENTS)))
    ours = np.asarray(dense_of_slots(sae, x, activation))
    np.testing.assert_array_equal(ours > 0, on)
    np.testing.assert_allclose(ours, np.where(on, encode(sae, x), 0), rtol=1e-12)
    assert (ours > 0).sum() == activation.n_on(N_ROWS) == (unlimited > 0).sum()
    assert (unlimited > 0)[0].sum() > slots == (ours > 0)[0].sum()


@pytest.mark.parametrize("form", ["gram", "wide"])
@pytest.mark.parametrize("activation", [RELU, TopK(3), BatchTopK(2.5, slots=20)], ids=str)
def test_reconstruct_is_decode_of_the_activations_of_training_in_both_forms(form: Form, activation: Activation) -> None:
    sae, x = some(2)
    recon = naive_acts(sae, x, activation) @ sae.W_dec + sae.b_dec
    np.testing.assert_allclose(reconstruct(sae, x, activation, form), recon, rtol=1e-12, atol=1e-12)


# --- AuxK -------------------------------------------------------------------------------------------------


def plain_auxk(sae: SAE, x: jax.Array, dead: jax.Array, activation: Activation, k: int) -> jax.Array:
    """The formula, dense and differentiable."""
    residual = jax.lax.stop_gradient(x - naive_acts(sae, x, activation) @ sae.W_dec - sae.b_dec)
    acts = jnp.where(dead, jnp.maximum(x @ sae.W_enc + sae.b_enc, 0), 0)
    sizes = jax.lax.stop_gradient(acts * jnp.sqrt(jnp.sum(sae.W_dec**2, axis=1)))
    least = jnp.sort(sizes, axis=1)[:, -min(k, N_LATENTS)][:, None]
    error = residual - (acts * (sizes >= least)) @ sae.W_dec
    return min(int(dead.sum()) / k, 1.0) * jnp.mean(jnp.sum(error**2, axis=1))


DEAD = jnp.arange(N_LATENTS) % 4 == 1  # 5 of 20


@pytest.mark.parametrize("k", [2, 30])
@pytest.mark.parametrize(
    ("form", "activation"),
    [("gram", BatchTopK(2.5)), ("wide", TopK(3)), ("wide", BatchTopK(2.5, slots=20))],
    ids=str,
)
def test_auxk_is_the_squared_error_that_the_largest_dead_latents_leave(
    form: Form, activation: Activation, k: int
) -> None:
    sae, x = some(3)
    static: dict[str, Any] = dict(activation=activation, form=form, k=k)
    loss, grads = jax.jit(jax.value_and_grad(partial(auxk_mse, **static)), compiler_options=QUICK)(sae, x, DEAD)
    plain, plain_grads = jax.value_and_grad(plain_auxk)(sae, x, DEAD, activation, k)
    assert plain > 0.1
    assert loss == pytest.approx(float(plain), rel=1e-12)
    for ours, theirs in zip(grads[:3], plain_grads[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * float(np.abs(theirs).max()))
    assert not grads.b_dec.any()


@pytest.mark.parametrize("k", [2, 8])
def test_auxk_moves_dead_latents_alone(k: int) -> None:
    sae, x = some(4)
    grads = jax.grad(partial(auxk_mse, activation=TopK(3), form="wide", k=k))(sae, x, DEAD)
    moved = [jnp.abs(grads.W_enc).max(axis=0), jnp.abs(grads.b_enc), jnp.abs(grads.W_dec).max(axis=1)]
    for by_latent in moved:
        assert not by_latent[~DEAD].any()
        assert by_latent[DEAD].any()


def test_auxk_is_0_with_gradients_of_0_where_no_latent_is_dead() -> None:
    sae, x = some(5)
    none = jnp.zeros(N_LATENTS, bool)
    loss, grads = jax.value_and_grad(partial(auxk_mse, activation=TopK(3), form="wide", k=4))(sae, x, none)
    assert loss == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads))


def test_auxk_counts_fewer_dead_latents_than_k_by_their_share() -> None:
    sae, x = some(6)
    exact = jax.jit(partial(auxk_mse, activation=TopK(3), form="wide"), static_argnames="k")
    assert exact(sae, x, DEAD, k=20) == pytest.approx(float(exact(sae, x, DEAD, k=5)) * 5 / 20, rel=1e-12)


@pytest.mark.parametrize("activation", [TopK(3), BatchTopK(2.5)], ids=str)
@pytest.mark.parametrize("form", ["gram", "wide"])
def test_auxk_of_an_sae_in_bfloat16_is_a_float32_loss(form: Form, activation: TopK | BatchTopK) -> None:
    with jax.enable_x64(False):
        check_bfloat16(form, activation)


def check_bfloat16(form: Form, activation: TopK | BatchTopK) -> None:
    sae, x = jax.tree.map(lambda a: a.astype(jnp.float32), some(7))
    rounded = sae._replace(W_enc=sae.W_enc.astype(jnp.bfloat16), W_dec=sae.W_dec.astype(jnp.bfloat16))
    loss = partial(auxk_mse, activation=activation, form=form, k=4)
    ours, grads = jax.value_and_grad(loss)(rounded, x, DEAD)
    in_float32 = jax.tree.map(lambda a: a.astype(jnp.float32), rounded)
    assert ours.dtype == jnp.float32
    assert grads.W_enc.dtype == grads.W_dec.dtype == jnp.bfloat16
    assert ours == pytest.approx(float(loss(in_float32, x, DEAD)), rel=2e-2)  # as of the main loss, of fewer squares
