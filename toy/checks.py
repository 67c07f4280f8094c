"""Checks of a user's numbers by type, range and finiteness, and text for messages.

Every configuration checks its numbers with these functions when it is made, before any work.
"""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

MAX_SEED = 2**32 - 1  # JAX keeps 32 bits of a seed, so that larger ones would repeat
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MOST_QUOTED = 300  # characters of a value in a message


@dataclass(frozen=True)
class Whole:
    """A whole number between two bounds, both included."""

    least: int = 1
    most: int = 10**12


@dataclass(frozen=True)
class Real:
    """A number that is finite in float32. The bounds `least` and `most` are included, `above` and `below` excluded."""

    least: float = -MAX_FLOAT32
    most: float = MAX_FLOAT32
    above: float = -math.inf
    below: float = math.inf


SEED = Whole(0, MAX_SEED)
POSITIVE = Real(above=0)
NOT_NEGATIVE = Real(least=0)
SHARE = Real(least=0, most=1)


def check_numbers(values: Mapping[str, Any], expected: Mapping[str, Whole | Real]) -> None:
    """Check the named values, arrays element by element. None (use the default) and traced values pass.

    Raises: ValueError naming the value and the violated bound.
    """
    for name, kind in expected.items():
        value = values[name]
        if value is None or isinstance(value, Tracer):
            continue
        for one in value if isinstance(value, tuple | list) else (value,):
            _check(name, one, kind)


def check_fields(owner: Any, **expected: Whole | Real) -> None:
    """Check fields of a dataclass or NamedTuple with `check_numbers`. Raises: ValueError."""
    check_numbers({name: getattr(owner, name) for name in expected}, expected)


def check_option(name: str, value: Any, options: Sequence[Any]) -> None:
    """Raises: ValueError if the value is none of the options."""
    if value not in options:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, options))}, got {quoted(repr(value))}")


def check_some(owner: Any, *names: str) -> None:
    """Raises: ValueError naming a field that has no values."""
    for name in names:
        if not getattr(owner, name):
            raise ValueError(f"{name}: need at least one")


def check_distinct(owner: Any, *names: str) -> None:
    """Raises: ValueError naming a field that has no values, or one of them twice."""
    check_some(owner, *names)
    for name in names:
        values = getattr(owner, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name}: {quoted(max(values, key=values.count))} is given twice")


def check_ascending(owner: Any, *names: str) -> None:
    """Raises: ValueError naming a field whose values do not ascend, or that has none."""
    for name in names:
        values = getattr(owner, name)
        if not values or list(values) != sorted(set(values)):
            raise ValueError(f"{name}: need at least one, each once and in ascending order, got {quoted(values)}")


def _check(name: str, value: Any, kind: Whole | Real) -> None:
    numbers = np.asarray(value)
    if numbers.dtype.kind == "O" and isinstance(value, int):  # more than 64 bits
        raise ValueError(f"{name}: {quoted(value)} is far too large")
    is_whole = jnp.issubdtype(numbers.dtype, jnp.integer)
    if isinstance(kind, Whole) and not is_whole:
        raise ValueError(f"{name}: must be a whole number, got {quoted(value)}")
    if not is_whole and not jnp.issubdtype(numbers.dtype, jnp.floating):  # jnp knows bfloat16, unlike numpy
        raise ValueError(f"{name}: must be a number, got {quoted(value)}")
    if not is_whole and not np.isfinite(numbers).all():
        raise ValueError(f"{name}: must be finite, got {quoted(value)}")
    for fits, text in _bounds(numbers, kind):
        if not fits:
            raise ValueError(f"{name}: must {text}, got {quoted(value)}")


def _bounds(numbers: np.ndarray, kind: Whole | Real) -> Iterator[tuple[bool, str]]:
    """Yields for each bound whether all numbers respect it, and its wording for a message."""
    low = "not be negative" if kind.least == 0 else f"be at least {_bound_text(kind.least)}"
    yield bool((numbers >= kind.least).all()), low
    yield bool((numbers <= kind.most).all()), f"be at most {_bound_text(kind.most)}"
    if isinstance(kind, Real):
        yield bool((numbers > kind.above).all()), f"be above {kind.above:,}"
        yield bool((numbers < kind.below).all()), f"be below {kind.below:,}"


def _bound_text(bound: float) -> str:
    return f"{bound:g}" if abs(bound) > 1e15 else f"{bound:,}"


def quoted(value: Any, most: int = MOST_QUOTED) -> str:
    """A value for a message: on one line, with control characters escaped, and cut if long."""
    if isinstance(value, int) and value.bit_length() > 4 * most:
        return f"a number of {value.bit_length():,} bits"
    text = value if isinstance(value, str) else repr(value)
    if not text.isprintable():
        text = text.encode("unicode_escape").decode()
    return text if len(text) <= most else text[: most - 1] + "…"


def optional(module: str, extra: str, wanted_for: str) -> ModuleType:
    """Import an optional package. Raises: ValueError naming the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ValueError(
            f"{wanted_for}: needs the package {package}; install the extra: pip install -e '.[{extra}]'"
        ) from None
