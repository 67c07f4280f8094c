"""From a sweep and a store to the missing rows: planned, grouped by program, run and kept."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from experiments.sweeps.cell import Cell, cell_key
from experiments.sweeps.engines import Engine, Failure, WorkerFault
from experiments.sweeps.lanes import FACTS, METRICS, Row, code_version, run_cells
from experiments.sweeps.program import Program, program_of
from experiments.sweeps.spec import Sweep
from experiments.sweeps.store import SweepStore
from toy.checks import quoted

MOST_ROWS = 1_000  # of impossible cells, written at once
MOST_LOST = 10  # groups without an answer, before it is clear that others will have none, either
Run = Callable[[Sequence[Cell]], list[Row]]


class Plan(NamedTuple):
    """The cells that are left to do."""

    code: str
    n_cells: int  # different ones
    n_finished: int
    groups: dict[Program, list[int]]  # places of cells in the sweep
    impossible: list[tuple[int, str]]  # and why

    @property
    def n_missing(self) -> int:
        return sum(map(len, self.groups.values()))

    @property
    def cost(self) -> float:
        """In seconds on two CPU cores, roughly."""
        return sum(program.cost * len(places) for program, places in self.groups.items())


class Group(NamedTuple):
    """Cells of one program, as many as its lanes at the most; what a worker is sent."""

    keys: tuple[str, ...]
    cells: tuple[Cell, ...]
    kind: int | None = None  # the number of its program, by which an engine knows groups of the same one

    def part(self, places: slice) -> "Group":
        return Group(self.keys[places], self.cells[places], self.kind)


class Done(NamedTuple):
    """Told after every group, and of the impossible cells at the start."""

    n_rows: int
    n_failed: int
    cost: float


def make_plan(sweep: Sweep, finished: set[str] | frozenset[str] = frozenset(), code: str | None = None) -> Plan:
    """Cells without a row by program, the longest first. Memory: a few hundred bytes per cell."""
    code = code_version() if code is None else code
    groups: dict[Program, list[int]] = {}
    impossible, seen = [], set()
    for place, cell in enumerate(sweep.cells()):
        key = cell_key(cell, code)
        if key in seen:
            continue
        seen.add(key)
        if key in finished:
            continue
        try:
            groups.setdefault(program_of(cell), []).append(place)
        except (ValueError, RecursionError, MemoryError) as error:  # the last two: a tree that is far too large
            impossible.append((place, quoted(str(error)) or type(error).__name__))
    ordered = dict(sorted(groups.items(), key=lambda item: -item[0].cost))
    return Plan(code, len(seen), len(seen & finished), ordered, impossible)


def run_plan(
    sweep: Sweep,
    plan: Plan,
    store: SweepStore,
    engine: Engine,
    *,
    progress: Callable[[Done], Any] | None = None,
    run: Run = run_cells,
    retry: bool = False,
) -> None:
    """Run what has no row in the store (with `retry` also what failed).

    A group that fails is halved until the cell at fault stands alone; that one gets a row with its error. Groups are
    taken from a random place on, and what another driver has finished meanwhile is left out.

    Raises: WorkerFault, once the rest is done, if workers failed for no fault of their cells, which then have no row.
    """
    code, lost = plan.code, []
    tell = (lambda done: None) if progress is None else progress
    for i in range(0, len(plan.impossible), MOST_ROWS):
        part = plan.impossible[i : i + MOST_ROWS]
        store.add(code, [(cell_key(sweep.cell(place), code), Row(None, error, 0.0)) for place, error in part])
        tell(Done(len(part), len(part), 0.0))
    function = partial(_rows_of, run=run, code=code)
    groups: Iterable[Group] = _missing(_groups(sweep, plan), store, retry, tell)
    while groups:
        failed: list[Group] = []
        for group, answer in engine.run(function, groups):
            if isinstance(answer, Failure) and answer.of_worker:
                lost.append(answer.told)
                if len(lost) == MOST_LOST:
                    raise _fault(lost)
                continue
            if isinstance(answer, Failure) and len(group.cells) > 1:
                failed += _halves(group)
                continue
            rows = [Row(None, answer.told, 0.0)] if isinstance(answer, Failure) else answer
            store.add(code, zip(group.keys, rows, strict=True))
            tell(Done(len(rows), sum(row.error is not None for row in rows), _cost(group)))
        groups = failed
    if lost:
        raise _fault(lost)


def _fault(lost: Sequence[str]) -> WorkerFault:
    told = f"{len(lost)} groups of cells have no rows, since their workers failed: {lost[-1]}"
    return WorkerFault(f"{told}; start again to run what is missing")


def _groups(sweep: Sweep, plan: Plan) -> Iterator[Group]:
    starts = [
        (kind, program, first)
        for kind, (program, places) in enumerate(plan.groups.items())
        for first in range(0, len(places), program.n_lanes)
    ]
    turn = random.randrange(len(starts)) if starts else 0  # two drivers begin far from each other
    for kind, program, first in starts[turn:] + starts[:turn]:
        cells = [sweep.cell(i) for i in plan.groups[program][first : first + program.n_lanes]]
        yield Group(tuple(cell_key(cell, plan.code) for cell in cells), tuple(cells), kind)


def _missing(groups: Iterable[Group], store: SweepStore, retry: bool, tell: Callable[[Done], Any]) -> Iterator[Group]:
    """The groups without the cells that are finished by now."""
    for group in groups:
        there = store.finished_of(group.keys, failed=not retry)
        left = [(key, cell) for key, cell in zip(group.keys, group.cells, strict=True) if key not in there]
        if there:
            tell(Done(len(there), 0, _cost(group) * len(there) / len(group.keys)))
        if left:
            keys, cells = zip(*left, strict=True)
            yield Group(keys, cells, group.kind)


def _halves(group: Group) -> list[Group]:
    middle = len(group.cells) // 2
    return [group.part(slice(middle)), group.part(slice(middle, None))]


def _cost(group: Group) -> float:
    return program_of(group.cells[0]).cost * len(group.cells)


def _rows_of(group: Group, *, run: Run, code: str) -> list[Row]:
    """The work of a worker: the rows of its cells."""
    if run is run_cells and code_version() != code:
        raise WorkerFault(f"a worker has ({code_version()}), the driver ({code}): install and set the same")
    return run(group.cells)


def stub_cells(cells: Sequence[Cell]) -> list[Row]:
    """Rows of cells that nobody trained: to see what planning, scheduling and storing take."""
    return [Row(dict.fromkeys((*FACTS, *METRICS), 0.0), None, 0.0) for _ in cells]
