"""Which prefixes of the latents are trained, and how much each weighs.

A weighting gives prefix length k (the first k latents) the weight w_k ≥ 0, summing to 1. It is data, a pytree: what
stands in it can be traced and have lanes, while its type and shape say how many prefixes there are, and so which
algorithm the loss takes. Vanilla is `full`.
"""

import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.polynomial.legendre import leggauss

from toy.checks import POSITIVE, SHARE, Whole, check_numbers, quoted
from toy.sae import MOST_PAIRS


class FixedWeights(NamedTuple):
    """A weight for every prefix length, the same every batch."""

    weights: Float[Array | np.ndarray, "*lanes n_latents"]  # of prefix lengths 1 … n_latents

    @property
    def n_latents(self) -> int:
        return self.weights.shape[-1]


class FixedPrefixes(NamedTuple):
    """A few prefix lengths, the same every batch."""

    lengths: Int[Array | np.ndarray, "*lanes n_prefixes"]  # ascending; the last is n_latents
    weights: Float[Array | np.ndarray, "*lanes n_prefixes"]

    @property
    def n_latents(self) -> int:
        return int(np.max(self.lengths))


class SampledPrefixes(NamedTuple):
    """A few prefix lengths, drawn each batch, the full one always among them."""

    rates: Float[Array | np.ndarray, "*lanes n_latents-1"]  # of lengths 1 … n_latents − 1
    weights: Float[Array | np.ndarray, "*lanes n_prefixes"]  # of the full prefix, then of the others as drawn

    @property
    def n_latents(self) -> int:
        return self.rates.shape[-1] + 1


class HybridWeights(NamedTuple):
    """A weight for each of the first lengths, then one length a tile of equally many latents, but for the last."""

    head: Float[Array | np.ndarray, "*lanes n_exact"]  # of lengths 1 … n_exact
    lengths: Int[Array | np.ndarray, "*lanes n_tiles"]  # where the tiles end; the last is n_latents
    tail: Float[Array | np.ndarray, "*lanes n_tiles"]  # of these lengths

    @property
    def n_latents(self) -> int:
        return int(np.max(self.lengths))


NAMES = "vanilla, all, sampled_N, expected_N (N prefixes), balanced_S (share S of the full one)"
MOST_NAME = 40  # characters
Prefixes = FixedWeights | FixedPrefixes | HybridWeights  # of one batch
Weighting = Prefixes | SampledPrefixes


def full(n_latents: int) -> FixedPrefixes:
    """The single full prefix: a vanilla SAE."""
    return fixed(n_latents, (n_latents,))


def fixed(n_latents: int, widths: Sequence[int]) -> FixedPrefixes:
    """Equal weight on each of the given prefix lengths; a repeated length counts as often as it stands.

    Without the full length the latents behind the longest would never be trained: it is added, with a warning, as
    SAELens does. Raises: ValueError for lengths that are not whole numbers from 1 to n_latents.
    """
    check_numbers({"n_latents": n_latents, "widths": tuple(widths)}, {"n_latents": Whole(), "widths": Whole()})
    if len(widths) and max(widths) < n_latents:
        warnings.warn(
            f"widths: {tuple(widths)} leaves latents {max(widths) + 1} to {n_latents} untrained: the full length "
            f"{n_latents} is added",
            stacklevel=2,
        )
        widths = (*widths, n_latents)
    lengths, counts = np.unique(np.asarray(widths, int), return_counts=True)
    if len(lengths) == 0 or lengths[0] < 1 or lengths[-1] > n_latents:
        raise ValueError(f"widths: need lengths between 1 and n_latents = {n_latents}, got {tuple(widths)}")
    return FixedPrefixes(lengths, counts / counts.sum())


def all_prefixes(n_latents: int) -> FixedWeights:
    """Equal weight on every prefix length."""
    check_numbers({"n_latents": n_latents}, {"n_latents": Whole()})
    return FixedWeights(np.full(n_latents, 1 / n_latents))


def sampled(n_latents: int, n_prefixes: int = 10, power: float = 0.5) -> SampledPrefixes:
    """Fresh prefixes each batch: the full one and n_prefixes − 1 shorter ones, equally weighted.

    The shorter ones are drawn without replacement with probability ∝ `pareto_rates`. There are only n_latents
    lengths, so n_prefixes ≥ n_latents means every prefix, each batch. Source: the post; reference code.
    """
    _check_n_prefixes(n_prefixes)
    n_prefixes = min(n_prefixes, n_latents)
    return SampledPrefixes(pareto_rates(n_latents, power), np.full(n_prefixes, 1 / n_prefixes))


def expected(n_latents: int, n_prefixes: int = 10, power: float = 0.5) -> FixedWeights:
    """The exact expectation of `sampled`: w_k = P(k among the prefixes) / n_prefixes."""
    _check_n_prefixes(n_prefixes)
    n_prefixes = min(n_prefixes, n_latents)
    shorter = inclusion_probabilities(pareto_rates(n_latents, power), n_prefixes - 1)
    return FixedWeights(np.append(shorter, 1.0) / n_prefixes)


def balanced(n_latents: int, full_share: float = 0.5, n_prefixes: int = 10, power: float = 0.5) -> FixedWeights:
    """`expected` with the share of the full prefix set to `full_share` (Chanin et al., arXiv 2505.11756)."""
    check_numbers({"full_share": full_share}, {"full_share": SHARE})
    weights = np.array(expected(n_latents, n_prefixes, power).weights)
    shorter = weights[:-1].sum()
    if shorter == 0:
        return FixedWeights(weights)
    return FixedWeights(np.append(weights[:-1] * (1 - full_share) / shorter, full_share))


def hybrid(
    n_latents: int, n_prefixes: int = 10, power: float = 0.5, *, n_exact: int = 512, tile: int = 512
) -> HybridWeights:
    """`expected` on the first n_exact lengths; after them the weight of a tile's lengths stands on the tile's end.

    Cheap at width, where the tail's weights are tiny and change slowly. The gradient is closer to that of `expected`
    than draws of `sampled` are on average, and the closer the smaller the tile.
    """
    check_numbers({"tile": tile, "n_exact": n_exact}, {"tile": Whole(), "n_exact": Whole()})
    if not 1 <= n_exact < n_latents:
        raise ValueError(f"n_exact: must be from 1 to n_latents - 1 = {n_latents - 1}, got {n_exact}")
    weights = expected(n_latents, n_prefixes, power).weights
    n_tail = n_latents - n_exact
    starts = np.arange(n_exact, n_latents, -(-n_tail // -(-n_tail // tile)))  # equal tiles, so the count says the size
    ends = np.append(starts[1:], n_latents)
    return HybridWeights(weights[:n_exact], ends, np.add.reduceat(weights, starts))


@lru_cache(1_024)
def named(text: str, n_latents: int) -> Weighting:
    """The weighting of a name such as `sampled_10`, as arrays of the host.

    Names are `vanilla`, `all`, `sampled_N` and `expected_N` with N prefixes, and `balanced_S` with the share S of the
    full one. Raises: ValueError, with these, for any other.
    """
    kind, _, number = text.partition("_")
    try:
        if len(text) > MOST_NAME:
            raise ValueError
        if text in ("vanilla", "all"):
            return {"vanilla": full, "all": all_prefixes}[text](n_latents)
        if kind in ("sampled", "expected"):
            return {"sampled": sampled, "expected": expected}[kind](n_latents, int(number))
        if kind == "balanced":
            return balanced(n_latents, float(number))
    except ValueError:
        pass  # the number is missing or impossible
    raise ValueError(f"weighting: expected {NAMES}, got {quoted(repr(text))}")


def _check_n_prefixes(n_prefixes: int) -> None:
    check_numbers({"n_prefixes": n_prefixes}, {"n_prefixes": Whole()})


def pareto_rates(n_latents: int, power: float = 0.5) -> Float[np.ndarray, " {n_latents}-1"]:
    """P(one draw is length k), k = 1 … n_latents − 1: ∝ (k/n)^power − ((k−1)/n)^power (truncated Pareto)."""
    check_numbers({"n_latents": n_latents, "power": power}, {"n_latents": Whole(), "power": POSITIVE})
    rates = np.diff((np.arange(n_latents) / n_latents) ** power)
    return rates / rates.sum() if n_latents > 1 else rates


def inclusion_probabilities(rates: Float[np.ndarray, " n"], n_drawn: int) -> Float[np.ndarray, " n"]:
    """P(item i is among n_drawn items drawn one by one without replacement with probability ∝ rates), exactly.

    Drawing so is taking the n_drawn smallest of independent exponential clocks T_i of the given rates (float64,
    on the host). P(i in) = E[P(fewer than n_drawn others ring before T_i)], an integral over u = exp(−T) of
    Poisson-binomial probabilities, done by Gauss-Legendre quadrature. Time and memory are linear in n.
    """
    n = len(rates)
    if n_drawn >= n:
        return np.ones(n)
    if n_drawn == 0:
        return np.zeros(n)
    nodes, quadrature = _quadrature()
    v = (nodes + 1) / 2
    c = n_drawn / rates.sum()  # time scale: about n_drawn clocks have rung by T = c
    # Substitute u = v^power: keeps the integrand smooth at u = 0 where it behaves like u^rate with small rates.
    singular = n <= MOST_PAIRS and 6 * rates.min() * c < 1
    power = min(4 / (rates.min() * c), 60.0) if singular else 6
    probabilities = np.zeros(n)
    for part in np.array_split(np.arange(len(v)), 1 + n * n_drawn * len(v) // 10**7):  # bounds the memory
        log_u, measure = power * np.log(v[part]) * c, quadrature[part] / 2 * power * v[part] ** (power - 1)
        rung = -np.expm1(rates[:, None] * log_u)  # (n, points): P(T_j < T)
        density = rates[:, None] * c * np.exp((rates[:, None] - 1 / c) * log_u)
        before, after = _rung_counts(rung, n_drawn), _rung_counts(rung[::-1], n_drawn)[::-1]
        fewer = np.einsum(
            "imp,imp->ip", before, np.cumsum(after, axis=1)[:, ::-1]
        )  # P(m before + rest after < n_drawn)
        probabilities += (fewer * density) @ measure
    return probabilities


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    return leggauss(400)  # takes half a second


def _rung_counts(rung: Float[np.ndarray, "n points"], n_drawn: int) -> Float[np.ndarray, "n n_drawn points"]:
    """P(m of the items before i have rung), for every i and m < n_drawn."""
    counts = np.empty((len(rung), n_drawn, rung.shape[1]))
    count = np.zeros_like(counts[0])
    count[0] = 1
    for i, p in enumerate(rung):
        counts[i] = count
        count[1:] = count[1:] * (1 - p) + count[:-1] * p
        count[0] *= 1 - p
    return counts


def draw(key: Key[Array, ""], weighting: Weighting) -> Prefixes:
    """The prefixes of this batch: for `sampled` by the exponential clocks above; otherwise the key is unused.

    The few drawn are given as a weight for each length where lengths are few themselves: it is faster there.
    """
    if not isinstance(weighting, SampledPrefixes):
        return jax.tree.map(jnp.asarray, weighting)
    n_latents, n_shorter = weighting.n_latents, weighting.weights.shape[0] - 1
    rates = jnp.asarray(weighting.rates)
    clocks = jnp.where(rates > 0, jax.random.exponential(key, rates.shape) / rates, jnp.inf)  # 0 rings never: padding
    if n_latents <= MOST_PAIRS:
        earlier = jnp.sum(clocks[None, :] < clocks[:, None], axis=1)
        weights = jnp.append(weighting.weights, 0.0)  # of the full prefix, of those drawn in turn, of the others
        return FixedWeights(jnp.append(weights[jnp.minimum(earlier, n_shorter) + 1], weights[0]))
    _, drawn = jax.lax.top_k(-clocks, n_shorter)  # the first to ring
    lengths = jnp.append(n_latents, drawn + 1)
    return FixedPrefixes(*jax.lax.sort((lengths, jnp.asarray(weighting.weights))))


def inclusion(prefixes: Prefixes, ranks: Int[Array, " n_latents"]) -> Float[Array, " n_latents"]:
    """s_i = Σ_{k > rank(i)} w_k: the weight of the prefixes that hold latent i, whose rank counts from 0."""
    if isinstance(prefixes, FixedWeights):
        return suffix_sums(jnp.asarray(prefixes.weights))[ranks]
    if isinstance(prefixes, HybridWeights):
        n_exact = prefixes.head.shape[0]
        tail = FixedPrefixes(prefixes.lengths, prefixes.tail)
        head = jnp.append(suffix_sums(jnp.asarray(prefixes.head)), 0.0)[jnp.minimum(ranks, n_exact)]
        return head + inclusion(tail, ranks)
    return (jnp.asarray(prefixes.lengths) > ranks[:, None]) @ jnp.asarray(prefixes.weights)


def suffix_sums(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Σ_{j ≥ i} weights_j."""
    return jnp.cumsum(weights[::-1])[::-1]
