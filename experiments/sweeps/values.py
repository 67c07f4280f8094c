"""The values of a sweep's axes: which field of a cell each belongs to, and of what type it is there."""

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
MOST_NAME = 60  # characters of a name that a message repeats
MAX_VALUES = 1_000_000  # of an axis
TRAINING = frozenset(field.name for field in fields(Training))


def parameters(kind: str) -> dict[str, str]:
    """A generator's fields, and what a sweep calls them."""
    return {field.name: TREE_SEED if field.name == "seed" else field.name for field in fields(GENERATORS[kind])}


def axis_values(name: str, values: Any) -> tuple[Any, ...]:
    """The values of an axis, given as a list or as {range: [first, end]} with an optional step."""
    shown = quoted(name, MOST_NAME)
    if isinstance(values, Mapping) and list(values) == ["range"]:
        try:
            values = range(*values["range"])
        except (TypeError, ValueError):
            told = "range needs two integers, or three of which the last is not 0"
            raise ValueError(f"{shown}: {told}, got {quoted(repr(values['range']))}") from None
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"{shown}: expected a list of values, or range: [first, end], got {quoted(repr(values))}")
    if values[MAX_VALUES:]:  # the length of a range may exceed a machine's integers
        raise ValueError(f"{shown}: has more than {MAX_VALUES:,} values")
    return tuple(values)


def typed(name: str, value: Any, generators: frozenset[str]) -> Any:
    """The value with the type of the cell's field. Raises: ValueError if no cell can have it."""
    if name == "tree":
        return value
    found = value
    for owner, field in _owners(name, generators):  # generators side by side must all be able to have it
        found = _as_type(name, value, _hints(owner)[field])
        owner(**{field: found})  # its own checks
    return found


@cache
def _owners(name: str, generators: frozenset[str]) -> list[tuple[type, str]]:
    """Each class with a field that a sweep calls so, and that field. Raises: ValueError if there is none."""
    owners: list[tuple[type, str]] = [(Training, name)] if name in TRAINING else []
    of_trees = {kind: parameters(kind) for kind in GENERATORS if kind in generators}
    for kind, own in of_trees.items():
        owners += [(GENERATORS[kind], field) for field, key in own.items() if key == name]
    if not owners:
        known = sorted(TRAINING.union(*(own.values() for own in of_trees.values())))
        raise ValueError(f"{quoted(name, MOST_NAME)}: no axis of these trees{hint(name, ['tree', *known])}")
    return owners


@cache
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def _as_type(name: str, value: Any, expected: Any) -> Any:
    options = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    if float in options and isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    for option in options:
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            parts = typing.get_args(option)
            if len(parts) == len(value):
                return tuple(_as_type(name, one, part) for one, part in zip(value, parts, strict=True))
        elif _fits(value, option):
            return float(typing.cast(float, value)) if option is float else value
    told = " or ".join(map(_type_name, options))
    raise ValueError(f"{name}: expected {told}, got {quoted(value if isinstance(value, int) else repr(value))}")


def _fits(value: Any, option: Any) -> bool:
    if typing.get_origin(option) is typing.Literal:
        return value in typing.get_args(option)
    if isinstance(value, bool) or option not in (int, float):
        return isinstance(option, type) and type(value) is option
    if option is int:
        return isinstance(value, int) and abs(value) < 2**63
    return isinstance(value, int | float) and abs(value) < 2**1024 and math.isfinite(value)


def _type_name(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(option)))
    return "none" if option is type(None) else getattr(option, "__name__", str(option))


def hint(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest known names."""
    close = difflib.get_close_matches(name[:MOST_NAME], known, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
