"""AuxK: dead latents learn to reconstruct what the living ones leave (Gao et al., arXiv 2406.04093, section A.2)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from toy.loss.objective import Form, reconstruct
from toy.loss.sparse import sparse_mse
from toy.loss.tiled import full_mse
from toy.loss.topk import select
from toy.sae import SAE, Activation, TopK, decoder_norms, encode, keep_largest


def auxk_mse(
    sae: SAE,
    x: Float[Array, "batch d_in"],
    dead: Bool[Array, " n_latents"],
    *,
    activation: Activation,
    form: Form,
    k: int,
) -> Float[Array, ""]:
    """min(n_dead / k, 1) · ‖(x − recon) − Σ a_i d_i‖² over a sample's k largest dead latents; 0 if none is dead.

    Summed over d_in, mean over the batch; recon is held fixed. The share of k is SAELens'.
    """

    def of_dead(sae: SAE) -> Float[Array, ""]:
        residual = lax.stop_gradient(x - reconstruct(sae, x, activation, form))
        norms = decoder_norms(sae)
        if form == "gram":
            acts = keep_largest(jnp.where(dead, encode(sae, x), 0.0), norms, TopK(k))
            mse = full_mse(acts, sae.W_dec, residual)
        else:
            values, latents, _ = select(x, sae.W_enc, sae.b_enc, jnp.where(dead, norms, 0.0), TopK(k))
            values = jnp.where(dead[latents], values, 0.0)
            mse = sparse_mse(values, sae.W_dec, residual, latents, jnp.ones(dead.shape, residual.dtype))
        return jnp.minimum(jnp.sum(dead) / k, 1.0) * mse

    sums = jnp.promote_types(sae.W_dec.dtype, jnp.float32)
    return lax.cond(dead.any(), of_dead, lambda sae: jnp.zeros((), sums), sae)
