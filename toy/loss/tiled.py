"""Prefixes at language-model width: latents in order, decoded tile by tile, gradients made on the way.

All forms are exact. A vanilla SAE's loss and gradient are 5 products of batch · n_latents · d_in, 2 of them the
encoder's; a few prefixes take as many and half a tile more for each bound; every prefix 8, and Gram matrices of the
tiles; the hybrid is between the two. Products are summed in float32 (float64 for float64) whatever the type of acts
and W_dec, and so is the residual.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from toy.loss.products import dot, scalar_loss
from toy.prefixes import FixedPrefixes, FixedWeights, HybridWeights, Prefixes, suffix_sums

EXACT_TILE = 128  # latents multiplied at a time, where every prefix counts: its Gram matrices grow with it
COARSE_TILES = 64, 256  # least and most where only a few do
MOST_FEW = 128  # prefixes whose residuals are held at once

Acts = Float[Array, "batch n_latents"]
Decoder = Float[Array, "n_latents d_in"]
Residual = Float[Array, "batch d_in"]
Loss = Float[Array, ""]
Grads = tuple[Acts, Decoder]  # in acts and W_dec


def tiled_mse(acts: Acts, W_dec: Decoder, error: Residual, prefixes: Prefixes, *, tile: int | None = None) -> Loss:
    """Σ_k w_k ‖error − Σ_{i < k} a_i d_i‖², summed over d_in, mean over the batch; latents stand in order.

    `tile`: how many latents are multiplied at a time; by default what was fastest for such shapes. No gradient
    reaches the weights.
    """
    n_latents = W_dec.shape[0]
    if isinstance(prefixes, FixedPrefixes):
        n_prefixes = prefixes.lengths.shape[0]
        if n_prefixes == 1:
            return prefixes.weights[0] * full_mse(acts, W_dec, error)
        if n_prefixes <= min(n_latents // 32, MOST_FEW):
            least, most = COARSE_TILES
            coarse = min(max(n_latents // (8 * n_prefixes) // least * least, least), most)
            return scalar_loss(partial(_few, tile=min(tile or coarse, n_latents)))(acts, W_dec, error, prefixes)
        prefixes = FixedWeights(jnp.zeros(n_latents).at[prefixes.lengths - 1].add(prefixes.weights))
    if isinstance(prefixes, HybridWeights):
        return scalar_loss(partial(_hybrid, tile=tile or EXACT_TILE))(acts, W_dec, error, prefixes)
    return scalar_loss(partial(_every, tile=min(tile or EXACT_TILE, n_latents)))(acts, W_dec, error, prefixes)


def full_mse(acts: Acts, W_dec: Decoder, error: Residual) -> Loss:
    """‖error − acts W_dec‖², summed over d_in, mean over the batch: the full prefix alone."""
    return jnp.mean(jnp.sum((error - dot("bn,nd->bd", acts, W_dec)) ** 2, axis=1))


# --- tiles ------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Latents first … end − 1, at most as many as the static size; read as `size` rows from `start` on."""

    start: Int[Array, "*tiles"]
    first: Int[Array, "*tiles"]
    end: Int[Array, "*tiles"]


def _grid(first: int, n_latents: int, size: int) -> Tile:
    """The latents from `first` on, in tiles of one size, the last one short."""
    firsts = jnp.arange(first, n_latents, size)
    return Tile(jnp.minimum(firsts, n_latents - size), firsts, jnp.minimum(firsts + size, n_latents))


def _read(
    acts: Acts, W_dec: Decoder, tile: Tile, size: int
) -> tuple[Float[Array, "batch size"], Float[Array, "size d_in"], Bool[Array, " size"]]:
    """The tile's activations, 0 for rows that are not its own; its decoder; which rows are its own."""
    rows = tile.start + jnp.arange(size)
    own = (rows >= tile.first) & (rows < tile.end)
    a = lax.dynamic_slice_in_dim(acts, tile.start, size, axis=1)
    return jnp.where(own, a, 0), lax.dynamic_slice_in_dim(W_dec, tile.start, size), own


def _write(
    grads: Grads, tile: Tile, own: Bool[Array, " size"], da: Float[Array, "batch size"], dd: Float[Array, "size d_in"]
) -> Grads:
    """Put a tile's gradients in place, leaving rows that are not its own."""
    d_acts, d_W_dec = grads
    size = own.shape[0]
    da = jnp.where(own, da.astype(d_acts.dtype), lax.dynamic_slice_in_dim(d_acts, tile.start, size, axis=1))
    dd = jnp.where(own[:, None], dd.astype(d_W_dec.dtype), lax.dynamic_slice_in_dim(d_W_dec, tile.start, size))
    return (
        lax.dynamic_update_slice_in_dim(d_acts, da, tile.start, axis=1),
        lax.dynamic_update_slice_in_dim(d_W_dec, dd, tile.start, axis=0),
    )


def _no_grads(acts: Acts, W_dec: Decoder) -> Grads:
    return jnp.zeros_like(acts), jnp.zeros_like(W_dec)


# --- a few prefixes ---------------------------------------------------------------------------------------


def _few(
    acts: Acts, W_dec: Decoder, error: Residual, prefixes: FixedPrefixes, *, tile: int
) -> tuple[Loss, tuple[Acts, Decoder, Residual]]:
    """The latents between two bounds share a residual, so only as many are held as there are prefixes."""
    lengths, weights = jnp.asarray(prefixes.lengths), jnp.asarray(prefixes.weights, error.dtype)
    n_prefixes, n_rows = lengths.shape[0], error.shape[0]
    tiles, segment, n_tiles = _cut(lengths, W_dec.shape[0], tile)

    def decode(
        i: Int[Array, ""], parts: Float[Array, "n_prefixes batch d_in"]
    ) -> Float[Array, "n_prefixes batch d_in"]:
        a, d, _ = _read(acts, W_dec, Tile(*(bound[i] for bound in tiles)), tile)
        return parts.at[segment[i]].add(dot("bc,cd->bd", a, d))

    # A loop of as many turns as this batch's bounds take: no turn is spent on the most that they could take.
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
        a, d, own = _read(acts, W_dec, at, tile)
        pull = later[segment[i]].astype(acts.dtype)
        return _write(grads, at, own, dot("bd,cd->bc", pull, d), dot("bc,bd->cd", a, pull))

    d_acts, d_W_dec = lax.fori_loop(0, n_tiles, push_back, _no_grads(acts, W_dec))
    return loss / n_rows, (d_acts, d_W_dec, 2 / n_rows * total)


def _cut(
    lengths: Int[Array, " n_prefixes"], n_latents: int, size: int
) -> tuple[Tile, Int[Array, " most_tiles"], Int[Array, ""]]:
    """Tiles that end at every bound, the segment between bounds that each is of, and how many there are."""
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


# --- every prefix -----------------------------------------------------------------------------------------

Later = tuple[Residual, Loss, Grads]  # of the later tiles: Σ_k w_k r_k, Σ_i a_i ∂a_i and the gradients


def _every(
    acts: Acts, W_dec: Decoder, error: Residual, prefixes: FixedWeights, *, tile: int
) -> tuple[Loss, tuple[Acts, Decoder, Residual]]:
    """Forward through the tiles for the residual at each one's entry, and back with the sum of the later ones."""
    tiles = _grid(0, W_dec.shape[0], tile)
    last, entries = _entries(acts, W_dec, error, tiles, tile)
    start = jnp.zeros_like(last), jnp.zeros((), error.dtype), _no_grads(acts, W_dec)
    return _finish(error, _back_through_all(acts, W_dec, jnp.asarray(prefixes.weights), start, tiles, entries, tile))


def _hybrid(
    acts: Acts, W_dec: Decoder, error: Residual, prefixes: HybridWeights, *, tile: int
) -> tuple[Loss, tuple[Acts, Decoder, Residual]]:
    """Every prefix of the head, and of the tail those that end with a tile: there a tile has one residual."""
    n_latents, n_exact, n_tiles = W_dec.shape[0], prefixes.head.shape[0], prefixes.lengths.shape[0]
    tile, tail_tile = min(tile, n_exact), -(-(n_latents - n_exact) // n_tiles)
    head_tiles, tail_tiles = _grid(0, n_exact, tile), _grid(n_exact, n_latents, tail_tile)
    boundary, head_entries = _entries(acts, W_dec, error, head_tiles, tile)
    last, tail_entries = _entries(acts, W_dec, boundary, tail_tiles, tail_tile)

    def push_back(later: Later, at: tuple[Tile, Residual, Loss]) -> tuple[Later, None]:
        (total, product, grads), (here, entry, weight) = later, at
        a, d, own = _read(acts, W_dec, here, tail_tile)
        pull, scale = total.astype(a.dtype), -2 / entry.shape[0]
        da, dd = scale * dot("bd,cd->bc", pull, d), scale * dot("bc,bd->cd", a, pull)
        return (total + weight * entry, product + jnp.sum(a * da), _write(grads, here, own, da, dd)), None

    tail = prefixes.tail.astype(error.dtype)
    later = tail[-1] * last, jnp.zeros((), error.dtype), _no_grads(acts, W_dec)
    of_entries = jnp.append(0.0, tail[:-1]).astype(error.dtype)  # an entry ends the tile before it; the first, the head
    later, _ = lax.scan(push_back, later, (tail_tiles, tail_entries, of_entries), reverse=True)
    return _finish(
        error, _back_through_all(acts, W_dec, jnp.asarray(prefixes.head), later, head_tiles, head_entries, tile)
    )


def _entries(
    acts: Acts, W_dec: Decoder, residual: Residual, tiles: Tile, size: int
) -> tuple[Residual, Float[Array, "n_tiles batch d_in"]]:
    """The residual after all tiles, and at each one's entry."""

    def decode(residual: Residual, tile: Tile) -> tuple[Residual, Residual]:
        a, d, _ = _read(acts, W_dec, tile, size)
        return residual - dot("bc,cd->bd", a, d), residual

    return lax.scan(decode, residual, tiles)


def _back_through_all(
    acts: Acts,
    W_dec: Decoder,
    weights: Float[Array, " n_weights"],
    later: Later,
    tiles: Tile,
    entries: Float[Array, "n_tiles batch d_in"],
    size: int,
) -> Later:
    """Back through tiles in which every prefix has a weight.

    With r the residual at a tile's entry, R the later prefixes' Σ w_k r_k and s_i the weight of the tile's prefixes
    that hold latent i, whose pairs share min(s_i, s_j):

        −½ ∂a_i = s_i d_i·r − Σ_j min(s_i, s_j) a_j d_i·d_j + d_i·R,    and likewise for d_i.
    """

    def push_back(later: Later, at: tuple[Tile, Residual]) -> tuple[Later, None]:
        (total, product, grads), (here, entry) = later, at
        a, d, own = _read(acts, W_dec, here, size)
        w = jnp.where(own, lax.dynamic_slice_in_dim(weights, here.start, size), 0).astype(entry.dtype)
        s = suffix_sums(w)
        shared = jnp.minimum(s[:, None], s)
        r, R, sa = entry.astype(a.dtype), total.astype(a.dtype), (s * a).astype(a.dtype)
        acts_gram, W_dec_gram = dot("bi,bj->ij", a, a), dot("id,jd->ij", d, d)
        scale = -2 / entry.shape[0]
        da = s * dot("bd,cd->bc", r, d) + dot("bd,cd->bc", R, d) - dot("bj,ij->bi", a, shared * W_dec_gram)
        dd = dot("bc,bd->cd", sa, r) + dot("bc,bd->cd", a, R) - dot("ij,jd->id", shared * acts_gram, d)
        grads = _write(grads, here, own, scale * da, scale * dd)
        return (total + s[0] * entry - dot("bc,cd->bd", sa, d), product + scale * jnp.sum(a * da), grads), None

    later, _ = lax.scan(push_back, later, (tiles, entries), reverse=True)
    return later


def _finish(error: Residual, later: Later) -> tuple[Loss, tuple[Acts, Decoder, Residual]]:
    """After the last tile on the way back, `later` is of all prefixes.

    The loss is quadratic in (acts, error) together, so twice the loss is their product with its gradient.
    """
    total, product, (d_acts, d_W_dec) = later
    d_error = 2 / error.shape[0] * total
    return (product + jnp.sum(error * d_error)) / 2, (d_acts, d_W_dec, d_error)
