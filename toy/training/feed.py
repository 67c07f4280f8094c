"""What the compiled steps are given as their source: a source as it is, or a stream's batches, a chunk ahead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from toy.data.source import Batches, Source, Stream
from toy.digest import config_facts, tree_facts
from toy.jax_settings import jax_flags
from toy.training.config import TrainConfig
from toy.training.loop import Facts, reading_ahead

MAX_CHUNK_MB = 64  # of a stream's batches, counted as float32; a batch that is larger is read alone

Feed = Callable[[int], Source | Batches]  # what the steps from this one on are given


def feed_chunk(source: Source | Stream, chunk: int, cfg: TrainConfig) -> int:
    """Steps a chunk: of a stream no more than may be in memory."""
    if not isinstance(source, Stream):
        return chunk
    n_fit = int(MAX_CHUNK_MB * 2**20 // (4 * cfg.batch_size * source.d_in))
    return min(chunk, max(1, n_fit), cfg.n_steps)


@contextmanager
def feeding(
    source: Source | Stream, chunk: int, cfg: TrainConfig, place: Callable[[Any], Any] | None = None
) -> Iterator[Feed]:
    """`place` puts a source or batches where the steps need them.

    Every chunk of a stream has the same shape, the last with steps that are not taken, so that one program serves all.
    """
    if not isinstance(source, Stream):
        placed = source if place is None else place(source)
        yield lambda first: placed
        return

    def read(first: int) -> Batches:
        batches, shape = source.batches(first, chunk, cfg.batch_size), (chunk, cfg.batch_size, source.d_in)
        if batches.x.shape != shape or int(batches.first) != first:
            raise ValueError(
                f"source: asked for batches {shape} from step {first} on, the stream gave {batches.x.shape} from "
                f"step {int(batches.first)} on"
            )
        return batches if place is None else place(batches)

    with reading_ahead(read, chunk, cfg.n_steps) as ask:
        yield ask


def run_facts(keys: Any, source: Source | Stream, hypers: Any, cfg: TrainConfig) -> Facts:
    """All that a run is a function of."""
    if isinstance(source, Stream):
        of_source = {f"source.{name}": value for name, value in source.facts().items()}
    else:
        of_source = tree_facts("source", source)
    return {
        **{f"flags.{name}": value for name, value in jax_flags().items()},
        **config_facts("cfg", cfg),
        **tree_facts("key", keys),
        **tree_facts("hypers", hypers),
        "type of source": type(source).__name__,
        **of_source,
    }
