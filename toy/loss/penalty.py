"""Sparsity penalties of ReLU SAEs."""

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from toy.checks import quoted

Sparsity = Literal["l1", "log"]  # which command lines offer; `sparsity_penalty` also takes other offsets
LOG_OFFSET = 0.1


def log_offset(kind: str) -> float | None:
    """The offset of a logarithm, in units of activation · decoder norm: 0.1 for `log`, O for `log_O`; None for `l1`.

    Raises: ValueError if there is no such penalty.
    """
    name, _, number = str(kind).partition("_")
    try:
        if kind in ("l1", "log"):
            return None if kind == "l1" else LOG_OFFSET
        if name == "log" and 0 < float(number) < math.inf:
            return float(number)
    except ValueError:
        pass  # no number
    raise ValueError(f"sparsity: expected l1, log or log_O with an offset O > 0, got {quoted(repr(kind))}")


def sparsity_penalty(
    acts: Float[Array, "batch n_latents"], norms: Float[Array, " n_latents"], kind: str
) -> Float[Array, " n_latents"]:
    """Each latent's penalty, mean over the batch: a‖d‖ for `l1`, log(a‖d‖ + 0.1) − log 0.1 for `log` (the post).

    `log_O` has an offset O in place of 0.1: it is L1 over O where O is large, and counts latents where it is small.
    """
    offset = log_offset(kind)
    if offset is None:
        return acts.mean(axis=0) * norms
    return jnp.mean(jnp.log1p(acts * norms / offset), axis=0)
