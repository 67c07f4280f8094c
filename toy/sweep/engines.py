"""Who runs a sweep's groups of cells: this process, a Ray cluster, or Slurm. All run the same function."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

from toy.extras import optional

Task = TypeVar("Task")
Answer = TypeVar("Answer")
MOST_ATTEMPTS = 3  # of a task whose worker died


@runtime_checkable
class Engine(Protocol):
    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Each task with `function(task)`, or the exception that it raised, as they are done.

        Tasks are asked for as workers get free, a few ahead, so that a million of them are never held.
        """
        ...


@dataclass(frozen=True)
class LocalEngine:
    """In this process: a group at a time on each local device, in a thread of its own."""

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        free = jax.local_devices()

        def call(task: Any, device: Any) -> Any:
            with jax.default_device(device):
                return answer_of(function, task)

        running: dict[Future[Any], tuple[Any, Any]] = {}
        source = iter(tasks)
        with ThreadPoolExecutor(len(free)) as threads:
            while True:
                for task in islice(source, len(free)):
                    device = free.pop()
                    running[threads.submit(call, task, device)] = task, device
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    task, device = running.pop(done)
                    free.append(device)
                    yield task, done.result()


def answer_of(function: Callable[[Task], Answer], task: Task) -> Answer | Exception:
    """What workers do: an error of the task is an answer, and only the loss of a worker is none."""
    try:
        return function(task)
    except Exception as error:
        return error


@dataclass(frozen=True)
class RayEngine:
    """On a Ray cluster: a task a group, as many at a time as the cluster has room for. Extra `cluster`.

    A task whose worker dies is run again by Ray, on another one.
    """

    address: str | None = None  # of a running cluster; None: start one on this machine
    cpus: float = 1  # a task
    gpus: float = 0

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        ray = optional("ray", "cluster", "the Ray engine")
        if not ray.is_initialized():
            ray.init(self.address, log_to_driver=False, include_dashboard=False, configure_logging=False)

        def call(task: Any) -> Any:
            return answer_of(function, task)

        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=MOST_ATTEMPTS - 1)(call)
        window = max(2, 2 * int(ray.cluster_resources().get("CPU", 1) // max(self.cpus, 1e-9)))
        waiting: dict[Any, Any] = {}
        source = iter(tasks)
        while True:
            for task in source:
                waiting[remote.remote(task)] = task
                if len(waiting) >= window:
                    break
            if not waiting:
                return
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(done), answer_of(ray.get, done)


@dataclass(frozen=True)
class SlurmEngine:
    """On Slurm through submitit: a job a group, `most_jobs` of them at a time. Extra `cluster`.

    A job that dies is submitted again. With cluster "local" jobs are processes of this machine.
    """

    folder: Path  # for scripts, logs and answers; all machines must see it
    cluster: str = "slurm"
    most_jobs: int = 100
    parameters: dict[str, Any] = field(default_factory=dict)  # submitit's: timeout_min, slurm_partition, …
    poll_s: float = 1.0

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        submitit = optional("submitit", "cluster", "the Slurm engine")
        died = optional("submitit.core.utils", "cluster", "the Slurm engine").UncompletedJobError

        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        executor.update_parameters(**self.parameters)
        running: list[tuple[Any, Any, int]] = []
        source = iter(tasks)
        while True:
            for task in islice(source, self.most_jobs - len(running)):
                running.append((executor.submit(answer_of, function, task), task, 1))
            if not running:
                return
            still: list[tuple[Any, Any, int]] = []
            for job, task, attempt in running:
                if not job.done():
                    still.append((job, task, attempt))
                    continue
                answer = answer_of(lambda job: job.result(), job)
                if isinstance(answer, died) and attempt < MOST_ATTEMPTS:
                    still.append((executor.submit(answer_of, function, task), task, attempt + 1))
                else:
                    yield task, answer
            if len(still) == len(running):
                time.sleep(self.poll_s)
            running = still
