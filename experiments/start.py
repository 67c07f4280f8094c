"""What `python -m experiments.NAME` sets before it imports anything large: importing takes seconds and may fail."""

import contextlib
import os
import signal
import sys
from types import TracebackType
from typing import Any

from experiments.signals import SIGNALS


def start() -> None:
    """Set the process up as a command's."""
    os.environ["MPLBACKEND"] = "Agg"  # figures go to files, whichever display a notebook's environment asks for
    show_any_text()
    sys.excepthook = _told
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)


def show_any_text() -> None:
    """Escape what the encoding of the terminal or pipe does not have, instead of failing to print it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # neither None, as where they are closed, nor a buffer of text
            stream.reconfigure(errors="backslashreplace")


def _leave(number: int, frame: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + number)


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Errors of imports, such as those of JAX's settings in the environment."""
    try:
        from experiments.exits import report

        code = report(error) if isinstance(error, Exception) else None
    except Exception:  # what the report needs cannot be imported itself
        code = None
    if code is None:
        sys.__excepthook__(kind, error, trace)
        return
    os._exit(code)  # Python itself would exit with 1
