"""The sparse autoencoder: parameters, activations, and the pure functions on them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from toy.checks import POSITIVE, SHARE, Whole, check_fields

N_COLUMNS = 512  # in which values are counted
MOST_PAIRS = 128  # values up to which comparing all pairs is faster than sorting them


@dataclass(frozen=True)
class ReLU:
    """Latents with a positive pre-activation are on, or above their threshold where the SAE has one (JumpReLU)."""


@dataclass(frozen=True)
class TopK:
    """The `k` latents of each sample with the largest activation · decoder norm (Gao et al., arXiv 2406.04093)."""

    k: int
    by_size: bool = field(default=True, repr=False)
    """If false, activations alone are compared, as in files of other libraries. Training here compares sizes."""

    def __post_init__(self) -> None:
        check_fields(self, k=Whole())


@dataclass(frozen=True)
class BatchTopK:
    """The round(k · batch) largest of the whole batch, k per sample on average (Bussmann et al., arXiv 2412.06410)."""

    k: Any  # a number, or an array of one while a program is traced
    slots: int | None = None
    """The largest number of latents on in one sample at width. Default: 2k, and at least k + 16."""

    def __post_init__(self) -> None:
        check_fields(self, k=POSITIVE, slots=Whole())
        if self.slots is not None and self.slots < self.k:
            raise ValueError(f"slots: must be at least k = {self.k}, got {self.slots}")

    @property
    def n_slots(self) -> int:
        return round(max(2 * self.k, self.k + 16)) if self.slots is None else self.slots

    def n_on(self, batch_size: int) -> Any:
        """The number of activations that are on in a batch; an array where `k` is one."""
        if isinstance(self.k, int | float):
            return max(1, round(self.k * batch_size))
        return jnp.maximum(1, jnp.round(self.k * batch_size).astype(int))


@dataclass(frozen=True)
class MatchingPursuit:
    """At most `k` latents, one after the other: each is the one whose direction takes most off the residual.

    It stops once the squared residual is at most `tolerance` times ‖x − b_dec‖². Encoder weights are not used, except
    that a latent without any is padding.
    Source: Costa et al. (MP-SAE, arXiv 2506.03093).
    """

    k: int
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_fields(self, k=Whole(), tolerance=SHARE)


Activation = ReLU | TopK | BatchTopK | MatchingPursuit
RELU = ReLU()


class SAE(NamedTuple):
    """A sparse autoencoder. b_dec is added to the reconstruction and not subtracted from the input."""

    W_enc: Float[Array, "*lanes d_in n_latents"]
    b_enc: Float[Array, "*lanes n_latents"]
    W_dec: Float[Array, "*lanes n_latents d_in"]
    b_dec: Float[Array, "*lanes d_in"]
    threshold: Float[Array, "*lanes n_latents"] | None = (
        None  # of pre-activations: of JumpReLU, gated and trained BatchTopK SAEs
    )


def init_sae(key: Key[Array, ""], d_in: int, n_latents: int) -> SAE:
    """Encoder N(0, 1/d_in); decoder the encoder's directions at norm 0.1; biases 0 (reference code).

    A latent's weights do not depend on how many there are.
    """
    rows = jax.random.normal(key, (n_latents, d_in)) / jnp.sqrt(d_in)
    W_dec = 0.1 * rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return SAE(rows.T, jnp.zeros(n_latents), W_dec, jnp.zeros(d_in))


def is_finite(sae: SAE) -> Bool[np.ndarray, "*lanes"]:
    """Returns whether all parameters of each SAE are finite; those of a training that diverged are not."""
    lanes = np.shape(sae.b_dec)[:-1]
    leaves = [np.isfinite(leaf).reshape(*lanes, -1).all(axis=-1) for leaf in sae if leaf is not None]
    return np.asarray(np.all(leaves, axis=0))


def sae_of_directions(W_dec: Float[np.ndarray, "*lanes n_latents d_in"]) -> SAE:
    """The SAE that encodes and decodes with the given directions, at norm 1, and has no biases."""
    W_dec = np.asarray(W_dec) / np.linalg.norm(W_dec, axis=-1, keepdims=True)
    zeros = np.zeros_like(W_dec)
    parts = np.swapaxes(W_dec, -1, -2), zeros[..., 0], W_dec, zeros[..., 0, :]
    return SAE(*map(jnp.asarray, parts))


def encode(sae: SAE, x: Float[Array, "batch d_in"], activation: Activation = RELU) -> Float[Array, "batch n_latents"]:
    """acts = activation(x W_enc + b_enc); matching pursuit uses the decoder alone (`pursue`).

    A trained BatchTopK SAE uses its `threshold`, sample by sample, unless `activation` asks for BatchTopK as in
    training.
    """
    if isinstance(activation, MatchingPursuit):
        return pursue(sae, x, activation)
    acts = jax.nn.relu(x @ sae.W_enc + sae.b_enc)
    if isinstance(activation, ReLU):
        return acts if sae.threshold is None else jnp.where(acts > sae.threshold, acts, 0)
    of_activations = isinstance(activation, TopK) and not activation.by_size
    return keep_largest(acts, jnp.ones_like(sae.b_enc) if of_activations else decoder_norms(sae), activation)


def keep_largest(
    acts: Float[Array, "batch n_latents"], norms: Float[Array, " n_latents"], activation: TopK | BatchTopK
) -> Float[Array, "batch n_latents"]:
    """acts, and 0 where act · norm is not among the largest of its sample (TopK) or of the batch (BatchTopK)."""
    sizes = jax.lax.stop_gradient(acts * norms)
    if isinstance(activation, BatchTopK):
        largest = sizes >= kth_largest(sizes, activation.n_on(len(acts)))
    elif sizes.shape[1] <= MOST_PAIRS:
        largest = jnp.sum(sizes[:, None, :] > sizes[:, :, None], axis=2) < activation.k
    else:
        largest = sizes >= jax.lax.top_k(sizes, min(activation.k, sizes.shape[1]))[0][:, -1:]
    return jnp.where(largest, acts, 0)


def kth_largest(values: Float[Array, "..."], k: Int[Array, ""] | int) -> Float[Array, ""]:
    """The k-th largest of values ≥ 0, or the smallest of them where there are fewer than k.

    Floats ≥ 0 are ordered as their bits are as integers, so the result is found bit by bit, in a hundredth of the time
    that sorting takes. Values are counted in columns, whose sums XLA computes many at a time on a CPU.
    """
    bits = jax.lax.bitcast_convert_type(values, {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[values.dtype.itemsize])
    k, n_bits = jnp.minimum(k, values.size), 8 * values.dtype.itemsize
    columns = jnp.pad(bits.ravel(), (0, -values.size % N_COLUMNS), constant_values=-1).reshape(-1, N_COLUMNS)

    def count(least: Int[Array, ""]) -> Int[Array, ""]:
        of_columns = jnp.sum(columns >= least, axis=0)
        return jnp.sum(jax.lax.optimization_barrier(of_columns))  # or XLA makes one slow sum of the two

    def settle(i: Int[Array, ""], found: Int[Array, ""]) -> Int[Array, ""]:
        candidate = found | (jnp.ones_like(found) << (n_bits - 2 - i).astype(found.dtype))
        return jnp.where(count(candidate) >= k, candidate, found)

    found = jax.lax.fori_loop(0, n_bits - 1, settle, jnp.zeros((), bits.dtype))
    return jax.lax.bitcast_convert_type(found, values.dtype)


def pursue(sae: SAE, x: Float[Array, "batch d_in"], how: MatchingPursuit) -> Float[Array, "batch n_latents"]:
    """The activations of matching pursuit on x − b_dec. Gradients pass through all but the choice of latents.

    Products with the residual follow from those with the input and the cosines of directions, so that a round costs
    (batch, n_latents) · n_latents.
    """
    norms = jnp.maximum(decoder_norms(sae), 1e-12)
    directions, there = sae.W_dec / norms[:, None], has_encoder(sae)[:, None]
    cosines = directions @ directions.T
    left = x - sae.b_dec
    least = how.tolerance * jnp.sum(left**2, axis=1)

    # Latents are rows here: a CPU takes the largest of a column, for many columns at once, faster than that of a row.
    def take(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        products, energy, sizes = carry
        largest = jax.lax.stop_gradient(products == jnp.max(products, axis=0))
        best = largest / jnp.sum(largest, axis=0)  # not `argmax`, which is slow in lanes on a CPU
        size = jnp.where(energy > least, jax.nn.relu(jnp.sum(best * products, axis=0)), 0)
        taken = best * size
        return (products - cosines @ taken * there, energy - jax.lax.stop_gradient(size) ** 2, sizes + taken), None

    products, energy = directions @ left.T * there, jax.lax.stop_gradient(jnp.sum(left**2, axis=1))
    (_, _, sizes), _ = jax.lax.scan(
        take, (products, energy, jnp.zeros_like(products)), length=how.k, unroll=min(how.k, 8)
    )
    return sizes.T / norms


def decode(sae: SAE, acts: Float[Array, "batch n_latents"]) -> Float[Array, "batch d_in"]:
    """recon = acts W_dec + b_dec."""
    return acts @ sae.W_dec + sae.b_dec


def decoder_norms(sae: SAE) -> Float[Array, "*lanes n_latents"]:
    """‖d_i‖ of every latent."""
    return jnp.linalg.norm(sae.W_dec, axis=-1)


def has_encoder(sae: SAE) -> Bool[Array, " n_latents"]:
    """The latents that are no padding."""
    return jnp.any(sae.W_enc != 0, axis=0)


def take_latents(sae: SAE, index: slice | Int[Array | np.ndarray, " n"]) -> SAE:
    """The SAE of some latents, or of all in another order: latent `index[i]` is at place i."""
    threshold = None if sae.threshold is None else sae.threshold[index]
    return SAE(sae.W_enc[:, index], sae.b_enc[index], sae.W_dec[index], sae.b_dec, threshold)


def map_parts(of_sae: Callable[..., Any], of_leaf: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """Applies one function to every SAE within a pytree, and another to the leaves that are in none."""

    def of_part(part: Any, *parts: Any) -> Any:
        return of_sae(part, *parts) if isinstance(part, SAE) else of_leaf(part, *parts)

    return jax.tree.map(of_part, tree, *others, is_leaf=lambda part: isinstance(part, SAE))


def fold_input_scale(sae: SAE, scale: Float[Array, ""]) -> SAE:
    """The SAE that does on x what `sae` does on scale · x, in the units of x: acts and recon shrink by 1/scale."""
    threshold = None if sae.threshold is None else sae.threshold / scale
    return sae._replace(b_enc=sae.b_enc / scale, b_dec=sae.b_dec / scale, threshold=threshold)


def fold_decoder_norm(sae: SAE) -> SAE:
    """The same function with unit decoder rows: norms move into the encoder, so acts are in units of x."""
    norms = decoder_norms(sae)
    threshold = None if sae.threshold is None else sae.threshold * norms
    W_dec = sae.W_dec / jnp.maximum(norms, 1e-12)[:, None]
    return SAE(sae.W_enc * norms, sae.b_enc * norms, W_dec, sae.b_dec, threshold)
