"""Who runs a sweep's groups of cells: this process, a Ray cluster, or Slurm. All run the same function."""

import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax

from toy.checks import optional, quoted

Task = TypeVar("Task")
Answer = TypeVar("Answer")
MOST_ATTEMPTS = 3  # of a task whose worker died
N_AHEAD = 8  # tasks that this process chooses from
MOST_TOLD = 500  # characters of an error that are kept


class WorkerFault(ValueError):  # noqa: N818
    """A task cannot be done where it is, and may be done elsewhere or later: no task is at fault."""


class Failure(NamedTuple):
    """An error in place of an answer."""

    told: str  # in one line
    of_worker: bool  # it died, ran out of memory, cannot start: another attempt may go well


@runtime_checkable
class Engine(Protocol):
    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Each task with `function(task)`, or the Failure that came of it, as they are done.

        Tasks are asked for as workers get free, a few ahead, so that a million of them are never held.
        """
        ...


class _Ahead:
    """The next tasks, of which each device is given one whose program it has compiled, or else none other has."""

    def __init__(self, tasks: Iterable[Any]) -> None:
        self._source, self._tasks = iter(tasks), list[Any]()
        self._done_by: dict[Any, Any] = {}  # kind of task → the first device that ran one

    def next_for(self, device: Any) -> Any | None:
        self._tasks += islice(self._source, N_AHEAD - len(self._tasks))
        if not self._tasks:
            return None
        kinds = [getattr(task, "kind", None) for task in self._tasks]
        owners = [device if kind is None else self._done_by.get(kind) for kind in kinds]
        own = next((i for i, owner in enumerate(owners) if owner == device), None)
        new = next((i for i, owner in enumerate(owners) if owner is None), 0)
        place = new if own is None else own
        self._done_by.setdefault(kinds[place], device)
        return self._tasks.pop(place)


@dataclass(frozen=True)
class LocalEngine:
    """In this process: a group at a time on each local device, in a thread of its own.

    Devices compile programs for themselves, so that groups of one `kind` go to one device while there are others.
    """

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        free = jax.local_devices()

        def call(task: Any, device: Any) -> Any:
            with jax.default_device(device):
                return answer_of(function, task)

        running: dict[Future[Any], tuple[Any, Any]] = {}
        ahead = _Ahead(tasks)
        with ThreadPoolExecutor(len(free)) as threads:
            while True:
                while free and (task := ahead.next_for(free[-1])) is not None:
                    device = free.pop()
                    running[threads.submit(call, task, device)] = task, device
                if not running:
                    return
                interrupt = None
                try:
                    finished = wait(running, return_when=FIRST_COMPLETED).done
                except KeyboardInterrupt as error:  # what is under way cannot be stopped, so it need not be lost
                    finished, interrupt = wait(running).done, error
                for done in finished:
                    task, device = running.pop(done)
                    free.append(device)
                    yield task, done.result()
                if interrupt is not None:
                    raise interrupt


def answer_of(function: Callable[[Task], Answer], task: Task) -> Answer | Failure:
    """The work of a worker. An error is an answer too, so that an error of the cluster itself means a lost worker."""
    try:
        return function(task)
    except (WorkerFault, MemoryError) as error:
        return failure(error, of_worker=True)
    except Exception as error:
        return failure(error, of_worker="RESOURCE_EXHAUSTED" in str(error))  # JAX has no type for it


def failure(error: Exception, *, of_worker: bool) -> Failure:
    text = str(error) if isinstance(error, WorkerFault) else f"{type(error).__name__}: {error}"
    return Failure(quoted(" ".join(text.split()), MOST_TOLD), of_worker)


@dataclass(frozen=True)
class RayEngine:
    """On a Ray cluster: one task per group, as many at a time as the cluster has room for. Extra `cluster`.

    A cluster that it starts itself listens on 127.0.0.1 alone, and accepts only clients with a token that
    only this process knows.

    A task whose worker dies is run again by Ray, on another one.
    """

    address: str | None = None  # of a running cluster; None: start one on this machine
    cpus: float = 1  # per task
    gpus: float = 0

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        if self.address is None:
            for name, value in _OWN_CLUSTER.items():  # Ray reads these when it is imported
                os.environ.setdefault(name, value)
        ray = optional("ray", "cluster", "the Ray engine")
        if not ray.is_initialized():
            ray.init(self.address, log_to_driver=False, include_dashboard=False, configure_logging=False)
            if self.address is None:
                _check_own_cluster(ray)
        self._check(ray.nodes())

        def call(task: Any) -> Any:
            return answer_of(function, task)

        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=MOST_ATTEMPTS - 1)(call)
        window = max(2, 2 * int(ray.cluster_resources().get("CPU", 1) // self.cpus))
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
            task = waiting.pop(done)
            try:
                answer = ray.get(done)
            except Exception as error:  # not the task's: those are answers
                answer = failure(error, of_worker=True)
            yield task, answer

    def _check(self, nodes: Sequence[Any]) -> None:
        """Ray itself waits for ever, and says nothing. Raises: ValueError if no node can ever take a task."""
        resources = [node["Resources"] for node in nodes if node["Alive"]]
        if any(node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= self.gpus for node in resources):
            return
        told = f"no node of the Ray cluster has {self.cpus:g} CPUs and {self.gpus:g} GPUs, which a task is to have"
        if self.address is None:
            raise ValueError(f"{told}: ask for fewer, or give the address of a cluster that has them")
        warnings.warn(f"{told}: waiting for the cluster to grow", stacklevel=2)


_OWN_CLUSTER = {  # of a cluster that is this process' own: others have no access to it
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: the cluster is on 127.0.0.1 alone
}
_LEAST_RAY = (2, 52)  # knows tokens


def _check_own_cluster(ray: Any) -> None:
    """A cluster runs whatever code it is sent. Raises: ValueError, without the cluster, if others could send some."""
    why = None
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < _LEAST_RAY:
        why = f"Ray {ray.__version__} asks nobody for a token: install {'.'.join(map(str, _LEAST_RAY))} or later"
    elif any(node["NodeManagerAddress"] not in ("127.0.0.1", "::1") for node in ray.nodes()):
        why = "Ray was imported before, and so listens to other machines: import it later, or start a cluster yourself"
    if why is not None:
        ray.shutdown()
        raise ValueError(f"the Ray engine: {why}")


@dataclass(frozen=True)
class SlurmEngine:
    """On Slurm through submitit: one job per group, `most_jobs` of them at a time. Extra `cluster`.

    A job that dies is submitted again; those that are left when the driver stops are cancelled (not if it is killed).
    With cluster "local" jobs are processes of this machine.
    """

    folder: Path  # for scripts, logs and answers; all machines must see it
    cluster: str = "slurm"
    most_jobs: int = 100
    parameters: dict[str, Any] = field(default_factory=dict)  # submitit's: timeout_min, slurm_partition, …
    poll_s: float = 1.0

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        submitit = optional("submitit", "cluster", "the Slurm engine")
        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        executor.update_parameters(**self.parameters)
        running: dict[Any, tuple[Any, int]] = {}  # jobs with their tasks, and which attempt it is
        source = iter(tasks)
        try:
            while True:
                for task in islice(source, self.most_jobs - len(running)):
                    running[executor.submit(answer_of, function, task)] = task, 1
                if not running:
                    return
                done = [job for job in running if job.done()]
                for job in done:
                    task, attempt = running.pop(job)
                    try:
                        answer = job.result()
                    except Exception as error:  # not the task's: those are answers
                        if attempt < MOST_ATTEMPTS:
                            running[executor.submit(answer_of, function, task)] = task, attempt + 1
                            continue
                        answer = failure(error, of_worker=True)
                    yield task, answer
                if not done:
                    time.sleep(self.poll_s)
        finally:
            for job in running:
                job.cancel(check=False)
