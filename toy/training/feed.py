"""The checks of a run, its facts, and the feed of a source or a stream to its steps, for `train` and `train_grid`."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from toy.compiled import compiled
from toy.data.rows import MAX_SIZE
from toy.data.source import Batches, Source, Stream, checked_source
from toy.files.digest import config_facts, tree_facts
from toy.methods import method_facts
from toy.training.config import Hypers, TrainConfig, check_hypers, check_memory
from toy.training.jax_settings import jax_flags
from toy.training.loop import Facts, reading_ahead
from toy.training.state import check_key

MAX_CHUNK_MB = 64  # of a stream's batches, counted as float32; a batch that is larger is read alone
MAX_READINGS = 3  # of a chunk whose numbers are not what a stream may give

Feed = Callable[[int], Source | Batches]  # gives what the steps from this one on draw from


def checked_run(
    keys: Any, source: Any, hypers: Hypers, cfg: TrainConfig, *, n_lanes: int | None = None, n_devices: int = 1
) -> Any:
    """The source with checked rows, once all that a run is given has been checked. `n_lanes` is None for one run.

    Raises: ValueError naming the invalid argument, before any work.
    """
    check_key(keys, n_axes=0 if n_lanes is None else 1)
    check_hypers(hypers, cfg, source.d_in)
    source = checked_source(source)
    check_memory(source.d_in, cfg, n_lanes or 1, n_devices)
    return source


def feed_chunk(source: Source | Stream, chunk: int, cfg: TrainConfig) -> int:
    """The number of steps per chunk; a stream's batches of a chunk must fit in `MAX_CHUNK_MB`."""
    if not isinstance(source, Stream):
        return chunk
    n_fit = int(MAX_CHUNK_MB * 2**20 // (4 * cfg.batch_size * source.d_in))
    return min(chunk, max(1, n_fit), cfg.n_steps)


class Fed(NamedTuple):
    """A source, the configuration of its runs, and the function that places it or its batches on the devices."""

    source: Source | Stream
    cfg: TrainConfig
    place: Callable[[Any], Any] | None = None

    def placed(self, source: Source | Batches) -> Any:
        return source if self.place is None else self.place(source)


@contextmanager
def feeding(
    source: Source | Stream, chunk: int, cfg: TrainConfig, place: Callable[[Any], Any] | None = None
) -> Iterator[Feed]:
    """Yields a `Feed`, whose source or batches `place` has put where the steps need them.

    Every chunk of a stream has the same shape, so that one program serves all; the last holds steps that are not taken.
    """
    with feeding_all({"": Fed(source, cfg, place)}, chunk) as feed:
        yield lambda first: feed(first)[""]


@contextmanager
def feeding_all(fed: Mapping[str, Fed], chunk: int) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Like `feeding`, for several runs that advance together.

    Runs that share a stream and a batch size share each reading of it.
    """
    kept = {name: one.placed(one.source) for name, one in fed.items() if not isinstance(one.source, Stream)}
    streams = {name: one for name, one in fed.items() if name not in kept}
    if not streams:
        yield lambda first: kept
        return

    def read(first: int) -> dict[str, Any]:
        distinct = {_drawn(one): one for one in streams.values()}
        given = {drawn: _given(one, first, chunk) for drawn, one in distinct.items()}
        # A device answers once it has done what it is at: so all are read before it is asked whether they are whole.
        found = {drawn: one.placed(_whole(one, given[drawn], first, chunk)) for drawn, one in distinct.items()}
        return kept | {name: found[_drawn(one)] for name, one in streams.items()}

    with reading_ahead(read, chunk, max(one.cfg.n_steps for one in streams.values())) as ask:
        yield ask


def _drawn(fed: Fed) -> tuple[int, int]:
    """Returns what two runs must have in common to be given the same batches."""
    return id(fed.source), fed.cfg.batch_size


def _whole(fed: Fed, batches: Batches, first: int, chunk: int) -> Batches:
    """The batches of a chunk, read again, with a warning, as long as the device holds numbers that no stream may give.

    Streams check their rows on the host. Yet of about a thousand chunks that were sent to a GPU while it computed, one
    held other numbers from its middle on, many of them not finite, and was whole when it was read again (jaxlib 0.11.2,
    H200). Wrong numbers that could be activations are not found, nor what goes wrong as `place` copies batches on.

    Raises: ValueError naming the steps.
    """
    steps = f"steps {first:,} to {first + chunk - 1:,}"
    told = f"source: numbers in the batches of {steps} are not finite or not below {MAX_SIZE:g}"
    n_readings = 1
    while not _trainable(batches.x):
        if n_readings == MAX_READINGS:
            raise ValueError(f"{told} in {n_readings} readings: leave such rows out of the stream, or scale them down")
        warnings.warn(f"{told}: they are read again", RuntimeWarning, stacklevel=2)
        batches, n_readings = _given(fed, first, chunk), n_readings + 1
    return batches


@compiled()
def _trainable(x: Float[Array, "n_steps batch d_in"]) -> Bool[Array, ""]:
    return jnp.max(jnp.abs(x)) < MAX_SIZE  # False for NaN


def _given(fed: Fed, first: int, chunk: int) -> Batches:
    """Raises: ValueError if these are not the batches that the stream was asked for."""
    stream: Any = fed.source
    batches, shape = stream.batches(first, chunk, fed.cfg.batch_size), (chunk, fed.cfg.batch_size, stream.d_in)
    if batches.x.shape != shape or int(batches.first) != first:
        raise ValueError(
            f"source: asked for batches {shape} from step {first} on, the stream gave {batches.x.shape} from "
            f"step {int(batches.first)} on"
        )
    return batches


def run_facts(keys: Any, source: Source | Stream, hypers: Any, cfg: TrainConfig) -> Facts:
    """Everything that a run is a function of, by name."""
    if isinstance(source, Stream):
        of_source = {f"source.{name}": value for name, value in source.facts().items()}
    else:
        of_source = tree_facts("source", source)
    return {
        **{f"flags.{name}": value for name, value in jax_flags().items()},
        **config_facts("cfg", cfg),
        **{f"cfg.{name}": value for name, value in method_facts(cfg.method).items()},
        **tree_facts("key", keys),
        **tree_facts("hypers", hypers),
        "type of source": type(source).__name__,
        **of_source,
    }
