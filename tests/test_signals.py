"""Interrupts: one handler for every command, which an exception that was swallowed does not defeat."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.common import exits, progress, signals

BOTH = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


def ended(work: Callable[[], None]) -> Any:
    """Returns the exit status of a command that does this work."""
    with pytest.raises(SystemExit) as stop, exits.clean_exit("all is kept"):
        work()
    return stop.value.code


def swallowed(number: int) -> None:
    """A signal during a callback of JAX."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(number)


def told(number: int) -> str:
    return "interrupted; all is kept" if number == signal.SIGINT else "terminated; all is kept"


@BOTH
def test_a_signal_ends_a_command_in_one_line(number: int, code: int, capsys: pytest.CaptureFixture) -> None:
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    assert ended(lambda: signal.raise_signal(number)) == code
    assert capsys.readouterr().err == f"{told(number)}\n"
    assert [signal.getsignal(each) for each in signals.SIGNALS] == before
    signals.raise_swallowed()  # nothing is left of it


@BOTH
def test_progress_raises_an_interrupt_that_was_swallowed(number: int, code: int, capsys: pytest.CaptureFixture) -> None:
    steps = []

    def work() -> None:
        with progress.progress_bar(9, "work") as bar:
            for step in range(9):
                if step == 3:
                    swallowed(number)
                steps.append(step)
                bar.update()

    assert ended(work) == code
    assert steps == [0, 1, 2, 3]
    assert told(number) in capsys.readouterr().err


def test_work_that_winds_down_by_itself_is_not_interrupted_again() -> None:
    finished = []

    def work() -> None:
        with progress.progress_bar(9, "work", stops=False) as bar:
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                bar.update()
                finished.append(True)

    assert ended(work) == 130
    assert finished


def test_what_jax_makes_of_an_interrupt_in_a_callback_is_one(capsys: pytest.CaptureFixture) -> None:
    def work() -> None:
        swallowed(signal.SIGINT)
        raise RuntimeError("INTERNAL: CpuCallback error calling callback: KeyboardInterrupt:")

    assert ended(work) == 130
    assert capsys.readouterr().err == "interrupted; all is kept\n"


def test_an_interrupt_that_python_cannot_raise_is_not_told_of(capsys: pytest.CaptureFixture) -> None:
    """Such an interrupt comes during a callback of garbage collection: Python prints a traceback and goes on."""

    class Part:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def __del__(self) -> None:
            raise self.error

    def work() -> None:
        swallowed(signal.SIGINT)
        Part(KeyboardInterrupt())
        Part(ValueError("a fault"))
        signals.raise_swallowed()

    assert ended(work) == 130
    error = capsys.readouterr().err
    assert "KeyboardInterrupt" not in error
    assert "ValueError: a fault" in error


def test_an_error_of_winding_down_is_told(capsys: pytest.CaptureFixture) -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise OSError(28, "No space left on device", "checkpoint") from None

    assert ended(work) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'checkpoint'\n"


@BOTH
def test_a_second_signal_ends_the_process_at_once(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise SystemExit(f"left with {code}")

    def work() -> None:
        swallowed(signal.SIGINT)  # and it takes long to wind down
        signal.raise_signal(number)

    monkeypatch.setattr(os, "_exit", leave)
    assert ended(work) == f"left with {code}"


def test_a_signal_that_is_to_be_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with exits.clean_exit():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_has_no_handlers_of_its_own() -> None:
    seen: list[Any] = []

    def work() -> None:
        with exits.clean_exit():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 4.0, 8.0])
@BOTH
def test_a_process_ends_soon_with_its_code_and_one_line(number: int, code: int, seconds: float, tmp_path: Path) -> None:
    """While it imports, compiles and trains."""
    command = [sys.executable, "-m", "experiments.cosines", "--n-seeds", "2", "--n-steps", "1e6", "--out", tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(number)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, error
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert error.splitlines()[-1].startswith(word)
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code", "told"), [("exit_with(143)", 143, ""), ("", 0, "torn down\n")])
def test_an_early_end_does_not_take_python_down_below_the_work_of_jax(end: str, code: int, told: str) -> None:
    """The work that JAX still does then crashes: one in ten interrupts in the first second of a run did."""
    text = (
        "import sys; sys.argv = ['-m']; import experiments\n"
        "from experiments.common.exits import exit_with\n"
        "class Part:\n"
        "    def __del__(self): print('torn down')\n"
        f"part = Part()\n{end}"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, told), done.stderr
