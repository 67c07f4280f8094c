"""Prefixes at language-model width: latents in order of rank, decoded tile by tile, with gradients on the way.

All forms are exact. A vanilla SAE's loss and gradient take 5 products of batch · n_latents · d_in, of which 2 are the
encoder's. A few prefixes take as many, and half a tile more per bound (on a GPU, 3 of them n_prefixes times); every
prefix takes 8, and Gram matrices of the tiles; the hybrid lies between. Products and the residual are summed in float32
(float64 for float64), whatever the type of acts and W_dec.
"""

from functools import partial

import jax
import jax.numpy as jnp

from toy.loss.products import dot, scalar_loss
from toy.loss.relu_all_prefixes import every_mse, hybrid_mse
from toy.loss.relu_few_prefixes import few_mse, few_mse_at_once
from toy.loss.tiles import Acts, Decoder, Loss, Residual
from toy.prefixes import FixedPrefixes, FixedWeights, HybridWeights, Prefixes

EXACT_TILE = 128  # latents per product where every prefix has a weight: the Gram matrices grow with it
COARSE_TILES = 64, 256  # the least and the most latents per product where only a few prefixes have a weight
MOST_FEW = 128  # prefixes whose residuals are held at once


def tiled_mse(acts: Acts, W_dec: Decoder, error: Residual, prefixes: Prefixes, *, tile: int | None = None) -> Loss:
    """Σ_k w_k ‖error − Σ_{i < k} a_i d_i‖², summed over d_in, mean over the batch; latents stand in order.

    `tile` is the number of latents per product; the default is what was fastest for such shapes. No gradient reaches
    the weights.
    """
    n_latents = W_dec.shape[0]
    if isinstance(prefixes, FixedPrefixes):
        n_prefixes = prefixes.lengths.shape[0]
        if n_prefixes == 1:
            return prefixes.weights[0] * full_mse(acts, W_dec, error)
        if n_prefixes <= min(n_latents // 32, MOST_FEW):
            if jax.default_backend() != "cpu" and tile is None:
                return few_mse_at_once(acts, W_dec, error, prefixes)
            least, most = COARSE_TILES
            coarse = min(max(n_latents // (8 * n_prefixes) // least * least, least), most)
            return scalar_loss(partial(few_mse, tile=min(tile or coarse, n_latents)))(acts, W_dec, error, prefixes)
        prefixes = FixedWeights(jnp.zeros(n_latents).at[prefixes.lengths - 1].add(prefixes.weights))
    if isinstance(prefixes, HybridWeights):
        return scalar_loss(partial(hybrid_mse, tile=tile or EXACT_TILE))(acts, W_dec, error, prefixes)
    return scalar_loss(partial(every_mse, tile=min(tile or EXACT_TILE, n_latents)))(acts, W_dec, error, prefixes)


def full_mse(acts: Acts, W_dec: Decoder, error: Residual) -> Loss:
    """‖error − acts W_dec‖², summed over d_in, mean over the batch: the full prefix alone."""
    return jnp.mean(jnp.sum((error - dot("bn,nd->bd", acts, W_dec)) ** 2, axis=1))
