"""Is reading in the way? Rows per second read from an activation store, beside the tokens per second of training.

Claim: at (d_in 128, 2,000 latents) on two cores a Matryoshka SAE with 10 sampled prefixes trains on more than 15,000
tokens per second, reading from the store included, and a shuffled stream of the store's rows is ten times as fast.
Command: python -m experiments.bench.store_speed; half a minute on two cores.
Needs: 0.8 GB of disk in TMPDIR. The store has just been written, so it is read from the page cache and not from the
disk. Its numbers are random ones, on which a step takes as long as on any.
In the post: nothing; the activations of a large model do not fit in memory.
"""

import shutil
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from experiments.bench.report import caption, plot, summary
from experiments.bench.stores import CHUNK, N_SHARDS
from experiments.bench.timing import MOST_ROUNDS, Job, Table
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from experiments.common.memory import check_fits
from toy.checks import SEED, Whole, check_fields
from toy.training.config import TrainConfig, check_memory
from toy.training.loop import Progress

DRAWN, FLOAT, HALF, LABELS = 8, 4, 2, 12  # bytes: a number as drawn, as float32, as bfloat16; a row's three labels


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    n_rows: int = 1_000_000
    """Rows of the store."""
    d_in: int = 128
    """Numbers per row."""
    n_latents: int = 2_000
    """Number of latents."""
    n_prefixes: int = 10
    """Prefixes per batch of the Matryoshka SAE, the full one included."""
    batch_size: int = 1_024
    """Tokens per step."""
    n_rounds: int = 5
    """Rounds, in each of which every case has its turn."""
    seed: int = 0
    """Seed of the rows, their order and the SAEs."""

    def __post_init__(self) -> None:
        check_fields(self, n_rows=Whole(N_SHARDS), d_in=Whole(), n_latents=Whole(), n_prefixes=Whole())
        check_fields(self, batch_size=Whole(), n_rounds=Whole(most=MOST_ROUNDS), seed=SEED)

    @property
    def seeds(self) -> list[int]:
        return [self.seed]


def check(cfg: Config) -> None:
    """Raises: ValueError if the store needs more disk, or the work more memory, than there is."""
    check_memory(cfg.d_in, TrainConfig(cfg.n_latents, n_steps=2 * CHUNK, batch_size=cfg.batch_size))
    shard = (DRAWN + FLOAT) * cfg.d_in * cfg.n_rows // N_SHARDS
    check_fits({"n_rows and d_in": shard, "batch_size and d_in": FLOAT * CHUNK * cfg.batch_size * cfg.d_in})
    n_bytes = cfg.n_rows * (cfg.d_in * (FLOAT + HALF) + 2 * LABELS)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise ValueError(
            f"n_rows and d_in: the stores take {n_bytes / 2**30:,.0f} GiB in {folder}, where {free / 2**30:,.0f} GiB "
            "are free; lower one, or set TMPDIR to another folder"
        )


def n_steps(cfg: Config) -> int:
    return cfg.n_rounds


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        job = Job("stores.cases", {"folder": folder, **asdict(cfg)})
        title = f"{cfg.d_in} inputs, {cfg.n_latents:,} latents, batch {cfg.batch_size:,}"
        table = Table(title, "rows (tokens) per second", (job,), per_second=True)
        return {"tables": [table.measure(cfg.n_rounds, progress)], "not_measured": []}


EXPERIMENT = Experiment("store_speed", Config, run, summary, plot, check, n_steps, caption, folder="bench.")

if __name__ == "__main__":
    main(EXPERIMENT)
