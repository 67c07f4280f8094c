"""The start and the end of commands: a user's mistake ends in one line and exit code 2, an interrupt says what is kept.

Nothing here imports JAX, which takes seconds, before it is needed.
"""

import atexit
import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NoReturn

from experiments.common.signals import SIGNALS, interruptible

MOST_TOLD = 600  # characters of an error
MAX_CPU_DEVICES = 8
NOTHING_KEPT = "nothing of the unfinished experiment was written"
INTERRUPTED = 128  # to which the signal's number is added, as shells do
SIGPIPE = 13  # which Windows lacks
_REMEDIES = {
    MemoryError: "out of memory: ask for less, such as fewer seeds or smaller batches",
    RecursionError: "something given is nested too deeply",
    OverflowError: "a number given is too large",
}
_codes: list[int] = []  # with which the command ends early


def start() -> None:
    """Set the process up as a command's, before it imports anything large: importing takes seconds and may fail."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait for each other for seconds on a busy machine
    os.environ["MPLBACKEND"] = "Agg"  # figures go to files, whichever display a notebook's environment asks for
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")  # for characters that the terminal's or pipe's encoding lacks
    sys.excepthook = _cannot_start
    atexit.register(_skip_teardown)  # before all others, so it is called last
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)


@contextlib.contextmanager
def clean_exit(kept: str = NOTHING_KEPT) -> Iterator[None]:
    """Every command's frame: errors are one line, and no half of a file stays.

    The exit code is 2 for what a user can cause, 1 for a fault of this code, 130 for Ctrl-C and 143 for SIGTERM; an
    interrupt says what is `kept`, or what it was raised with. With TRACEBACK=1 in the environment, errors are raised.
    """
    with interruptible() as received:
        try:
            if "jax" in sys.modules:
                set_up_jax()
            try:
                yield
            finally:
                if sys.stdout is not None and not sys.stdout.closed:
                    sys.stdout.flush()  # which may fail: the disk is full, or the reader has gone
        except KeyboardInterrupt as stop:
            exit_with(_interrupted(received, str(stop) or kept))
        except BrokenPipeError:  # nobody reads stdout any longer, as after `| head`
            exit_with(INTERRUPTED + SIGPIPE)
        except Exception as error:
            if received and "KeyboardInterrupt" in str(error):  # JAX makes its own error of one in a callback
                exit_with(_interrupted(received, kept))
            if os.environ.get("TRACEBACK"):
                raise
            told, code = told_of(error)
            say(told)
            exit_with(code)


def exit_with(code: int) -> NoReturn:
    """End a command before its work is done. Raises: SystemExit."""
    _codes.append(code)
    sys.exit(code)


def told_of(error: Exception) -> tuple[str, int]:
    """The message for an error, and the exit code."""
    text = " ".join(str(error).split())
    if _device_is_missing():
        given = os.environ.get("JAX_PLATFORMS", "")[:40]
        return f"error: JAX_PLATFORMS={given}: JAX has no such device here: unset it, or set it to cpu", 2
    if "RESOURCE_EXHAUSTED" in text:  # JAX's own error
        error = MemoryError(text)
    for kind, remedy in _REMEDIES.items():
        if isinstance(error, kind):
            return f"error: {remedy}: {text}".rstrip(": "), 2
    if isinstance(error, ValueError | OSError | ImportError):
        return f"error: {text or type(error).__name__}", 2
    how = "set TRACEBACK=1 for the traceback and report it"
    return f"unexpected {type(error).__name__}: {text[: MOST_TOLD - 150]}; {how}", 1


def say(text: str) -> None:
    """Print one line to stderr, if anybody reads it, whatever characters it has."""
    from toy.checks import quoted

    with contextlib.suppress(OSError, ValueError):  # closed, or its reader has gone
        if sys.stderr is not None:
            print(quoted(" ".join(text.split()), MOST_TOLD), file=sys.stderr, flush=True)


def set_up_jax() -> None:
    """Make every core a device of its own, so that lanes of a grid run on all of them, and keep compiled programs.

    They are kept in the user's cache folder, or where JAX_COMPILATION_CACHE_DIR says; JAX_ENABLE_COMPILATION_CACHE=0
    keeps none.
    """
    import jax

    from experiments.common.cache import user_cache

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(user_cache("compiled")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is already running: keep its devices
            jax.config.update("jax_num_cpu_devices", n_cpu_devices())


def n_cpu_devices() -> int:
    """The number of devices that commands make of the CPU."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(n_cores, MAX_CPU_DEVICES)


def _device_is_missing() -> bool:
    """Returns whether JAX_PLATFORMS names a device that is not there, which raises errors of many kinds."""
    try:
        return "jax" in sys.modules and not sys.modules["jax"].devices()
    except Exception:
        return True


def _interrupted(received: list[int], kept: str) -> int:
    number = received[0] if received else signal.SIGINT
    say(f"{'interrupted' if number == signal.SIGINT else 'terminated'}; {kept}")
    return INTERRUPTED + number


def _skip_teardown() -> None:
    """Leave without taking Python's parts down: what JAX still computes of unfinished work crashes on them."""
    if _codes:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, full, or nobody reads it
                stream.flush()
        os._exit(_codes[-1])


def _leave(number: int, frame: Any) -> None:
    """End at once, while nothing but imports is under way."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n" if number == signal.SIGINT else b"terminated\n")
    os._exit(INTERRUPTED + number)


def _cannot_start(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tell errors of imports, such as those of JAX's settings in the environment, in one line."""
    if os.environ.get("TRACEBACK") or not isinstance(error, Exception):
        sys.__excepthook__(kind, error, trace)
        return
    text = " ".join(str(error).split())[: MOST_TOLD - 200]
    how = "check the environment's settings, or set TRACEBACK=1 for the traceback"
    print(f"error: cannot start: {kind.__name__}: {text}: {how}", file=sys.stderr, flush=True)
    os._exit(2)  # Python itself would exit with 1
