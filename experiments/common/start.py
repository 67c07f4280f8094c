"""What `python -m experiments.NAME` sets before it imports anything large: importing takes seconds and may fail."""

import atexit
import contextlib
import io
import os
import signal
import sys
from types import TracebackType
from typing import Any, NoReturn

from experiments.common.signals import SIGNALS

MOST_TOLD = 400  # characters of an error
_codes: list[int] = []  # with which the command ends early


def start() -> None:
    """Set the process up as a command's."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait for each other for seconds on a busy machine
    os.environ["MPLBACKEND"] = "Agg"  # figures go to files, whichever display a notebook's environment asks for
    show_any_text()
    sys.excepthook = _told
    atexit.register(_skip_teardown)  # before all others, so it is called last
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)


def exit_with(code: int) -> NoReturn:
    """End a command before its work is done. Raises: SystemExit."""
    _codes.append(code)
    sys.exit(code)


def _skip_teardown() -> None:
    """Leave without taking Python's parts down: what JAX still computes of unfinished work crashes on them."""
    if _codes:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, full, or nobody reads it
                stream.flush()
        os._exit(_codes[-1])


def show_any_text() -> None:
    """Escape what the encoding of the terminal or pipe does not have, instead of failing to print it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")


def _leave(number: int, frame: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n" if number == signal.SIGINT else b"terminated\n")
    os._exit(128 + number)


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Errors of imports, such as those of JAX's settings in the environment, in one line."""
    if os.environ.get("TRACEBACK") or not isinstance(error, Exception):
        sys.__excepthook__(kind, error, trace)
        return
    text = ascii(" ".join(str(error).split()))[1:-1][:MOST_TOLD]
    with contextlib.suppress(OSError):
        how = "check the environment's settings, or set TRACEBACK=1 for the traceback"
        os.write(2, f"error: cannot start: {kind.__name__}: {text}: {how}\n".encode())
    os._exit(2)  # Python itself would exit with 1
