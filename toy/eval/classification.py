"""SAELens' measures of latents as classifiers, under its names, beside ours of features (`toy.eval.metrics`)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_AT_ONCE = 512  # decoder rows


class Classification(NamedTuple):
    """Means over latents; a latent that is never on has precision 0."""

    precision: float
    recall: float
    f1_score: float
    accuracy: float


class Counts(NamedTuple):
    """The number of rows, and for each latent that of rows where it, its feature, or both are on."""

    rows: int
    latent: Int[np.ndarray, " n_latents"]
    feature: Int[np.ndarray, " n_latents"]
    both: Int[np.ndarray, " n_latents"]


def classification(
    acts: Float[np.ndarray, "rows n_latents"],
    present: Bool[np.ndarray, "rows n_features"],
    W_dec: Float[np.ndarray, "n_latents d_in"],
    W_feat: Float[np.ndarray, "n_features d_in"],
) -> Classification:
    """Scores each latent as a classifier of the feature whose direction has the largest |cosine| with its decoder.

    A latent is on where its activation is not 0. Several latents may have the same feature, unlike in `match_features`.
    Source: `ClassificationMetricsCalculator` of SAELens 6.54 (`sae_lens.synthetic.evals`).
    """
    truth, on = present[:, best_features(W_dec, W_feat)], acts != 0
    return of_counts(Counts(len(on), *(flags.sum(axis=0) for flags in (on, truth, on & truth))))


def of_counts(counts: Counts) -> Classification:
    """`classification` from what was counted."""
    n, latent, feature, both = counts
    precision, recall = _ratio(both, latent), _ratio(both, feature)
    f1 = _ratio(2 * precision * recall, precision + recall)
    accuracy = (n - latent - feature + 2 * both) / n
    return Classification(*(float(np.mean(values)) for values in (precision, recall, f1, accuracy)))


def best_features(
    W_dec: Float[np.ndarray, "n_latents d_in"], W_feat: Float[np.ndarray, "n_features d_in"]
) -> Int[np.ndarray, " n_latents"]:
    """The feature whose direction has the largest |cosine| with each decoder row."""
    directions = _unit(W_feat).T
    parts = [W_dec[first : first + _AT_ONCE] for first in range(0, len(W_dec), _AT_ONCE)]
    return np.concatenate([np.abs(_unit(part) @ directions).argmax(axis=1) for part in parts])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)


def _ratio(count: np.ndarray, of: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by."""
    return np.divide(count, of, out=np.zeros(len(count)), where=of > 0)
