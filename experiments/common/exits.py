"""How commands end: a fault of the user's is one line and exit code 2, an interrupt says what is kept."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator

import jax

from experiments.common.signals import interruptible
from experiments.common.start import exit_with, show_any_text
from toy.checks import quoted

MAX_CPU_DEVICES = 8
MOST_TOLD = 600  # characters of an error
NOTHING_KEPT = "nothing of the unfinished experiment was written"
INTERRUPTED = 128  # to which the signal's number is added, as shells do
_USERS = (ValueError, OSError, ImportError, RecursionError, MemoryError, OverflowError)


@contextlib.contextmanager
def clean_exit(kept: str = NOTHING_KEPT) -> Iterator[None]:
    """Every command's frame: errors are one line, and no half of a file stays.

    The exit code is 2 for what a user can cause, 1 for a fault of this code, 130 for Ctrl-C and 143 for SIGTERM; an
    interrupt says what is `kept`, or what it was raised with. With TRACEBACK=1 in the environment, errors are raised.
    """
    show_any_text()
    with interruptible() as received:
        try:
            use_all_cores()
            try:
                yield
            finally:
                _flush()
        except KeyboardInterrupt as stop:
            exit_with(_interrupted(received, str(stop) or kept))
        except Exception as error:
            if received and "KeyboardInterrupt" in str(error):  # JAX makes its own error of one in a callback
                exit_with(_interrupted(received, kept))
            code = report(error)
            if code is None:
                raise
            exit_with(code)


def use_all_cores() -> None:
    """Make every core a device of its own: lanes of a grid then run on all of them (about twice as fast on two)."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX is already running: keep its devices
        jax.config.update("jax_num_cpu_devices", min(n_cores, MAX_CPU_DEVICES))


def report(error: Exception) -> int | None:
    """Print an error in one line. Returns the exit code, or None if the traceback is wanted."""
    if isinstance(error, BrokenPipeError) and _is_left():
        _drop_output()
        return INTERRUPTED + 13  # SIGPIPE's number, as of other programs before `| head`
    if os.environ.get("TRACEBACK"):
        return None
    told, code = told_of(error)
    say(told)
    return code


def told_of(error: Exception) -> tuple[str, int]:
    """What is said of an error, and the exit code."""
    text = " ".join(str(error).split())
    missing = _missing_device()
    if missing is not None:
        return f"error: {missing}", 2
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return f"error: out of memory: ask for less, such as fewer seeds or smaller batches: {text}".rstrip(": "), 2
    if isinstance(error, RecursionError):
        return f"error: something given is nested too deeply: {text}", 2
    if isinstance(error, OverflowError):
        return f"error: a number given is too large: {text}", 2
    if isinstance(error, _USERS):
        return f"error: {text or type(error).__name__}", 2
    how = "set TRACEBACK=1 for the traceback and report it"
    return f"unexpected {type(error).__name__}: {quoted(text, MOST_TOLD - 100)}; {how}", 1


def say(text: str) -> None:
    """Print one line to stderr, if anybody reads it, whatever characters it has."""
    line = quoted(" ".join(text.split()), MOST_TOLD)
    with contextlib.suppress(OSError, ValueError):  # closed, or its reader has gone
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


def _interrupted(received: list[int], kept: str) -> int:
    number = received[0] if received else 2
    say(f"{'interrupted' if number == 2 else 'terminated'}; {kept}")
    return INTERRUPTED + number


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _missing_device() -> str | None:
    """What is wrong with JAX_PLATFORMS, if it is: errors of many kinds come of a device that is not there."""
    given = os.environ.get("JAX_PLATFORMS", "")
    if not given:
        return None
    try:
        jax.devices()
    except Exception:
        return f"JAX_PLATFORMS={quoted(given, 40)}: JAX has no such device here: unset it, or set it to cpu"
    return None


def _flush() -> None:
    """What is printed may fail to be written only now: the disk is full, or the reader has gone. Raises: OSError."""
    if sys.stdout is None or sys.stdout.closed:
        return
    try:
        sys.stdout.flush()
    except OSError:
        if not _is_left():
            _drop_output()
        raise


def _drop_output() -> None:
    """What stdout could not be given is not to be tried again by Python when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_left() -> bool:
    """Whether nobody reads stdout any longer, as after `| head`. Other broken pipes are errors."""
    if sys.stdout is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are told without being asked for
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
