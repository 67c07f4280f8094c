"""Metrics against the ground truth, one formula each, in float64; `toy.eval.against_tree` computes all of them.

Latents are first matched one to one to features. A latent is "on" where a‖d‖ exceeds 0.2 of its feature's mean norm in
x, so that a latent that merely leaks is off. In a row where a noisy feature has less than its mean norm, the threshold
is 0.2 of the norm in that row: otherwise a latent that follows its feature would have holes.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy  # loads its parts when they are first asked for
from jaxtyping import Bool, Float, Int

from toy.features.directions import cosine_matrix
from toy.features.tree import Tree, edges

ON_THRESHOLD = 0.2
MIN_COSINE = 0.9
MAX_HOLE_RATE = 0.01

Features = Float[np.ndarray, "rows n_features"]
Firing = Bool[np.ndarray, "rows n_features"]


class Match(NamedTuple):
    """The latent of each feature (−1: none is left) and their decoder cosine (0 there)."""

    latent: Int[np.ndarray, " n_features"]
    cosine: Float[np.ndarray, " n_features"]


def match_features(W_dec: Float[np.ndarray, "n_latents d_in"], W_feat: Float[np.ndarray, "n_features d_in"]) -> Match:
    """One latent per feature: the assignment with the greatest sum of cosines (Hungarian algorithm)."""
    cosines = cosine_matrix(W_feat, W_dec)
    feature, latent = scipy.optimize.linear_sum_assignment(cosines, maximize=True)
    match = Match(np.full(len(W_feat), -1), np.zeros(len(W_feat)))
    match.latent[feature], match.cosine[feature] = latent, cosines[feature, latent]
    return match


def matched_acts(
    acts: Float[np.ndarray, "rows n_latents"], W_dec: Float[np.ndarray, "n_latents d_in"], match: Match
) -> Features:
    """a‖d‖ of the latent of each feature, in units of x; 0 where a feature has none."""
    matched = np.asarray(acts, float)[:, match.latent] * np.linalg.norm(W_dec, axis=1)[match.latent]
    matched[:, match.latent < 0] = 0.0
    return matched


def firing(matched: Features, feature_size: Float[np.ndarray, " n_features"] | Features) -> Firing:
    """Returns whether each feature's latent is on: a‖d‖ > 0.2 · feature_size, the feature's norm in x when present.

    The norm is the mean over rows, or each row's own (`toy.eval.against_tree.row_sizes`).
    """
    return matched > ON_THRESHOLD * feature_size


def hole_rates(on: Firing, present: Firing, tree: Tree) -> Float[np.ndarray, " n_edges"]:
    """P(parent's latent off | child present), one per edge of `edges(tree)`; 0 is best, 1 is full absorption.

    NaN where the child never occurs in the rows. Source: the post's "holes", made exact by the ground truth.
    """
    return np.array([mean_known(~on[present[:, child], parent]) for parent, child in edges(tree)])


def parent_activations(
    matched: Features, present: Firing, feature_size: Float[np.ndarray, " n_features"], tree: Tree
) -> tuple[Float[np.ndarray, " n_edges"], Float[np.ndarray, " n_edges"]]:
    """Mean a‖d‖ / feature_size of the parent's latent for every edge: on rows without a child, and with this child.

    1 is the feature's own size; the post saw that the second is larger. NaN without such rows.
    """
    pairs = edges(tree)
    relative = matched / np.where(feature_size > 0, feature_size, np.nan)
    childless = present.copy()
    for parent, child in pairs:
        childless[:, parent] &= ~present[:, child]
    alone = [mean_known(relative[childless[:, parent], parent]) for parent, _ in pairs]
    with_child = [mean_known(relative[present[:, child], parent]) for parent, child in pairs]
    return np.array(alone), np.array(with_child)


def firing_accuracy(on: Firing, present: Firing) -> float:
    """Mean over rows and features of [latent on = feature present]; 1 is best. Sparse features make it high."""
    return float((on == present).mean())


def firing_precision(on: Firing, present: Firing) -> float:
    """P(feature present | its latent on), pooled over features; 1 is best, NaN if no latent is ever on."""
    return mean_known(present[on])


def firing_recall(on: Firing, present: Firing) -> float:
    """P(latent on | its feature present), pooled over features; 1 is best. Holes lower it."""
    return mean_known(on[present])


class Mixing(NamedTuple):
    """Mean decoder cosines between related features' latents and directions; 0 is best for orthogonal features.

    `parent_to_child`: the parent's latent with its child's direction. `child_to_sibling` and `child_to_parent`: the
    child's latent with those. NaN where a tree has no such pair. Source: the heatmaps and hypothesis in the
    post's comments.
    """

    parent_to_child: float
    child_to_sibling: float
    child_to_parent: float
    max_off_diagonal: float  # of |cosine| over all pairs of different features


def mixing(cosines: Float[np.ndarray, "n_features n_features"], tree: Tree) -> Mixing:
    """`cosines[i, j]` is that of feature i's latent with feature j's direction (`matched_cosines`)."""
    pairs = edges(tree)
    siblings = [(a, b) for p, a in pairs for q, b in pairs if p == q and a != b]
    off_diagonal = np.abs(cosines - np.diag(np.diag(cosines)))
    return Mixing(
        mean_known([cosines[p, c] for p, c in pairs]),
        mean_known([cosines[a, b] for a, b in siblings]),
        mean_known([cosines[c, p] for p, c in pairs]),
        float(off_diagonal.max()),
    )


def matched_cosines(
    directions: Float[np.ndarray, "n_latents d_in"], W_feat: Float[np.ndarray, "n_features d_in"], match: Match
) -> Float[np.ndarray, "n_features n_features"]:
    """Cosine of each feature's latent (rows, in the order of the features) with each feature's direction."""
    cosines = cosine_matrix(directions, W_feat)[match.latent]
    return np.where((match.latent >= 0)[:, None], cosines, 0.0)


def mcc(W_dec: Float[np.ndarray, "n_latents d_in"], W_feat: Float[np.ndarray, "n_features d_in"]) -> float:
    """Mean |cosine| of the best one-to-one assignment of latents to features; 1 is best.

    "Mean correlation coefficient" as in `sae_lens.synthetic`, so with |cosine| where `match_features` keeps the
    sign; the mean is over min(n_latents, n_features) pairs.
    """
    cosines = np.abs(cosine_matrix(W_feat, W_dec))
    return float(cosines[scipy.optimize.linear_sum_assignment(cosines, maximize=True)].mean())


def uniqueness(W_dec: Float[np.ndarray, "n_latents d_in"], W_feat: Float[np.ndarray, "n_features d_in"]) -> float:
    """Number of different features that are some latent's best |cosine|, over n_latents; 1 is best.

    As in `sae_lens.synthetic`; at most n_features / n_latents when there are more latents than features.
    """
    return len(np.unique(np.abs(cosine_matrix(W_dec, W_feat)).argmax(axis=1))) / len(W_dec)


def fvu(x: Float[np.ndarray, "rows d_in"], recon: Float[np.ndarray, "rows d_in"]) -> float:
    """Fraction of variance unexplained: Σ‖x − recon‖² / Σ‖x − mean(x)‖², sums over rows and d_in; 0 is best.

    The variance is about the mean of each input dimension. 1 − fvu is the explained variance. NaN if x is constant.
    """
    x = np.asarray(x, float)
    total = np.sum((x - x.mean(axis=0)) ** 2)
    return float(np.sum((x - recon) ** 2) / total) if total > 0 else float("nan")


def prefix_fvu(
    x: Float[np.ndarray, "rows d_in"],
    acts: Float[np.ndarray, "rows n_latents"],
    W_dec: Float[np.ndarray, "n_latents d_in"],
    b_dec: Float[np.ndarray, " d_in"],
) -> Float[np.ndarray, " n_latents"]:
    """`fvu` of the reconstruction from the first k latents alone, k = 1 … n_latents; not monotone in k.

    Squared errors come from sums over leading blocks of a Gram matrix, as in `toy.loss`.
    """
    x, acts, W_dec = (np.asarray(values, float) for values in (x, acts, W_dec))
    error, total = x - b_dec, np.sum((x - x.mean(axis=0)) ** 2)
    along = np.sum((acts.T @ error) * W_dec, axis=1)
    gram = (acts.T @ acts) * (W_dec @ W_dec.T)
    squared = np.sum(error**2) - 2 * np.cumsum(along) + gram.cumsum(axis=0).cumsum(axis=1).diagonal()
    return squared / total if total > 0 else np.full(len(W_dec), np.nan)


def l0(acts: Float[np.ndarray, "rows n_latents"]) -> float:
    """Mean number of latents with activation > 0 per row. It counts leaks, which `firing` does not."""
    return float(np.count_nonzero(acts > 0) / len(acts))


def dead_latents(acts: Float[np.ndarray, "rows n_latents"]) -> int:
    """Number of latents that fire on no row; 0 is best."""
    return int((~(acts > 0).any(axis=0)).sum())


def shrinkage(x: Float[np.ndarray, "rows d_in"], recon: Float[np.ndarray, "rows d_in"]) -> float:
    """Mean of ‖recon‖ / ‖x‖ over rows with x ≠ 0; 1 is none, below 1 is shrinkage (as in `sae_lens.synthetic`)."""
    x, recon = np.asarray(x, float), np.asarray(recon, float)
    norms = np.sqrt(np.vecdot(x, x))
    return mean_known(np.sqrt(np.vecdot(recon, recon))[norms > 0] / norms[norms > 0])


def recovered(cosine: Float[np.ndarray, " n_features"], holes: Float[np.ndarray, " n_edges"]) -> bool:
    """Every matched cosine ≥ 0.9 and the mean hole rate < 0.01."""
    hole_rate = mean_known(holes)
    return bool(np.min(cosine) >= MIN_COSINE and (np.isnan(hole_rate) or hole_rate < MAX_HOLE_RATE))


def mean_known(values: np.ndarray | list) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else float("nan")


def at_least_float32(x: Any) -> np.ndarray:
    """The values in float32 or wider, in which sums of their squares do not overflow as they would in float16."""
    found = np.asarray(x)
    return found.astype(np.promote_types(found.dtype, np.float32), copy=False)
