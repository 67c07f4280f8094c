"""Options of command lines: whole numbers such as 1e3, terminals of any width, and names that are misspelt."""

import contextlib
import inspect
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Generic, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

MIN_COLUMNS, MAX_COLUMNS = 40, 1_000
MOST_DIGITS = 30  # of a whole number that is given with an exponent
Options = TypeVar("Options")
_constructors = ConstructorRegistry()


@dataclass(frozen=True)
class _Root(Generic[Options]):
    """Around a command's options: tyro draws a box about errors of the outermost class that it makes."""

    options: Annotated[Options, tyro.conf.arg(name="")]


def parse(options: Any, default: Any = None, **described: Any) -> Any:
    """The options that a command was given; what it does not have ends it with exit code 2, as do words for numbers.

    Raises: ValueError, as the options' class does when it is made.
    """
    described = {"description": inspect.getdoc(options)} | described
    if default is not None:
        described["default"] = _Root(default)
    with _readable_width(), _constructors:
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
    with contextlib.suppress(InvalidOperation):
        number = Decimal(text) if "e" in text.lower() else Decimal("NaN")
        if number.is_finite() and abs(number.adjusted()) < MOST_DIGITS and number == int(number):
            return int(number)
    raise ValueError(f"{text!r:.40} is not a whole number")


@contextlib.contextmanager
def _readable_width() -> Iterator[None]:
    """Show help in at least 40 columns: tyro never ends where a column has no room for a letter."""
    given, columns = os.environ.get("COLUMNS"), shutil.get_terminal_size().columns
    os.environ["COLUMNS"] = str(min(max(columns, MIN_COLUMNS), MAX_COLUMNS))
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if given is not None:
            os.environ["COLUMNS"] = given
