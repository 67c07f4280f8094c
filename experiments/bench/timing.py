"""The one way to time: what is compared takes turns, round by round, in fresh processes.

A process per job, because threads, device and code are settled when a process starts. A table is plain JSON: the
seconds per unit of every case, a number or more per round, and what to say of them.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

MOST_ROUNDS = 10_000  # of a table: every call's time is kept
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """The work that one process times."""

    what: str  # `reference`, or MODULE.FUNCTION of this package, which makes the cases
    options: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None  # None: all
    devices: int = 0  # that JAX makes of the CPU; 0: as it likes
    device: str = "cpu"
    code: Path = ROOT  # the checkout that is timed
    suffix: str = ""  # of the names of its cases


@dataclass(frozen=True)
class Table:
    """Cases to compare, and how their times are shown."""

    title: str
    unit: str
    jobs: tuple[Job, ...]
    scale: float = 1.0  # of seconds to `unit`
    per_second: bool = False  # shows units per second (times scale) in place of seconds per unit

    def measure(self, n_rounds: int, progress: Callable[[int], Any]) -> dict[str, Any]:
        """The table as JSON. Raises: ValueError with the last line that a failing process said."""
        cases, device = {}, ""
        with contextlib.ExitStack() as stack:
            workers = [(job, stack.enter_context(worker(job))) for job in self.jobs]
            for job, answer in workers:
                about = answer()
                device = about["device"]
                cases |= {name + job.suffix: {"seconds": [], **facts} for name, facts in about["facts"].items()}
            for _ in range(n_rounds):
                for job, answer in workers:
                    for name, seconds in answer().items():
                        cases[name + job.suffix]["seconds"] += seconds
                        cases[name] |= {"to": name + job.suffix} if job.suffix else {}
                progress(1)
        return self.of(cases, device)

    def of(self, cases: dict[str, Any], device: str) -> dict[str, Any]:
        """The table of cases that were measured on a device, as JSON."""
        shown = {"title": self.title, "unit": self.unit, "scale": self.scale, "per_second": self.per_second}
        return shown | {"device": device, "cases": cases}


@contextlib.contextmanager
def worker(job: Job) -> Iterator[Callable[[], dict[str, Any]]]:
    """A process of `worker.py` as a function that asks it for its next line. It is killed at the end."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said, _start(job, said) as process:

        def answer() -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended, and says why below
                print("next", file=process.stdin, flush=True)
            line = process.stdout.readline()
            if line:
                return json.loads(line)
            code = process.wait()
            said.seek(0)
            why = (said.read().strip() or f"exit code {code}").splitlines()[-1]
            raise ValueError(f"measuring {job.what} on {job.device} failed: {why}")

        try:
            yield answer
        finally:
            process.kill()
            process.communicate()


def _start(job: Job, said: IO[str]) -> subprocess.Popen[str]:
    told = json.dumps({"what": job.what, "threads": job.threads, "devices": job.devices, **job.options})
    environment = os.environ | {"JAX_PLATFORMS": "cpu" if job.device == "cpu" else "cuda"}
    environment |= {"PYTHONPATH": str(job.code), "PYTHONSAFEPATH": "1"}
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if job.threads is not None:
        environment |= {"OMP_NUM_THREADS": str(job.threads)}
        if cores:  # a child inherits the cores of the thread that starts it, and XLA starts a thread per core
            os.sched_setaffinity(0, sorted(cores)[: job.threads])
        elif job.threads == 1:
            environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    try:
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), told]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
        return subprocess.Popen(command, env=environment, text=True, **pipes)
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def has_peers() -> bool:
    """Returns whether the extra `peers` is installed."""
    return importlib.util.find_spec("sae_lens") is not None and importlib.util.find_spec("torch") is not None


def find_revision(revision: str) -> str:
    """The commit that a git revision of this project stands for. Raises: ValueError if there is none."""
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
    if found.returncode != 0:
        raise ValueError(f"against: {revision} is no revision of the git repository at {ROOT}")
    return found.stdout.strip()


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A temporary folder with this project as it was at a git revision. Raises: ValueError."""
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code"
        made = _git("worktree", "add", "--detach", str(code), find_revision(revision))
        if made.returncode != 0:
            raise ValueError(f"against: {revision} cannot be checked out: {made.stderr.strip()}")
        try:
            yield code
        finally:
            _git("worktree", "remove", "--force", str(code))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError("against: needs the program git") from None
