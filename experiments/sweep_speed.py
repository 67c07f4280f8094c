"""How fast is a sweep? A thousand cells from cold, and beside it a loop over SAELens' `train_toy_sae`.

Claim: 1,000 cells of 40 tree shapes (5,000 steps of 200 rows) take minutes on two cores, few compiled programs and less
than 4 GB; SAELens, where the extra `peers` is installed, trains a small share of the cells in the same time.
Command: python -m experiments.sweep_speed; 3 minutes on two cores, 5 with SAELens. Timed from planning to the last row
in the store; SAELens without imports and initialisation, on some of the sweep's cells: `standard` for vanilla ones and
`matryoshka_batchtopk` for the others, at its defaults.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.bench.jobs import has_peers
from experiments.common import plots
from experiments.common.cli import main
from experiments.common.study import Progress
from experiments.sweep import read_sweep
from experiments.sweeps.cell import Cell, built, d_in, root_of
from experiments.sweeps.drive import make_plan, run_plan
from experiments.sweeps.engines import LocalEngine
from experiments.sweeps.lanes import n_compiled
from experiments.sweeps.spec import Sweep
from experiments.sweeps.store import open_store

KINDS = {"standard": "vanilla", "matryoshka_batchtopk": "others"}  # of SAELens, and the weightings they stand for


@dataclass(frozen=True)
class Config:
    """What is timed."""

    sweep: Path = Path(__file__).parent / "sweeps" / "thousand.yaml"
    """The sweep."""
    n_peer_runs: int = 3
    """SAELens' runs of each kind, of cells spread over the sweep."""
    peers: bool = True
    """Measure SAELens beside it where it is installed (left out with --no-peers)."""

    def __post_init__(self) -> None:
        if self.n_peer_runs < 1:
            raise ValueError(f"n_peer_runs: must be at least 1, got {self.n_peer_runs}")

    @property
    def seeds(self) -> list[int]:
        return list(read_sweep(self.sweep).axes.get("seed", (0,)))


def check(cfg: Config) -> None:
    """Raises: ValueError if the sweep cannot be read."""
    read_sweep(cfg.sweep)


def n_steps(cfg: Config) -> int:
    return len(read_sweep(cfg.sweep))


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    sweep = read_sweep(cfg.sweep)
    results = time_sweep(sweep, progress)
    peers = time_peers(cfg, sweep) if cfg.peers and has_peers() else {}
    if peers:
        share = np.mean([cell.training.weighting == "vanilla" for cell in sweep.cells()])
        seconds = dict(zip(KINDS, (median(peers[kind]) for kind in KINDS), strict=True))
        a_cell = share * seconds["standard"] + (1 - share) * seconds["matryoshka_batchtopk"]
        results |= {"sae_lens_s_per_cell": float(a_cell), "ratio": float(a_cell / results["s_per_cell"])}
    return {"sweep": sweep.as_data(), "sae_lens_s": peers, **results}


def time_sweep(sweep: Sweep, progress: Progress) -> dict[str, Any]:
    compiled = n_compiled()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = open_store(Path(folder) / "store.sqlite", sweep)
        plan = make_plan(sweep)
        run_plan(sweep, plan, store, LocalEngine(), progress=lambda done: progress(done.n_rows))
        seconds = time.perf_counter() - start
        rows = list(store.rows())
    shapes = {built(cell.tree).tree.parent.tobytes() + built(cell.tree).tree.group.tobytes() for cell in sweep.cells()}
    return {
        "n_cells": len(rows),
        "n_failed": sum(row.error is not None for row in rows),
        "n_tree_shapes": len(shapes),
        "seconds": seconds,
        "s_per_cell": seconds / len(rows),
        "n_programs": len(plan.groups),
        "n_compilations": n_compiled() - compiled,
        "n_devices": jax.local_device_count(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10),
    }


def time_peers(cfg: Config, sweep: Sweep) -> dict[str, list[float]]:
    """Seconds of SAELens' runs, kinds in turn."""
    from experiments.bench import peers  # an optional extra, slow to import

    cells = list(sweep.cells())
    of_kind: dict[str, Callable[[Cell], bool]] = {
        "standard": lambda cell: cell.training.weighting == "vanilla",
        "matryoshka_batchtopk": lambda cell: cell.training.weighting != "vanilla",
    }
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for i in range(cfg.n_peer_runs):
        for kind, is_of in of_kind.items():
            own = [cell for cell in cells if is_of(cell)]
            cell = own[(2 * i + 1) * len(own) // (2 * cfg.n_peer_runs)]
            training = cell.training
            shape = {"d_in": d_in(cell), "batch_size": training.batch_size, "seed": training.seed}
            found[kind].append(peers.toy_run(kind, tree=root_of(cell.tree), n_steps=training.n_steps, **shape))
    return found


def summary(record: dict[str, Any]) -> list[str]:
    r = record["results"]
    lines = [
        f"{r['n_cells']:,} cells of {r['n_tree_shapes']} tree shapes in {r['seconds']:.0f} s, {r['n_failed']} failed; "
        f"{r['n_programs']} programs, compiled {r['n_compilations']} times on {r['n_devices']} devices; peak memory "
        f"{r['peak_memory_mb']:,.0f} MB"
    ]
    if "ratio" in r:
        lines.append(f"SAELens {r['sae_lens_s_per_cell']:.1f} s a cell, {r['ratio']:.0f} times as long")
    return lines


def plot(record: dict[str, Any]) -> Figure:
    r = record["results"]
    names, values = ["this sweep"], [[3_600 / r["s_per_cell"]]]
    for kind, seconds in r["sae_lens_s"].items():
        names.append(f"SAELens\n{kind.replace('_', ' ')}")
        values.append([3_600 / s for s in seconds])
    with plots.styled(2.2) as figure:
        ax = figure.subplots()
        colours = [plots.COLOURS["matryoshka"], *[plots.COLOURS["other"]] * (len(names) - 1)]
        for y, (of_one, colour) in enumerate(zip(values, colours, strict=True)):
            ax.plot(of_one, [y] * len(of_one), "o", color=colour, markersize=3, alpha=0.5)
            ax.plot(median(of_one), y, "|", color=colour, markersize=14, markeredgewidth=2)
            ax.text(median(of_one), y - 0.36, f"{median(of_one):,.0f}", ha="center", fontsize=7)
        ax.set_yticks(range(len(names)), names)
        ax.set(xscale="log", xlabel="cells an hour (log scale)", ylim=(len(names) - 0.5, -0.8))
        ax.grid(axis="x", color="#dddddd", linewidth=0.6)
        text = f"{r['n_cells']:,} cells of {r['n_tree_shapes']} tree shapes; bars: medians, dots: runs"
        figure.supxlabel(f"{text}; {record['versions']['devices']}.", fontsize=6, color="#555555")
    return figure


if __name__ == "__main__":
    main("sweep_speed")
