"""The Matryoshka objective: reconstruction and sparsity averaged over weighted prefixes. Vanilla is the full one."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from toy.loss.gram import gram_mse
from toy.loss.penalty import Sparsity, sparsity_penalty
from toy.loss.products import in_full
from toy.loss.sparse import sparse_decode, sparse_mse
from toy.loss.tiled import tiled_mse
from toy.loss.topk import select
from toy.prefixes import Prefixes, inclusion
from toy.sae import RELU, SAE, Activation, BatchTopK, TopK, decode, decoder_norms, encode, keep_largest

Form = Literal["gram", "wide"]
MOST_GRAM_LATENTS = 128


class LossParts(NamedTuple):
    """The quantities that a step reports and feeds back; means over the batch."""

    mse: Float[Array, ""]  # weighted over prefixes, summed over d_in
    l0: Float[Array, ""]  # latents on a sample
    contribution: Float[Array, " n_latents"]  # mean squared activation · squared decoder norm
    l0_over_threshold: Float[Array, ""]  # latents whose activation · decoder norm is above the threshold
    frequency: Float[Array, " n_latents"]  # share of samples on which a latent is on


def choose_form(n_latents: int) -> Form:
    """`gram` while n_latents² is small; beyond that `wide`, which is tiles for ReLU and slots for the TopK family."""
    return "gram" if n_latents <= MOST_GRAM_LATENTS else "wide"


def needs_order(form: Form, activation: Activation) -> bool:
    """Returns whether latents must stand in the order of their ranks, as tiles need; other forms take ranks."""
    return form == "wide" and not isinstance(activation, TopK | BatchTopK)


def sae_loss(
    sae: SAE,
    x: Float[Array, "batch d_in"],
    prefixes: Prefixes,
    ranks: Int[Array, " n_latents"],
    sparsity_coef: Float[Array, ""] | float = 0.0,
    *,
    sparsity: Sparsity = "l1",
    activation: Activation = RELU,
    form: Form | None = None,
    tile: int | None = None,
    threshold: Float[Array, ""] | float = 0.0,
) -> tuple[Float[Array, ""], LossParts]:
    """Mean over the weighted prefixes of: squared error + sparsity_coef · penalty of the latents in the prefix.

    The TopK family has no penalty. Products have the types of W_enc and W_dec (float32 or bfloat16), sums are
    float32. Where `needs_order`, `ranks` must be 0 … n_latents − 1. `form` defaults to
    `choose_form`'s, `tile` to `tiled_mse`'s. `threshold` only decides what `l0_over_threshold` counts.
    """
    form = choose_form(sae.W_dec.shape[0]) if form is None else form
    x = x.astype(sae.W_enc.dtype)
    error = in_full(x) - in_full(sae.b_dec)
    norms = decoder_norms(jax.tree.map(in_full, sae))
    s = inclusion(prefixes, ranks).astype(norms.dtype)
    if form == "wide" and isinstance(activation, TopK | BatchTopK):
        values, latents, sizes = select(x, sae.W_enc, sae.b_enc, norms, activation)
        mse = sparse_mse(values, sae.W_dec, error, latents, s)
        squares, on = (jnp.zeros_like(norms).at[latents].add(of) / x.shape[0] for of in (values**2, values > 0))
        return mse, _parts(mse, values, squares, on, norms, sizes > threshold)
    acts = candidates = encode(sae, x)
    if isinstance(activation, TopK | BatchTopK):
        acts = keep_largest(acts, norms, activation)
    mse, parts = acts_mse(
        sae, acts, x, prefixes, ranks, form=form, tile=tile, over_threshold=candidates * norms > threshold
    )
    if isinstance(activation, TopK | BatchTopK):
        return mse, parts
    return mse + sparsity_coef * jnp.sum(s * sparsity_penalty(acts, norms, sparsity)), parts


def acts_mse(
    sae: SAE,
    acts: Float[Array, "batch n_latents"],
    x: Float[Array, "batch d_in"],
    prefixes: Prefixes,
    ranks: Int[Array, " n_latents"],
    *,
    form: Form,
    tile: int | None = None,
    over_threshold: Bool[Array, "batch n_latents"] | None = None,
) -> tuple[Float[Array, ""], LossParts]:
    """The squared error of `sae_loss`, of activations that another encoder has made."""
    error = in_full(x) - in_full(sae.b_dec)
    norms = decoder_norms(jax.tree.map(in_full, sae))
    if form == "wide":
        mse = tiled_mse(acts.astype(sae.W_dec.dtype), sae.W_dec, error, prefixes, tile=tile)
    else:
        mse = gram_mse(in_full(acts), in_full(sae.W_dec), error, inclusion(prefixes, ranks).astype(norms.dtype))
    over = acts > 0 if over_threshold is None else over_threshold
    return mse, _parts(mse, acts, jnp.mean(acts**2, axis=0), jnp.mean(acts > 0, axis=0), norms, over)


def _parts(mse: Array, acts: Array, squares: Array, frequency: Array, norms: Array, over: Array) -> LossParts:
    l0, l0_over = (jnp.mean(jnp.sum(on, axis=1)) for on in (acts > 0, over))
    return LossParts(*lax.stop_gradient((mse, l0, squares * norms**2, l0_over, frequency)))


def reconstruct(
    sae: SAE, x: Float[Array, "batch d_in"], activation: Activation, form: Form
) -> Float[Array, "batch d_in"]:
    """The reconstruction from all latents, as in training: by slots for the TopK family at width."""
    if form == "gram" or not isinstance(activation, TopK | BatchTopK):
        return decode(sae, encode(sae, x, activation))
    values, latents, _ = select(x, sae.W_enc, sae.b_enc, decoder_norms(sae), activation)
    return sparse_decode(values, sae.W_dec, latents) + sae.b_dec
