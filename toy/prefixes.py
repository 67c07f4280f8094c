"""Which prefixes of the latents are trained, and how much each weighs.

A weighting gives prefix length k (the first k latents) the weight w_k ≥ 0, summing to 1. It is data, a pytree:
weightings of one kind share a compiled program, and a grid can hold several. Vanilla is `full`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.polynomial.legendre import leggauss


class FixedWeights(NamedTuple):
    """The same weights every batch."""

    weights: Float[Array | np.ndarray, "*lanes n_latents"]  # of prefix lengths 1 … n_latents

    @property
    def n_latents(self) -> int:
        return self.weights.shape[-1]


class SampledPrefixes(NamedTuple):
    """`n_prefixes` lengths drawn each batch, the full one always among them, equally weighted."""

    rates: Float[Array | np.ndarray, "*lanes n_latents-1"]  # of lengths 1 … n_latents − 1
    n_prefixes: Int[Array | np.ndarray, "*lanes"]

    @property
    def n_latents(self) -> int:
        return self.rates.shape[-1] + 1


Weighting = FixedWeights | SampledPrefixes


def full(n_latents: int) -> FixedWeights:
    """The single full prefix: a vanilla SAE."""
    return fixed(n_latents, (n_latents,))


def fixed(n_latents: int, widths: Sequence[int]) -> FixedWeights:
    """Equal weight on each of the given prefix lengths; a repeated length counts as often as it stands."""
    widths_array = np.asarray(widths)
    if len(widths_array) == 0 or widths_array.min() < 1 or widths_array.max() > n_latents:
        raise ValueError(f"widths: need lengths between 1 and n_latents = {n_latents}, got {tuple(widths)}")
    return FixedWeights(np.bincount(widths_array - 1, minlength=n_latents) / len(widths_array))


def all_prefixes(n_latents: int) -> FixedWeights:
    """Equal weight on every prefix length."""
    return fixed(n_latents, range(1, n_latents + 1))


def sampled(n_latents: int, n_prefixes: int = 10, power: float = 0.5) -> SampledPrefixes:
    """Fresh prefixes each batch: the full one and n_prefixes − 1 shorter ones, equally weighted.

    The shorter ones are drawn without replacement with probability ∝ `pareto_rates`. There are only n_latents
    lengths, so n_prefixes ≥ n_latents means every prefix, each batch. Source: the post; reference code.
    """
    _check_n_prefixes(n_prefixes)
    return SampledPrefixes(pareto_rates(n_latents, power), np.asarray(min(n_prefixes, n_latents)))


def expected(n_latents: int, n_prefixes: int = 10, power: float = 0.5) -> FixedWeights:
    """The exact expectation of `sampled`: w_k = P(k among the prefixes) / n_prefixes."""
    _check_n_prefixes(n_prefixes)
    n_prefixes = min(n_prefixes, n_latents)
    shorter = inclusion_probabilities(pareto_rates(n_latents, power), n_prefixes - 1)
    return FixedWeights(np.append(shorter, 1.0) / n_prefixes)


def balanced(n_latents: int, full_share: float = 0.5, n_prefixes: int = 10, power: float = 0.5) -> FixedWeights:
    """`expected` with the share of the full prefix set to `full_share` (Chanin et al., arXiv 2505.11756)."""
    if not 0 <= full_share <= 1:
        raise ValueError(f"full_share: {full_share} is outside [0, 1]")
    weights = np.array(expected(n_latents, n_prefixes, power).weights)
    shorter = weights[:-1].sum()
    if shorter == 0:
        return full(n_latents)
    return FixedWeights(np.append(weights[:-1] * (1 - full_share) / shorter, full_share))


def _check_n_prefixes(n_prefixes: int) -> None:
    if n_prefixes < 1:
        raise ValueError(f"n_prefixes: must be at least 1 (the full prefix), got {n_prefixes}")


def pareto_rates(n_latents: int, power: float = 0.5) -> Float[np.ndarray, " {n_latents}-1"]:
    """P(one draw is length k), k = 1 … n_latents − 1: ∝ (k/n)^power − ((k−1)/n)^power (truncated Pareto)."""
    if n_latents < 1:
        raise ValueError(f"n_latents: must be at least 1, got {n_latents}")
    if power <= 0:
        raise ValueError(f"power: must be above 0, got {power}")
    rates = np.diff((np.arange(n_latents) / n_latents) ** power)
    return rates / rates.sum() if n_latents > 1 else rates


def inclusion_probabilities(rates: Float[np.ndarray, " n"], n_drawn: int) -> Float[np.ndarray, " n"]:
    """P(item i is among n_drawn items drawn one by one without replacement with probability ∝ rates), exactly.

    Drawing so is taking the n_drawn smallest of independent exponential clocks T_i of the given rates (float64,
    on the host). P(i in) = E[P(fewer than n_drawn others ring before T_i)], an integral over u = exp(−T) of
    Poisson-binomial probabilities, done by Gauss-Legendre quadrature.
    """
    n = len(rates)
    if n_drawn >= n:
        return np.ones(n)
    if n_drawn == 0:
        return np.zeros(n)
    # Substitute u = v^6: keeps the integrand smooth at u = 0 where it behaves like u^rate with small rates.
    nodes, quadrature = leggauss(400)
    u = ((nodes + 1) / 2) ** 6
    measure = quadrature / 2 * 6 * ((nodes + 1) / 2) ** 5
    c = n_drawn / rates.sum()  # time scale: about n_drawn clocks have rung by T = c
    log_u = np.log(u) * c
    rung = -np.expm1(rates[:, None] * log_u)  # (n, points): P(T_j < T)
    density = rates[:, None] * c * np.exp((rates[:, None] * c - 1) * np.log(u))
    probabilities = np.empty(n)
    for i in range(n):
        count = np.zeros((n_drawn, len(u)))  # P(m others have rung), m < n_drawn
        count[0] = 1
        for p in np.delete(rung, i, axis=0):
            count[1:] = count[1:] * (1 - p) + count[:-1] * p
            count[0] *= 1 - p
        probabilities[i] = (count.sum(0) * density[i]) @ measure
    return probabilities


def draw_weights(key: Key[Array, ""], weighting: Weighting) -> Float[Array, " n_latents"]:
    """The weights of this batch: for `sampled` by the exponential clocks above; otherwise the key is unused."""
    if isinstance(weighting, FixedWeights):
        return jnp.asarray(weighting.weights, jnp.result_type(float))
    clocks = jax.random.exponential(key, weighting.rates.shape) / weighting.rates
    earlier = jnp.sum(clocks[None, :] < clocks[:, None], axis=1)
    drawn = jnp.append(earlier < weighting.n_prefixes - 1, True)
    return drawn / weighting.n_prefixes


def inclusion(weights: Float[Array, " n_latents"], ranks: Int[Array, " n_latents"]) -> Float[Array, " n_latents"]:
    """s_i = Σ_{k > rank(i)} w_k: the weight of the prefixes that hold latent i, whose rank counts from 0."""
    return jnp.cumsum(weights[::-1])[::-1][ranks]
