"""Every metric of one SAE against its tree on held-out rows, on the host and in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from toy.compiled import compiled
from toy.eval import metrics
from toy.features.directions import check_given
from toy.features.tree import Tree, mean_magnitudes
from toy.sae import RELU, SAE, Activation, BatchTopK, encode


class Evaluation(NamedTuple):
    """Every metric of `toy.eval.metrics` for one SAE on one batch of rows."""

    match: metrics.Match
    recovered: bool
    hole_rates: Float[np.ndarray, " n_edges"]
    hole_rate: float  # mean over edges; NaN without any
    parent_alone: Float[np.ndarray, " n_edges"]  # `parent_activations`
    parent_with_child: Float[np.ndarray, " n_edges"]
    min_cosine: float
    mixing: metrics.Mixing
    firing_accuracy: float
    firing_precision: float
    firing_recall: float
    mcc: float
    uniqueness: float
    fvu: float
    prefix_fvu: Float[np.ndarray, " n_latents"]
    l0: float
    dead_latents: int
    shrinkage: float


def evaluate(
    sae: SAE,
    W_feat: Float[Array | np.ndarray, "n_features d_in"],
    tree: Tree,
    features: Float[Array | np.ndarray, "rows n_features"],
    activation: Activation = RELU,
    *,
    acts: Float[Array | np.ndarray, "rows n_latents"] | None = None,
) -> Evaluation:
    """Measures an SAE on `features`, a batch from the tree that was not trained on (`sample_features` with a new key).

    `activation` is to be given for TopK and matching pursuit; a BatchTopK SAE is measured with its threshold. `acts`
    may be given where they are known already.
    """
    W_feat, features = np.asarray(W_feat, float), np.asarray(features, float)
    check_given(W_feat, tree.n_features)
    x, present = features @ W_feat, features > 0
    acts = np.asarray(encode(sae, jnp.asarray(x), activation) if acts is None else acts, float)
    W_dec, b_dec = np.asarray(sae.W_dec, float), np.asarray(sae.b_dec, float)
    recon = acts @ W_dec + b_dec
    match = metrics.match_features(W_dec, W_feat)
    matched, sizes = metrics.matched_acts(acts, W_dec, match), feature_sizes(tree, W_feat)
    on = metrics.firing(matched, row_sizes(tree, W_feat, features))
    alone, with_child = metrics.parent_activations(matched, present, sizes, tree)
    holes = metrics.hole_rates(on, present, tree)
    return Evaluation(
        match=match,
        recovered=metrics.recovered(match.cosine, holes),
        hole_rates=holes,
        hole_rate=metrics.mean_known(holes),
        parent_alone=alone,
        parent_with_child=with_child,
        min_cosine=float(match.cosine.min()),
        mixing=metrics.mixing(metrics.matched_cosines(W_dec, W_feat, match), tree),
        firing_accuracy=metrics.firing_accuracy(on, present),
        firing_precision=metrics.firing_precision(on, present),
        firing_recall=metrics.firing_recall(on, present),
        mcc=metrics.mcc(W_dec, W_feat),
        uniqueness=metrics.uniqueness(W_dec, W_feat),
        fvu=metrics.fvu(x, recon),
        prefix_fvu=metrics.prefix_fvu(x, acts, W_dec, b_dec),
        l0=metrics.l0(acts),
        dead_latents=metrics.dead_latents(acts),
        shrinkage=metrics.shrinkage(x, recon),
    )


def feature_sizes(tree: Tree, W_feat: Float[np.ndarray, "n_features d_in"]) -> Float[np.ndarray, " n_features"]:
    """Each feature's mean norm in x when present: exact mean magnitude · ‖direction‖."""
    return mean_magnitudes(tree) * np.linalg.norm(W_feat, axis=1)


def row_sizes(
    tree: Tree, W_feat: Float[np.ndarray, "n_features d_in"], features: Float[np.ndarray, "rows n_features"]
) -> Float[np.ndarray, " n_features"] | Float[np.ndarray, "rows n_features"]:
    """`feature_sizes`, or each row's own size where a noisy feature is on with less than its mean."""
    mean = feature_sizes(tree, W_feat)
    if tree.magnitude_std is None:
        return mean
    own = features * np.linalg.norm(W_feat, axis=1)
    return np.where(own > 0, np.minimum(own, mean), mean)


class InferenceGap(NamedTuple):
    """The relative difference between a BatchTopK SAE with its threshold and the same SAE as in training; 0 is best.

    NaN where training gives 0, which is where no feature is on in the rows.
    """

    l0: float
    fvu: float


def inference_gap(
    sae: SAE, x: Float[Array | np.ndarray, "rows d_in"], activation: BatchTopK, batch_size: int
) -> InferenceGap:
    """The gap on the whole batches of `x`, given the `activation` and `batch_size` of training.

    Raises: ValueError if there are fewer rows than a batch has.
    """
    n_batches = len(x) // batch_size
    if n_batches == 0:
        raise ValueError(f"x: needs at least batch_size = {batch_size} rows, got {len(x)}")
    rows = metrics.at_least_float32(x)[: n_batches * batch_size]
    batches = jnp.asarray(rows.reshape(n_batches, batch_size, -1))
    (l0_inference, fvu_inference), (l0_training, fvu_training) = (
        (metrics.l0(acts), metrics.fvu(rows, acts @ np.asarray(sae.W_dec, float) + np.asarray(sae.b_dec, float)))
        for acts in (_encode_batches(sae, batches, how) for how in (RELU, activation))
    )
    return InferenceGap(_relative(l0_inference, l0_training), _relative(fvu_inference, fvu_training))


def _relative(value: float, base: float) -> float:
    """value / base − 1; NaN where the base is 0."""
    return value / base - 1 if base else float("nan")


def _encode_batches(sae: SAE, batches: Float[Array, "n batch d_in"], how: Activation) -> np.ndarray:
    """The activations of all batches, [n · batch, n_latents]."""
    acts = _each_batch(sae, batches, how)
    return np.asarray(acts, float).reshape(-1, acts.shape[-1])


@compiled(static_argnames="how")
def _each_batch(sae: SAE, batches: Float[Array, "n batch d_in"], how: Activation) -> Float[Array, "n batch n_latents"]:
    return jax.vmap(lambda x: encode(sae, x, how))(batches)
