"""The latents that are on at width, for TopK and BatchTopK, without an array of (batch, n_latents) on the way back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from toy.loss.products import dot
from toy.sae import BatchTopK, TopK, kth_largest


class Selected(NamedTuple):
    """The latents that may be on, one per slot."""

    values: Float[Array, "batch slots"]  # activations; 0 where a slot is not taken
    latents: Int[Array, "batch slots"]
    sizes: Float[Array, "batch slots"]  # activation · decoder norm, descending, also of slots that are not taken


def select(
    x: Float[Array, "batch d_in"],
    W_enc: Float[Array, "d_in n_latents"],
    b_enc: Float[Array, " n_latents"],
    norms: Float[Array, " n_latents"],
    activation: TopK | BatchTopK,
) -> Selected:
    """The activations of `toy.sae.encode` as slots; BatchTopK has `n_slots`. No gradient reaches x or norms."""
    n_rows, n_latents = x.shape[0], W_enc.shape[1]
    pre_acts = lax.stop_gradient(dot("bd,dn->bn", x, W_enc) + b_enc)
    slots = activation.k if isinstance(activation, TopK) else activation.n_slots
    sizes, latents = lax.top_k(jax.nn.relu(pre_acts) * lax.stop_gradient(norms), min(slots, n_latents))
    values = jax.nn.relu(_pre_acts_at(x, W_enc, b_enc, pre_acts, latents))
    if isinstance(activation, BatchTopK):
        values = jnp.where(sizes >= kth_largest(sizes, activation.n_on(n_rows)), values, 0)
    return Selected(values, latents, sizes)


@jax.custom_vjp
def _pre_acts_at(
    x: Float[Array, "batch d_in"],
    W_enc: Float[Array, "d_in n_latents"],
    b_enc: Float[Array, " n_latents"],
    pre_acts: Float[Array, "batch n_latents"],
    latents: Int[Array, "batch slots"],
) -> Float[Array, "batch slots"]:
    """The pre-activations x W_enc + b_enc of the given latents, read from those of all latents.

    The encoder's gradient is a sum of batch · slots outer products. Adding them up slot by slot is many times cheaper
    than the dense product while slots are few beside n_latents.
    """
    return jnp.take_along_axis(pre_acts, latents, axis=1)


def _forward(x: Array, W_enc: Array, b_enc: Array, pre_acts: Array, latents: Array) -> tuple[Array, tuple]:
    return _pre_acts_at(x, W_enc, b_enc, pre_acts, latents), (x, W_enc, b_enc, latents)


def _backward(residuals: tuple, d_values: Float[Array, "batch slots"]) -> tuple:
    x, W_enc, b_enc, latents = residuals

    def add(grads: tuple[Array, Array], slot: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (d_rows, d_bias), (rows, d) = grads, slot
        return (d_rows.at[rows].add(d[:, None] * x), d_bias.at[rows].add(d)), None

    start = jnp.zeros(W_enc.shape[::-1], d_values.dtype), jnp.zeros(b_enc.shape, d_values.dtype)
    (d_rows, d_bias), _ = lax.scan(add, start, (latents.T, d_values.T))
    return None, d_rows.T.astype(W_enc.dtype), d_bias.astype(b_enc.dtype), None, None


_pre_acts_at.defvjp(_forward, _backward)
