"""SynthSAEBench-16k (Chanin et al., arXiv 2602.14687): 16,384 features in 768 dimensions, made as SAELens makes them.

Probabilities, hierarchy, magnitudes, correlations and directions are those of `SyntheticModel` of SAELens 6.54 on a CPU
with the settings below, up to rounding: PyTorch's normal numbers are drawn again from their seeds. The published model
was made on a GPU and has other directions and correlations of the same distribution; its folder is read by
`toy.io.load_synthetic`. It is said not to scale children by their parents, unlike the program for it that is public,
and neither do these settings.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from toy.checks import MAX_SEED, NOT_NEGATIVE, POSITIVE, SHARE, Real, Whole, check_fields
from toy.features.hierarchy import Drawn

LEAST_NORMALS = 16  # below this PyTorch draws in another way
_LEAST_VARIANCE = 0.01  # of a feature's own noise


@dataclass(frozen=True)
class SynthSAEBench:
    """The settings of the benchmark; others make smaller ones."""

    n_features: int = 16_384
    d_in: int = 768
    n_roots: int = 128
    n_branches: int = 4  # mutually exclusive
    depth: int = 3
    max_prob: float = 0.4  # Zipf's law between these probabilities
    min_prob: float = 5e-4
    exponent: float = 0.5
    magnitudes: tuple[float, float] = (5.0, 4.0)  # mean of the first and of the last feature
    spread: tuple[float, float] = (0.5, 0.5)  # mean and standard deviation of the magnitudes' standard deviations
    rank: int = 25
    correlation: float = 0.1
    n_orthogonal_steps: int = 100
    orthogonal_rate: float = 3e-4
    bias: float = 0.5
    scale_children: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        least = Whole(LEAST_NORMALS)
        check_fields(self, n_features=least, d_in=least, n_roots=Whole(), n_branches=Whole(2), depth=Whole())
        check_fields(self, max_prob=SHARE, min_prob=Real(above=0, most=1), exponent=POSITIVE, rank=Whole())
        check_fields(self, correlation=NOT_NEGATIVE, n_orthogonal_steps=Whole(0), orthogonal_rate=POSITIVE)
        check_fields(self, bias=NOT_NEGATIVE, seed=Whole(0, MAX_SEED - 4))  # the next four are of other generators
        if self.min_prob > self.max_prob:
            raise ValueError(f"min_prob: must be at most max_prob = {self.max_prob:g}, got {self.min_prob:g}")


def hierarchy(cfg: SynthSAEBench) -> list[dict[str, Any]]:
    """The roots, numbered level by level; features for which no place is left stand alone."""
    number: Iterator[int] = iter(range(cfg.n_features))
    level = roots = [_node(i) for i in _first(number, cfg.n_roots)]
    for _ in range(cfg.depth):
        for node in level:
            node["children"] = [_node(i) for i in _first(number, cfg.n_branches)]
            node["mutually_exclusive_children"] = len(node["children"]) > 1
            node["scale_children_by_parent"] = cfg.scale_children
        level = [child for node in level for child in node["children"]]
    return roots


def _first(numbers: Iterator[int], n: int) -> list[int]:
    return [i for _, i in zip(range(n), numbers, strict=False)]


def _node(index: int) -> dict[str, Any]:
    return {"feature_index": index, "children": []}


def drawn(cfg: SynthSAEBench) -> Drawn:
    """Probabilities, compensated for what the hierarchy takes from them where that is possible, and the rest."""
    n, f32 = cfg.n_features, np.float32
    zipf = f32(1) / np.arange(1, n + 1, dtype=f32) ** f32(cfg.exponent)
    prob = cfg.min_prob + (cfg.max_prob - cfg.min_prob) * (zipf - zipf.min()) / (zipf.max() - zipf.min())
    loading = TorchNormal(cfg.seed + 4)(n, cfg.rank) * f32(cfg.correlation)
    squares = np.sum(loading**2, axis=1, keepdims=True)
    loading = loading * np.where(1 - squares < _LEAST_VARIANCE, np.sqrt((1 - _LEAST_VARIANCE) / squares), f32(1))
    std = np.abs(f32(cfg.spread[0]) + TorchNormal(cfg.seed + 1)(n) * f32(cfg.spread[1]))
    mean = np.linspace(*cfg.magnitudes, n, dtype=f32)
    return Drawn(_compensated(prob, hierarchy(cfg)), mean, std, loading, 1 - np.sum(loading**2, axis=1))


def _compensated(prob: np.ndarray, roots: list[dict[str, Any]]) -> np.ndarray:
    """Each probability over the parent's, times 1 + the mean number of rivals, and 1 at most."""
    factor, level = np.ones_like(prob), roots
    while level:
        for node in level:
            own = [child["feature_index"] for child in node["children"]]
            above = prob[node["feature_index"]]
            rivals = prob[own].sum() - prob[own] if len(own) > 1 else np.zeros(len(own), prob.dtype)
            factor[own] = (1 + rivals / above) / above
        level = [child for node in level for child in node["children"]]
    return np.minimum(prob * factor, 1)


def directions(cfg: SynthSAEBench) -> tuple[Float[Array, "n_features d_in"], Float[Array, " d_in"]]:
    """Unit directions, pushed apart, and the bias. At full size this takes a minute on two cores."""
    normal = TorchNormal(cfg.seed)
    W_feat, bias = _unit(jnp.asarray(normal(cfg.n_features, cfg.d_in))), jnp.zeros(cfg.d_in)
    if cfg.bias:
        bias = cfg.bias * _unit(jnp.asarray(normal(cfg.d_in)))
    return _orthogonalised(W_feat, cfg.n_orthogonal_steps, cfg.orthogonal_rate), bias


@partial(jax.jit, static_argnums=(1, 2))
def _orthogonalised(W: Float[Array, "n d"], n_steps: int, rate: float) -> Float[Array, "n d"]:
    """Adam on Σ_{i≠j} (w_i·w_j)² + n Σ_i (‖w_i‖² − 1)², whose gradient needs no matrix of n × n."""
    adam = optax.adam(rate)

    def step(_: Array, carry: tuple) -> tuple:
        W, state = carry
        squares = jnp.sum(W**2, axis=1, keepdims=True)
        gradient = 4 * (W @ (W.T @ W) - squares * W) + 4 * len(W) * (squares - 1) * W
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(W, updates), state

    return _unit(jax.lax.fori_loop(0, n_steps, step, (W, adam.init(W)))[0])


def _unit(W: Float[Array, "..."]) -> Float[Array, "..."]:
    return W / jnp.maximum(jnp.linalg.norm(W, axis=-1, keepdims=True), 1e-8)


class TorchNormal:
    """`torch.randn` on a CPU with a generator of this seed, call by call, to about 1e-6.

    Source: `normal_fill` in ATen's `native/cpu/DistributionTemplates.h` (PyTorch 2), for 16 numbers and more.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed)._bit_generator

    def __call__(self, *shape: int) -> Float[np.ndarray, "..."]:
        n = math.prod(shape)
        if n < LEAST_NORMALS:
            raise ValueError(f"at least {LEAST_NORMALS} numbers are drawn at once, not {n}")
        uniform = self._uniform(n)
        whole = n - n % LEAST_NORMALS
        numbers = np.append(_box_muller(uniform[:whole]), uniform[whole:])
        if whole < n:  # PyTorch draws the last ones again
            numbers[-LEAST_NORMALS:] = _box_muller(self._uniform(LEAST_NORMALS))
        return numbers.reshape(shape)

    def _uniform(self, n: int) -> np.ndarray:
        return (self._twister.random_raw(n) & (2**24 - 1)).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    u = uniform.reshape(-1, 2, LEAST_NORMALS // 2)
    radius, angle = np.sqrt(-2 * np.log(1 - u[:, 0])), np.float32(2 * np.pi) * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
