"""The L0 controller: still during the warm-up, then one small factor a step in the right direction."""

import jax.numpy as jnp
import pytest

from toy.methods.topk import control_threshold
from toy.training.controllers import control, ramped


@pytest.mark.parametrize(
    ("l0", "step", "expected"),
    [
        (5.0, 99, 2.0),  # warm-up: nothing moves
        (0.0, 99, 2.0),
        (5.0, 100, 2.0 * 1.01),  # too many latents on: more sparsity
        (1.0, 100, 2.0 * 0.99),  # too few: less
        (3.0, 5000, 2.0 * 1.01),  # on target counts as too many
    ],
)
def test_the_coefficient_moves_against_l0_once_the_warm_up_is_over(l0: float, step: int, expected: float) -> None:
    moved = control(jnp.array(2.0), jnp.array(l0), 3.0, 0.01, jnp.array(step), 100)
    assert moved == pytest.approx(expected, rel=1e-6)


def test_a_rate_of_0_keeps_the_coefficient_fixed() -> None:
    assert control(jnp.array(2.0), jnp.array(9.0), 3.0, 0.0, jnp.array(500), 100) == 2


def test_the_coefficient_in_force_rises_linearly_over_the_warm_up_and_stays() -> None:
    in_force = [float(ramped(jnp.array(2.0), jnp.array(step), 4)) for step in (0, 1, 3, 4, 1000)]
    assert in_force == pytest.approx([0.5, 1.0, 2.0, 2.0, 2.0])


def test_without_a_warm_up_the_coefficient_is_in_force_at_once() -> None:
    assert ramped(jnp.array(2.0), jnp.array(0), 0) == 2
    assert control(jnp.array(2.0), jnp.array(9.0), 3.0, 0.5, jnp.array(0), 0) == 3


@pytest.mark.parametrize(
    ("l0_over_threshold", "l0", "factor"),
    [
        (3.0, 3.0, 1.0),  # as many as training has on
        (3.3, 3.0, 1.01),  # a tenth too many: up by a tenth of the rate
        (2.7, 3.0, 0.99),  # a tenth too few: down
        (60.0, 3.0, 1.1),  # a step is at most the rate
        (0.0, 3.0, 0.9),
        (5.0, 0.0, 1.1),  # nothing is on in training
        (0.0, 0.0, 1.0),
    ],
)
def test_the_threshold_moves_to_where_as_many_latents_are_above_it(
    l0_over_threshold: float, l0: float, factor: float
) -> None:
    for threshold in (0.5, 7.0):
        moved = control_threshold(jnp.array(threshold), jnp.array(l0_over_threshold), jnp.array(l0), 0.1)
        assert moved == pytest.approx(threshold * factor, rel=1e-6)


def test_a_threshold_controlled_for_long_has_the_l0_of_training() -> None:
    sizes = jnp.concatenate([jnp.linspace(0, 1, 50), jnp.linspace(3, 4, 10)])  # a gap between them
    threshold = jnp.array(0.2)
    for _ in range(400):
        threshold = control_threshold(threshold, jnp.sum(sizes > threshold, dtype=float), jnp.array(10.0), 0.02)
    assert (sizes > threshold).sum() == 10
    assert 1 <= threshold < 3
