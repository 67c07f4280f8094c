"""The fast loss equals an explicit loop over prefixes, values and gradients, and reduces to vanilla."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import random_arrays, slow_loss

from toy.loss import LossParts, Sparsity, prefix_mse, sae_loss, sparsity_penalty
from toy.prefixes import FixedWeights, all_prefixes, balanced, expected, fixed, full, inclusion
from toy.sae import SAE

SIZES = st.sampled_from([(1, 1, 1), (3, 2, 5), (5, 4, 2), (4, 3, 12)])  # rows, d_in, n_latents


def normalised(n: int, values: list[float]) -> FixedWeights:
    weights = np.array(values[:n]) + 1e-3 * (np.arange(n) == n - 1)  # never all 0
    return FixedWeights(weights / weights.sum())


WEIGHTINGS = st.one_of(
    st.sampled_from([full, all_prefixes, lambda n: expected(n, 3), lambda n: balanced(n, 0.75)]),
    st.lists(st.integers(0, 99), min_size=1, max_size=15).map(lambda w: lambda n: fixed(n, [1 + i % n for i in w])),
    st.lists(st.floats(0, 1), min_size=12, max_size=12).map(lambda values: lambda n: normalised(n, values)),
)


@jax.jit
def fast_loss(
    arrays: dict[str, Any], weights: jax.Array, ranks: jax.Array, coef: float, log: bool
) -> tuple[tuple[jax.Array, LossParts], SAE]:
    sae, s = SAE(**{name: arrays[name] for name in SAE._fields}), inclusion(weights, ranks)

    def loss(kind: Sparsity) -> tuple:
        return jax.value_and_grad(lambda sae: sae_loss(sae, arrays["x"], s, coef, kind), has_aux=True)(sae)

    return jax.tree.map(lambda a, b: jnp.where(log, a, b), loss("log"), loss("l1"))


@pytest.mark.usefixtures("x64")
@given(size=SIZES, weighting=WEIGHTINGS, seed=st.integers(0, 10_000), coef=st.floats(0, 2), log=st.booleans())
def test_value_and_gradients_are_those_of_the_loop_over_prefixes(
    size: tuple[int, int, int], weighting: Callable[[int], FixedWeights], seed: int, coef: float, log: bool
) -> None:
    arrays, weights = random_arrays(seed, *size), np.asarray(weighting(size[2]).weights)
    loss, grads = slow_loss(arrays, enumerate(weights, start=1), coef, "log" if log else "l1")
    (fast, parts), fast_grads = fast_loss(arrays, jnp.array(weights), jnp.arange(size[2]), coef, log)
    assert fast == pytest.approx(loss, rel=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(getattr(fast_grads, name), grad, rtol=0, atol=1e-12 * max(np.abs(grad).max(), loss))
    mse, _ = slow_loss(arrays, enumerate(weights, start=1), 0.0, "l1")
    assert parts.mse == pytest.approx(mse, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_ranks_are_the_loss_of_the_reordered_sae() -> None:
    arrays = random_arrays(0, 6, 4, 5)
    order = np.array([3, 0, 4, 1, 2])  # the latent at each rank
    ranks = np.argsort(order)
    sorted_arrays = arrays | {
        "W_enc": arrays["W_enc"][:, order],
        "b_enc": arrays["b_enc"][order],
        "W_dec": arrays["W_dec"][order],
    }
    weights = np.array([0.1, 0.2, 0.3, 0.0, 0.4])
    loss, grads = slow_loss(sorted_arrays, enumerate(weights, start=1), 0.7, "l1")
    (fast, _), fast_grads = fast_loss(arrays, jnp.array(weights), jnp.array(ranks), 0.7, False)
    assert fast == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(fast_grads.W_dec, grads["W_dec"][ranks], rtol=1e-10, atol=1e-12)
    unsorted, _ = slow_loss(arrays, enumerate(weights, start=1), 0.7, "l1")
    assert abs(unsorted - loss) > 1e-3


@pytest.mark.usefixtures("x64")
def test_the_full_prefix_alone_is_the_plain_squared_error() -> None:
    arrays = random_arrays(1, 7, 3, 4)
    x, W_dec, b_dec = arrays["x"], arrays["W_dec"], arrays["b_dec"]
    acts = np.maximum(x @ arrays["W_enc"] + arrays["b_enc"], 0)
    plain = ((x - acts @ W_dec - b_dec) ** 2).sum(axis=1).mean()
    s = inclusion(jnp.asarray(full(4).weights), jnp.arange(4))
    fast = prefix_mse(jnp.array(x), jnp.array(acts), jnp.array(W_dec), jnp.array(b_dec), s)
    assert fast == pytest.approx(plain, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_parts_are_l0_and_each_latent_s_mean_squared_contribution() -> None:
    arrays = random_arrays(2, 50, 3, 4)
    (_, parts), _ = fast_loss(arrays, jnp.asarray(full(4).weights), jnp.arange(4), 0.0, False)
    acts = np.maximum(arrays["x"] @ arrays["W_enc"] + arrays["b_enc"], 0)
    assert parts.l0 == pytest.approx((acts > 0).sum(axis=1).mean())
    vectors = acts[:, :, None] * arrays["W_dec"]
    np.testing.assert_allclose(parts.contribution, (vectors**2).sum(axis=2).mean(axis=0), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_penalty_counts_a_latent_by_the_weight_of_its_prefixes() -> None:
    arrays = random_arrays(3, 50, 3, 2)
    weights, on_all = jnp.array([0.25, 0.75]), jnp.ones(1)
    first = {name: a[..., :1] if name in ("W_enc", "b_enc") else a for name, a in arrays.items()}
    first["W_dec"] = arrays["W_dec"][:1]

    def penalty(some: dict[str, np.ndarray], weights: jax.Array) -> float:
        ranks = jnp.arange(len(weights))
        with_penalty, without = (fast_loss(some, weights, ranks, coef, True)[0][0] for coef in (1.0, 0.0))
        return float(with_penalty - without)

    alone, both = penalty(first, on_all), penalty(arrays, jnp.array([0.0, 1.0]))
    assert penalty(arrays, weights) == pytest.approx(0.25 * alone + 0.75 * both, rel=1e-9)


def test_the_penalties_are_the_formulas_of_the_post() -> None:
    acts, norms = jnp.array([[0.0, 2.0], [1.0, 0.0]]), jnp.array([0.5, 3.0])
    np.testing.assert_allclose(sparsity_penalty(acts, norms, "l1"), [0.25, 3.0])
    logs = [(np.log(0.6) - np.log(0.1)) / 2, (np.log(6.1) - np.log(0.1)) / 2]
    np.testing.assert_allclose(sparsity_penalty(acts, norms, "log"), logs, rtol=1e-6)


def test_an_unknown_penalty_is_refused_by_name() -> None:
    kind: Any = "l2"
    with pytest.raises(Exception, match="l2"):
        sparsity_penalty(jnp.ones((1, 1)), jnp.ones(1), kind)
