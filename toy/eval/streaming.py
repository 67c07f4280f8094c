"""Measures of SAEs on more activations than fit in memory: reconstruction, density, correlated latents of two SAEs.

Activations come in chunks of rows. Sums over chunks are kept in float64 on the host, those of `max_correlation` on the
device, each with the rounding error that it has made so far (Kahan).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from toy.compiled import compiled
from toy.sae import RELU, SAE, Activation, decode, encode

ROUNDING = 1e-5  # of a chunk's sums in float32, relative
Chunks = Iterable[Float[np.ndarray, "_ d_in"]]  # of any number of rows each


class Fit(NamedTuple):
    """How well an SAE reconstructs activations, and how often its latents are on."""

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
    """The most correlated latent of another SAE for every reference latent; NaN and −1 where that does not vary."""

    correlation: Float[np.ndarray, " n_reference"]
    latent: Int[np.ndarray, " n_reference"]


def max_correlation(
    reference: SAE,
    other: SAE,
    chunks: Chunks,
    activation: Activation = RELU,
    *,
    block: int = 1_024,
) -> MaxCorrelation:
    """Pearson correlation of activations over all rows, exactly, of each reference latent with every latent of `other`.

    Reference latents are taken in blocks, with one pass over `chunks` (iterable again and again) each: memory is
    block × n_latents × 8 bytes beside a chunk's activations, 200 MB for 1,024 × 25,000. Source: the post's "mean max
    correlation", the mean of `correlation`.
    """
    n = reference.b_enc.shape[0]
    parts = [
        _of_block(reference, other, chunks, activation, first, min(block, n - first)) for first in range(0, n, block)
    ]
    return MaxCorrelation(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def latents_of(sae: SAE, part: slice | Int[np.ndarray, " n"]) -> SAE:
    """The SAE with some of its latents."""
    threshold = None if sae.threshold is None else sae.threshold[part]
    return SAE(sae.W_enc[:, part], sae.b_enc[part], sae.W_dec[part], sae.b_dec, threshold)


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
    """Sums over rows of the activations of two SAEs, their squares and their products."""

    a: Any
    aa: Any
    b: Any
    bb: Any
    ab: Any


def _of_block(
    reference: SAE, other: SAE, chunks: Chunks, activation: Activation, first: int, n_latents: int
) -> MaxCorrelation:
    """The part of `max_correlation` of so many reference latents from the first one on."""
    n_rows, sums = 0, _no_sums(n_latents, len(other.b_enc))
    errors = sums
    for x in chunks:
        n_rows += len(x)
        sums, errors = _add_products(sums, errors, reference, other, jnp.asarray(x), first, activation=activation)
    if not n_rows:
        raise ValueError("chunks: there are no rows to measure on")
    sums = _Sums(
        *(np.asarray(total, float) - np.asarray(error, float) for total, error in zip(sums, errors, strict=True))
    )
    covariance = sums.ab
    covariance -= sums.a[:, None] / n_rows * sums.b  # in place: the block's matrix is most of the memory
    covariance /= _spread(sums.a, sums.aa, n_rows)[:, None]
    covariance /= _spread(sums.b, sums.bb, n_rows)
    known = np.where(np.isnan(covariance), -np.inf, covariance)
    latent = known.argmax(axis=1)
    best = known[np.arange(len(known)), latent]
    off = np.isinf(best)
    return MaxCorrelation(np.where(off, np.nan, best), np.where(off, -1, latent))


def _spread(total: np.ndarray, squares: np.ndarray, n_rows: int) -> np.ndarray:
    """Standard deviation · √n_rows; NaN where a latent varies by no more than the rounding of its sums."""
    variance = squares - total**2 / n_rows
    return np.sqrt(np.where(variance > ROUNDING * squares, variance, np.nan))


def _no_sums(n_reference: int, n_other: int) -> _Sums:
    a, b = jnp.zeros(n_reference), jnp.zeros(n_other)
    return _Sums(a, a, b, b, jnp.zeros((n_reference, n_other)))


@compiled(static_argnames="activation")
def _add_products(
    sums: _Sums,
    errors: _Sums,
    reference: SAE,
    other: SAE,
    x: Float[Array, "rows d_in"],
    first: Int[Array, ""] | int,
    *,
    activation: Activation,
) -> tuple[_Sums, _Sums]:
    """The sums with those of further rows, and by how much they are too large."""
    # The whole reference is encoded, since TopK chooses among all of its latents. Blocks of a size share a program.
    a = jax.lax.dynamic_slice_in_dim(encode(reference, x, activation), first, sums.a.shape[0], axis=1)
    b = encode(other, x, activation)
    found = _Sums(a.sum(axis=0), (a**2).sum(axis=0), b.sum(axis=0), (b**2).sum(axis=0), a.T @ b)
    added = [new - error for new, error in zip(found, errors, strict=True)]
    totals = [total + new for total, new in zip(sums, added, strict=True)]
    return _Sums(*totals), _Sums(*((t - s) - new for t, s, new in zip(totals, sums, added, strict=True)))


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
