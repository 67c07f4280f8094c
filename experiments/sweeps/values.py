"""The values of a sweep's axes: which fields of a cell have them, and as which type."""

import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from experiments.sweeps.cell import Training
from toy.checks import quoted
from toy.features.named import RandomTree, RegularTree

GENERATORS: dict[str, type] = {"regular": RegularTree, "random": RandomTree}
TREE_SEED = "tree_seed"  # of random trees; `seed` is that of directions, initialisation and data
NUMBER = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")  # 1e-3, which other readers of YAML take for text
MOST_NAME = 60  # characters of a name from a file that a message repeats
MAX_VALUES = 1_000_000  # of an axis
_TRAINING = {field.name for field in fields(Training)}


def parameters(kind: str) -> dict[str, str]:
    """A generator's fields, and what a sweep calls them."""
    return {field.name: TREE_SEED if field.name == "seed" else field.name for field in fields(GENERATORS[kind])}


def axis_values(name: str, values: Any) -> tuple[Any, ...]:
    """Those of an axis: a list, or {range: [first, end]} with an optional step."""
    shown = quoted(name, MOST_NAME)
    if isinstance(values, Mapping) and list(values) == ["range"]:
        try:
            values = range(*values["range"])
        except (TypeError, ValueError):
            raise ValueError(
                f"{shown}: range needs two integers, or three of which the last is not 0, got "
                f"{quoted(repr(values['range']))}"
            ) from None
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"{shown}: expected a list of values, or range: [first, end], got {quoted(repr(values))}")
    if values[MAX_VALUES:]:  # the length of a range may be no number of the machine
        raise ValueError(f"{shown}: has more than {MAX_VALUES:,} values")
    return tuple(values)


def typed(name: str, value: Any, generators: frozenset[str]) -> Any:
    """The value as the cell's field has it. Raises: ValueError if no cell can have it."""
    if name == "tree":
        return value
    found = value
    for owner, field in _owners(name, generators):  # generators side by side must all be able to have it
        found = _as_type(name, value, _hints(owner)[field])
        owner(**{field: found})  # its own checks
    return found


@cache
def _owners(name: str, generators: frozenset[str]) -> list[tuple[type, str]]:
    """What has a field that a sweep calls so, and what that calls it. Raises: ValueError if nothing has."""
    owners: list[tuple[type, str]] = [(Training, name)] if name in _TRAINING else []
    of_trees = {kind: parameters(kind) for kind in GENERATORS if kind in generators}
    for kind, own in of_trees.items():
        owners += [(GENERATORS[kind], field) for field, key in own.items() if key == name]
    if not owners:
        known = sorted(_TRAINING.union(*(own.values() for own in of_trees.values())))
        raise ValueError(f"{quoted(name, MOST_NAME)}: no axis of these trees{hint(name, ['tree', *known])}")
    return owners


@cache
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def _as_type(name: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in options and isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    for option in options:
        if option is type(None) and value is None:
            return None
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value):
            return float(value)
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            parts = typing.get_args(option)
            if len(parts) == len(value):
                return tuple(_as_type(name, one, part) for one, part in zip(value, parts, strict=True))
        if typing.get_origin(option) is typing.Literal and value in typing.get_args(option):
            return value
        if option is str and isinstance(value, str):
            return value
    expected = " or ".join(_type_name(option) for option in options)
    raise ValueError(f"{name}: expected {expected}, got {_shown(value)}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer above the largest float
        return False


def _shown(value: Any) -> str:
    return quoted(value) if isinstance(value, int) else quoted(repr(value))


def _type_name(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(option)))
    return "none" if option is type(None) else getattr(option, "__name__", str(option))


def hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:MOST_NAME], known, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
