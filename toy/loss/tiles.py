"""Tiles of latents of a static size: how they are cut, read, and written with their gradients."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Acts = Float[Array, "batch n_latents"]
Decoder = Float[Array, "n_latents d_in"]
Residual = Float[Array, "batch d_in"]
Loss = Float[Array, ""]
Grads = tuple[Acts, Decoder]  # in acts and W_dec


class Tile(NamedTuple):
    """Latents first … end − 1, at most as many as the static size; read as `size` rows from `start` on."""

    start: Int[Array, "*tiles"]
    first: Int[Array, "*tiles"]
    end: Int[Array, "*tiles"]


def grid(first: int, n_latents: int, size: int) -> Tile:
    """The latents from `first` on in tiles of one size, of which the last may be shorter."""
    firsts = jnp.arange(first, n_latents, size)
    return Tile(jnp.minimum(firsts, n_latents - size), firsts, jnp.minimum(firsts + size, n_latents))


def read(
    acts: Acts, W_dec: Decoder, tile: Tile, size: int
) -> tuple[Float[Array, "batch size"], Float[Array, "size d_in"], Bool[Array, " size"]]:
    """The tile's activations, 0 for rows that are not its own; its decoder; which rows are its own."""
    rows = tile.start + jnp.arange(size)
    own = (rows >= tile.first) & (rows < tile.end)
    a = lax.dynamic_slice_in_dim(acts, tile.start, size, axis=1)
    return jnp.where(own, a, 0), lax.dynamic_slice_in_dim(W_dec, tile.start, size), own


def write(
    grads: Grads, tile: Tile, own: Bool[Array, " size"], da: Float[Array, "batch size"], dd: Float[Array, "size d_in"]
) -> Grads:
    """Writes a tile's gradients, and leaves rows that are not its own as they are."""
    d_acts, d_W_dec = grads
    size = own.shape[0]
    da = jnp.where(own, da.astype(d_acts.dtype), lax.dynamic_slice_in_dim(d_acts, tile.start, size, axis=1))
    dd = jnp.where(own[:, None], dd.astype(d_W_dec.dtype), lax.dynamic_slice_in_dim(d_W_dec, tile.start, size))
    return (
        lax.dynamic_update_slice_in_dim(d_acts, da, tile.start, axis=1),
        lax.dynamic_update_slice_in_dim(d_W_dec, dd, tile.start, axis=0),
    )


def no_grads(acts: Acts, W_dec: Decoder) -> Grads:
    return jnp.zeros_like(acts), jnp.zeros_like(W_dec)
