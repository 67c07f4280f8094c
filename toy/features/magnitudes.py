"""Magnitudes |N(mean, std²)| of features that are on: their exact means, and whether float32 can hold them."""

import math
from functools import cache
from statistics import NormalDist

MAX_MAGNITUDE = 1e6
MIN_MAGNITUDE = 1e-12  # its square, an energy, is still far above the least float32
_LEAST, _MOST = math.log(1e-37), math.log(1e18)  # float32 holds these, and the square of the latter
_NOISE_FLOOR = 27 * math.log(2)  # how far below its mean float32 noise brings a magnitude (see `sample_features`)
_SPREAD = 8.0  # standard deviations
_N_QUANTILES = 2048


def folded_mean(mean: float, std: float) -> float:
    """E|N(mean, std²)| = std √(2/π) exp(−mean² / 2 std²) + mean erf(mean / (std √2)); `mean` itself where std is 0."""
    if std == 0:
        return mean
    ratio = mean / std
    return std * math.sqrt(2 / math.pi) * math.exp(-(ratio**2) / 2) + mean * math.erf(ratio / math.sqrt(2))


def share_below_zero(mean: float, std: float) -> float:
    """P(N(mean, std²) ≤ 0), the share of magnitudes that max(0, ·) would clip."""
    if std == 0:
        return float(mean <= 0)
    return math.erfc(mean / std / math.sqrt(2)) / 2


def log_factor(mean: float, std: float) -> tuple[float, float]:
    """Mean and variance of log(|N(mean, std²)| / mean), by which a parent scales its children."""
    return (0.0, 0.0) if std == 0 else _log_moments(std / mean)


@cache
def _log_moments(spread: float) -> tuple[float, float]:
    quantiles = (NormalDist().inv_cdf((i + 0.5) / _N_QUANTILES) for i in range(_N_QUANTILES))
    logs = [math.log(max(abs(1 + spread * x), 1e-300)) for x in quantiles]
    centre = math.fsum(logs) / _N_QUANTILES
    return centre, math.fsum((x - centre) ** 2 for x in logs) / _N_QUANTILES


def fits_float32(mean: float, std: float, scaled: tuple[float, float]) -> bool:
    """Returns whether a scaled magnitude is neither 0 nor infinite in float32.

    `scaled` is the mean and variance of the logarithm of its scale, which counts within 8 standard deviations. The
    magnitude's own noise counts up to 6 standard deviations above the mean, and down to `_NOISE_FLOOR` below it.
    """
    centre, spread = scaled[0], _SPREAD * math.sqrt(scaled[1])
    if max(mean, std) == 0:
        return True
    low = math.log(max(mean, std)) + centre - spread - _NOISE_FLOOR
    return low > _LEAST and math.log(mean + 6 * std) + centre + spread < _MOST
