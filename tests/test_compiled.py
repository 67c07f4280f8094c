"""A program that was compiled from functions that have been replaced since is not run again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy.methods.method
from toy.compiled import compiled
from toy.data.source import ArraySource
from toy.prefixes import full
from toy.training.advance import advance
from toy.training.config import Hypers, TrainConfig
from toy.training.run import train

CFG = TrainConfig(4, n_steps=12, batch_size=8)
ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)), jnp.float32)


def loss(source: Any) -> float:
    return float(train(jax.random.key(0), source, Hypers(full(4), target_l0=1.0), cfg=CFG)[1].loss[-1])


def test_a_loss_that_is_replaced_is_trained_and_the_old_one_again_once_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, original = loss(ArraySource(ROWS)), toy.methods.method.sae_loss

    def doubled(*args: Any, **kwargs: Any) -> Any:
        value, parts = original(*args, **kwargs)
        return 2 * value, parts

    with monkeypatch.context() as patch:
        patch.setattr(toy.methods.method, "sae_loss", doubled)
        assert loss(ArraySource(ROWS)) != ours
    before = advance.n_compiled
    assert loss(ArraySource(ROWS)) == ours
    assert advance.n_compiled == before


class Mine(ArraySource):
    """A source of a user's own."""


jax.tree_util.register_pytree_node(Mine, lambda s: ((s.x,), None), lambda _, leaves: Mine(*leaves))


def test_a_source_whose_sample_is_changed_is_sampled_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = loss(Mine(ROWS))
    monkeypatch.setattr(
        Mine, "sample", lambda self, key, batch_size: 0.5 * ArraySource.sample(self, key, batch_size) + 1
    )
    assert loss(Mine(ROWS)) != ours
    monkeypatch.undo()
    before = advance.n_compiled
    assert loss(Mine(ROWS)) == ours
    assert advance.n_compiled == before


def test_a_method_of_the_librarys_own_source_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = loss(ArraySource(ROWS))
    monkeypatch.setattr(ArraySource, "sample", lambda self, key, batch_size: 2 + self.x[:batch_size])
    assert loss(ArraySource(ROWS)) != ours
    monkeypatch.undo()
    assert loss(ArraySource(ROWS)) == ours


def test_programs_that_are_forgotten_are_compiled_again_and_counted() -> None:
    double = compiled()(_twice)
    assert (float(double(jnp.ones(()))), float(double(jnp.ones(2)).sum())) == (2, 4)
    assert (double.n_held, double.n_compiled) == (2, 2)
    double.forget()
    assert (double.n_held, double.n_compiled) == (0, 2)
    assert float(double(jnp.ones(()))) == 2
    assert (double.n_held, double.n_compiled) == (1, 3)


def _twice(x: jax.Array) -> jax.Array:
    return 2 * x
