"""A sweep's record as columns."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from toy.eval.metrics import MAX_HOLE_RATE, MIN_COSINE
from toy.training.controllers import MAX_L0_ERROR

SHARES = ("recovered",)  # of seeds: 0 or 1 per cell
KINDS = ("weighting", "method")  # the axis of what is compared, of which a sweep has one at most
SIGNED = ("parent_to_child", "child_to_sibling", "child_to_parent")


class Table(NamedTuple):
    """The different cells as columns; a metric is NaN where a cell failed or is missing, or where it is not known."""

    axes: dict[str, list[Any]]  # different values, in their order; without seeds, unless there is nothing else
    places: np.ndarray  # [n_cells n_axes] which value each cell has
    seeds: np.ndarray  # [n_cells]
    failed: np.ndarray  # [n_cells] bool
    metrics: dict[str, np.ndarray]
    digests: np.ndarray  # [n_cells]
    off_target: np.ndarray | None  # [n_cells] bool: whose L0 ends far off the target; None: the record does not tell

    def having(self, **values: int) -> np.ndarray:
        """[n_cells] bool: the cells with these places on the axes of these names."""
        names, found = list(self.axes), np.ones(len(self.seeds), bool)
        for name, place in values.items():
            found &= self.places[:, names.index(name)] == place
        return found

    def settings_beside(self, *names: str) -> np.ndarray:
        """[n_cells] a number for each setting of the other axes."""
        others = np.delete(self.places, [list(self.axes).index(name) for name in names], axis=1)
        return np.unique(others, axis=0, return_inverse=True)[1].ravel()

    def criteria(self) -> np.ndarray | None:
        """[n_cells] 0 for a recovered tree, 1 if a cosine is too small, 2 if a parent has holes, 3 for both, -1 if not
        known; None if the record lacks the metrics."""
        if not {"min_cosine", "hole_rate", "recovered"} <= self.metrics.keys():
            return None
        cosine, holes = self.metrics["min_cosine"], np.nan_to_num(self.metrics["hole_rate"])
        found = (cosine < MIN_COSINE) + 2 * (holes >= MAX_HOLE_RATE)
        return np.where(np.isnan(cosine), -1, np.where(self.metrics["recovered"] == 1, 0, found))

    def of_weightings(self) -> list[tuple[str, np.ndarray]]:
        """Each weighting or method and its cells; all cells as one where neither is an axis."""
        for kind in KINDS:
            if kind in self.axes:
                return [(name, self.having(**{kind: i})) for i, name in enumerate(self.axes[kind])]
        return [("all cells", self.having())]


def table_of(record: dict[str, Any]) -> Table:
    config, results = record["config"], record["results"]
    given: dict[str, list[Any]] = config["axes"]
    lengths = [len(values) for values in given.values()]
    if config["combine"] == "product":
        cells = np.array(list(itertools.product(*map(range, lengths))), int).reshape(-1, len(lengths))
    else:
        cells = np.tile(np.arange(lengths[0])[:, None], (1, len(lengths)))
    different = {}
    for i, (name, values) in enumerate(given.items()):
        keys = [tuple(value) if isinstance(value, list) else value for value in values]
        place = {key: j for j, key in enumerate(dict.fromkeys(keys))}
        different[name] = [list(key) if isinstance(key, tuple) else key for key in place]
        cells[:, i] = np.array([place[key] for key in keys])[cells[:, i]]
    _, first = np.unique(cells, axis=0, return_index=True)
    kept = np.sort(first)
    names = list(given)
    own = [i for i, name in enumerate(names) if name != "seed" or len(names) == 1]
    is_seeded = "seed" in names and len(names) > 1

    def at(places: list[int]) -> np.ndarray:
        return np.isin(np.arange(len(cells)), places)[kept]

    return Table(
        {names[i]: different[names[i]] for i in own},
        cells[kept][:, own],
        cells[kept, names.index("seed")] if is_seeded else np.zeros(len(kept), int),
        at(results["failed"]),
        {name: np.array(column, float)[kept] for name, column in results["columns"].items()},
        np.array(results["cells"])[kept],
        at(results["off_target"]) if "off_target" in results else None,
    )


def off_target(table: Table, own: np.ndarray) -> str:
    """A phrase that says how many of these cells end far off their target L0; empty if none is known to."""
    n_off = 0 if table.off_target is None else int(table.off_target[own].sum())
    trained = own & ~table.failed
    return f"L0 more than {MAX_L0_ERROR:.0%} off target {n_off:,}/{int(trained.sum()):,}" if n_off else ""


def default_axes(table: Table) -> tuple[str, str | None]:
    """The two axes of a phase diagram: those with numbers and most values first; None if there is only one."""
    counts = {name: len(values) for name, values in table.axes.items() if name not in KINDS}
    numeric = [name for name in counts if all(isinstance(v, int | float) for v in table.axes[name])]
    ranked = sorted(counts, key=lambda name: (name not in numeric, -counts[name]))
    ranked += [name for name in table.axes if name not in ranked]
    return ranked[0], ranked[1] if len(ranked) > 1 else None


def matched(table: Table, metric: str, axis: str) -> np.ndarray | None:
    """[n_cells] bool: the cells whose setting of the other axes has a number at every value of this one, so that like
    is compared with like. None if there are none."""
    if len(table.axes) == 1:
        return table.having()
    i, known = list(table.axes).index(axis), ~np.isnan(table.metrics[metric])
    group = table.settings_beside(axis)
    found = np.zeros((group.max() + 1, len(table.axes[axis])), bool)
    found[group[known], table.places[known, i]] = True
    whole = np.asarray(found.all(axis=1))[group]
    return whole if whole.any() else None
