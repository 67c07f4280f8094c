"""Absorption without ground-truth directions: holes of a concept's latent on the concept's members.

The *parent*, the latent of a concept such as female words, has a hole where it is off although a *child*, a member such
as Lily, is present. The member's own latent has absorbed the concept if it contributes the concept's direction there.
A small contribution is not enough, since the member's own direction also has one: an absorbing latent supplies at least
a share `ABSORBER_SHARE` of what the parent usually adds. Both thresholds of absorbing latents are those of
SAEBench's metric (Karvonen et al., 2025), which takes shares of the activation's projection instead.
A concept is a set of words, and a row belongs to a member if its token ends the word.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # loads its parts when they are first asked for
from jaxtyping import Array, Bool, Float, Int

from toy.compiled import compiled
from toy.eval.metrics import at_least_float32, mean_known
from toy.eval.streaming import ROUNDING, encoded
from toy.lm.pieces import words
from toy.lm.tokens import Rows
from toy.sae import RELU, SAE, Activation, encode, take_latents

ON_THRESHOLD = 0.2  # a latent is on above this share of its mean positive activation on the concept's rows
ABSORBER_COSINE = 0.1  # least cosine of an absorbing latent's decoder with the probe
ABSORBER_SHARE = 0.4  # least share that it adds along the probe of what the concept's latent adds where it is on
MIN_ROWS = 20  # members with fewer rows are not measured
NO_WORD = -1
CHUNK = 2_048  # rows encoded at once

Members = Int[np.ndarray, " rows"]


class WordPlaces(NamedTuple):
    """The word that ends at each token, for stories in a row."""

    words: tuple[str, ...]
    found: Int[np.ndarray, " n_tokens"]  # index of the word, or NO_WORD
    begins: Int[np.ndarray, " n_stories"]  # where each story's tokens begin

    def of(self, document: Int[np.ndarray, " rows"], position: Int[np.ndarray, " rows"]) -> Members:
        """The words at the rows of a store."""
        return self.found[self.begins[document] + position]


def find_words(rows: Rows, pieces: list[str], wanted: Sequence[str]) -> WordPlaces:
    """Find words by the tokenizer's `pieces`, also those that continue in the next row of a story."""
    index = {word.lower(): i for i, word in enumerate(wanted)}
    lengths = np.zeros(rows.document.max() + 1, int)
    np.maximum.at(lengths, rows.document, rows.start + rows.length)
    ends = np.cumsum(lengths)
    begins = ends - lengths
    stories = np.full(ends[-1], len(pieces), np.int32)  # the empty piece that is appended below
    for ids, length, document, start in zip(*rows, strict=True):
        stories[begins[document] + start :][:length] = ids[:length]
    found, texts = np.full(len(stories), NO_WORD, np.int32), [*pieces, ""]
    for begin, end in zip(begins, ends, strict=True):
        for place, word in words(stories[begin:end], texts):
            found[begin + place] = index.get(word, NO_WORD)
    return WordPlaces(tuple(wanted), found, begins)


def fit_probe(
    x: Float[np.ndarray, "rows d_in"], present: Bool[np.ndarray, " rows"], l2: float = 1e-3
) -> Float[np.ndarray, " d_in"]:
    """The direction (unit norm) of a logistic regression that separates the concept's rows from the others.

    Both classes have the same weight in the mean loss. Inputs are centred and scaled by one number to a mean variance
    of 1 (scaling each dimension would turn the direction towards rare features), and the penalty is l2 · ‖w‖² / 2. The
    direction of a concept with m exclusive members contains each member's own direction with a share of 1/m or more.
    Raises: ValueError if a class has no rows.
    """
    if present.all() or not present.any():
        raise ValueError("present: a probe needs rows with the concept and rows without it")
    weights, _ = fit_logistic(x, present, l2)
    return weights / np.linalg.norm(weights)


def fit_logistic(
    x: Float[np.ndarray, "rows d_in"], present: Bool[np.ndarray, "rows ..."], l2: float = 1e-3
) -> tuple[Float[np.ndarray, "d_in ..."], Float[np.ndarray, "..."]]:
    """The weights and biases of `fit_probe`, for one concept or a column for each of several.

    Logits are x @ weights + biases.
    """
    x = at_least_float32(x)
    mean, scale = x.mean(axis=0), np.sqrt(x.var(axis=0).mean()) + 1e-6
    inputs, signs = jnp.asarray((x - mean) / scale), jnp.asarray(np.where(present, 1.0, -1.0))
    weights = jnp.asarray(np.where(present, 0.5 / present.sum(axis=0), 0.5 / (~present).sum(axis=0)))
    shape = (x.shape[1] + 1, *present.shape[1:])

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, grad = _probe_loss(jnp.asarray(flat.reshape(shape), jnp.float32), inputs, signs, weights, l2)
        return float(loss), np.asarray(grad, float).ravel()

    found = scipy.optimize.minimize(
        value, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 200}
    )
    fitted = found.x.reshape(shape)
    fitted[:-1] /= scale
    return fitted[:-1], np.asarray(fitted[-1] - mean @ fitted[:-1])


@compiled()
@partial(jax.value_and_grad, argnums=0)
def _probe_loss(flat: Array, x: Array, signs: Array, weights: Array, l2: Array) -> Array:
    logits = jnp.matmul(x, flat[:-1], precision="highest") + flat[-1]  # L-BFGS stops early where GPUs round
    return jnp.sum(weights * jax.nn.softplus(-signs * logits)) + l2 * jnp.sum(flat[:-1] ** 2) / 2


class Absorption(NamedTuple):
    """Measures of one SAE and one concept; arrays have one entry per member.

    NaN for members with too few rows, and for absorbed rates if the concept's latent adds nothing along the probe.
    """

    latent: int  # of the concept
    precision: float  # share of the latent's rows that are of a member
    average_precision: float  # of the latent as a detector of the concept (`average_precision`)
    hole_rates: Float[np.ndarray, " n_members"]  # P(latent off | member)
    hole_rate: float  # mean over members
    absorbed_rates: Float[
        np.ndarray, " n_members"
    ]  # P(latent off and its share added by the absorbing latent | member)
    absorbed_rate: float
    absorbers: Int[np.ndarray, " n_members"]  # the latent that adds most in the holes; −1 if none absorbs
    cosines: Float[np.ndarray, " n_members"]  # of the absorbing latent's decoder with the probe
    parent_cosine: float  # cosine of the concept latent's decoder row with the probe


def unknown(n_members: int) -> Absorption:
    """The measures of a concept that does not occur in the rows."""
    nan, none = np.full(n_members, np.nan), np.full(n_members, -1)
    return Absorption(-1, np.nan, np.nan, nan, np.nan, nan, np.nan, none, nan, np.nan)


def best_latents(
    sae: SAE,
    x: Float[np.ndarray, "rows d_in"],
    present: Bool[np.ndarray, "rows n_concepts"],
    activation: Activation = RELU,
    chunk: int = 4_096,
) -> tuple[Int[np.ndarray, " n_concepts"], Float[np.ndarray, " n_concepts"]]:
    """Returns the latent whose activation correlates most with each concept's presence, and the correlation."""
    sums = None
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        part = _products(sae, jnp.asarray(x[rows]), jnp.asarray(present[rows], float), activation=activation)
        found = [np.asarray(values, float) for values in part]
        sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
    if sums is None:
        raise ValueError("x: there are no rows")
    first, second, along = (values / len(x) for values in sums)
    share = present.mean(axis=0)
    variance = second - first**2
    variance = np.where(variance > ROUNDING * second, variance, 0)  # a constant latent has only rounding errors
    spread = np.sqrt(variance[:, None] * share * (1 - share))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.where(spread > 0, (along - first[:, None] * share) / spread, -np.inf)
    latent = correlation.argmax(axis=0)
    return latent, correlation[latent, np.arange(len(latent))]


@compiled(static_argnames="activation")
def _products(
    sae: SAE, x: Float[Array, "rows d_in"], present: Float[Array, "rows n_concepts"], *, activation: Activation
) -> tuple[Array, ...]:
    acts = encode(sae, x, activation)
    return acts.sum(axis=0), (acts**2).sum(axis=0), acts.T @ present


def measure_absorption(
    sae: SAE,
    x: Float[np.ndarray, "rows d_in"],
    members: Members,
    n_members: int,
    latent: int,
    probe: Float[np.ndarray, " d_in"],
    activation: Activation = RELU,
) -> Absorption:
    """Measure absorption, given the member of each row (or NO_WORD).

    `latent` (by `best_latents`) and `probe` (by `fit_probe`) should be found on other rows. `activation` is needed for
    TopK and matching pursuit only. Raises: ValueError if no row is of a member.
    """
    if not (members >= 0).any():
        raise ValueError("members: no row is of a member")
    acts = _encoded(sae, x[members >= 0], activation)
    of_member, parent = members[members >= 0], acts[:, latent]
    size = parent[parent > 0].mean() if (parent > 0).any() else np.inf
    on = parent > ON_THRESHOLD * size
    values = _encoded_one(sae, x, activation, latent)
    everywhere = values > ON_THRESHOLD * size
    W_dec = np.asarray(sae.W_dec, float)
    along = W_dec @ probe
    cosine = along / np.maximum(np.linalg.norm(W_dec, axis=1), 1e-12)
    usual = float(parent[on].mean() * along[latent]) if on.any() else 0.0
    may_absorb = cosine >= ABSORBER_COSINE
    may_absorb[latent] = False
    added = np.where(may_absorb, along, 0)
    found = [_member(acts, of_member == m, on, added, usual) for m in range(n_members)]
    holes, absorbed, absorbers = (np.array(column) for column in zip(*found, strict=True))
    return Absorption(
        latent=latent,
        precision=float((members[everywhere] >= 0).mean()) if everywhere.any() else float("nan"),
        average_precision=average_precision(values, members >= 0),
        hole_rates=holes,
        hole_rate=mean_known(holes),
        absorbed_rates=absorbed,
        absorbed_rate=mean_known(absorbed),
        absorbers=absorbers,
        cosines=np.where(absorbers >= 0, cosine[absorbers], np.nan),
        parent_cosine=float(cosine[latent]),
    )


def average_precision(values: Float[np.ndarray, " rows"], present: Bool[np.ndarray, " rows"]) -> float:
    """Σ (recall step · precision) over thresholds at every value; NaN without a present row.

    It rewards neither a latent that is on everywhere, as the hole rate does, nor one that is rarely on, as precision
    does.
    """
    order = np.argsort(-values, kind="stable")
    n_present = np.cumsum(present[order])
    ends = np.flatnonzero(np.diff(values[order], append=np.nan) != 0)  # rows of equal value share a threshold
    steps = np.diff(n_present[ends], prepend=0)
    return float((steps * n_present[ends] / (ends + 1)).sum() / n_present[-1]) if n_present[-1] else float("nan")


def _member(
    acts: Float[np.ndarray, "rows n_latents"],
    rows: Bool[np.ndarray, " rows"],
    on: Bool[np.ndarray, " rows"],
    along: Float[np.ndarray, " n_latents"],
    usual: float,
) -> tuple[float, float, int]:
    """Hole rate, absorbed rate and absorbing latent of a member; `along` is 0 for latents that cannot absorb."""
    if rows.sum() < MIN_ROWS:
        return float("nan"), float("nan"), -1
    holes = acts[rows & ~on]
    hole_rate = float(len(holes) / rows.sum())
    if not len(holes):
        return 0.0, 0.0, -1
    if usual <= 0:
        return hole_rate, float("nan"), -1
    absorber = int((holes.mean(axis=0) * along).argmax())
    n_absorbed = int((holes[:, absorber] * along[absorber] >= ABSORBER_SHARE * usual).sum())
    return hole_rate, float(n_absorbed / rows.sum()), absorber if n_absorbed else -1


def _encoded_one(
    sae: SAE, x: Float[np.ndarray, "rows d_in"], activation: Activation, latent: int
) -> Float[np.ndarray, " rows"]:
    """Activations of one latent. The others, of which there are thousands, are computed only where it competes."""
    if activation == RELU:
        sae, latent = take_latents(sae, np.array([latent])), 0
    return np.concatenate([acts[:, latent] for acts in _encoded_chunks(sae, x, activation)])[: len(x)]


def _encoded(
    sae: SAE, x: Float[np.ndarray, "rows d_in"], activation: Activation
) -> Float[np.ndarray, "rows n_latents"]:
    return np.concatenate([*_encoded_chunks(sae, x, activation)])[: len(x)]


def _encoded_chunks(
    sae: SAE, x: Float[np.ndarray, "rows d_in"], activation: Activation
) -> Iterator[Float[np.ndarray, "chunk n_latents"]]:
    """Activations of rows that are filled up to chunks of one shape, so that nothing is compiled again."""
    padded = np.pad(x, ((0, -len(x) % CHUNK), (0, 0)))
    for i in range(0, len(padded), CHUNK):
        yield np.asarray(encoded(sae, jnp.asarray(padded[i : i + CHUNK]), activation))
