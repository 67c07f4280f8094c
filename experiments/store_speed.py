"""Is reading in the way? Rows a second read from an activation store, beside the tokens a second of training.

Claim: at (d_in 128, 2,000 latents) on two cores a Matryoshka SAE with 10 sampled prefixes trains on more than 15,000
tokens a second, reading from the store included, and a shuffled stream of the store's rows is ten times as fast.
Command: python -m experiments.store_speed; half a minute on two cores. Rounds take every case in turn; the first chunk
of a training, which compiles, is not counted. The store has just been written, so it is read from the page cache and
not from the disk. Its numbers are random ones, on which a step takes as long as on any.
In the post: nothing; the activations of a large model do not fit in memory.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax.random
import numpy as np
from matplotlib.figure import Figure

from experiments.bench.jobs import MOST_ROUNDS
from experiments.common import plots
from experiments.common.cli import main
from experiments.common.memory import check_fits
from experiments.common.study import Progress
from toy import prefixes
from toy.checks import SEED, Whole, check_fields
from toy.data.source import ArraySource, Source, Stream
from toy.data.store import Store, open_store, write_store
from toy.data.stream import ShardSource
from toy.training.config import Hypers, TrainConfig, check_memory
from toy.training.run import train

DTYPES = ("float32", "bfloat16")
CHUNK = 20  # steps
N_CHUNKS = 3  # of a training in each round, the first of which is not counted
N_SHARDS = 8
DRAWN, FLOAT, LABELS = 8, 4, 12  # bytes: of a number as it is drawn and as it is used, and of a row's three labels
SITE = "resid_pre.0"
NEEDED_TOKENS = 15_000  # a second
NEEDED_RATIO = 10  # of rows read to tokens trained on


@dataclass(frozen=True)
class Config:
    """What is timed."""

    n_rows: int = 1_000_000
    """Rows of the store."""
    d_in: int = 128
    """Numbers a row."""
    n_latents: int = 2_000
    """Number of latents."""
    n_prefixes: int = 10
    """Prefixes a batch of the Matryoshka SAE, the full one included."""
    batch_size: int = 1_024
    """Tokens a step."""
    n_rounds: int = 5
    """Interleaved rounds."""
    seed: int = 0
    """Of the rows, their order and the SAEs."""

    def __post_init__(self) -> None:
        check_fields(self, n_rows=Whole(N_SHARDS), d_in=Whole(), n_latents=Whole(), n_prefixes=Whole())
        check_fields(self, batch_size=Whole(), n_rounds=Whole(most=MOST_ROUNDS), seed=SEED)

    @property
    def seeds(self) -> list[int]:
        return [self.seed]


def check(cfg: Config) -> None:
    """Raises: ValueError if the store needs more disk, or the work more memory, than there is."""
    check_memory(cfg.d_in, train_config(cfg))
    shard = (DRAWN + FLOAT) * cfg.d_in * cfg.n_rows // N_SHARDS
    check_fits({"n_rows and d_in": shard, "batch_size and d_in": FLOAT * CHUNK * cfg.batch_size * cfg.d_in})
    n_bytes = cfg.n_rows * sum(cfg.d_in * jnp.dtype(dtype).itemsize + LABELS for dtype in DTYPES)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise ValueError(
            f"n_rows and d_in: the stores take {n_bytes / 2**30:,.0f} GiB in {folder}, where {free / 2**30:,.0f} GiB "
            "are free; lower one, or set TMPDIR to another folder"
        )


def train_config(cfg: Config) -> TrainConfig:
    return TrainConfig(cfg.n_latents, n_steps=N_CHUNKS * CHUNK, batch_size=cfg.batch_size)


def cases(cfg: Config) -> dict[str, str]:
    """Weightings, by name."""
    return {"vanilla": "vanilla", "matryoshka": f"sampled_{cfg.n_prefixes}"}


def n_steps(cfg: Config) -> int:
    return cfg.n_rounds * (len(cases(cfg)) + 1) * train_config(cfg).n_steps


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        writes, opens, sources = {}, {}, {}
        for dtype in DTYPES:
            start = time.perf_counter()
            write_random(Path(folder) / dtype, cfg, dtype)
            writes[dtype] = cfg.n_rows / (time.perf_counter() - start)
            start = time.perf_counter()
            store = open_store(Path(folder) / dtype)
            opens[dtype] = cfg.n_rows / (time.perf_counter() - start)
            sources[dtype] = ShardSource(store.activations(SITE), seed=cfg.seed)
        in_memory = ArraySource(jnp.asarray(sources["float32"].batches(0, 1, min(cfg.n_rows, 65_536)).x[0]))
        trainings = {name: time_training(cfg, weighting, sources["float32"]) for name, weighting in cases(cfg).items()}
        trainings["matryoshka, in memory"] = time_training(cfg, cases(cfg)["matryoshka"], in_memory)
        read: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
        trained: dict[str, list[float]] = {name: [] for name in trainings}
        for i in range(cfg.n_rounds):
            for dtype, source in sources.items():
                read[dtype].append(rows_a_second(cfg, source, i))
            for name, training in trainings.items():
                trained[name] += training(progress)
    ratio = float(np.median(read["float32"]) / np.median(trained["matryoshka"]))
    return {"written": writes, "opened": opens, "read": read, "trained": trained, "ratio": ratio}


def write_random(folder: Path, cfg: Config, dtype: str) -> Store:
    ends = np.linspace(0, cfg.n_rows, N_SHARDS + 1).astype(int)

    def make_shard(i: int) -> dict[str, np.ndarray]:
        n = int(ends[i + 1] - ends[i])
        rows = np.random.default_rng([cfg.seed, i]).normal(size=(n, cfg.d_in)).astype(jnp.dtype(dtype))
        return {SITE: rows, **{name: np.zeros(n, np.int32) for name in ("token", "document", "position")}}

    return write_store(folder, {"seed": cfg.seed, "dtype": dtype}, N_SHARDS, make_shard)


def rows_a_second(cfg: Config, source: ShardSource, first: int) -> float:
    """Of an epoch's batches, a chunk at a time as a training reads them."""
    n_chunks = max(1, cfg.n_rows // (CHUNK * cfg.batch_size))
    start = time.perf_counter()
    for i in range(first * n_chunks, (first + 1) * n_chunks):
        source.batches(i * CHUNK, CHUNK, cfg.batch_size).x.block_until_ready()
    return n_chunks * CHUNK * cfg.batch_size / (time.perf_counter() - start)


def time_training(cfg: Config, weighting: str, source: Source | Stream) -> Callable[[Progress], list[float]]:
    """A training to call again and again: tokens a second of every chunk but its first."""
    hypers = Hypers(prefixes.named(weighting, cfg.n_latents), target_l0=min(32.0, cfg.n_latents / 4))
    call = partial(train, jax.random.key(cfg.seed), source, hypers, cfg=train_config(cfg), chunk=CHUNK)

    def rates(progress: Progress) -> list[float]:
        marks = []

        def mark(n: int) -> None:
            marks.append(time.perf_counter())
            progress(n)

        call(progress=mark)
        return (CHUNK * cfg.batch_size / np.diff(marks)).tolist()

    return rates


def summary(record: dict[str, Any]) -> list[str]:
    r = record["results"]
    lines = [f"{name}: {_spread(rates)} tokens a second" for name, rates in r["trained"].items()]
    lines += [f"read in {dtype}: {_spread(rates)} rows a second" for dtype, rates in r["read"].items()]
    lines.append(f"reading is {r['ratio']:.0f} times as fast as training (Matryoshka, float32; needed: {NEEDED_RATIO})")
    return lines


def _spread(rates: list[float]) -> str:
    return f"{np.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def plot(record: dict[str, Any]) -> Figure:
    config, r = record["config"], record["results"]
    labels = {
        "vanilla": "train: vanilla",
        "matryoshka": f"train: Matryoshka, {config['n_prefixes']} prefixes",
        "matryoshka, in memory": "the same, rows in memory",
    }
    rows = [(labels[name], rates, name.partition(",")[0]) for name, rates in r["trained"].items()]
    rows += [(f"read {dtype}", rates, "other") for dtype, rates in r["read"].items()]
    with plots.styled(2.4) as figure:
        ax = figure.subplots()
        for y, (_, rates, colour) in enumerate(rows):
            ax.plot(rates, [y] * len(rates), "o", color=plots.COLOURS[colour], markersize=3, alpha=0.5)
            ax.plot(np.median(rates), y, "|", color=plots.COLOURS[colour], markersize=12, markeredgewidth=2)
            ax.text(np.median(rates), y - 0.32, f"{np.median(rates):,.0f}", ha="center", fontsize=7)
        for needed, text in ((NEEDED_TOKENS, "asked of training"), (NEEDED_RATIO * NEEDED_TOKENS, "of reading")):
            ax.axvline(needed, color="#999999", linewidth=0.7, linestyle=":")
            ax.text(needed, len(rows) - 0.4, f" {text}", fontsize=6, color="#777777")
        ax.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        ax.set(xscale="log", xlabel="rows (tokens) a second, log scale", ylim=(len(rows) - 0.3, -0.8))
        ax.grid(axis="x", color="#dddddd", linewidth=0.6)
        shape = f"d_in {config['d_in']}, {config['n_latents']:,} latents, batches of {config['batch_size']:,}"
        text = f"{shape}; bars: medians, dots: calls of {config['n_rounds']} rounds; {record['versions']['devices']}."
        figure.supxlabel(text, fontsize=6, color="#555555")
    return figure


if __name__ == "__main__":
    main("store_speed")
