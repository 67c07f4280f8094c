"""Numbers that cannot be are refused by name before any work, and so are sizes that the machine does not have."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toy.data.source import ArraySource, TreeSource
from toy.features.named import forest
from toy.features.node import Node
from toy.features.tree import build_tree
from toy.methods import TopKFamily
from toy.methods.named import named
from toy.prefixes import FixedWeights, HybridWeights, full
from toy.sae import BatchTopK, TopK, sae_of_directions
from toy.training.config import Hypers, TrainConfig, check_hypers, check_memory
from toy.training.grid import hyper_axes, train_grid, train_grids
from toy.training.run import train
from toy.training.state import check_key

ROOT = Path(__file__).parent.parent
GOOD = Hypers(full(4), target_l0=1.0)
CFG = TrainConfig(4, n_steps=10, batch_size=8)
SOURCE = ArraySource(jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)), jnp.float32))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("learning_rate", -0.1, "learning_rate: must not be negative, got -0.1"),
        ("learning_rate", float("nan"), "learning_rate: must be finite, got nan"),
        ("target_l0", 0.0, "target_l0: must be above 0, got 0.0"),
        ("learning_rate", 1e39, "learning_rate: must be at most 3.40282e+38, got 1e+39"),
        ("n_latents", 2.5, "n_latents: must be a whole number, got 2.5"),
        ("b1", 1.0, "b1: must be below 1, got 1.0"),
        ("clip_norm", 0, "clip_norm: must be above 0, got 0"),
        ("control_rate", 1.0, "control_rate: must be below 1, got 1.0"),
        ("sparsity_coef", "1", "sparsity_coef: must be a number, got 1"),
        ("reinit_below", float("inf"), "reinit_below: must be finite, got inf"),
        ("prefixes", FixedWeights(np.array([0, 0, -1, 2.0])), "hypers.prefixes: must not be negative"),
        ("prefixes", FixedWeights(np.array([0, 0, np.nan, 2.0])), "hypers.prefixes: must be finite"),
        (
            "prefixes",
            FixedWeights(np.full(4, 0.5)),
            "hypers.prefixes: weights must sum to 1: divide them by",
        ),
        ("prefixes", HybridWeights(np.ones(2), np.array([3, 4]), np.ones(2)), "hypers.prefixes: weights must sum to 1"),
        ("prefixes", "sampled_10", "hypers.prefixes: expected a weighting, such as"),
        ("start", sae_of_directions(np.eye(4)), "hypers.start has d_in = 4, and the source 3"),
        ("start", sae_of_directions(np.full((4, 3), np.nan)), "hypers.start: must be finite"),
    ],
)
def test_a_hyperparameter_that_cannot_be_is_refused_by_name(name: str, value: Any, told: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_hypers(GOOD._replace(**{name: value}), CFG, SOURCE.d_in)
    assert str(error.value).startswith(told)


def test_every_lane_is_checked_before_any_work() -> None:
    rates = GOOD._replace(learning_rate=jnp.array([1e-2, np.nan]))
    with pytest.raises(ValueError, match=r"^learning_rate: must be finite"):
        train_grid(jax.random.split(jax.random.key(0), 2), SOURCE, rates, cfg=CFG, in_axes=(None, None))


@pytest.mark.parametrize("activation", [TopK(2), BatchTopK(1.5)])
def test_a_target_l0_is_refused_where_k_says_how_many_are_on(activation: TopK | BatchTopK) -> None:
    with pytest.raises(ValueError, match=r"^hypers\.target_l0: TopKFamily\(.* aims at no L0"):
        train(jax.random.key(0), SOURCE, GOOD, cfg=TrainConfig(4, n_steps=10, method=TopKFamily(activation)))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"n_latents": 10**9}, "n_latents: must be at most 16,777,216, got 1000000000"),
        ({"n_steps": 10**12}, "n_steps: must be at most 2,147,483,647, got 1000000000000"),
        ({"batch_size": True}, "batch_size: must be a whole number, got True"),
        ({"reinit_every": 10**10}, "reinit_every: must be at most 2,147,483,647, got 10000000000"),
        ({"lr_cooldown_share": float("nan")}, "lr_cooldown_share: must be finite, got nan"),
        ({"reinit_window": (0.2, 1.5)}, "reinit_window: must be at most 1, got 1.5"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        TrainConfig(**{"n_latents": 4, **given})
    assert str(error.value) == told


def test_what_does_not_fit_into_memory_is_refused_before_anything_is_allocated() -> None:
    check_memory(768, TrainConfig(25_000, batch_size=512))
    with pytest.raises(ValueError, match=r"^n_latents = 4,000,000, d_in = 100,000, .* GB there are: lower one of them"):
        check_memory(100_000, TrainConfig(4_000_000))
    with pytest.raises(ValueError, match="100,000,000 runs at once take"):
        check_memory(30, TrainConfig(20), n_lanes=100_000_000)
    with pytest.raises(ValueError, match=r"batch_size = 10,000,000 and 100 runs at once take"):
        check_memory(30, TrainConfig(20, batch_size=10**7), n_lanes=100)


@pytest.mark.parametrize("key", [0, jax.random.PRNGKey(0)])
def test_a_key_of_the_old_kind_is_refused(key: Any) -> None:
    with pytest.raises(ValueError, match=r"^key: expected a key, such as jax\.random\.key\(0\)"):
        check_key(key)


UNCHECKED = """
from toy.prefixes import fixed
from toy.sae import BatchTopK, TopK
from toy.training.run import TrainConfig
for make in (
    lambda: TopK(1.5), lambda: TopK("2"), lambda: BatchTopK("2"), lambda: fixed(4, (2.5, 4)),
    lambda: TrainConfig(4, n_steps=1.5), lambda: TrainConfig(4.0), lambda: TrainConfig(4, reinit_window=("a", 1)),
):
    try:
        make()
    except ValueError as error:
        print(error)
"""


def test_numbers_of_a_wrong_type_are_refused_where_no_test_checks_types() -> None:
    told = subprocess.run(
        [sys.executable, "-c", UNCHECKED], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert told.splitlines() == [
        "k: must be a whole number, got 1.5",
        "k: must be a whole number, got 2",
        "k: must be a number, got 2",
        "widths: must be a whole number, got 2.5",
        "n_steps: must be a whole number, got 1.5",
        "n_latents: must be a whole number, got 4.0",
        "reinit_window: must be a number, got a",
    ]


def test_a_run_takes_one_key_and_a_grid_one_per_run() -> None:
    with pytest.raises(ValueError, match=r"^key: expected one key: train_grid takes several; got shape \(2,\)"):
        check_key(jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match=r"^key: expected a vector of keys, one per run; got shape \(\)"):
        check_key(jax.random.key(0), n_axes=1)


def test_a_window_of_restarts_has_its_first_step_first() -> None:
    with pytest.raises(ValueError, match=r"^reinit_window: expected \(first, last\)"):
        TrainConfig(4, reinit_window=(0.6, 0.2))


@pytest.mark.parametrize(("W_feat", "told"), [(np.ones((3, 5)), "expected 4 rows"), (np.full((4, 5), np.nan), "holds")])
def test_directions_that_do_not_fit_the_tree_are_refused_before_any_work(W_feat: np.ndarray, told: str) -> None:
    tree = build_tree(forest(*(Node(0.5) for _ in range(4))))
    with pytest.raises(ValueError, match=f"^W_feat: {told}"):
        train(jax.random.key(0), TreeSource(tree, jnp.asarray(W_feat)), GOOD, cfg=CFG)


def test_lanes_are_along_the_first_axis_alone() -> None:
    rates = GOOD._replace(learning_rate=jnp.full((2, 2), 1e-2))
    axes = (None, hyper_axes(learning_rate=1))
    with pytest.raises(ValueError, match=r"^in_axes: lanes are along the first axis"):
        train_grid(jax.random.split(jax.random.key(0), 2), SOURCE, rates, cfg=CFG, in_axes=axes)


def test_no_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^grids: need at least one$"):
        train_grids({})


@pytest.mark.parametrize(("n_latents", "form"), [(129, None), (20, "wide")])
def test_batchtopk_at_the_target_l0_has_no_wide_form(n_latents: int, form: Any) -> None:
    method = named("batchtopk").method
    with pytest.raises(ValueError, match=rf"^method: with n_latents = {n_latents} in the wide form, give k"):
        TrainConfig(n_latents, form=form, method=method)
    assert TrainConfig(n_latents, form="gram", method=method).loss_form == "gram"
