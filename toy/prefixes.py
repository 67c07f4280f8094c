"""The prefixes of the latents that are trained, and the weight of each.

A weighting gives prefix length k (the first k latents) the weight w_k ≥ 0; the weights sum to 1. It is a pytree: its
numbers can be traced and have lanes, while its type and shape say how many prefixes there are, and so which algorithm
the loss uses. A vanilla SAE has the weighting `full`.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from toy.checks import NOT_NEGATIVE, POSITIVE, Real, Whole, check_numbers, quoted
from toy.inclusion import inclusion_probabilities
from toy.sae import MOST_PAIRS


class FixedWeights(NamedTuple):
    """A weight for every prefix length, the same in every batch."""

    weights: Float[Array | np.ndarray, "*lanes n_latents"]  # of prefix lengths 1 … n_latents

    @property
    def n_latents(self) -> int:
        return self.weights.shape[-1]


class FixedPrefixes(NamedTuple):
    """A few prefix lengths, the same in every batch."""

    lengths: Int[Array | np.ndarray, "*lanes n_prefixes"]  # ascending; the last is n_latents
    weights: Float[Array | np.ndarray, "*lanes n_prefixes"]

    @property
    def n_latents(self) -> int:
        return int(np.max(self.lengths))


class SampledPrefixes(NamedTuple):
    """A few prefix lengths, drawn anew for every batch; the full one is always among them."""

    rates: Float[Array | np.ndarray, "*lanes n_latents-1"]  # of lengths 1 … n_latents − 1
    weights: Float[Array | np.ndarray, "*lanes n_prefixes"]  # of the full prefix, then of the others as drawn

    @property
    def n_latents(self) -> int:
        return self.rates.shape[-1] + 1


class HybridWeights(NamedTuple):
    """A weight for each of the first lengths, then one length per tile; all tiles but the last are equally long."""

    head: Float[Array | np.ndarray, "*lanes n_exact"]  # of lengths 1 … n_exact
    lengths: Int[Array | np.ndarray, "*lanes n_tiles"]  # where the tiles end; the last is n_latents
    tail: Float[Array | np.ndarray, "*lanes n_tiles"]  # of these lengths

    @property
    def n_latents(self) -> int:
        return int(np.max(self.lengths))


NAMES = (
    "vanilla, all, sampled_N, expected_N (N prefixes), balanced_S (share S of the full one), "
    "levels:K=W,… (weight W on the first K latents, K% of them, or full)"
)
MOST_NAME = 200  # characters
MAX_TOTAL_ERROR = 1e-4  # of the sum of weights, which is 1 up to rounding
Prefixes = FixedWeights | FixedPrefixes | HybridWeights  # of one batch
Weighting = Prefixes | SampledPrefixes


def full(n_latents: int) -> FixedPrefixes:
    """The single full prefix: a vanilla SAE."""
    return fixed(n_latents, (n_latents,))


def fixed(n_latents: int, widths: Sequence[int]) -> FixedPrefixes:
    """Equal weight on each of the given prefix lengths; a length that is given n times counts n times.

    Without the full length the latents after the longest prefix would never be trained, so it is added with a warning,
    as in SAELens. Raises: ValueError for lengths that are not whole numbers from 1 to n_latents.
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
    """Fresh prefixes in every batch: the full one and n_prefixes − 1 shorter ones, equally weighted.

    The shorter ones are drawn without replacement with probability ∝ `pareto_rates`. There are only n_latents
    lengths, so n_prefixes ≥ n_latents means every prefix in every batch. Source: the post; reference code.
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
    check_numbers({"full_share": full_share}, {"full_share": Real(above=0, most=1)})
    weights = np.array(expected(n_latents, n_prefixes, power).weights)
    shorter = weights[:-1].sum()
    if shorter == 0:
        return FixedWeights(weights)
    return FixedWeights(np.append(weights[:-1] * (1 - full_share) / shorter, full_share))


def levels(n_latents: int, weights: Mapping[str, float]) -> FixedWeights:
    """A weight for each of some lengths: a number of latents, a share of them such as `25%`, or `full`.

    Weights are divided by their sum; lengths beyond the full one count as that. Source: the β of Chanin et al. (arXiv
    2505.11756). Raises: ValueError if the full length has no weight, or a length or weight is invalid.
    """
    found = np.zeros(n_latents)
    for name, weight in weights.items():
        check_numbers({"weight": weight}, {"weight": NOT_NEGATIVE})
        found[min(_length(name, n_latents), n_latents) - 1] += weight
    if not found[-1]:
        raise ValueError("levels: the full length needs a weight, as in full=1, or its latents are never trained")
    return FixedWeights(found / found.sum())


def _length(name: str, n_latents: int) -> int:
    if name == "full":
        return n_latents
    try:
        number = float(name.removesuffix("%")) if name.endswith("%") else int(name)
    except ValueError:
        raise ValueError(f"length: expected a number of latents, a share such as 25%, or full, got {name!r}") from None
    if not name.endswith("%"):
        check_numbers({"length": number}, {"length": Whole()})
        return int(number)
    check_numbers({"length in %": number}, {"length in %": Real(above=0, most=100)})
    return max(1, round(number / 100 * n_latents))


def hybrid(
    n_latents: int, n_prefixes: int = 10, power: float = 0.5, *, n_exact: int = 512, tile: int = 512
) -> HybridWeights:
    """`expected` on the first n_exact lengths; after them a tile's end has the weight of all of the tile's lengths.

    This is cheap at width, where the weights of the tail are tiny and change slowly. The gradient is closer to that of
    `expected` than that of a draw of `sampled` on average, and the smaller the tile, the closer it is.
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

    Names are `vanilla`, `all`, `sampled_N` and `expected_N` with N prefixes, `balanced_S` with the share S of the
    full one, and `levels:1=.25,50%=1,full=1` with a weight for each length. Raises: ValueError, with these, for any
    other.
    """
    kind, _, number = text.partition("_")
    try:
        if len(text) > MOST_NAME:
            raise ValueError
        if text in ("vanilla", "all"):
            return {"vanilla": full, "all": all_prefixes}[text](n_latents)
        if kind in ("sampled", "expected"):
            return {"sampled": sampled, "expected": expected}[kind](n_latents, int(number))
        if text.startswith("levels:"):
            pairs = [part.partition("=") for part in text.removeprefix("levels:").split(",")]
            weights = {length: float(weight) for length, _, weight in pairs}
            if len(weights) < len(pairs):
                raise ValueError  # a length is there twice
            return levels(n_latents, weights)
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


def draw(key: Key[Array, ""], weighting: Weighting) -> Prefixes:
    """The prefixes of one batch: `sampled` draws them by exponential clocks (`toy.inclusion`), others ignore the key.

    Where there are few lengths the draw is returned as a weight per length, which is faster.
    """
    if not isinstance(weighting, SampledPrefixes):
        return jax.tree.map(jnp.asarray, weighting)
    n_latents, n_shorter = weighting.n_latents, weighting.weights.shape[0] - 1
    rates = jnp.asarray(weighting.rates)
    clocks = jnp.where(
        rates > 0, jax.random.exponential(key, rates.shape) / rates, jnp.inf
    )  # a rate of 0 is padding and never rings
    if n_latents <= MOST_PAIRS:
        earlier = jnp.sum(clocks[None, :] < clocks[:, None], axis=1)
        weights = jnp.append(weighting.weights, 0.0)  # of the full prefix, of those drawn in turn, of the others
        return FixedWeights(jnp.append(weights[jnp.minimum(earlier, n_shorter) + 1], weights[0]))
    _, drawn = jax.lax.top_k(-clocks, n_shorter)  # the first to ring
    lengths = jnp.append(n_latents, drawn + 1)
    return FixedPrefixes(*jax.lax.sort((lengths, jnp.asarray(weighting.weights))))


def check_total(weighting: Weighting) -> None:
    """Raises: ValueError if the weights do not sum to 1, by which forms of the loss would differ."""
    is_hybrid = isinstance(weighting, HybridWeights)
    parts = (weighting.head, weighting.tail) if is_hybrid else (weighting.weights,)
    if any(isinstance(part, Tracer) for part in parts):
        return
    totals = np.asarray(sum(np.sum(np.asarray(part, float), axis=-1) for part in parts))
    if not np.allclose(totals, 1, atol=MAX_TOTAL_ERROR):
        raise ValueError(f"hypers.prefixes: weights must sum to 1: divide them by their sum, {totals.flat[0]:g}")


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


def of_inclusion(s: Float[Array, " n_latents"]) -> FixedWeights:
    """The weights of prefixes under which latents, in their order, have this `inclusion`, which must not rise."""
    return FixedWeights(s - jnp.append(s[1:], 0.0))


def suffix_sums(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Σ_{j ≥ i} weights_j."""
    return jnp.cumsum(weights[::-1])[::-1]
