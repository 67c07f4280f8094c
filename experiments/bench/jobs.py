"""Timed work at width for `experiments.speed`: a job, run in a process of its own (`experiments.bench.cases`).

A process for each job, because the number of threads and the device are settled when a process starts.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_ROUNDS = 10_000  # of a table: every call's time is kept


@dataclass(frozen=True)
class Job:
    """One shape, on one number of threads."""

    n_latents: int
    d_in: int
    batch_size: int
    k: int = 32
    n_prefixes: int = 10
    n_rounds: int = 5
    threads: int | None = None  # None: all
    device: str = "cpu"
    dtype: str = "float32"  # or bfloat16, or tf32
    peers: bool = False

    @property
    def size(self) -> str:
        return f"{self.n_latents} x {self.d_in}, batch {self.batch_size}"


def run_job(job: Job) -> dict[str, Any]:
    """The job's measurements, by case, made in a new process. Raises: ValueError with the last line it said."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
        environment = os.environ | {"JAX_PLATFORMS": "cpu" if job.device == "cpu" else "cuda"}
        command = [sys.executable, "-m", "experiments.bench.cases", str(path)]
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        if job.threads is not None:
            environment |= {"OMP_NUM_THREADS": str(job.threads)}
            if cores:  # a child inherits the cores of the thread that starts it, and XLA starts a thread a core
                os.sched_setaffinity(0, sorted(cores)[: job.threads])
            elif job.threads == 1:
                environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        finally:
            if cores:
                os.sched_setaffinity(0, cores)
    if done.returncode != 0:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ValueError(f"measuring {job.size} on {job.device} failed: {said}")
    return json.loads(done.stdout.splitlines()[-1])


def has_peers() -> bool:
    return importlib.util.find_spec("sae_lens") is not None and importlib.util.find_spec("torch") is not None
