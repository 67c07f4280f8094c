"""The host's loop around compiled chunks of steps: progress, history, checkpoints, reading ahead.

Of the trainer of SAEs and of that of the language model alike.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

Progress = Callable[[int], Any]  # told how many steps were just done
Facts = dict[str, Any]  # what fixes a run, by name; as JSON knows it
T = TypeVar("T")


class Run(NamedTuple):
    """A run so far."""

    state: PyTree
    history: PyTree  # a row a chunk, along the last axis
    n_done: int = 0  # steps


@runtime_checkable
class Checkpoint(Protocol):
    """Where a run is kept, so that it can be killed and go on."""

    def load(self, like: Run, facts: Facts) -> Run | None:
        """The run that was saved, None if there is none; `like` is it before its first step.

        Raises: ValueError if what was saved is of another run.
        """
        ...

    def save(self, run: Run, facts: Facts, *, last: bool) -> None:
        """Keep the run, or not yet: only the last time must be written."""
        ...

    def release(self) -> None:
        """Let other runs use it; called when this one ends, in whatever way."""
        ...


def run_chunks(
    move: Callable[[Any, int, int], tuple[Any, Any]],
    state: PyTree,
    n_steps: int,
    *,
    chunk: int,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    facts: Facts | None = None,
    empty: PyTree | None = None,
) -> tuple[PyTree, PyTree]:
    """Final state and history of calling `move(state, first_step, n)`, which makes n steps and gives their metrics.

    It may take over the state's memory. `progress` is told of the steps that a checkpoint had done, too; a checkpoint
    goes on only where it was made with these facts. On KeyboardInterrupt the last chunk is kept, one that is being
    computed is waited for. `empty` is the history of no steps (metrics whose last axis has no rows), which is
    otherwise found by tracing `move`.
    """
    if chunk < 1:
        raise ValueError(f"chunk: must be at least 1, got {chunk}")
    if empty is None:
        one = jax.eval_shape(lambda state: move(state, 0, min(chunk, n_steps))[1], state)
        empty = jax.tree.map(lambda metric: np.zeros((*metric.shape, 0), metric.dtype), one)
    facts = {**(facts or {}), "chunk": chunk}
    run, moved = Run(state, empty), None
    try:
        if checkpoint is not None:
            run = checkpoint.load(run, facts) or run
        if progress is not None and run.n_done:
            progress(run.n_done)
        while run.n_done < n_steps:
            n = min(chunk, n_steps - run.n_done)
            moved = run.n_done + n, move(run.state, run.n_done, n)
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
    """Whether the memory is another's: the interrupt came in the moment between a chunk's start and its name."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))


@contextmanager
def reading_ahead(read: Callable[[int], T], chunk: int, n_steps: int) -> Iterator[Callable[[int], T]]:
    """`read(first_step)`, to be called every `chunk` steps, with the next chunk read in a thread beside the caller.

    Two chunks are held: the caller's and the next. What the reading raises is raised when its chunk is asked for.
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
