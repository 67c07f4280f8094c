"""Cases of a store of activations: reading its rows, and training on them beside training on rows in memory."""

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.worker import Case, timed_chunks
from toy.data.source import ArraySource, Source, Stream
from toy.data.store import open_store, write_store
from toy.data.stream import ShardSource
from toy.prefixes import Weighting, full, sampled
from toy.training.config import Hypers, TrainConfig
from toy.training.run import train

CHUNK, N_SHARDS, MOST_IN_MEMORY = 20, 8, 65_536  # steps, files, rows
SITE, LABELS = "resid_pre.0", ("token", "document", "position")


def cases(job: dict[str, Any]) -> dict[str, Case]:
    """Cases whose unit is a row. The stores are written to the job's folder; what that took is a fact of reading."""
    n, rate = job["n_latents"], "training, {}".format
    sources, reading = {}, {}
    for dtype in ("float32", "bfloat16"):
        start = time.perf_counter()
        write_random(Path(job["folder"], dtype), job, dtype)
        facts = {"to": rate("Matryoshka"), "written_per_second": job["n_rows"] / (time.perf_counter() - start)}
        sources[dtype] = ShardSource(open_store(Path(job["folder"], dtype)).activations(SITE), seed=job["seed"])
        reading[f"reading {dtype}"] = Case(timed_reading(sources[dtype], job), facts)
    rows = sources["float32"].batches(0, 1, min(job["n_rows"], MOST_IN_MEMORY)).x[0]
    matryoshka = sampled(n, job["n_prefixes"])
    training = {
        rate("vanilla"): (full(n), sources["float32"]),
        rate("Matryoshka"): (matryoshka, sources["float32"]),
        rate("Matryoshka, rows in memory"): (matryoshka, ArraySource(jnp.asarray(rows))),
    }
    timed = {name: timed_training(weighting, source, job) for name, (weighting, source) in training.items()}
    return {name: Case(seconds) for name, seconds in timed.items()} | reading


def write_random(folder: Path, job: dict[str, Any], dtype: str) -> None:
    ends = np.linspace(0, job["n_rows"], N_SHARDS + 1).astype(int)

    def make_shard(i: int) -> dict[str, np.ndarray]:
        n = int(ends[i + 1] - ends[i])
        rows = np.random.default_rng([job["seed"], i]).normal(size=(n, job["d_in"])).astype(jnp.dtype(dtype))
        return {SITE: rows} | {name: np.zeros(n, np.int32) for name in LABELS}

    write_store(folder, {"seed": job["seed"], "dtype": dtype}, N_SHARDS, make_shard)


def timed_reading(source: ShardSource, job: dict[str, Any]) -> Callable[[], list[float]]:
    """Reads an epoch's batches, each time the next epoch's, in chunks as a training does."""
    n_chunks, epoch = max(1, job["n_rows"] // (CHUNK * job["batch_size"])), itertools.count()

    def seconds() -> list[float]:
        first = next(epoch) * n_chunks
        start = time.perf_counter()
        for i in range(first, first + n_chunks):
            source.batches(i * CHUNK, CHUNK, job["batch_size"]).x.block_until_ready()
        return [(time.perf_counter() - start) / (n_chunks * CHUNK * job["batch_size"])]

    return seconds


def timed_training(weighting: Weighting, source: Source | Stream, job: dict[str, Any]) -> Callable[[], list[float]]:
    hypers = Hypers(weighting, target_l0=min(32.0, job["n_latents"] / 4))
    cfg = TrainConfig(job["n_latents"], n_steps=2 * CHUNK, batch_size=job["batch_size"])
    run = partial(train, jax.random.key(job["seed"]), source, hypers, cfg=cfg)
    return timed_chunks(run, CHUNK, per_step=job["batch_size"])
