"""The host's loop: what is told, kept and read is what was done."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toy.training import loop
from toy.training.loop import Facts, Run

run_chunks = partial(loop.run_chunks, feed=int, empty={"first": np.zeros(0, int), "pair": np.zeros((2, 0), int)})


class Kept:
    """A checkpoint in memory."""

    def __init__(self, run: Run | None = None) -> None:
        self.run = run
        self.saved: list[tuple[int, bool]] = []
        self.facts: Facts = {}
        self.n_released = 0

    def load(self, like: Run, facts: Facts) -> Run | None:
        self.like, self.facts = like, facts
        return self.run

    def save(self, run: Run, facts: Facts, *, last: bool) -> None:
        self.run = run
        self.saved.append((run.n_done, last))

    def release(self) -> None:
        self.n_released += 1


@jax.jit
def added(state: Any, first: Any, n: Any) -> Any:
    return state + n, {"first": first, "pair": jnp.stack([state, n])}


def test_chunks_follow_each_other_and_history_has_a_row_each() -> None:
    told: list[int] = []
    kept = Kept()
    state, history = run_chunks(
        added, jnp.int32(100), 25, chunk=10, progress=told.append, checkpoint=kept, facts={"a": 1}
    )
    assert state == 125
    assert told == [10, 10, 5]
    assert history["first"].tolist() == [0, 10, 20]
    assert history["pair"].tolist() == [[100, 110, 120], [10, 10, 5]]
    assert kept.saved == [(10, False), (20, False), (25, True)]
    assert kept.n_released == 1
    assert kept.facts == {"a": 1, "chunk": 10}
    assert kept.like.history["pair"].shape == (2, 0)


def test_a_run_goes_on_where_it_was_kept() -> None:
    told: list[int] = []
    _, begun = run_chunks(added, jnp.int32(100), 10, chunk=10)
    state, history = run_chunks(
        added, jnp.int32(0), 25, chunk=10, progress=told.append, checkpoint=Kept(Run(jnp.int32(110), begun, 10))
    )
    assert told == [10, 10, 5]
    assert state == 125
    assert history["first"].tolist() == [0, 10, 20]


@pytest.mark.parametrize(("at", "n_kept"), [("move", 10), ("wait", 20), ("progress", 20)])
def test_an_interrupt_keeps_the_last_chunk_that_is_whole(at: str, n_kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(state: Any, first: int, n: int) -> Any:
        if first == 10 and at == "move":
            raise KeyboardInterrupt
        return added(state, first, n)

    get, waits = jax.device_get, []

    def waiting(metrics: Any) -> Any:
        waits.append(metrics)
        if len(waits) == 2 and at == "wait":
            raise KeyboardInterrupt
        return get(metrics)

    def progress(n: int) -> None:
        if len(waits) == 2 and at == "progress":
            raise KeyboardInterrupt

    monkeypatch.setattr(jax, "device_get", waiting)
    kept = Kept()
    with pytest.raises(KeyboardInterrupt):
        run_chunks(interrupted, jnp.int32(0), 30, chunk=10, progress=progress, checkpoint=kept)
    assert kept.saved[-1] == (n_kept, True)
    assert kept.run is not None
    assert kept.run.state == n_kept
    assert kept.run.history["first"].shape == (n_kept // 10,)


def test_a_state_whose_memory_was_taken_over_is_not_kept() -> None:
    def taking(state: Any, first: int, n: int) -> Any:
        if first:
            state.delete()
            raise KeyboardInterrupt
        return added(state, first, n)

    kept = Kept()
    with pytest.raises(KeyboardInterrupt):
        run_chunks(taking, jnp.int32(0), 30, chunk=10, checkpoint=kept)
    assert kept.saved == [(10, False)]


def test_a_chunk_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^chunk: must be at least 1, got 0$"):
        run_chunks(added, jnp.int32(0), 30, chunk=0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_checkpoint_is_released_however_a_run_ends(error: type[BaseException]) -> None:
    def progress(n: int) -> None:
        raise error

    kept = Kept()
    with pytest.raises(error):
        run_chunks(added, jnp.int32(0), 30, chunk=10, checkpoint=kept, progress=progress)
    assert kept.n_released == 1
