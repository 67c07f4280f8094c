"""Ctrl-C and SIGTERM, the same for every command: the first ends the work in order, a second one ends it at once.

Python raises KeyboardInterrupt wherever the main thread is. A callback of JAX swallows it and the work goes on, so it
is raised again when progress is next told, and what Python would print about the swallowed one is left out.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []  # the signals that came, in order, and which the command has not ended by yet
_notices: list[str] = []  # what the first interrupt prints; the innermost block's counts


@contextlib.contextmanager
def interruptible(notice: str = "") -> Iterator[list[int]]:
    """Raise KeyboardInterrupt for SIGINT and SIGTERM, and end the process when another follows.

    Yields the signals received so far. Blocks may be nested; a `notice` is printed by the first interrupt. A signal
    that the process was started to ignore (`nohup`) stays ignored. Outside the main thread the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _received
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    hook = sys.unraisablehook
    _notices.append(notice)
    try:
        sys.unraisablehook = _leave_out_swallowed
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, _interrupt)
        yield _received
    finally:
        _notices.pop()
        if not _notices:
            _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set by Python
        sys.unraisablehook = hook


def raise_swallowed() -> None:
    """Called between steps of the work. Raises: KeyboardInterrupt if one was raised before, and swallowed."""
    if _received and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > 1:
        os._exit(128 + number)  # files are whole at any moment, so nothing is lost but the work under way
    if _notices[-1]:
        print(f"\n{_notices[-1]}", file=sys.stderr)
    raise KeyboardInterrupt


def _leave_out_swallowed(unraisable: "sys.UnraisableHookArgs") -> None:
    if not (_received and isinstance(unraisable.exc_value, KeyboardInterrupt)):
        sys.__unraisablehook__(unraisable)
