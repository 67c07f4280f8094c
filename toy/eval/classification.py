"""SAELens' measures of latents as classifiers, under its names, beside ours of features (`toy.eval.metrics`)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Classification(NamedTuple):
    """Means over latents; a latent that is never on has precision 0."""

    precision: float
    recall: float
    f1_score: float
    accuracy: float


def classification(
    acts: Float[np.ndarray, "rows n_latents"],
    present: Bool[np.ndarray, "rows n_features"],
    W_dec: Float[np.ndarray, "n_latents d_in"],
    W_feat: Float[np.ndarray, "n_features d_in"],
) -> Classification:
    """How well each latent tells whether the feature is present that its decoder row has the largest |cosine| with.

    A latent is on where its activation is not 0. Several latents may have the same feature, unlike in `match_features`.
    Source: `ClassificationMetricsCalculator` of SAELens 6.54 (`sae_lens.synthetic.evals`).
    """
    cosines = np.abs(_unit(W_dec) @ _unit(W_feat).T)
    truth, on = present[:, cosines.argmax(axis=1)], acts != 0
    hits = (on & truth).sum(axis=0)
    precision, recall = _ratio(hits, on.sum(axis=0)), _ratio(hits, truth.sum(axis=0))
    f1 = _ratio(2 * precision * recall, precision + recall)
    return Classification(*(float(np.mean(values)) for values in (precision, recall, f1, (on == truth).mean(axis=0))))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)


def _ratio(count: np.ndarray, of: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by."""
    return np.divide(count, of, out=np.zeros(len(count)), where=of > 0)
