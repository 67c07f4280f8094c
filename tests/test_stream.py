"""A stream takes every row once an epoch, and its rows are a function of the step alone."""

import json
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killed import CFG, HYPERS, KEY, stream
from test_train import SHARED, assert_close, equal, lane

from toy.data.activations import Activations
from toy.data.source import Batches, Stream, draw_batch
from toy.data.stream import ShardSource
from toy.prefixes import full
from toy.training import feed
from toy.training.grid import Grid, train_grid, train_grids
from toy.training.loop import reading_ahead
from toy.training.run import train


def numbered(n_rows: int, n_parts: int = 1, dtype: Any = np.float32) -> Activations:
    """Every row holds its own number."""
    rows = np.repeat(np.arange(n_rows)[:, None], 3, axis=1).astype(dtype)
    return Activations("rows", tuple(np.array_split(rows, n_parts)))


def slow_rows(seed: int, n_rows: int, block: int, n_epochs: int) -> list[int]:
    """The definition: epochs one after the other, each its blocks in the order of its own permutation."""
    blocks = [list(range(first, min(first + block, n_rows))) for first in range(0, n_rows, block)]
    orders = [np.random.default_rng([seed, epoch]).permutation(len(blocks)) for epoch in range(n_epochs)]
    return [row for order in orders for i in order for row in blocks[i]]


@pytest.mark.parametrize(("n_rows", "block"), [(640, 64), (333, 16), (130, 64), (5, 64), (7, 1), (1, 1)])
@pytest.mark.parametrize("batch_size", [1, 24, 64])
def test_a_stream_is_its_slow_definition_however_steps_are_asked_for(n_rows: int, block: int, batch_size: int) -> None:
    n_steps = 3 * n_rows // batch_size + 2
    source = ShardSource(numbered(n_rows, min(n_rows, 3)), seed=2, block=block)
    expected = slow_rows(2, n_rows, block, 5 + n_steps * batch_size // n_rows)[: n_steps * batch_size]
    batches = source.batches(0, n_steps, batch_size)
    np.testing.assert_array_equal(batches.x, np.repeat(np.reshape(expected, (n_steps, batch_size, 1)), 3, axis=2))
    for first, n in ((n_steps - 1, 1), (1, n_steps - 1)):
        later = source.batches(first, n, batch_size)
        assert int(later.first) == first
        np.testing.assert_array_equal(later.x, batches.x[first : first + n])


@pytest.mark.parametrize(("n_rows", "block"), [(333, 16), (5, 64)])
def test_every_epoch_takes_each_row_once_in_an_order_of_its_own(n_rows: int, block: int) -> None:
    rows = ShardSource(numbered(n_rows), block=block).rows(0, 4 * n_rows).reshape(4, n_rows)
    for epoch in rows:
        assert sorted(epoch) == list(range(n_rows))
    assert len({tuple(epoch) for epoch in rows}) == (4 if n_rows > block else 1)
    other = ShardSource(numbered(n_rows), seed=1, block=block).rows(0, n_rows)
    assert (other == rows[0]).all() == (n_rows <= block)


@pytest.mark.parametrize(
    ("stored", "given"),
    [(np.float32, np.float32), (jnp.bfloat16, jnp.bfloat16), (np.float16, np.float32), (np.float64, np.float32)],
)
def test_bfloat16_stays_as_stored_until_the_step_and_other_types_become_float32(stored: Any, given: Any) -> None:
    batches = ShardSource(numbered(100, 2, stored)).batches(2, 3, 4)
    assert batches.x.dtype == given
    assert batches.at(3).dtype == jnp.float32
    np.testing.assert_array_equal(batches.at(3), batches.x[1].astype(jnp.float32))


def test_a_stream_is_known_as_one_and_its_batches_are_drawn_by_their_step() -> None:
    assert isinstance(stream(), Stream)
    assert not isinstance(stream().batches(0, 1, 1), Stream)
    batches = stream().batches(5, 3, 4)
    assert batches.d_in == stream().d_in == 8
    drawn = jax.jit(draw_batch, static_argnums=2)(batches, KEY, 4, jnp.int32(6))
    np.testing.assert_array_equal(drawn, batches.x[1])


@pytest.mark.parametrize(("field", "value"), [("seed", -1), ("block", 0)])
def test_a_stream_that_cannot_be_is_refused_by_name(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{field}: must .* {value}$"):
        ShardSource(numbered(5), **{field: value})


@pytest.mark.parametrize(("shuffled", "block"), [(False, 1), (True, 64)])
def test_rows_are_taken_one_by_one_unless_their_order_is_random_already(shuffled: bool, block: int) -> None:
    acts = replace(numbered(300), shuffled=shuffled)
    assert ShardSource(acts).block_size == block
    assert ShardSource(acts).rows(0, 300).tolist() == slow_rows(0, 300, block, 1)
    assert ShardSource(acts, block=7).block_size == 7


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_told_by_its_place(dtype: Any, value: float) -> None:
    (part,) = numbered(100, 1, dtype).parts
    part[37, 1] = value
    source = ShardSource(Activations("mine.npy", (part,)))
    with pytest.raises(ValueError, match=r"^mine\.npy: row 37 has numbers that are not finite in float32"):
        source.batches(0, 10, 10)
    part[37, 1] = 3e38
    with pytest.raises(
        ValueError, match=r"^mine\.npy: row 37 has a number of size (3|2\.99)e\+38: at most 1e\+15 is trained"
    ):
        source.batches(0, 10, 10)
    part[37, 1] = 9e14
    source.batches(0, 10, 10)


def test_numbers_beyond_float32_are_told() -> None:
    (part,) = numbered(100, 1, np.float64).parts
    part[5, 2] = 1e39
    with pytest.raises(ValueError, match=r"row 5 has numbers"):
        ShardSource(Activations("mine", (part,))).batches(0, 10, 10)


def test_a_stream_is_known_again_by_its_rows_and_how_they_are_taken() -> None:
    source, facts = stream(), stream().facts()
    assert facts == stream().facts()
    assert json.loads(json.dumps(facts)) == facts
    (rows,) = (np.concatenate(source.activations.parts),)
    cut = Activations("rows", (rows[:-3],))  # as many blocks
    last, first, half = rows.copy(), rows.copy(), rows.astype(np.float16)
    last[-1, -1] += 1
    first[0, 0] += 1
    others = [replace(source, activations=Activations("rows", (x,))) for x in (last, first, half)]
    others += [replace(source, activations=cut), replace(source, seed=4), replace(source, block=17)]
    assert all(other.facts() != facts for other in others)
    assert replace(source, activations=Activations("renamed", (rows,))).facts() == facts
    known = replace(source.activations, digest="of a store")
    assert replace(source, activations=known).facts()["rows"] == "of a store"


# --- in the trainer -----------------------------------------------------------------------------------------


def test_chunks_of_a_stream_change_nothing_and_are_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    whole, _ = train(KEY, stream(), HYPERS, cfg=CFG)
    monkeypatch.setattr(feed, "MAX_CHUNK_MB", 4 * 24 * 8 * 25.5 / 2**20)
    state, history = train(KEY, stream(), HYPERS, cfg=CFG, chunk=40, progress=told.append)
    assert equal(state, whole)
    assert told == [25, 25, 10]
    assert history.mse.shape == (3,)
    monkeypatch.setattr(feed, "MAX_CHUNK_MB", 0)
    assert feed.feed_chunk(stream(), 40, CFG) == 1


@pytest.mark.slow
def test_the_chunks_of_a_stream_compile_one_program(caplog: pytest.LogCaptureFixture) -> None:
    with jax.log_compiles(), caplog.at_level("WARNING"):
        train(KEY, stream(), HYPERS, cfg=CFG, chunk=23)
        train_grid(jax.random.split(KEY, 2), stream(), HYPERS, cfg=CFG, in_axes=(None, SHARED), chunk=23)
    compiled = [message for message in caplog.messages if "Finished XLA compilation" in message]
    assert sum("jit(advance)" in message for message in compiled) == 1
    assert sum("jit(_advance_grid)" in message for message in compiled) == 1


@pytest.mark.slow
def test_all_lanes_are_given_the_same_batches() -> None:
    keys = jax.random.split(KEY, 3)
    state, history = train_grid(keys, stream(), HYPERS, cfg=CFG, in_axes=(None, SHARED), chunk=20)
    single, single_history = train(keys[2], stream(), HYPERS, cfg=CFG, chunk=20)
    assert_close(lane(history, 2), single_history, 1e-3)
    assert_close(lane(state, 2).input_norm, single.input_norm, 1e-6)
    with pytest.raises(ValueError, match=r"^in_axes: a stream is shared by all lanes"):
        train_grid(keys, stream(), HYPERS, cfg=CFG, in_axes=(0, SHARED))


class Faulty(ShardSource):
    """Fails, or gives other batches than it was asked for, from the second chunk on."""

    error: Exception | None = None

    def batches(self, first: int, n_steps: int, batch_size: int) -> Batches:
        if first and self.error is not None:
            raise self.error
        return super().batches(first, n_steps - (first > 0), batch_size)


class Unreadable(Faulty):
    error = OSError("the disk is gone")


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (Unreadable, OSError, "the disk is gone"),
        (
            Faulty,
            ValueError,
            r"^source: asked for batches \(20, 24, 8\) from step 20 on, the stream gave \(19, 24, 8\)",
        ),
    ],
)
def test_what_a_stream_raises_or_gives_wrong_is_told_after_the_chunks_before_it(
    kind: type[ShardSource], error: type[Exception], message: str
) -> None:
    told: list[int] = []
    with pytest.raises(error, match=message):
        train(KEY, kind(stream().activations), HYPERS, cfg=CFG, chunk=20, progress=told.append)
    assert told == [20]


@dataclass(frozen=True)
class Broken(ShardSource):
    """Its second chunk arrives with another number from its middle on, as many times as it says."""

    times: int = 0
    number: float = np.nan
    asked: list[int] = field(default_factory=list)

    def batches(self, first: int, n_steps: int, batch_size: int) -> Batches:
        found = super().batches(first, n_steps, batch_size)
        self.asked.append(first)
        if first != 20 or self.asked.count(first) > self.times:
            return found
        return found._replace(x=found.x.at[n_steps // 2 :, 3].set(self.number))


@pytest.mark.parametrize("number", [np.nan, -np.inf, 2e15])
def test_batches_that_arrive_broken_are_read_again(number: float) -> None:
    rows = stream().activations
    source = Broken(rows, times=2, number=number)
    with pytest.warns(
        RuntimeWarning, match=r"steps 20 to 39 are not finite or not below 1e\+15: they are read again"
    ) as told:
        state, _ = train(KEY, source, HYPERS, cfg=CFG, chunk=20)
    assert len(told) == 2
    assert source.asked == [0, 20, 20, 20, 40]
    assert equal(state, train(KEY, ShardSource(rows), HYPERS, cfg=CFG, chunk=20)[0])
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match=r"^source: .* below 1e\+15 in 3 readings: leave"),
    ):
        train(KEY, Broken(rows, times=3, number=number), HYPERS, cfg=CFG, chunk=20)


def test_one_chunk_is_read_ahead_in_a_thread_and_none_after_the_last() -> None:
    read: list[int] = []
    threads, ahead = set(), threading.Event()

    def reading(first: int) -> int:
        read.append(first)
        threads.add(threading.current_thread())
        if first == 10:
            ahead.set()
        return first

    with reading_ahead(reading, 10, 25) as ask:
        assert ask(0) == 0
        assert ahead.wait(10)  # without being asked for
        assert read == [0, 10]
        assert [ask(10), ask(20)] == [10, 20]
    assert read == [0, 10, 20]
    assert threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_grids_in_step_are_the_same_runs_and_share_each_reading_of_their_stream(monkeypatch):
    keys, reads = jax.random.split(KEY, 2), []
    other = replace(CFG, n_latents=2 * CFG.n_latents)
    wide = HYPERS._replace(prefixes=full(other.n_latents))
    alone = [
        train_grid(keys, stream(), hypers, cfg=cfg, in_axes=(None, SHARED), chunk=20)
        for hypers, cfg in ((HYPERS, CFG), (wide, other))
    ]
    source = stream()
    read = ShardSource.batches
    monkeypatch.setattr(ShardSource, "batches", lambda *given: reads.append(given[1]) or read(*given))
    grids = {
        "narrow": Grid(keys, source, HYPERS, CFG, (None, SHARED)),
        "wide": Grid(keys, source, wide, other, (None, SHARED)),
    }
    told = []
    together = train_grids(grids, chunk=20, progress=told.append)
    assert reads == list(range(0, CFG.n_steps, 20))
    assert sum(told) == CFG.n_steps
    for one, name in zip(alone, grids, strict=True):
        assert equal(one, together[name])
    grids["wide"] = grids["wide"]._replace(cfg=replace(other, n_steps=7))
    with pytest.raises(ValueError, match=r"^grids: all must have the same number of steps, got 7, "):
        train_grids(grids)
