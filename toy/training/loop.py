"""The host's loop around compiled chunks of steps: progress, history, checkpoints, reading ahead.

The trainers of SAEs and of the language model both use it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from toy.checks import Whole, check_numbers

Progress = Callable[[int], Any]  # called with the number of steps that were just done
Facts = dict[str, Any]  # everything that a run follows from, by name, as JSON values
T = TypeVar("T")


class Run(NamedTuple):
    """A run up to some step."""

    state: PyTree
    history: PyTree  # one row per chunk, along the last axis
    n_done: int = 0  # steps


@runtime_checkable
class Checkpoint(Protocol):
    """Keeps a run, so that it can be killed and go on."""

    def load(self, like: Run, facts: Facts) -> Run | None:
        """The run that was saved, or None; `like` is the run before its first step.

        Raises: ValueError if what was saved is of another run.
        """
        ...

    def save(self, run: Run, facts: Facts, *, last: bool) -> None:
        """Keeps the run; only the last call must write it."""
        ...

    def release(self) -> None:
        """Lets other runs use the checkpoint; called when this run ends, in whatever way."""
        ...


def run_chunks(
    move: Callable[[Any, Any, int], tuple[Any, Any]],
    state: PyTree,
    n_steps: int,
    *,
    feed: Callable[[int], Any],
    chunk: int,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    facts: Facts | None = None,
    empty: PyTree,
) -> tuple[PyTree, PyTree]:
    """The final state and the history of `move(state, feed(first_step), n)`, called chunk by chunk, n steps at a time.

    `move` returns the new state and the metrics of its steps, and may take over the state's memory. `progress` also
    counts the steps that a checkpoint had done; a checkpoint continues only a run of the same facts. On
    KeyboardInterrupt the chunk under way is finished and kept. `empty` is the history of no steps (metrics whose last
    axis has no rows).
    """
    check_numbers({"chunk": chunk}, {"chunk": Whole()})
    facts = {**(facts or {}), "chunk": chunk}
    run, moved = Run(state, empty), None
    try:
        if checkpoint is not None:
            run = checkpoint.load(run, facts) or run
        if progress is not None and run.n_done:
            progress(run.n_done)
        while run.n_done < n_steps:
            n = min(chunk, n_steps - run.n_done)
            moved = run.n_done + n, move(run.state, feed(run.n_done), n)
            run, moved = _joined(run, *moved), None  # waits, so that progress is true
            if progress is not None:
                progress(n)
            if checkpoint is not None:
                checkpoint.save(run, facts, last=run.n_done == n_steps)
    except KeyboardInterrupt:
        run = run if moved is None or moved[0] == run.n_done else _joined(run, *moved)
        if checkpoint is not None and run.n_done and not _taken_over(run.state):
            checkpoint.save(run, facts, last=True)
        raise
    finally:
        if checkpoint is not None:
            checkpoint.release()
    return run.state, run.history


def _joined(run: Run, n_done: int, moved: tuple[PyTree, PyTree]) -> Run:
    state, metrics = moved
    row = jax.device_get(metrics)
    history = jax.tree.map(lambda rows, new: np.append(rows, np.expand_dims(new, -1), axis=-1), run.history, row)
    return Run(state, history, n_done)


def _taken_over(state: PyTree) -> bool:
    """Returns whether a chunk has taken over the state's memory: an interrupt can come before its result has a name."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))


@contextmanager
def reading_ahead(read: Callable[[int], T], chunk: int, n_steps: int) -> Iterator[Callable[[int], T]]:
    """Yields `read(first_step)`, to be called every `chunk` steps, with the next chunk read ahead in a thread.

    Two chunks are held: the caller's and the next. An error of reading is raised when its chunk is asked for.
    """
    ahead: dict[int, Future[T]] = {}
    with ThreadPoolExecutor(1) as thread:

        def ask(first: int) -> T:
            wanted = ahead.pop(first, None) or thread.submit(read, first)
            value = wanted.result()
            if first + chunk < n_steps:
                ahead[first + chunk] = thread.submit(read, first + chunk)
            return value

        yield ask
