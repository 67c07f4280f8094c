"""Activations of any type train as they would in float32; rows that cannot be trained on are told by their number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toy.data.rows import checked_rows
from toy.data.source import ArraySource, checked_source
from toy.eval.metrics import fvu, shrinkage
from toy.prefixes import full
from toy.sae import SAE
from toy.training.config import Hypers, TrainConfig
from toy.training.grid import train_grid
from toy.training.run import train
from toy.training.state import trained_sae

CFG = TrainConfig(4, n_steps=20, batch_size=16)
HYPERS = Hypers(full(4), target_l0=2.0)
ROWS = np.random.default_rng(0).normal(size=(64, 6))


def trained(x: Any) -> SAE:
    return trained_sae(train(jax.random.key(0), ArraySource(x), HYPERS, cfg=CFG, chunk=10)[0])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
@pytest.mark.parametrize("size", [1, 2_000])
def test_rows_of_another_type_train_as_those_of_float32(dtype: Any, size: int) -> None:
    x = (size * ROWS).astype(dtype)  # 2,000: the squared norm of a row is beyond float16
    assert np.isfinite(x.astype(np.float32)).all()
    for ours, theirs in zip(trained(x), trained(x.astype(np.float32)), strict=True):
        if ours is not None:
            assert np.isfinite(ours).all()
            np.testing.assert_array_equal(ours, theirs)


def refusal(x: Any) -> str:
    with pytest.raises(ValueError, match=r"^source: ") as told:
        train(jax.random.key(0), ArraySource(x), HYPERS, cfg=CFG)
    return str(told.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.nan, "source: row 17 has numbers that are not finite in float32"),
        (-np.inf, "source: row 17 has numbers that are not finite in float32"),
        (1e39, "source: row 17 has numbers that are not finite in float32"),
        (1e20, "source: row 17 has a number of size 1e+20: at most 1e+15 is trained on: scale the activations"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_told_before_any_work(value: float, told: str) -> None:
    x = ROWS.copy()
    x[17, 3] = value
    assert refusal(x).startswith(told)


def test_a_row_of_a_lane_is_told_by_both() -> None:
    x = np.stack([ROWS, ROWS]).astype(np.float32)
    x[1, 5, 0] = np.nan
    with pytest.raises(ValueError, match=r"^source: lane 1, row 5 has numbers"):
        train_grid(
            jax.random.split(jax.random.key(0), 2), ArraySource(jnp.asarray(x)), HYPERS, cfg=CFG, in_axes=(0, None)
        )


def test_activations_that_say_nothing_are_refused() -> None:
    assert refusal(1e-20 * ROWS) == "source: no number is larger than 1e-12: scale the activations up"
    assert refusal(0 * ROWS) == "source: all rows are 0: there is nothing to learn"
    assert refusal(np.arange(12).reshape(3, 4)).startswith("source: expected floating-point numbers, got int64")
    assert refusal(ROWS[0]).startswith("source: expected rows of activations (rows, d_in), got shape (6,)")


def test_rows_that_fit_are_not_copied_and_zeros_among_them_are_no_fault() -> None:
    x = ROWS.astype(np.float32)
    assert checked_rows(x, "x") is x
    half = ROWS.astype(jnp.bfloat16)
    assert checked_rows(half, "x") is half
    checked_rows(np.zeros((2, 3), np.float32), "x")


def test_a_source_that_gives_half_precision_is_trained_in_float32() -> None:
    class Half(ArraySource):
        def sample(self, key: jax.Array, batch_size: int) -> jax.Array:
            return super().sample(key, batch_size).astype(jnp.float16)

    jax.tree_util.register_pytree_node(Half, lambda s: ((s.x,), None), lambda _, leaves: Half(*leaves))
    x = (2_000 * ROWS).astype(np.float16).astype(np.float32)
    for ours, theirs in zip(
        trained_sae(train(jax.random.key(0), Half(jnp.asarray(x)), HYPERS, cfg=CFG)[0]), trained(x), strict=True
    ):
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs)


def test_an_array_in_place_of_a_source_is_told_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"^source: ndarray is no source .* toy\.data\.source\.ArraySource\(x\)"):
        checked_source(ROWS)


def test_the_fvu_and_shrinkage_of_half_precision_rows_are_those_of_float32() -> None:
    x = (2_000 * ROWS).astype(np.float16)
    recon = (x + 100).astype(np.float16)
    assert fvu(x, recon) == pytest.approx(fvu(x.astype(float), recon.astype(float)), rel=1e-3)
    assert shrinkage(x, recon) == pytest.approx(shrinkage(x.astype(float), recon.astype(float)), rel=1e-3)
