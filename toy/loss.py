"""The Matryoshka objective at toy width: reconstruction and sparsity averaged over weighted prefixes.

Vanilla is the same code with all weight on the full prefix.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from toy.sae import SAE, decoder_norms, encode

Sparsity = Literal["l1", "log"]
LOG_OFFSET = 0.1


class LossParts(NamedTuple):
    """What a step reports and feeds back; means over the batch."""

    mse: Float[Array, ""]  # weighted over prefixes, summed over d_in
    l0: Float[Array, ""]  # latents on a sample
    contribution: Float[Array, " n_latents"]  # mean squared activation · squared decoder norm


def prefix_mse(
    x: Float[Array, "batch d_in"],
    acts: Float[Array, "batch n_latents"],
    W_dec: Float[Array, "n_latents d_in"],
    b_dec: Float[Array, " d_in"],
    inclusion: Float[Array, " n_latents"],
) -> Float[Array, ""]:
    """Σ_k w_k ‖x − b_dec − Σ_{rank(i) < k} a_i d_i‖², summed over d_in, mean over the batch; Σ_k w_k = 1.

    With s the `inclusion` weights (s_i = Σ_{k > rank(i)} w_k) a pair of latents shares the prefixes of the later
    one, which is min(s_i, s_j), and the sum over prefixes is exactly

        ‖e‖² − 2 Σ_i s_i a_i d_i·e + Σ_ij min(s_i, s_j) a_i a_j d_i·d_j,    e = x − b_dec.

    Two Gram matrices and no (batch, n_latents, d_in) array: right while n_latents is small.
    """
    n_rows = x.shape[0]
    error = x - b_dec
    acts_error = acts.T @ error / n_rows
    acts_gram = acts.T @ acts / n_rows
    shared = jnp.minimum(inclusion[:, None], inclusion)
    return (
        jnp.mean(jnp.sum(error**2, axis=1))
        - 2 * jnp.sum(inclusion[:, None] * acts_error * W_dec)
        + jnp.sum(shared * acts_gram * (W_dec @ W_dec.T))
    )


def sparsity_penalty(
    acts: Float[Array, "batch n_latents"], norms: Float[Array, " n_latents"], kind: Sparsity
) -> Float[Array, " n_latents"]:
    """Each latent's penalty, mean over the batch: a‖d‖ for `l1`, log(a‖d‖ + 0.1) − log 0.1 for `log` (the post)."""
    if kind == "l1":
        return acts.mean(axis=0) * norms
    if kind == "log":
        return jnp.mean(jnp.log1p(acts * norms / LOG_OFFSET), axis=0)
    raise ValueError(f"sparsity: expected 'l1' or 'log', got {kind!r}")


def sae_loss(
    sae: SAE,
    x: Float[Array, "batch d_in"],
    inclusion: Float[Array, " n_latents"],
    sparsity_coef: Float[Array, ""] | float,
    sparsity: Sparsity = "l1",
) -> tuple[Float[Array, ""], LossParts]:
    """Mean over the weighted prefixes of: squared error + sparsity_coef · penalty of the latents in the prefix."""
    acts = encode(sae, x)
    norms = decoder_norms(sae)
    mse = prefix_mse(x, acts, sae.W_dec, sae.b_dec, inclusion)
    penalty = jnp.sum(inclusion * sparsity_penalty(acts, norms, sparsity))
    l0 = jnp.mean(jnp.sum(acts > 0, axis=1))
    return mse + sparsity_coef * penalty, LossParts(mse, l0, jnp.mean(acts**2, axis=0) * norms**2)
