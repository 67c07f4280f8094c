"""Measures of SAEs against any features, in chunks of rows: those of SAELens' evaluation, under its names."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from toy.compiled import compiled
from toy.eval.classification import Classification, Counts, best_features, of_counts
from toy.eval.metrics import mcc
from toy.sae import RELU, SAE, Activation, decode, encode

_LEAST_NORM = 1e-6  # of a row whose shrinkage counts
_Part = Array | np.ndarray


class Evaluation(NamedTuple):
    """The fields of `SyntheticDataEvalResult` of SAELens 6.54 (`sae_lens.synthetic.evals`)."""

    true_l0: float
    sae_l0: float
    dead_latents: int
    shrinkage: float  # mean ‖recon‖ / ‖x‖
    explained_variance: float  # 1 − Σ‖x − recon‖² / Σ‖x − mean(x)‖²
    mcc: float
    uniqueness: float
    classification: Classification


class _Sums(NamedTuple):
    """Sums over a chunk, or in float64 over all."""

    latent: _Part
    feature: _Part
    both: _Part
    features_on: _Part
    x: _Part
    squared: _Part
    error: _Part
    shrinkage: _Part
    n_shrunk: _Part


def evaluate_features(
    sae: SAE,
    W_feat: Float[np.ndarray, "n_features d_in"],
    chunks: Iterable[tuple[Float[Array | np.ndarray, "_ d_in"], Float[Array | np.ndarray, "_ n_features"]]],
    activation: Activation = RELU,
) -> Evaluation:
    """All measures over chunks of rows and their features; one chunk is in memory at a time, and all cosines once.

    Raises: ValueError if there are no rows.
    """
    W_dec, W_feat = np.asarray(sae.W_dec), np.asarray(W_feat)
    best = best_features(W_dec, W_feat)
    n_rows, total = 0, None
    for x, features in chunks:
        sums = _sums(sae, jnp.asarray(x), jnp.asarray(features), best, activation=activation)
        wide = jax.tree.map(lambda part: np.asarray(part, float), sums)
        n_rows, total = n_rows + len(x), wide if total is None else _Sums(*map(np.add, total, wide))
    if total is None:
        raise ValueError("chunks: there are no rows to measure on")
    variance = float(total.squared - np.sum(total.x**2) / n_rows)
    counts = Counts(n_rows, *(np.rint(part).astype(int) for part in total[:3]))  # type: ignore[arg-type]
    return Evaluation(
        true_l0=float(total.features_on / n_rows),
        sae_l0=float(np.sum(total.latent) / n_rows),
        dead_latents=int(np.sum(total.latent == 0)),
        shrinkage=float(total.shrinkage / max(total.n_shrunk, 1)),
        explained_variance=1 - float(total.error) / variance if variance > 0 else float("nan"),
        mcc=mcc(W_dec, W_feat),
        uniqueness=len(np.unique(best)) / len(W_dec),
        classification=of_counts(counts),
    )


@compiled(static_argnames="activation")
def _sums(
    sae: SAE,
    x: Float[Array, "rows d_in"],
    features: Float[Array, "rows n_features"],
    best: Int[Array, " n_latents"],
    *,
    activation: Activation,
) -> _Sums:
    acts = encode(sae, x, activation)
    on, truth, recon = acts != 0, features[:, best] > 0, decode(sae, acts)
    norms = jnp.linalg.norm(x, axis=1)
    shrunk = jnp.where(norms > _LEAST_NORM, jnp.linalg.norm(recon, axis=1) / jnp.maximum(norms, _LEAST_NORM), 0)
    return _Sums(
        *(jnp.sum(flags, axis=0) for flags in (on, truth, on & truth)),
        features_on=jnp.sum(features > 0),
        x=jnp.sum(x, axis=0),
        squared=jnp.sum(x**2),
        error=jnp.sum((x - recon) ** 2),
        shrinkage=jnp.sum(shrunk),
        n_shrunk=jnp.sum(norms > _LEAST_NORM),
    )
