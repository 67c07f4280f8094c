"""What tests kill with SIGKILL: `python tests/killed.py train|long|store FOLDER`, started by other tests."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from toy.checkpoint import FileCheckpoint
from toy.matrix import Activations
from toy.prefixes import sampled
from toy.store import write_store
from toy.stream import ShardSource
from toy.train import Hypers, TrainConfig, train

CFG = TrainConfig(20, n_steps=60, batch_size=24, n_lr_warmup_steps=10, reinit_every=10)
KEY, HYPERS, CHUNK = jax.random.key(0), Hypers(sampled(20), target_l0=2.0), 7
LONG, SHORT_CHUNK = replace(CFG, n_steps=1_200), 2
FACTS, N_SHARDS = {"model": "m"}, 6


def stream() -> ShardSource:
    rows = np.random.default_rng(0).normal(size=(333, 8)).astype(np.float32)
    return ShardSource(Activations("rows", (rows[:200], rows[200:])), seed=3, block=16)


def train_and_die(folder: Path) -> None:
    done: list[int] = []

    def die(n: int) -> None:
        done.append(n)
        if len(done) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    train(
        KEY, stream(), HYPERS, cfg=CFG, chunk=CHUNK, checkpoint=FileCheckpoint(folder / "run", every_s=0), progress=die
    )


def train_long(folder: Path) -> None:
    """Saved after every chunk, which takes about as long as the chunk; tells each, so that a kill can be aimed."""
    kept = FileCheckpoint(folder / "run", every_s=0)
    train(KEY, stream(), HYPERS, cfg=LONG, chunk=SHORT_CHUNK, checkpoint=kept, progress=lambda n: print(n, flush=True))


def make_shard(i: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(i)
    columns = {name: rng.integers(0, 9, 50 + i).astype(np.int32) for name in ("token", "document", "position")}
    return {name: rng.normal(size=(50 + i, 4)).astype(np.float32) for name in ("a", "b")} | columns


def export_slowly(folder: Path) -> None:
    def slowly(i: int) -> dict[str, np.ndarray]:
        with (folder.parent / "made").open("a") as file:
            file.write(f"{i}\n")
        time.sleep(0.1)
        return make_shard(i)

    write_store(folder, FACTS, N_SHARDS, slowly)


if __name__ == "__main__":
    {"train": train_and_die, "long": train_long, "store": export_slowly}[sys.argv[1]](Path(sys.argv[2]))
