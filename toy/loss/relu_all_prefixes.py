"""Every prefix at width, exactly, and the hybrid: every prefix of the first latents, then one prefix per tile."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from toy.loss.products import dot
from toy.loss.tiles import Acts, Decoder, Grads, Loss, Residual, Tile, grid, no_grads, read, write
from toy.prefixes import FixedWeights, HybridWeights, suffix_sums

Later = tuple[Residual, Loss, Grads]  # Σ_k w_k r_k and Σ_i a_i ∂a_i over the later tiles, and the gradients


def every_mse(
    acts: Acts, W_dec: Decoder, error: Residual, prefixes: FixedWeights, *, tile: int
) -> tuple[Loss, tuple[Acts, Decoder, Residual]]:
    """Goes forward through the tiles for the residual at each entry, and back with the sum over the later ones."""
    tiles = grid(0, W_dec.shape[0], tile)
    last, entries = _entries(acts, W_dec, error, tiles, tile)
    start = jnp.zeros_like(last), jnp.zeros((), error.dtype), no_grads(acts, W_dec)
    return _finish(error, _back_through_all(acts, W_dec, jnp.asarray(prefixes.weights), start, tiles, entries, tile))


def hybrid_mse(
    acts: Acts, W_dec: Decoder, error: Residual, prefixes: HybridWeights, *, tile: int
) -> tuple[Loss, tuple[Acts, Decoder, Residual]]:
    """Trains every prefix of the head, and those of the tail that end with a tile, where a tile has one residual."""
    n_latents, n_exact, n_tiles = W_dec.shape[0], prefixes.head.shape[0], prefixes.lengths.shape[0]
    tile, tail_tile = min(tile, n_exact), -(-(n_latents - n_exact) // n_tiles)
    head_tiles, tail_tiles = grid(0, n_exact, tile), grid(n_exact, n_latents, tail_tile)
    boundary, head_entries = _entries(acts, W_dec, error, head_tiles, tile)
    last, tail_entries = _entries(acts, W_dec, boundary, tail_tiles, tail_tile)

    def push_back(later: Later, at: tuple[Tile, Residual, Loss]) -> tuple[Later, None]:
        (total, product, grads), (here, entry, weight) = later, at
        a, d, own = read(acts, W_dec, here, tail_tile)
        pull, scale = total.astype(a.dtype), -2 / entry.shape[0]
        da, dd = scale * dot("bd,cd->bc", pull, d), scale * dot("bc,bd->cd", a, pull)
        return (total + weight * entry, product + jnp.sum(a * da), write(grads, here, own, da, dd)), None

    tail = prefixes.tail.astype(error.dtype)
    later = tail[-1] * last, jnp.zeros((), error.dtype), no_grads(acts, W_dec)
    of_entries = jnp.append(0.0, tail[:-1]).astype(error.dtype)  # an entry ends the tile before it; the first, the head
    later, _ = lax.scan(push_back, later, (tail_tiles, tail_entries, of_entries), reverse=True)
    return _finish(
        error, _back_through_all(acts, W_dec, jnp.asarray(prefixes.head), later, head_tiles, head_entries, tile)
    )


def _entries(
    acts: Acts, W_dec: Decoder, residual: Residual, tiles: Tile, size: int
) -> tuple[Residual, Float[Array, "n_tiles batch d_in"]]:
    """The residual after all tiles, and the residual at the entry of each."""

    def decode(residual: Residual, tile: Tile) -> tuple[Residual, Residual]:
        a, d, _ = read(acts, W_dec, tile, size)
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
    """Goes back through tiles in which every prefix has a weight.

    With r the residual at a tile's entry, R the later prefixes' Σ w_k r_k and s_i the weight of the tile's prefixes
    that hold latent i, whose pairs share min(s_i, s_j):

        −½ ∂a_i = s_i d_i·r − Σ_j min(s_i, s_j) a_j d_i·d_j + d_i·R,    and likewise for d_i.
    """

    def push_back(later: Later, at: tuple[Tile, Residual]) -> tuple[Later, None]:
        (total, product, grads), (here, entry) = later, at
        a, d, own = read(acts, W_dec, here, size)
        w = jnp.where(own, lax.dynamic_slice_in_dim(weights, here.start, size), 0).astype(entry.dtype)
        s = suffix_sums(w)
        shared = jnp.minimum(s[:, None], s)
        r, R, sa = entry.astype(a.dtype), total.astype(a.dtype), (s * a).astype(a.dtype)
        acts_gram, W_dec_gram = dot("bi,bj->ij", a, a), dot("id,jd->ij", d, d)
        scale = -2 / entry.shape[0]
        da = s * dot("bd,cd->bc", r, d) + dot("bd,cd->bc", R, d) - dot("bj,ij->bi", a, shared * W_dec_gram)
        dd = dot("bc,bd->cd", sa, r) + dot("bc,bd->cd", a, R) - dot("ij,jd->id", shared * acts_gram, d)
        grads = write(grads, here, own, scale * da, scale * dd)
        return (total + s[0] * entry - dot("bc,cd->bd", sa, d), product + scale * jnp.sum(a * da), grads), None

    later, _ = lax.scan(push_back, later, (tiles, entries), reverse=True)
    return later


def _finish(error: Residual, later: Later) -> tuple[Loss, tuple[Acts, Decoder, Residual]]:
    """The loss and its gradients, once `later` holds the sums over all prefixes.

    The loss is quadratic in (acts, error) together, so twice the loss is their product with its gradient.
    """
    total, product, (d_acts, d_W_dec) = later
    d_error = 2 / error.shape[0] * total
    return (product + jnp.sum(error * d_error)) / 2, (d_acts, d_W_dec, d_error)
