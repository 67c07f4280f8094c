"""Measures of SAEs on more activations than fit in memory: reconstruction, density, correlated latents of two SAEs.

Activations come in chunks of rows. Sums over chunks are kept in float64 on the host.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.sparse import csr_array

from toy.compiled import compiled
from toy.sae import RELU, SAE, Activation, decode, encode

ROUNDING = 1e-5  # of a chunk's sums in float32, relative
BLOCK_BYTES = 2**28  # of the matrix of products that `max_correlation` holds
Chunks = Iterable[Float[np.ndarray, "_ d_in"]]  # of any number of rows each


encoded = compiled(static_argnums=2)(encode)


class Fit(NamedTuple):
    """Measures of how well an SAE reconstructs activations, and how often its latents are on."""

    fvu: float  # Σ‖x − recon‖² / Σ‖x − mean(x)‖², sums over rows and d_in
    l0: float  # mean number of latents on a row
    density: Float[np.ndarray, " n_latents"]  # share of rows on which a latent is on

    def dead(self) -> int:
        """The number of latents that are on in no row."""
        return int((self.density == 0).sum())


def measure_fit(sae: SAE, chunks: Chunks, activation: Activation = RELU) -> Fit:
    """FVU, L0 and density over all rows. Raises: ValueError if there are no rows."""
    n_rows, squared, on = 0, 0.0, np.zeros(sae.b_enc.shape[0])
    first = second = None
    for x in chunks:
        errors, counts = _errors(sae, jnp.asarray(x), activation=activation)
        n_rows, squared, on = n_rows + len(x), squared + float(errors), on + np.asarray(counts, float)
        wide = np.asarray(x, float)
        first = wide.sum(axis=0) if first is None else first + wide.sum(axis=0)
        second = (wide**2).sum() if second is None else second + (wide**2).sum()
    if first is None or second is None:
        raise ValueError("chunks: there are no rows to measure on")
    variance = float(second - (first**2).sum() / n_rows)
    density = on / n_rows
    return Fit(squared / variance if variance > 0 else float("nan"), float(density.sum()), density)


@compiled(static_argnames="activation")
def _errors(
    sae: SAE, x: Float[Array, "rows d_in"], *, activation: Activation
) -> tuple[Float[Array, ""], Int[Array, " n_latents"]]:
    acts = encode(sae, x, activation)
    return jnp.sum((x - decode(sae, acts)) ** 2), jnp.sum(acts > 0, axis=0)


class MaxCorrelation(NamedTuple):
    """The most correlated latent of another SAE for every reference latent; NaN and −1 for one that does not vary."""

    correlation: Float[np.ndarray, " n_reference"]
    latent: Int[np.ndarray, " n_reference"]


def max_correlation(
    reference: SAE, other: SAE, chunks: Chunks, activation: Activation = RELU, *, block: int | None = None
) -> MaxCorrelation:
    """Pearson correlation of activations over all rows, exactly, of each reference latent with every latent of `other`.

    Reference latents are taken in blocks, with one pass over `chunks` each, which must be re-iterable. Memory: twice
    block × n_latents × 8 bytes at its peak, by default 2 · 256 MB, beside a chunk's activations. Few latents are on in
    a row, and only their products are added up. Source: the post's "mean max correlation", the mean of `correlation`.
    """
    n = len(reference.b_enc)
    block = max(1, BLOCK_BYTES // (8 * len(other.b_enc))) if block is None else block
    parts = [
        _of_block(reference, other, chunks, activation, slice(first, first + block)) for first in range(0, n, block)
    ]
    return MaxCorrelation(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def concatenate(saes: Sequence[SAE]) -> SAE:
    """One SAE with the latents of several, for comparing them all in one pass; its reconstruction means nothing.

    The latents must be on one by one, as those of ReLU SAEs and those with thresholds are: TopK would choose among all.
    """
    parts = [sae.W_enc for sae in saes], [sae.b_enc for sae in saes], [sae.W_dec for sae in saes]
    thresholds = [sae.threshold for sae in saes if sae.threshold is not None]
    if len(thresholds) not in (0, len(saes)):
        raise ValueError("saes: some have a threshold and some have not")
    return SAE(
        jnp.concatenate(parts[0], axis=1),
        jnp.concatenate(parts[1]),
        jnp.concatenate(parts[2]),
        saes[0].b_dec,
        jnp.concatenate(thresholds) if thresholds else None,
    )


class _Sums(NamedTuple):
    """Sums over rows of the activations of some latents, and of their squares."""

    total: Float[np.ndarray, " n_latents"]
    squares: Float[np.ndarray, " n_latents"]

    def with_rows(self, acts: csr_array) -> "_Sums":
        return _Sums(self.total + acts.sum(axis=0), self.squares + acts.power(2).sum(axis=0))


def _of_block(reference: SAE, other: SAE, chunks: Chunks, activation: Activation, block: slice) -> MaxCorrelation:
    """The part of `max_correlation` of a block of reference latents."""
    n_rows, n_a, n_b = 0, len(reference.b_enc[block]), len(other.b_enc)
    a, b = (_Sums(np.zeros(n), np.zeros(n)) for n in (n_a, n_b))
    products = np.zeros((n_a, n_b))
    for x in chunks:
        n_rows += len(x)
        rows = jnp.asarray(x)
        of_a = _sparse(encoded(reference, rows, activation)[:, block])  # the whole one, as TopK chooses among all
        of_b = _sparse(encoded(other, rows, activation))
        a, b = a.with_rows(of_a), b.with_rows(of_b)
        added = (of_a.T @ of_b).tocoo()
        products[added.row, added.col] += added.data
    if not n_rows:
        raise ValueError("chunks: there are no rows to measure on")
    products -= a.total[:, None] / n_rows * b.total  # in place: this matrix is most of the memory
    products /= _spread(a, n_rows)[:, None]
    products /= _spread(b, n_rows)
    products[np.isnan(products)] = -np.inf
    latent = products.argmax(axis=1)
    best = products[np.arange(len(products)), latent]
    off = np.isinf(best)
    return MaxCorrelation(np.where(off, np.nan, best), np.where(off, -1, latent))


def _sparse(acts: Float[Array, "rows n_latents"]) -> csr_array:
    """Rows as SciPy stores them; its own conversion takes several times as long."""
    dense = np.asarray(acts)
    at = np.flatnonzero(dense != 0)
    row, column = np.divmod(at, dense.shape[1])
    ends = np.searchsorted(row, np.arange(len(dense) + 1))
    return csr_array((dense.ravel()[at].astype(float), column, ends), shape=dense.shape)


def _spread(sums: _Sums, n_rows: int) -> Float[np.ndarray, " n_latents"]:
    """Standard deviation · √n_rows; NaN where a latent varies by no more than the rounding of its activations."""
    variance = sums.squares - sums.total**2 / n_rows
    return np.sqrt(np.where(variance > ROUNDING * sums.squares, variance, np.nan))


def equivalent_width(fvu: float, widths: Sequence[int], fvus: Sequence[float]) -> float:
    """The number of latents at which vanilla SAEs reach `fvu`: linear in log width between the two widths around it.

    Infinity where it is below that of all given SAEs, 0 where it is above; NaN where one of them is no better than a
    narrower one, as then more than one width is equivalent. Source: the post's "comparable to a vanilla SAE 0.4x their
    size"; all SAEs are to have the same L0.
    """
    order = np.argsort(widths)
    logs, errors = np.log(np.asarray(widths, float)[order]), np.asarray(fvus, float)[order]
    if np.any(np.diff(errors) >= 0) or np.isnan([fvu, *errors]).any():
        return float("nan")
    if not errors[-1] <= fvu <= errors[0]:
        return float("inf") if fvu < errors[-1] else 0.0
    return float(np.exp(np.interp(-fvu, -errors, logs)))
