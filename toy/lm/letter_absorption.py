"""The latents of an SAE that stand for a letter, and how much of it others have absorbed, as SAEBench defines it.

Main latents of a letter: an L1-penalised logistic regression on all activations ranks them, and the top-ranked
latents are taken for as long as each raises the F1 of a logistic regression on them by more than `SPLIT_GAIN` (feature
splitting).

Absorption, on test words whose letter the probe classifies correctly: what a latent adds is its activation times the
projection of its decoder row on the probe's direction, which is to be compared with the projection of the model's
activation.
*Full*: all main latents are off, and one other latent adds a share `ABSORBER_SHARE` of that projection or more.
*Fractional*: of what main latents and the `MOST_ABSORBERS` strongest others add up to, the share that is not the main
latents'; 0 where those others add less than `ABSORBER_SHARE`, or where the main latents add all.
Source: Karvonen et al. (2025), code of SAEBench 0.4; Chanin et al. (arXiv 2409.14507).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from toy.compiled import compiled
from toy.lm.absorption import ABSORBER_COSINE, ABSORBER_SHARE
from toy.lm.first_letter import LetterProbes, OfLetters, Task, f1_scores
from toy.sae import RELU, SAE, Activation, decoder_norms, encode

MOST_MAIN = 10  # latents of a letter
SPLIT_GAIN = 0.03  # in F1
FULL_COSINE = 0.025  # least cosine of a fully absorbing latent's decoder row with the probe
MOST_ABSORBERS = 3  # that count together in fractional absorption
L1 = 0.005  # against a loss in which both classes have a weight of ½, which is SAEBench's .01
RANK_STEPS, RANK_RATES = 300, (1e-1, 1e-4)  # Adam's steps and its first and last learning rate
FIT_STEPS = 200  # of the regressions on a few latents
_dot = partial(jnp.matmul, precision="highest")  # else GPUs round to 10 bits

Acts = Float[Array, "rows n_latents"]
Ranked = Int[Array, "n_letters most_main"]


class LetterAbsorption(NamedTuple):
    """Measures of one SAE; one entry per letter. NaN without a test word whose letter the probe gets right."""

    main: list[list[int]]  # latents
    f1: OfLetters  # of the regression on the first of them, on test words
    f1_main: OfLetters  # of the regression on them all
    fraction: OfLetters  # mean fractional absorption
    full: OfLetters  # share of words with full absorption
    fraction_from_bias: OfLetters  # the same two, with projections taken from the SAE's b_dec instead of from 0
    full_from_bias: OfLetters


def measure_letters(
    sae: SAE,
    x: Float[np.ndarray, "n_words d_in"],
    task: Task,
    probes: LetterProbes,
    activation: Activation = RELU,
) -> LetterAbsorption:
    present, test = task.present(), task.is_test
    acts = _scaled_acts(sae, jnp.asarray(x), activation=activation)
    ranked, found = _on_ranked(acts[~test], jnp.asarray(present[~test]), acts[test])
    f1 = np.stack([f1_scores(present[test], np.asarray(of_k)) for of_k in found], axis=1)  # [n_letters most_main]
    n_of = np.array([n_main(gains) for gains in f1])
    main = [latents[:n].tolist() for latents, n in zip(np.asarray(ranked), n_of, strict=True)]
    is_main = np.zeros((len(main), acts.shape[1]), bool)
    for of_letter, latents in zip(is_main, main, strict=True):
        of_letter[latents] = True
    letter, read = task.letter[test], probes.correct(task.letter[test])
    # All words are measured, so that one program serves all sites.
    words = (x[test], np.maximum(letter, 0), probes.directions, is_main)
    on_device = [jnp.asarray(values) for values in words]
    found_from = [
        absorbed(sae, *on_device, origin, activation=activation) for origin in (jnp.zeros_like(sae.b_dec), sae.b_dec)
    ]
    means = [_means(np.asarray(of)[read], letter[read], len(main)) for both in found_from for of in both]
    return LetterAbsorption(main, f1[:, 0], f1[np.arange(len(main)), n_of - 1], *means)


def n_main(f1: Float[np.ndarray, " most_main"]) -> int:
    """The number of latents up to where each has raised the F1 by more than `SPLIT_GAIN`; at least 1."""
    too_little = np.flatnonzero(np.diff(f1) <= SPLIT_GAIN)
    return int(too_little[0]) + 1 if len(too_little) else len(f1)


def _means(values: np.ndarray, letter: Int[np.ndarray, " n_read"], n_letters: int) -> OfLetters:
    n_read = np.bincount(letter, minlength=n_letters)
    sums = np.bincount(letter, weights=values, minlength=n_letters)
    return np.where(n_read > 0, sums / np.maximum(n_read, 1), np.nan)


@compiled(static_argnames="activation")
def _scaled_acts(sae: SAE, x: Float[Array, "rows d_in"], *, activation: Activation) -> Acts:
    """The norms of what latents add, over the mean of those that are on, as the L1 penalty depends on the scale."""
    acts = encode(sae, x, activation) * decoder_norms(sae)
    return acts * jnp.sum(acts > 0) / jnp.maximum(jnp.sum(acts), 1e-12)


@compiled()
def _on_ranked(
    acts: Acts, present: Bool[Array, "rows n_letters"], test_acts: Float[Array, "test_rows n_latents"]
) -> tuple[Ranked, Bool[Array, "most_main test_rows n_letters"]]:
    """The first latents of each letter, and what a regression on the first 1, 2, … of them finds in the test rows."""
    signs, n_present = jnp.where(present, 1.0, -1.0), present.sum(axis=0)
    weights = jnp.where(present, 0.5 / n_present, 0.5 / (len(present) - n_present))
    ranked = jax.lax.top_k(_l1_weights(acts, signs, weights).T, min(MOST_MAIN, acts.shape[1]))[1]

    def of_letter(latents: Array, signs: Array, weights: Array) -> Array:
        few, few_test = acts[:, latents], test_acts[:, latents]
        n = len(latents)
        return jax.vmap(lambda k: _found(few, few_test, jnp.arange(n) < k, signs, weights))(1 + jnp.arange(n))

    return ranked, jnp.moveaxis(jax.vmap(of_letter)(ranked, signs.T, weights.T), 0, -1)


def _l1_weights(acts: Acts, signs: Array, weights: Array) -> Float[Array, "n_latents n_letters"]:
    """The weights of the penalised logistic regressions, by Adam from 0."""
    schedule = optax.exponential_decay(RANK_RATES[0], RANK_STEPS, RANK_RATES[1] / RANK_RATES[0])
    adam = optax.adam(schedule)

    def loss(fitted: tuple[Array, Array]) -> Array:
        logits = acts @ fitted[0] + fitted[1]
        return jnp.sum(weights * jax.nn.softplus(-signs * logits)) + L1 * jnp.sum(jnp.abs(fitted[0]))

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        fitted, memory = state
        updates, memory = adam.update(jax.grad(loss)(fitted), memory)
        return (optax.apply_updates(fitted, updates), memory), None

    start = jnp.zeros((acts.shape[1], signs.shape[1])), jnp.zeros(signs.shape[1])
    ((fitted, _), _), _ = jax.lax.scan(step, (start, adam.init(start)), None, RANK_STEPS)
    return fitted


def _found(
    few: Float[Array, "rows most_main"],
    few_test: Float[Array, "test_rows most_main"],
    used: Bool[Array, " most_main"],
    signs: Float[Array, " rows"],
    weights: Float[Array, " rows"],
) -> Bool[Array, " test_rows"]:
    """Returns where a logistic regression on the latents that are used finds the letter.

    It minimises rows · (mean loss, both classes with a weight of ½) + ‖w‖² / 2, as scikit-learn's does by default,
    by steps that an upper bound of the Hessian makes safe.
    """
    inputs, tests = (jnp.pad(acts * used, ((0, 0), (0, 1)), constant_values=1.0) for acts in (few, few_test))
    of_rows, ridge = weights * len(few), jnp.append(jnp.ones(len(used)), 1e-6)
    bound = jax.scipy.linalg.cho_factor(_dot(inputs.T, of_rows[:, None] * inputs) / 4 + jnp.diag(ridge))

    def step(_: Array | int, w: Array) -> Array:
        errors = of_rows * signs * jax.nn.sigmoid(-signs * _dot(inputs, w))
        return w + jax.scipy.linalg.cho_solve(bound, _dot(inputs.T, errors) - ridge * w)

    return _dot(tests, jax.lax.fori_loop(0, FIT_STEPS, step, jnp.zeros(len(ridge)))) > 0


@compiled(static_argnames="activation")
def absorbed(
    sae: SAE,
    x: Float[Array, "rows d_in"],
    letter: Int[Array, " rows"],
    directions: Float[Array, "d_in n_letters"],
    is_main: Bool[Array, "n_letters n_latents"],
    origin: Float[Array, " d_in"],
    *,
    activation: Activation = RELU,
) -> tuple[Float[Array, " rows"], Bool[Array, " rows"]]:
    """The fractional absorption of each row's letter, and whether it is fully absorbed.

    The model's projection is that of x − origin. Source: SAEBench, whose origin is 0 and whose decoders have norm 1.
    """
    along = sae.W_dec @ directions
    cosine = (along / jnp.maximum(decoder_norms(sae), 1e-12)[:, None]).T[letter]
    main, acts = is_main[letter], encode(sae, x, activation)
    added = acts * along.T[letter]
    whole = jnp.sum((x - origin) * directions.T[letter], axis=1)
    of_main = jnp.sum(jnp.where(main, added, 0), axis=1)
    may_absorb = ~main & (cosine >= ABSORBER_COSINE) & (added > 0)
    of_others = jnp.sum(jax.lax.top_k(jnp.where(may_absorb, added, 0), min(MOST_ABSORBERS, added.shape[1]))[0], axis=1)
    taken = jnp.minimum(of_others, whole - of_main)
    fraction = jnp.where(of_main > 0, taken / jnp.where(of_main > 0, taken + of_main, 1), 1)
    counts = (whole > of_main) & (whole > 0) & (of_others >= ABSORBER_SHARE * whole)
    strongest = jnp.argmax(added, axis=1, keepdims=True)
    aligned = jnp.take_along_axis(cosine, strongest, axis=1)[:, 0] >= FULL_COSINE
    enough = (whole > 0) & (jnp.max(added, axis=1) >= ABSORBER_SHARE * whole)
    off = ~jnp.any(main & (acts > 0), axis=1)
    return jnp.where(counts, jnp.clip(fraction, 0, 1), 0), off & aligned & enough
