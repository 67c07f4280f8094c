"""Sparsity penalties of ReLU SAEs."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Sparsity = Literal["l1", "log"]
LOG_OFFSET = 0.1


def sparsity_penalty(
    acts: Float[Array, "batch n_latents"], norms: Float[Array, " n_latents"], kind: Sparsity
) -> Float[Array, " n_latents"]:
    """Each latent's penalty, mean over the batch: a‖d‖ for `l1`, log(a‖d‖ + 0.1) − log 0.1 for `log` (the post)."""
    if kind == "l1":
        return acts.mean(axis=0) * norms
    if kind == "log":
        return jnp.mean(jnp.log1p(acts * norms / LOG_OFFSET), axis=0)
    raise ValueError(f"sparsity: expected 'l1' or 'log', got {kind!r}")
