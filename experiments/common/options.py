"""Options of command lines: whole numbers such as 1e3, terminals of any width, and names that are misspelt."""

import contextlib
import inspect
import os
import shutil
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

MIN_COLUMNS, MAX_COLUMNS = 40, 1_000
MOST_EXACT = 2**53  # up to which floats hold every whole number
Options = TypeVar("Options")
_constructors = ConstructorRegistry()


@dataclass(frozen=True)
class _Root(Generic[Options]):
    """A wrapper of a command's options, since tyro draws a box around errors of the outermost class that it makes."""

    options: Annotated[Options, tyro.conf.arg(name="")]


def parse(options: Any, default: Any = None, **described: Any) -> Any:
    """The options that a command was given; what it does not have ends it with exit code 2, as do words for numbers.

    Raises: ValueError, as the options' class does when it is made.
    """
    described = {"description": inspect.getdoc(options)} | described
    if default is not None:
        described["default"] = _Root(default)
    columns = shutil.get_terminal_size().columns  # tyro never ends where a column of help has no room for a letter
    os.environ["COLUMNS"] = str(min(max(columns, MIN_COLUMNS), MAX_COLUMNS))
    with _constructors:
        return tyro.cli(_Root[options], config=(tyro.conf.FlagCreatePairsOff,), **described).options


@_constructors.primitive_rule
def _whole_numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole(words[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def whole(text: str) -> int:
    """A whole number, also one with an exponent: 1e3 is 1000. Raises: ValueError."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        number = float(text)
        if "e" in text.lower() and number.is_integer() and abs(number) < MOST_EXACT:
            return int(number)
    raise ValueError(f"{text!r:.40} is not a whole number")
