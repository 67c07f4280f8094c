"""The parts of the fuzz run: damage to bytes and to JSON, and the watch that every input is read under."""

import copy
import faulthandler
import functools
import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

MOST_SECONDS = 10
MOST_BYTES = 2 * 2**30
MOST_TOLD = 1_000  # characters of a refusal: a path, and 300 of a file at the most
T = TypeVar("T")

times: float = 1  # `pytest --fuzz TIMES`: how many times 10,000 inputs are tried
first_seed: int | None = None  # `pytest --fuzz-seed SEED`

ODD = (
    *(None, True, False, 0, 1, -1, 2, 1.0, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), 2**31, 2**32, 2**63),
    *(10**30, 10**4000, "", "x", "1", "nan", "0.5", "../x", "a\nb", "$x_{$", "\ud800", "\u202e", "x" * 5_000),
    *([], {}, [[]], [1, 2], {"a": 1}, [None], [0.2, 0.2], [[[[[[[[]]]]]]]]),
)


def fuzzed(n: int, strategy: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on n inputs of a strategy, which it takes as `data`; the same inputs whenever it runs."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        chosen = settings(
            max_examples=max(1, round(n * times)), phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow]
        )
        run = chosen(given(data=strategy)(test))
        return run if first_seed is None else seed(first_seed)(run)

    return decorate


@contextmanager
def watched(most_seconds: float = MOST_SECONDS) -> Iterator[None]:
    """Fail what takes more than `most_seconds` or 2 GB; end the process where even Python no longer runs."""

    def ring(*_: Any) -> None:
        raise AssertionError(f"an input takes more than {most_seconds} seconds")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, most_seconds)
    faulthandler.dump_traceback_later(2 * most_seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_BYTES, f"an input takes {grown:,} bytes"


def accepted(read: Callable[..., T], *arguments: Any) -> T | None:
    """Returns what `read` gives, or None if it refuses in one line that says something. All else is a fault."""
    refusal: Exception | None = None
    with watched():
        try:
            return read(*arguments)
        except (ValueError, OSError) as error:
            refusal = error
    told = str(refusal)
    assert told, f"{type(refusal).__name__} says nothing"
    assert told.isprintable(), f"more than a line, or characters that a terminal obeys: {told[:MOST_TOLD]!r}"
    assert len(told) <= MOST_TOLD, told[:MOST_TOLD]
    return None


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Bytes with one fault, as disks, copies and hostile hands make them."""
    place = draw(st.integers(0, max(len(good) - 1, 0)))
    n = draw(st.integers(1, 64))
    kind = draw(st.sampled_from(("flip", "flip", "byte", "cut", "drop", "repeat", "insert", "zeros")))
    if kind == "flip":
        return good[:place] + bytes([good[place] ^ (1 << draw(st.integers(0, 7)))]) + good[place + 1 :]
    if kind == "byte":
        return good[:place] + draw(st.binary(min_size=1, max_size=1)) + good[place + 1 :]
    if kind == "cut":
        return good[:place]
    if kind == "drop":
        return good[:place] + good[place + n :]
    if kind == "repeat":
        return good[:place] + good[place : place + n] * 2 + good[place + n :]
    if kind == "insert":
        return good[:place] + draw(st.binary(min_size=1, max_size=16)) + good[place:]
    return good[:place] + bytes(min(n, len(good) - place)) + good[place + n :]


@st.composite
def edited(draw: st.DrawFn, good: Any, keys: tuple[str, ...] = ("unknown",), odd: tuple[Any, ...] = ODD) -> Any:
    """JSON with one or two edits: a value replaced, removed, moved elsewhere, or added under one of some keys."""
    data = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(data))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(("replace", "replace", "remove", "copy", "add", "rename")))
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(odd)))
        elif kind == "remove":
            del holder[key]
        elif kind == "copy":
            other, place = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(other[place])
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(draw(st.sampled_from(odd))))
        elif kind == "add":
            holder[draw(st.sampled_from(keys))] = copy.deepcopy(draw(st.sampled_from(odd)))
        else:
            holder[draw(st.sampled_from(keys))] = holder.pop(key)
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) in JSON that holds no more than a few thousand."""
    stack = [data]
    while stack:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            stack.append(holder[key])


@functools.cache
def _long(n: int) -> str:
    return str(10 ** (n - 1))


def as_text(data: Any) -> str:
    """JSON text, of integers with more digits than Python writes, too."""
    return json.dumps(_short(data)).replace('"<long>"', _long(4_001))


def _short(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _short(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_short(value) for value in data]
    return "<long>" if isinstance(data, int) and data > 10**1000 else data
