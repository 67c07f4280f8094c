"""The activations of SAEs on a text as sparse matrices, in one pass over its tokens.

They are sizes a‖d‖, in units of the language model's own activations, so that latents and SAEs can be compared.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.sparse import csc_matrix

from experiments.viewer.runs import Shown
from experiments.viewer.text import Source
from toy.sae import SAE, Activation, decoder_norms, encode

MOST_ON = 2 * 10**8  # activations above 0 of one SAE, which take 12 bytes each
PAIRS = 2**18  # of latents that are on together, whose decoder products are computed at once


class Activity(NamedTuple):
    """The activations of an SAE on the text, and its measures there."""

    acts: csc_matrix  # [n_places n_latents] a‖d‖; places that hold no token are 0
    fvu: float
    prefix_fvu: Float[np.ndarray, " n_latents"]  # of the first 1, 2, … latents alone
    l0: float
    max: Float[np.ndarray, " n_latents"]
    density: Float[np.ndarray, " n_latents"]  # the share of tokens on which a latent is on


def measure(one: Shown, source: Source) -> Activity:
    """Encodes the text. Raises: ValueError if so much is on that it would not fit in memory."""
    sums, parts, n_on = _Sums.zero(one.sae), [], 0
    for places, x in source.chunks():
        acts, new = _encode(one.sae, jnp.asarray(x), activation=one.activation)
        sums = _Sums(*(old + np.asarray(part, float) for old, part in zip(sums, new, strict=True)))
        row, latent = np.nonzero(found := np.asarray(acts))
        parts.append((places[row].astype(np.int32), latent.astype(np.int32), found[row, latent]))
        n_on += len(row)
        if n_on > MOST_ON:
            raise ValueError(f"n_tokens: {one.name} has more than {MOST_ON:,} activations above 0: give fewer tokens")
    place, latent, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    shape = source.text.tokens.size, one.n_latents
    matrix = csc_matrix((value, (place, latent)), shape=shape)
    matrix.sort_indices()
    n_tokens = len(source.rows)
    fvus = _prefix_fvu(matrix, one.directions, sums, n_tokens)
    density = np.diff(matrix.indptr) / n_tokens
    return Activity(matrix, float(fvus[-1]), fvus, float(density.sum()), column_max(matrix), density)


def column_max(matrix: csc_matrix) -> Float[np.ndarray, " n_columns"]:
    return np.asarray(matrix.max(axis=0).todense()).ravel()


class _Sums(NamedTuple):
    """Sums over rows, from which the error of every prefix follows."""

    x: np.ndarray  # [d_in]
    x_squared: np.ndarray
    error_squared: np.ndarray  # of x − b_dec
    along: np.ndarray  # [n_latents], of a (x − b_dec) · d

    @classmethod
    def zero(cls, sae: SAE) -> "_Sums":
        return cls(np.zeros(sae.b_dec.shape), np.zeros(()), np.zeros(()), np.zeros(sae.b_enc.shape))


@partial(jax.jit, static_argnames="activation")
def _encode(sae: SAE, x: Float[Array, "rows d_in"], *, activation: Activation) -> tuple[Array, _Sums]:
    acts, error = encode(sae, x, activation), x - sae.b_dec
    along = jnp.sum(acts * (error @ sae.W_dec.T), axis=0)
    return acts * decoder_norms(sae), _Sums(x.sum(axis=0), jnp.sum(x**2), jnp.sum(error**2), along)  # type: ignore[arg-type]


def _prefix_fvu(
    matrix: csc_matrix, directions: Float[np.ndarray, "n_latents d_in"], sums: _Sums, n_rows: int
) -> Float[np.ndarray, " n_latents"]:
    """`toy.eval.metrics.prefix_fvu`, whose Gram matrix has entries only where two latents are on together."""
    gram = (matrix.T @ matrix).tocoo()
    added = np.zeros(len(directions))
    for first in range(0, gram.nnz, PAIRS):
        i, j, value = (column[first : first + PAIRS] for column in (gram.row, gram.col, gram.data))
        products = value * np.einsum("nd,nd->n", directions[i], directions[j])
        added += np.bincount(np.maximum(i, j), products, minlength=len(directions))
    squared = sums.error_squared - 2 * np.cumsum(sums.along) + np.cumsum(added)
    variance = float(sums.x_squared - (sums.x**2).sum() / n_rows)
    return squared / variance if variance > 0 else np.full(len(directions), np.nan)
