"""Jobs that tests kill with SIGKILL: `python tests/killed.py WHAT FOLDER`, started by other tests.

With KILL_AT=n in the environment the process kills itself before the n-th line that the code which keeps files runs:
between opening, writing and renaming, and at the same place each time.
"""

import os
import random
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from experiments.sweeps import program
from experiments.sweeps.cell import Cell
from experiments.sweeps.drive import make_plan, run_plan
from experiments.sweeps.engines import LocalEngine, RayEngine
from experiments.sweeps.lanes import Row, run_cells
from experiments.sweeps.spec import Sweep, parse_sweep
from experiments.sweeps.store import open_store
from toy.data.activations import Activations
from toy.data.store import StoreError, write_store
from toy.data.store import open_store as reopen
from toy.data.stream import ShardSource
from toy.features.node import Node
from toy.files.digest import digest_of, key_numbers
from toy.prefixes import sampled
from toy.training.checkpoint import FileCheckpoint
from toy.training.config import Hypers, TrainConfig
from toy.training.run import train

CFG = TrainConfig(20, n_steps=60, batch_size=24, n_lr_warmup_steps=10, reinit_every=10)
KEY, HYPERS, CHUNK = jax.random.key(0), Hypers(sampled(20), target_l0=2.0), 7
LONG, SHORT_CHUNK = replace(CFG, n_steps=400), 2
FACTS, N_SHARDS = {"model": "m"}, 6

KEEPERS = (
    "/toy/files/",
    "/toy/data/",
    "/toy/training/checkpoint",
    "/experiments/sweeps/store",
    "/toy/lm/forward_stream",
)
CHAIN = (
    *("--n-stories", "60", "--context", "48", "--vocab-size", "330", "--n-layers", "1", "--d-model", "16"),
    *("--lm-steps", "4", "--n-latents", "24", "--reference-widths", "8", "--target-l0", "2", "--locations", "mlp_out"),
    *("--n-steps", "400", "--batch-size", "32", "--n-seeds", "1", "--stage", "saes"),
)


def die_at(n: int) -> None:
    random.seed(n)  # drivers of sweeps begin at a random place

    @cache
    def keeps(file: str) -> bool:
        return any(keeper in file for keeper in KEEPERS)

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal n
        n -= event == "line"
        if n == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    sys.settrace(lambda frame, *_: count if keeps(frame.f_code.co_filename) else None)


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
    """Saves after every chunk, and prints each."""
    kept = FileCheckpoint(folder / "run", every_s=0)
    train(KEY, stream(), HYPERS, cfg=LONG, chunk=SHORT_CHUNK, checkpoint=kept, progress=lambda n: print(n, flush=True))


def train_forward(folder: Path) -> None:
    """On a language model's activations, computed as they are needed; prints the digest of all that it ends with."""
    from test_lm_forward_stream import a_stream

    kept = FileCheckpoint(folder / "run", every_s=0)
    made = train(KEY, a_stream(), HYPERS, cfg=replace(CFG, n_steps=200), chunk=SHORT_CHUNK, checkpoint=kept)
    print(digest_of([np.asarray(key_numbers(leaf)) for leaf in jax.tree.leaves(made)]), flush=True)


def run_chain(folder: Path, *more: str) -> None:
    """From text to SAEs, saved after every chunk; prints the digest of all SAEs."""
    from experiments import tinystories
    from experiments.language import chain, saes

    chain.FileCheckpoint = partial(FileCheckpoint, every_s=0)  # type: ignore[assignment, misc]
    saes.FiniteCheckpoint = partial(saes.FiniteCheckpoint, every_s=0)  # type: ignore[assignment, misc]
    sys.argv = ["tinystories", *CHAIN, *more, "--cache", str(folder / "cache"), "--out", str(folder / "out")]
    tinystories.main()
    files = sorted((folder / "cache").glob("saes-*/saes.safetensors"))
    print(digest_of([[file.parent.name, digest_of(file)] for file in files]), flush=True)


def make_shard(i: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(i)
    columns = {name: rng.integers(0, 9, 50 + i).astype(np.int32) for name in ("token", "document", "position")}
    return {name: rng.normal(size=(50 + i, 4)).astype(np.float32) for name in ("a", "b")} | columns


def export(folder: Path) -> None:
    def make(i: int) -> dict[str, np.ndarray]:
        print(i, flush=True)
        return make_shard(i)

    write_store(folder, FACTS, N_SHARDS, make)


def open_many_shards(folder: Path) -> None:
    """With few files allowed: first more may be had, then not."""
    soft, n_shards = 200, 300

    def small(i: int) -> dict[str, np.ndarray]:
        return {name: array[:1] for name, array in make_shard(i).items()}

    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 5_000))
    store = write_store(folder / "s", FACTS, n_shards, small)
    print(f"opened {len(store.activations('a').parts)} shards", flush=True)
    del store
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 280))
    made: list[int] = []
    for folder_of in (lambda: write_store(folder / "t", FACTS, n_shards, made.append), lambda: reopen(folder / "s")):  # type: ignore[arg-type]
        try:
            folder_of()
        except StoreError as error:
            print(error, flush=True)
    print("made" if made or (folder / "t").exists() else "nothing was made", flush=True)


AXES = {"branching": [2, 3], "edge_prob": [0.2, 0.4], "weighting": ["vanilla", "expected_3"], "seed": {"range": [0, 4]}}
TINY = {"n_roots": 1, "n_lone": 2, "n_steps": 60, "batch_size": 16, "n_eval_rows": 50}


def small_sweep() -> Sweep:
    """32 cells, 8 of them impossible, 3 groups where a group has up to 8."""
    return parse_sweep({"name": "small", "axes": AXES, "fixed": TINY}, lambda name: Node(1.0))


def few_lanes() -> None:
    """Groups of few cells, so that there are many."""
    program.MOST_LANES = int(os.environ.get("LANES", "2"))


def sweep(folder: Path) -> None:
    """Prints how many cells have no row yet."""
    few_lanes()
    small = small_sweep()
    store = open_store(folder / "sweep.sqlite", small)
    plan = make_plan(small, store.finished())
    print(plan.n_missing, flush=True)
    run_plan(small, plan, store, LocalEngine())


def run_few(cells: Sequence[Cell]) -> list[Row]:
    """Runs cells as `run_cells` does, in a worker that has not heard of `few_lanes`."""
    few_lanes()
    return run_cells(cells)


def run_and_die_once(cells: Sequence[Cell]) -> list[Row]:
    """Runs cells, but the first process that gets here is killed; others raise for cells of the seed BROKEN."""
    mark = Path(os.environ["DIED"])
    try:
        mark.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    except FileExistsError:
        pass
    broken = os.environ.get("BROKEN")
    if any(str(cell.training.seed) == broken for cell in cells):
        raise RuntimeError(f"seed {broken} is not to be had")
    return run_few(cells)


def sweep_on_ray(folder: Path) -> None:
    """A cluster of two workers on this machine, one of which is killed."""
    import ray  # takes half as long to import as JAX, and no other job needs it

    few_lanes()
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment |= {name: os.environ[name] for name in ("DIED", "BROKEN")}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": environment},
    )
    small = small_sweep()
    store = open_store(folder / "sweep.sqlite", small)
    run_plan(small, make_plan(small), store, RayEngine(), run=run_and_die_once)
    ray.shutdown()


if __name__ == "__main__":
    if "KILL_AT" in os.environ:
        die_at(int(os.environ["KILL_AT"]))
    what = {
        "train": train_and_die,
        "long": train_long,
        "forward": train_forward,
        "chain": run_chain,
        "stream": lambda folder: run_chain(folder, "--stream"),
        "store": export,
        "shards": open_many_shards,
        "sweep": sweep,
        "ray": sweep_on_ray,
    }
    what[sys.argv[1]](Path(sys.argv[2]))
