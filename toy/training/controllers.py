"""The controller of L0, which moves the sparsity coefficient."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MAX_L0_ERROR = 0.1  # as a share of the target: a controller that ends further off is reported


def off_target(l0: float, target_l0: float) -> bool:
    """Returns whether an L0 misses the target by more than `MAX_L0_ERROR` of it."""
    return abs(l0 - target_l0) > MAX_L0_ERROR * target_l0


def ramped(coef: Float[Array, ""], step: Int[Array, ""], n_warmup_steps: int) -> Float[Array, ""]:
    """The coefficient in force, which rises linearly from 0 to `coef` over the warm-up."""
    return coef * jnp.minimum((step + 1) / max(n_warmup_steps, 1), 1.0)


def control(
    coef: Float[Array, ""],
    l0: Float[Array, ""],
    target_l0: Float[Array, ""] | float,
    rate: Float[Array, ""] | float,
    step: Int[Array, ""],
    n_warmup_steps: int,
) -> Float[Array, ""]:
    """The next coefficient: after the warm-up, coef · (1 − rate) where l0 < target_l0, and coef · (1 + rate) otherwise.

    Source: Taggart's controller, as the post uses it. A rate of 0 keeps the coefficient fixed.
    """
    factor = jnp.where(l0 < target_l0, 1 - rate, 1 + rate)
    return jnp.where(step >= n_warmup_steps, coef * factor, coef)
