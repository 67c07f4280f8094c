"""How fast is a sweep? A thousand cells from cold, and beside it a loop over SAELens' `train_toy_sae`.

Claim: 1,000 cells of 40 tree shapes (5,000 steps of 200 rows) take minutes on two cores, few compiled programs and less
than 4 GB; SAELens, where the extra `peers` is installed, trains a small share of the cells in the same time.
Command: python -m experiments.sweep_speed; 2 minutes on two cores, 3 with SAELens. Timed from planning to the last row
in the store; SAELens without imports and initialisation, on some of the sweep's cells: `standard` for vanilla ones and
`matryoshka_batchtopk` for the others, at its defaults.
"""

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.bench.report import caption, plot, summary
from experiments.bench.timing import Table, has_peers
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from experiments.sweep import read_sweep
from experiments.sweeps.cell import Cell, built, d_in, root_of
from experiments.sweeps.drive import make_plan, run_plan
from experiments.sweeps.engines import LocalEngine
from experiments.sweeps.lanes import n_compiled
from experiments.sweeps.spec import Sweep
from experiments.sweeps.store import open_store
from toy.checks import Whole, check_fields
from toy.training.loop import Progress

PEER = "SAELens, {}".format


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    sweep: Path = Path(__file__).parent / "sweeps" / "thousand.yaml"
    """The sweep."""
    n_peer_runs: int = 3
    """SAELens' runs of each kind, of cells spread over the sweep."""
    peers: bool = True
    """Measure SAELens beside it where it is installed (left out with --no-peers)."""

    def __post_init__(self) -> None:
        check_fields(self, n_peer_runs=Whole())

    @property
    def seeds(self) -> list[int]:
        return read_sweep(self.sweep).seeds


def check(cfg: Config) -> None:
    """Raises: ValueError if the sweep cannot be read."""
    read_sweep(cfg.sweep)


def n_steps(cfg: Config) -> int:
    return len(read_sweep(cfg.sweep))


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    sweep, peers = read_sweep(cfg.sweep), cfg.peers and has_peers()
    cases = {"this sweep": time_sweep(sweep, progress)} | (time_peers(cfg, sweep) if peers else {})
    table = Table("A sweep from cold", "cells per hour", (), 3_600, per_second=True).of(
        cases, jax.devices()[0].device_kind
    )
    missing = [] if peers else ["SAELens (install the extra peers)"]
    return {"sweep": sweep.as_data(), "tables": [table], "not_measured": missing}


def time_sweep(sweep: Sweep, progress: Progress) -> dict[str, Any]:
    """Seconds per cell of the whole sweep, and what it took."""
    compiled = n_compiled()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = open_store(Path(folder) / "store.sqlite", sweep)
        plan = make_plan(sweep)
        run_plan(sweep, plan, store, LocalEngine(), progress=lambda done: progress(done.n_rows))
        seconds = time.perf_counter() - start
        rows = list(store.rows())
    trees = [built(cell.tree).tree for cell in sweep.cells()]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": [seconds / len(rows)],
        "n_cells": len(rows),
        "n_failed": sum(row.error is not None for row in rows),
        "n_tree_shapes": len({tree.parent.tobytes() + tree.group.tobytes() for tree in trees}),
        "n_programs": len(plan.groups),
        "n_compilations": n_compiled() - compiled,
        "n_devices": jax.local_device_count(),
        "peak_memory_mb": memory / (2**20 if sys.platform == "darwin" else 2**10),
    }


def time_peers(cfg: Config, sweep: Sweep) -> dict[str, Any]:
    """SAELens' seconds per run, kinds in turn, and what a cell takes at the sweep's share of vanilla cells."""
    from experiments.bench import peers  # an optional extra, slow to import

    kinds: dict[str, list[Cell]] = {"standard": [], "matryoshka_batchtopk": []}
    for cell in sweep.cells():
        kinds["standard" if cell.training.weighting == "vanilla" else "matryoshka_batchtopk"].append(cell)
    found: dict[str, Any] = {PEER(kind): {"seconds": []} for kind, cells in kinds.items() if cells}
    for i in range(cfg.n_peer_runs):
        for kind, cells in kinds.items():
            for cell in cells[(2 * i + 1) * len(cells) // (2 * cfg.n_peer_runs) :][:1]:
                training = cell.training
                shape = {"d_in": d_in(cell), "batch_size": training.batch_size, "seed": training.seed}
                run = peers.toy_run(kind, tree=root_of(cell.tree), n_steps=training.n_steps, **shape)
                found[PEER(kind)]["seconds"].append(run)
    shares = {PEER(kind): len(cells) / len(sweep) for kind, cells in kinds.items() if cells}
    mixed = sum(share * np.median(found[name]["seconds"]) for name, share in shares.items())
    return found | {PEER("mixed as in the sweep"): {"seconds": [float(mixed)], "to": "this sweep"}}


EXPERIMENT = Experiment("sweep_speed", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
