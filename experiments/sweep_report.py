"""Draw a sweep's store: phase diagrams, main effects, the worst cells, in one HTML page that needs nothing else.

Command: python -m experiments.sweep_report STORE. Writes sweep_NAME.json (every number shown), a figure for each
metric, one of main effects, and sweep_NAME.html to --out; --redraw makes them again from the record.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.common.cli import DEFAULT_OUT, as_png, check_writable, versions, write_figure
from experiments.common.exits import clean_exit
from experiments.common.options import parse
from experiments.sweep import tell_damaged
from experiments.sweeps import plots as sweep_plots
from experiments.sweeps.cell import Cell, Training, cell_digest, cell_key, method_of
from experiments.sweeps.columns import Table, default_axes, table_of
from experiments.sweeps.lanes import code_version
from experiments.sweeps.page import SHOWN, page, summary
from experiments.sweeps.record import load_sweep_record
from experiments.sweeps.spec import Sweep
from experiments.sweeps.store import Stored, SweepStore, read_store
from toy.io import plain, save_json, writing
from toy.training.controllers import off_target

N_DIGITS = 12  # of a cell's digest


@dataclass(frozen=True)
class Options:
    """The store, and what is shown of it."""

    store: Annotated[Path, tyro.conf.Positional]
    """SQLite file that `experiments.sweep` filled; with --redraw the record, sweep_NAME.json."""
    out: Path = DEFAULT_OUT
    """Folder for the record, the figures and the page."""
    metrics: tuple[str, ...] | None = None
    """Metrics that get a phase diagram and a row of main effects; default: recovered, hole_rate and parent_to_child, or
    the sweep's first three."""
    x: str | None = None
    """Horizontal axis of the phase diagrams; default: the one with most numbers."""
    y: str | None = None
    """Vertical axis; default: the next."""
    worst: str | None = None
    """Metric by which the worst cells are found; default: hole_rate, or the first that some cell has."""
    redraw: bool = False
    """Draw again from a record, without the store."""


def main() -> None:
    with clean_exit():
        options = parse(Options, prog="python -m experiments.sweep_report", description=__doc__)
        check_writable(options.out)
        record = load_sweep_record(options.store) if options.redraw else plain(make_record(read_store(options.store)))
        table = table_of(record)
        known = list(table.metrics)
        metrics = options.metrics or tuple(name for name in SHOWN if name in known) or tuple(known[:3])
        worst = options.worst or default_worst(table, metrics)
        check((*metrics, worst), known, "metrics")
        check((options.x, options.y), list(table.axes), "axes")
        x, y = choose_axes(table, options.x, options.y)
        name = record["name"]
        path = options.store if options.redraw else options.out / f"{name}.json"
        if not options.redraw:
            save_json(path, record)  # first, so that nothing that goes wrong in a figure loses it
        images = {name: as_png(sweep_plots.phase_diagram(record, name, x, y)) for name in metrics}
        images["effects"] = as_png(sweep_plots.main_effects(record, metrics))
        if (criteria := sweep_plots.criteria(record)) is not None:
            images["criteria"] = as_png(criteria)
        for part, image in images.items():
            write_figure(options.out / f"{name}_{part}.png", image)
        with writing(options.out / f"{name}.html") as file:
            file.write(page(record, images, worst, path).encode(errors="backslashreplace"))
        print("\n".join(summary(record)))
        print(f"{name}: {path}, {options.out / name}.html and {len(images)} figures")


def make_record(store: SweepStore) -> dict[str, Any]:
    """The record of the rows by this code, or by the latest code if there are none. Raises: ValueError without rows."""
    sweep = store.sweep()
    tell_damaged(store)
    known = {row.code for row in store.rows()}
    codes = [code for code in store.codes() if code in known]
    if not codes:
        raise ValueError(f"{store.path}: has no rows yet; run the sweep first")
    code = code_version() if code_version() in codes else codes[0]
    others = [one for one in codes if one != code]
    if others:
        print(f"{store.path}: also has rows by other code, which are left out: {'; '.join(others)}")
    rows = {row.key: row for row in store.rows() if row.code == code}
    cells = list(sweep.cells())
    found = [rows.get(cell_key(cell, code)) for cell in cells]
    columns = {
        metric: [None if row is None or row.metrics is None else row.metrics.get(metric) for row in found]
        for metric in sweep.metrics
    }
    digests = [cell_digest(cell)[:N_DIGITS] for cell in cells]
    off = [i for i, row in enumerate(found) if row is not None and row.metrics is not None and misses(cells[i], row)]
    errors = {i: row.error for i, row in enumerate(found) if row is not None and row.error is not None}
    told = [
        {"error": error, "n_cells": n, "first_cell": next(digests[i] for i in errors if errors[i] == error)}
        for error, n in Counter(errors.values()).most_common()
    ]
    return {
        "name": f"sweep_{sweep.name}",
        "config": with_defaults(sweep),
        "seeds": sweep.seeds,
        "versions": versions(),
        "seconds": sum(row.seconds for row in found if row is not None),
        "results": {
            "code": code,
            "n_cells": len(found),
            "n_missing": sum(row is None for row in found),
            "n_failed": len(errors),
            "errors": told,
            "n_off_target": len(off),
            "failed": list(errors),
            "off_target": off,
            "columns": columns,
            "cells": digests,
        },
    }


def with_defaults(sweep: Sweep) -> dict[str, Any]:
    """The sweep's data with the defaults of a training as fixed values, so that it stays the same when they change."""
    data, defaults = sweep.as_data(), dict(vars(Training()))
    del defaults["weighting" if "method" in {**sweep.axes, **sweep.fixed} else "method"]  # which brings its own
    return data | {"fixed": {name: value for name, value in defaults.items() if name not in sweep.axes} | sweep.fixed}


def misses(cell: Cell, row: Stored) -> bool:
    """Returns whether a controller ends far from the L0 at which it aims."""
    metrics = row.metrics or {}
    l0, target = metrics.get("l0"), metrics.get("target_l0")
    is_controlled = cell.training.control_rate > 0 and method_of(cell).method.controls_l0
    return is_controlled and l0 is not None and target is not None and off_target(l0, target)


def check(asked: Sequence[str | None], known: Sequence[str], what: str) -> None:
    """Raises: ValueError if something is asked for that the record lacks."""
    for name in asked:
        if name is not None and name not in known:
            raise ValueError(f"{what}: {name!r} is not in this sweep, which has {', '.join(known)}")


def choose_axes(table: Table, x: str | None, y: str | None) -> tuple[str, str | None]:
    """The axes that are asked for, filled up with default ones."""
    default_x, default_y = default_axes(table)
    if x is None:
        x = default_y if y == default_x and default_y is not None else default_x
    if y is None:
        y = default_x if x == default_y else default_y
    return x, None if x == y else y


def default_worst(table: Table, metrics: Sequence[str]) -> str:
    known = [name for name in ("hole_rate", *metrics) if not np.isnan(table.metrics.get(name, np.nan)).all()]
    return known[0] if known else metrics[0]


if __name__ == "__main__":
    sys.exit(main())
