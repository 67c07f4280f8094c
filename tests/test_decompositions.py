"""Decompositions of matrices that stand side by side."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toy.decompositions import polar_factor, principal_axes, triangularised

BATCH = jax.random.normal(jax.random.key(0), (16, 5, 5))


@pytest.mark.parametrize("decompose", [principal_axes, polar_factor, triangularised])
def test_a_batch_is_decomposed_one_matrix_at_a_time(decompose: Callable[..., Any]) -> None:
    """Two batches at once would wait for each other's threads, at random and for ever."""
    assert not batched_calls(jax.vmap(decompose))
    assert batched_calls(jnp.linalg.qr)


def batched_calls(function: Callable[..., Any]) -> list[str]:
    """The calls of LAPACK in a compiled function that take the whole batch."""
    lines = jax.jit(function).lower(BATCH).as_text().splitlines()
    calls = [line for line in lines if "@lapack" in line]
    assert calls
    return [line for line in calls if "16x5" in line]


def test_decompositions_are_what_they_say() -> None:
    q, r = jax.vmap(triangularised)(BATCH)
    np.testing.assert_allclose(q @ r, BATCH, atol=1e-5)
    axes = jax.vmap(principal_axes)(BATCH @ BATCH.mT)
    along = axes.mT @ BATCH @ BATCH.mT @ axes
    np.testing.assert_allclose(along * (1 - jnp.eye(5)), 0, atol=1e-4)
    polar = jax.vmap(polar_factor)(BATCH)
    np.testing.assert_allclose(polar @ polar.mT, jnp.broadcast_to(jnp.eye(5), BATCH.shape), atol=1e-5)
    np.testing.assert_allclose(polar.mT @ BATCH, BATCH.mT @ polar, atol=1e-4)
