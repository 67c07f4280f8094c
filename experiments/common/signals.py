"""Ctrl-C and SIGTERM, the same for every command: the first ends the work in order, a second one ends it at once.

Python raises KeyboardInterrupt wherever the main thread is. Inside a callback of JAX or a destructor the exception is
ignored and the work goes on, so it is raised again: soon after Python reports that it was ignored, and at the latest
when progress is next told.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 0.05  # until an ignored interrupt is raised again, by when the callback has returned
_received: list[int] = []  # the signals that came, in order, and which the command has not ended by yet
_notices: list[str] = []  # what the first interrupt prints; the innermost block's counts
_repeats: list[int] = []  # ignored interrupts that are about to be raised again


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
        for number in SIGNALS:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, _interrupt)
        if len(_notices) == 1:
            sys.unraisablehook = lambda unraisable: _ignored(unraisable, hook)
        yield _received
    finally:
        _notices.pop()
        if not _notices:
            _received.clear()
            sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # None: not set by Python


def raise_ignored() -> None:
    """Called between steps of the work. Raises: KeyboardInterrupt if one was raised before, and ignored."""
    if _received and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _repeats:
        _repeats.clear()
        raise KeyboardInterrupt
    _received.append(number)
    if len(_received) > 1:
        os._exit(128 + number)  # files are whole at any moment, so nothing is lost but the work under way
    if _notices and _notices[-1]:
        print(f"\n{_notices[-1]}", file=sys.stderr)
    raise KeyboardInterrupt


def _ignored(unraisable: Any, hook: Any) -> None:
    """In place of Python's report that an exception was ignored, if that was an interrupt."""
    if not _received or not issubclass(unraisable.exc_type, KeyboardInterrupt):
        hook(unraisable)
        return
    timer = threading.Timer(AGAIN_S, _raise_again, _received[:1])
    timer.daemon = True
    timer.start()


def _raise_again(number: int) -> None:
    if _received:  # the command has not ended meanwhile
        _repeats.append(number)
        signal.raise_signal(number) if os.name == "nt" else os.kill(os.getpid(), number)
