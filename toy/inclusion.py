"""Exact inclusion probabilities of weighted sampling without replacement: how often each prefix is drawn.

Drawing n_drawn items one by one without replacement, each with probability proportional to its rate r_i, is taking the
n_drawn items whose independent exponential clocks T_i of rates r_i ring first. Item i is drawn if and only if fewer
than n_drawn others ring before it, so with u = exp(-T_i)

    P(i drawn) = ∫₀¹ r_i u^(r_i - 1) P(fewer than n_drawn of the others have rung by T = -log u) du.

At a given T the others ring independently, with probability 1 - u^(r_j), so their number has a Poisson-binomial
distribution. The products of the distributions of the items before i and of those after i give it for every i in a
time that is linear in the number of items, and Gauss-Legendre quadrature does the integral. Everything is in float64,
on the host.
"""

from functools import cache

import numpy as np
from jaxtyping import Float
from numpy.polynomial.legendre import leggauss

SINGULAR = 128  # items up to which the integrand may need a stronger substitution than u = v^6


def inclusion_probabilities(rates: Float[np.ndarray, " n"], n_drawn: int) -> Float[np.ndarray, " n"]:
    """P(item i is among `n_drawn` items that are drawn without replacement), for items of the given rates, exactly."""
    n = len(rates)
    if n_drawn >= n:
        return np.ones(n)
    if n_drawn == 0:
        return np.zeros(n)
    nodes, quadrature = _quadrature()
    v = (nodes + 1) / 2
    c = n_drawn / rates.sum()  # time scale: about n_drawn clocks have rung by T = c
    # Substitute u = v^power: keeps the integrand smooth at u = 0 where it behaves like u^rate with small rates.
    singular = n <= SINGULAR and 6 * rates.min() * c < 1
    power = min(4 / (rates.min() * c), 60.0) if singular else 6
    probabilities = np.zeros(n)
    for part in np.array_split(np.arange(len(v)), 1 + n * n_drawn * len(v) // 10**7):  # bounds the memory
        log_u, measure = power * np.log(v[part]) * c, quadrature[part] / 2 * power * v[part] ** (power - 1)
        rung = -np.expm1(rates[:, None] * log_u)  # (n, points): P(T_j < T)
        density = rates[:, None] * c * np.exp((rates[:, None] - 1 / c) * log_u)
        before, after = _rung_counts(rung, n_drawn), _rung_counts(rung[::-1], n_drawn)[::-1]
        at_most = np.cumsum(after, axis=1)[:, ::-1]  # P(fewer than n_drawn - m of the items after i have rung)
        fewer = np.einsum("imp,imp->ip", before, at_most)
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
