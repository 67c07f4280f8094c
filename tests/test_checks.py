"""Numbers of configurations: type, range, finiteness; what a message quotes."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toy.checks import NOT_NEGATIVE, POSITIVE, SEED, SHARE, Real, Whole, check_numbers, quoted


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [
        (0, Whole(), "a: must be at least 1, got 0"),
        (1.0, Whole(), "a: must be a whole number, got 1.0"),
        (True, Whole(), "a: must be a whole number, got True"),
        (True, Real(), "a: must be a number, got True"),
        ("1", Real(), "a: must be a number, got 1"),
        (1j, Real(), "a: must be a number, got 1j"),
        (math.nan, Real(), "a: must be finite, got nan"),
        (math.inf, POSITIVE, "a: must be finite, got inf"),
        (10**400, POSITIVE, "a: a number of 1,329 bits is far too large"),
        (0.0, POSITIVE, "a: must be above 0, got 0.0"),
        (-0.5, NOT_NEGATIVE, "a: must not be negative, got -0.5"),
        (1.5, SHARE, "a: must be at most 1, got 1.5"),
        (1.0, Real(below=1), "a: must be below 1, got 1.0"),
        (2**32, SEED, "a: must be at most 4,294,967,295, got 4294967296"),
        ((3, 0), Whole(), "a: must be at least 1, got 0"),
        (np.array([1.0, math.nan]), Real(), "a: must be finite"),
        (jnp.array([1.0, 0.0], jnp.bfloat16), POSITIVE, "a: must be above 0"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_name(value: Any, kind: Whole | Real, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        check_numbers({"a": value}, {"a": kind})


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1, Whole()), (np.int64(3), Whole()), (1, POSITIVE), (np.float32(0.5), SHARE), (2**32 - 1, SEED), (None, SEED)],
)
def test_a_number_that_can_be_passes(value: Any, kind: Whole | Real) -> None:
    check_numbers({"a": value}, {"a": kind})


def test_a_traced_number_passes() -> None:
    def double(a: jax.Array) -> jax.Array:
        check_numbers({"a": a}, {"a": POSITIVE})
        return 2 * a

    assert jax.jit(double)(-1.0) == -2


def test_a_message_quotes_on_one_line_and_not_for_ever() -> None:
    assert quoted("a\nb") == "a\\nb"
    assert quoted("é") == "é"
    assert len(quoted("x" * 10**6)) == 300
    assert quoted("\ud800") == "\\ud800"
