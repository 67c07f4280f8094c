"""The sparse autoencoder: parameters and the pure functions on them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class SAE(NamedTuple):
    """ReLU sparse autoencoder. b_dec is added to the reconstruction and not subtracted from the input."""

    W_enc: Float[Array, "*lanes d_in n_latents"]
    b_enc: Float[Array, "*lanes n_latents"]
    W_dec: Float[Array, "*lanes n_latents d_in"]
    b_dec: Float[Array, "*lanes d_in"]


def init_sae(key: Key[Array, ""], d_in: int, n_latents: int) -> SAE:
    """Encoder N(0, 1/d_in); decoder the encoder's directions at norm 0.1; biases 0 (reference code)."""
    W_enc = jax.random.normal(key, (d_in, n_latents)) / jnp.sqrt(d_in)
    W_dec = 0.1 * (W_enc / jnp.linalg.norm(W_enc, axis=0)).T
    return SAE(W_enc, jnp.zeros(n_latents), W_dec, jnp.zeros(d_in))


def encode(sae: SAE, x: Float[Array, "batch d_in"]) -> Float[Array, "batch n_latents"]:
    """acts = relu(x W_enc + b_enc)."""
    return jax.nn.relu(x @ sae.W_enc + sae.b_enc)


def decode(sae: SAE, acts: Float[Array, "batch n_latents"]) -> Float[Array, "batch d_in"]:
    """recon = acts W_dec + b_dec."""
    return acts @ sae.W_dec + sae.b_dec


def decoder_norms(sae: SAE) -> Float[Array, "*lanes n_latents"]:
    return jnp.linalg.norm(sae.W_dec, axis=-1)


def reorder(sae: SAE, order: Int[Array, " n_latents"]) -> SAE:
    """The same SAE with latent `order[i]` at place i."""
    return SAE(sae.W_enc[:, order], sae.b_enc[order], sae.W_dec[order], sae.b_dec)


def fold_input_scale(sae: SAE, scale: Float[Array, ""]) -> SAE:
    """The SAE that does on x what `sae` does on scale · x, in the units of x: acts and recon are 1/scale as large."""
    return sae._replace(b_enc=sae.b_enc / scale, b_dec=sae.b_dec / scale)


def fold_decoder_norm(sae: SAE) -> SAE:
    """The same function with unit decoder rows: norms move into the encoder, so acts are in units of x."""
    norms = decoder_norms(sae)
    return SAE(sae.W_enc * norms, sae.b_enc * norms, sae.W_dec / jnp.maximum(norms, 1e-12)[:, None], sae.b_dec)
