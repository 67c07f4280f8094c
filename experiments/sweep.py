"""Run a sweep: a YAML or JSON file that names axes (trees, weightings, hyperparameters, seeds) and their values.

Every finished cell is a row of --store, which survives a kill at any moment; started again, only what is missing runs.
Command: python -m experiments.sweep experiments/sweeps/branching.yaml; --dry-run says what it would do. Then
python -m experiments.sweep_report STORE draws it. --engine ray or slurm runs the same file on a cluster.
"""

import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.common.cache import user_cache
from experiments.common.exits import clean_exit
from experiments.common.options import parse
from experiments.common.progress import progress_bar
from experiments.common.signals import interruptible
from experiments.sweeps.cell import as_data, cell_digest, cell_key
from experiments.sweeps.drive import Done, Plan, make_plan, run_plan, stub_cells
from experiments.sweeps.engines import Engine, LocalEngine, RayEngine, SlurmEngine
from experiments.sweeps.lanes import code_version, run_cells
from experiments.sweeps.spec import Sweep, parse_sweep
from experiments.sweeps.store import SweepStore, open_store, read_store
from experiments.sweeps.text import MOST_JSON, sweep_data
from toy.checks import optional, quoted
from toy.io import load_tree

KEPT = "finished cells are kept: the same command goes on with those that are missing"
STOPPING = "stopping after the groups under way; interrupt again to drop them"
STUB = "stub"  # in place of the code's version


@dataclass(frozen=True)
class Options:
    """The sweep, the store of its rows, and the engine that runs it."""

    file: Annotated[Path, tyro.conf.Positional]
    """The sweep, as YAML or JSON, or a record sweep_NAME.json; experiments/sweeps/ has examples."""
    store: Path | None = None
    """SQLite file of its rows; default: NAME.sqlite in the user's cache."""
    dry_run: bool = False
    """Say which cells and programs there are and about how long they take, and stop."""
    cell: str | None = None
    """Run only the cell with this digest (or the start of one) and print its row; nothing is stored. Reports tell
    digests."""
    retry: bool = False
    """Run failed cells again."""
    extend: bool = False
    """Let a store of another sweep have this one's rows, too: for more seeds or values."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """This process, a Ray cluster, or Slurm; the last two need the extra `cluster`."""
    ray_address: str | None = None
    """A running cluster's ("auto" finds it); default: one is started on this machine."""
    cpus: float = 1
    """CPU cores of a Ray task or Slurm job."""
    gpus: float = 0
    """GPUs of a Ray task or Slurm job."""
    slurm_cluster: Literal["slurm", "local"] = "slurm"
    """local runs Slurm's jobs as processes of this machine, to try a file out."""
    slurm_partition: str | None = None
    """Slurm's partition; default: the cluster's own."""
    slurm_minutes: int = 60
    """Time limit of a Slurm job, which is one group of cells."""
    slurm_jobs: int | None = None
    """Jobs in the queue at a time; default: 100, with --slurm-cluster local as many as there are cores."""
    slurm_folder: Path | None = None
    """Folder for the jobs' scripts, logs and answers, which all machines must see; default: beside the store."""
    stub: bool = False
    """Store zeros and train nothing, to see what planning, scheduling and storing take; needs a --store of its own."""

    def __post_init__(self) -> None:
        for name in ("cpus", "slurm_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')}: must be above 0, got {getattr(self, name)}")
        if self.gpus < 0:
            raise ValueError(f"--gpus: must not be negative, got {self.gpus}")
        if self.slurm_jobs is not None and self.slurm_jobs < 1:
            raise ValueError(f"--slurm-jobs: must be at least 1, got {self.slurm_jobs}")


def main() -> None:
    with clean_exit(KEPT):
        options = parse(Options, prog="python -m experiments.sweep", description=__doc__)
        if options.stub and options.store is None:
            raise ValueError("--stub: give a --store for its zeros, so that nobody takes them for results")
        sweep = read_sweep(options.file)
        if options.cell is not None:
            print(json.dumps(one_cell(sweep, options.cell), indent=1))
            return
        path = user_cache("sweeps", f"{sweep.name}.sqlite") if options.store is None else options.store
        engine = make_engine(options, path)
        code = STUB if options.stub else code_version(platform(options))
        if path.is_file() and path.stat().st_size:
            check_zeros(path, options.stub)
        if options.dry_run:
            store = read_store(path, None if options.extend else sweep) if path.exists() else None
            finished = set() if store is None else store.finished(failed=not options.retry)
            if store is not None:
                tell_damaged(store)
            print("\n".join(describe(make_plan(sweep, finished, code))))
            return
        store = open_store(path, sweep, extend=options.extend)
        store.discard(tell_damaged(store))
        plan = make_plan(sweep, store.finished(failed=not options.retry), code)
        print("\n".join(describe(plan)), file=sys.stderr)
        run(sweep, plan, store, engine, options)
        n_rows, n_failed = count(sweep, store, code)
        print(f"{sweep.name}: {n_rows:,} of {plan.n_cells:,} cells have a row, {n_failed:,} failed: {path}")
        if n_rows < plan.n_cells:
            raise ValueError(f"{path}: {plan.n_cells - n_rows:,} cells have no row: start again to run them")


def tell_damaged(store: SweepStore) -> list[str]:
    """The keys of rows that are not as they were written, which count as missing."""
    keys = store.damaged()
    if keys:
        told = f"{len(keys):,} rows are damaged, which a start of the sweep runs again: {', '.join(map(str, keys[:3]))}"
        print(quoted(f"{store.path}: {told}"), file=sys.stderr)
    return keys


def check_zeros(path: Path, stub: bool) -> None:
    """Raises: ValueError if zeros and results would come to stand in one store."""
    codes = read_store(path).codes()
    if codes and stub != (STUB in codes):
        told = "has results" if stub else "has the zeros of --stub"
        raise ValueError(f"{path}: {told}: give another --store")


def platform(options: Options) -> str | None:
    """The platform of workers; None means that of this process, which is looked up only where this process trains."""
    if options.engine == "local":
        return None
    return "gpu" if options.gpus else "cpu"


def count(sweep: Sweep, store: SweepStore, code: str) -> tuple[int, int]:
    """Cells that have a row, and those of them that failed."""
    keys = {cell_key(cell, code) for cell in sweep.cells()}
    finished = keys & store.finished()
    return len(finished), len(finished - store.finished(failed=False))


def read_sweep(path: Path) -> Sweep:
    """The sweep of a file, or of the record of a report on it. Raises: ValueError naming the file and its fault."""
    shown = quoted(str(path))
    try:
        with path.open(encoding="utf-8-sig") as file:
            data = sweep_data(file.read(MOST_JSON + 1), is_json=path.suffix == ".json")
    except OSError as error:
        raise ValueError(f"{shown}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{shown}: neither YAML nor JSON: not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from None
    if isinstance(data, dict) and {"config", "results"} <= data.keys():  # the record of a report
        data = data["config"]
    try:
        return parse_sweep(data, lambda tree: load_tree(path.parent / tree), name=path.stem)
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from None


def make_engine(options: Options, store: Path) -> Engine:
    """Raises: ValueError if what the engine needs is not installed."""
    if options.engine == "local":
        return LocalEngine()
    local = options.slurm_cluster == "local"
    if options.engine == "slurm" and not local and shutil.which("srun") is None:
        raise ValueError("--engine slurm: there is no srun here: start it on Slurm, or with --slurm-cluster local")
    optional({"ray": "ray", "slurm": "submitit"}[options.engine], "cluster", f"--engine {options.engine}")
    if options.engine == "ray":
        return RayEngine(options.ray_address, options.cpus, options.gpus)
    parameters: dict[str, Any] = {"timeout_min": options.slurm_minutes}
    if not local:
        parameters |= {"cpus_per_task": math.ceil(options.cpus), "gpus_per_node": math.ceil(options.gpus)}
    if options.slurm_partition is not None:
        parameters["slurm_partition"] = options.slurm_partition
    folder = store.parent / f"{store.stem}.jobs" if options.slurm_folder is None else options.slurm_folder
    most_jobs = options.slurm_jobs or ((os.cpu_count() or 1) if local else 100)
    return SlurmEngine(folder, options.slurm_cluster, most_jobs, parameters)


def describe(plan: Plan) -> list[str]:
    about = f"; about {_minutes(plan)} on two CPU cores" if plan.groups else ""
    lines = [
        f"{plan.n_cells:,} cells: {plan.n_finished:,} finished, {plan.n_missing:,} to train in {len(plan.groups)} "
        f"compiled programs, {len(plan.impossible):,} impossible{about}"
    ]
    for program, places in plan.groups.items():
        lines.append(
            f"  {len(places):,} cells of up to {program.shape.n_features} features and {program.cfg.n_latents} latents "
            f"in {program.d_in} dimensions, {program.n_lanes} at a time on a device"
        )
    lines += [f"  impossible: {error}" for error in sorted({error for _, error in plan.impossible})[:5]]
    return lines


def _minutes(plan: Plan) -> str:
    minutes = (plan.cost + 10 * len(plan.groups)) / 60
    return f"{minutes:.0f} minutes" if minutes >= 1 else "a minute"


def run(sweep: Sweep, plan: Plan, store: SweepStore, engine: Engine, options: Options) -> None:
    told = {"cells": 0, "failed": 0}
    form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with progress_bar(plan.cost, sweep.name, unit=None, stops=False, bar_format=form) as bar:

        def progress(done: Done) -> None:
            told["cells"] += done.n_rows
            told["failed"] += done.n_failed
            bar.tell(f"{told['cells']:,} cells, {told['failed']:,} failed")
            bar.update(done.cost)

        what = stub_cells if options.stub else run_cells
        with interruptible(STOPPING if options.engine == "local" else ""):
            run_plan(sweep, plan, store, engine, progress=progress, run=what, retry=options.retry)


def one_cell(sweep: Sweep, digest: str) -> dict[str, Any]:
    """Raises: ValueError if not one cell has such a digest, or if its tree is impossible."""
    cells = {cell_digest(cell): cell for cell in sweep.cells()}
    found = [known for known in cells if known.startswith(digest)]
    if len(found) != 1:
        told = f"{len(found)} cells have digests that start so" if found else "no cell of this sweep has that digest"
        raise ValueError(f"--cell {digest}: {told}")
    cell = cells[found[0]]
    (row,) = run_cells([cell])
    return {"digest": found[0], "code": code_version(), "cell": as_data(cell), **row._asdict()}


if __name__ == "__main__":
    sys.exit(main())
