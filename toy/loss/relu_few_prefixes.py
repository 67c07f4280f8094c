"""A few prefixes at width: segments between bounds that may change every batch, cut into tiles or all at once."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from toy.loss.products import dot
from toy.loss.tiles import Acts, Decoder, Grads, Loss, Residual, Tile, no_grads, read, write
from toy.prefixes import FixedPrefixes


def few_mse(
    acts: Acts, W_dec: Decoder, error: Residual, prefixes: FixedPrefixes, *, tile: int
) -> tuple[Loss, tuple[Acts, Decoder, Residual]]:
    """Latents between two bounds share a residual, so that only one residual per prefix is held."""
    lengths, weights = jnp.asarray(prefixes.lengths), jnp.asarray(prefixes.weights, error.dtype)
    n_prefixes, n_rows = lengths.shape[0], error.shape[0]
    tiles, segment, n_tiles = _cut(lengths, W_dec.shape[0], tile)

    def decode(
        i: Int[Array, ""], parts: Float[Array, "n_prefixes batch d_in"]
    ) -> Float[Array, "n_prefixes batch d_in"]:
        a, d, _ = read(acts, W_dec, Tile(*(bound[i] for bound in tiles)), tile)
        return parts.at[segment[i]].add(dot("bc,cd->bd", a, d))

    # The loop takes as many turns as the bounds of this batch need, not as many as any bounds could need.
    parts = lax.fori_loop(0, n_tiles, decode, jnp.zeros((n_prefixes, *error.shape), error.dtype))
    _, residuals = lax.scan(lambda residual, part: (residual - part,) * 2, error, parts)

    def accumulate(later: tuple[Residual, Loss], here: tuple[Residual, Loss]) -> tuple[tuple, Residual]:
        (total, loss), (residual, weight) = later, here
        total += weight * residual
        return (total, loss + weight * jnp.sum(residual**2)), -2 / n_rows * total

    start = jnp.zeros_like(error), jnp.zeros((), error.dtype)
    (total, loss), later = lax.scan(accumulate, start, (residuals, weights), reverse=True)

    def push_back(i: Int[Array, ""], grads: Grads) -> Grads:
        at = Tile(*(bound[i] for bound in tiles))
        a, d, own = read(acts, W_dec, at, tile)
        pull = later[segment[i]].astype(acts.dtype)
        return write(grads, at, own, dot("bd,cd->bc", pull, d), dot("bc,bd->cd", a, pull))

    d_acts, d_W_dec = lax.fori_loop(0, n_tiles, push_back, no_grads(acts, W_dec))
    return loss / n_rows, (d_acts, d_W_dec, 2 / n_rows * total)


def few_mse_at_once(acts: Acts, W_dec: Decoder, error: Residual, prefixes: FixedPrefixes) -> Loss:
    """The same loss from one product whose decoder has a block of columns per segment, where products are cheap.

    It takes n_prefixes times the arithmetic. Tiles are too small to keep a GPU busy.
    """
    lengths, weights = jnp.asarray(prefixes.lengths), jnp.asarray(prefixes.weights, error.dtype)
    segment = jnp.searchsorted(lengths, jnp.arange(W_dec.shape[0]), side="right")
    blocks = jax.nn.one_hot(segment, len(lengths), dtype=W_dec.dtype)[:, :, None] * W_dec[:, None]
    residuals = error - jnp.cumsum(dot("bn,nkd->kbd", acts, blocks), axis=0)
    return jnp.sum(weights * jnp.sum(residuals**2, axis=(1, 2))) / error.shape[0]


def _cut(
    lengths: Int[Array, " n_prefixes"], n_latents: int, size: int
) -> tuple[Tile, Int[Array, " most_tiles"], Int[Array, ""]]:
    """Tiles that end at every bound, the segment between bounds to which each belongs, and the number of tiles."""
    before = jnp.append(0, lengths[:-1])
    n_tiles = -((before - lengths) // size)
    ends = jnp.cumsum(n_tiles)
    tile = jnp.arange(-(-n_latents // size) + lengths.shape[0])
    segment = jnp.minimum(jnp.searchsorted(ends, tile, side="right"), lengths.shape[0] - 1)
    first = before[segment] + size * (tile - (ends - n_tiles)[segment])
    return (
        Tile(jnp.clip(first, 0, n_latents - size), first, jnp.minimum(first + size, lengths[segment])),
        segment,
        ends[-1],
    )
