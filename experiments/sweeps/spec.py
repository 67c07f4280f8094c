"""A sweep is data: axes with values, and the cells that they make."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from experiments.sweeps.cell import Cell, GivenTree, Training, TreeSpec
from experiments.sweeps.lanes import METRICS
from experiments.sweeps.values import GENERATORS, MOST_NAME, TRAINING, axis_values, hint, parameters, typed
from toy.checks import quoted
from toy.features.named import TREES
from toy.features.node import Node
from toy.features.tree_json import parse_tree, tree_to_dict

ENTRIES = ("name", "combine", "axes", "fixed", "metrics")
MOST_BYTES = 200  # of a name: systems have 255 for a file's
MAX_CELLS = 10_000_000
OLD_NAMES = {"objective": "weighting"}  # axis names in older files


@dataclass(frozen=True)
class Sweep:
    """One cell for every combination of the axes' values (product), or for each place in them (zip)."""

    name: str
    axes: dict[str, tuple[Any, ...]]
    fixed: dict[str, Any]
    combine: str
    metrics: tuple[str, ...]
    trees: dict[str, GivenTree]  # by name, those that no generator makes

    @property
    def seeds(self) -> list[int]:
        return list(self.axes.get("seed", (self.fixed.get("seed", 0),)))

    def __len__(self) -> int:
        lengths = [len(values) for values in self.axes.values()]
        return math.prod(lengths) if self.combine == "product" else lengths[0]

    def values(self, i: int) -> dict[str, Any]:
        """The axes' values in a cell; the last axis turns fastest."""
        if self.combine == "zip":
            return {name: values[i] for name, values in self.axes.items()}
        found = {}
        for name, values in reversed(self.axes.items()):
            i, place = divmod(i, len(values))
            found[name] = values[place]
        return dict(reversed(found.items()))

    def cell(self, i: int) -> Cell:
        return self._make({**self.fixed, **self.values(i)})

    def cells(self) -> Iterator[Cell]:
        return map(self.cell, range(len(self)))

    def _make(self, given: Mapping[str, Any]) -> Cell:
        kind = given.get("tree", "regular")
        training = Training(**{name: value for name, value in given.items() if name in TRAINING})
        if kind not in GENERATORS:
            return Cell(self.trees[kind], training)
        own = {name: given[key] for name, key in parameters(kind).items() if key in given}
        return Cell(_spec(kind, tuple(own.items())), training)

    def as_data(self) -> dict[str, Any]:
        """The sweep as plain JSON with its trees, from which `parse_sweep` makes it again."""
        return {
            "name": self.name,
            "combine": self.combine,
            "axes": {name: list(values) for name, values in self.axes.items()},
            "fixed": self.fixed,
            "metrics": list(self.metrics),
            "trees": {name: json.loads(tree.text) for name, tree in self.trees.items()},
        }


@lru_cache(4_096)
def _spec(kind: str, own: tuple[tuple[str, Any], ...]) -> TreeSpec:
    """The generator's parameters, made and so checked once for all cells that share them."""
    return GENERATORS[kind](**dict(own))


def parse_sweep(data: Any, read_tree: Callable[[str], Node], *, name: str = "sweep") -> Sweep:
    """A checked sweep from the data of a YAML or JSON file. `read_tree` reads the tree of a file.

    Raises: ValueError naming the axis or entry and what may stand there, or the file of an impossible tree.
    Impossible trees of a generator do not raise: their cells fail.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"a sweep is an object with entries {', '.join(ENTRIES)}, got {type(data).__name__}")
    axes, fixed = _axes(data)
    values = {axis: axis_values(axis, given) for axis, given in axes.items()}
    combine = _combine(data.get("combine", "product"), values)
    kinds = values["tree"] if "tree" in values else (fixed.get("tree", "regular"),)
    trees = _trees(kinds, data.get("trees") or {}, read_tree)
    generators = frozenset(GENERATORS).intersection(kinds)
    return Sweep(
        name=checked_name(data.get("name", name)),
        axes={axis: tuple(typed(axis, value, generators) for value in given) for axis, given in values.items()},
        fixed={axis: typed(axis, value, generators) for axis, value in fixed.items()},
        combine=combine,
        metrics=_metrics(data.get("metrics") or METRICS),
        trees=trees,
    )


def _axes(data: Mapping[Any, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The axes and the fixed values, by checked names."""
    for entry in data:
        if not isinstance(entry, str):
            raise ValueError(_no_name(entry))
        if entry not in (*ENTRIES, "trees"):
            raise ValueError(f"{quoted(entry, MOST_NAME)}: no entry of a sweep{hint(entry, ENTRIES)}")
    axes, fixed = (_named(entry, data.get(entry) or {}) for entry in ("axes", "fixed"))
    if not axes:
        raise ValueError("axes: expected an object of at least one axis and its values")
    both = sorted(set(axes) & set(fixed))
    if both:
        raise ValueError(f"{quoted(both[0], MOST_NAME)}: is an axis and fixed, too")
    if {"method", "weighting"} <= {name for name, value in {**axes, **fixed}.items() if value is not None}:
        raise ValueError("weighting: a method has its own: write it into the method's name, as in tied:weighting=all")
    return axes, fixed


def _named(entry: str, given: Any) -> dict[str, Any]:
    """The settings that an entry gives, by their present names."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{entry}: expected an object of names and values")
    found: dict[str, Any] = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise ValueError(_no_name(name))
        today = OLD_NAMES.get(name, name)
        if today in found:
            raise ValueError(f"{entry}: {name} and {today} are the same: give one of them")
        found[today] = value
    return found


def of_today(data: dict[str, Any]) -> dict[str, Any]:
    """A sweep's data as it may have been written before, with the names that axes have today."""
    axes = {entry: _named(entry, data[entry]) for entry in ("axes", "fixed") if isinstance(data.get(entry), Mapping)}
    return {**data, **axes}


def _no_name(key: Any) -> str:
    return f"{quoted(key, MOST_NAME)}: names are text, got {type(key).__name__}; quote it in YAML"


def checked_name(name: Any) -> str:
    """The name of a sweep. Raises: ValueError unless it is a plain name for files, and visible."""
    if not isinstance(name, str) or not name.isprintable() or set(name) & set("/\\"):
        why = "visible text without slashes"
    elif not name.strip() or name[0] in ".- ":
        why = "text that does not begin with a dot, a hyphen or a space"
    elif len(name.encode()) > MOST_BYTES:
        why = f"at most {MOST_BYTES} bytes"
    else:
        return name
    raise ValueError(f"name: files are called by it, expected {why}, got {quoted(repr(name))}")


def _combine(combine: Any, values: Mapping[str, Sequence[Any]]) -> str:
    """`product` or `zip`. Raises: ValueError if the axes cannot be combined so, or make too many cells."""
    if combine not in ("product", "zip"):
        raise ValueError(f"combine: expected 'product' or 'zip', got {quoted(repr(combine))}")
    lengths = {name: len(of_axis) for name, of_axis in values.items()}
    if combine == "zip" and len(set(lengths.values())) > 1:
        told = ", ".join(f"{quoted(name, MOST_NAME)} {n}" for name, n in lengths.items())
        raise ValueError(f"axes: with combine zip all have as many values; here {quoted(told)}")
    n_cells = math.prod(lengths.values()) if combine == "product" else 1
    if n_cells > MAX_CELLS:
        raise ValueError(f"axes: make {quoted(f'{n_cells:,}')} cells, at most {MAX_CELLS:,} are run")
    return combine


def _metrics(metrics: Any) -> tuple[str, ...]:
    if not isinstance(metrics, list | tuple):
        raise ValueError(f"metrics: expected a list of names, got {quoted(repr(metrics))}")
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"metrics: {quoted(repr(metric))} is none{hint(str(metric), METRICS)}")
    return tuple(dict.fromkeys(metrics))


def _trees(kinds: Sequence[Any], own: Any, read_tree: Callable[[str], Node]) -> dict[str, GivenTree]:
    """The trees that no generator makes, by name: the sweep's own, the library's named ones, and those of files."""
    for kind in kinds:
        if not isinstance(kind, str):
            told = quoted(repr(kind))
            raise ValueError(f"tree: expected the name of a generator, a tree or a file, got {told}")
    if not isinstance(own, Mapping):
        raise ValueError(f"trees: expected an object of names and trees, got {type(own).__name__}")
    return {kind: _given(kind, read_tree, own) for kind in dict.fromkeys(kinds) if kind not in GENERATORS}


def _given(kind: str, read_tree: Callable[[str], Node], own: Mapping[Any, Any]) -> GivenTree:
    try:
        kind.encode()
        if kind in own:
            text = json.dumps(own[kind])
            parse_tree(text)
            return GivenTree(kind, text)
        return GivenTree(kind, json.dumps(tree_to_dict(TREES[kind]() if kind in TREES else read_tree(kind))))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"tree: {quoted(kind, MOST_NAME)}: is not JSON: {error}") from None
    except UnicodeEncodeError:
        raise ValueError(f"tree: {quoted(kind)}: has a lone surrogate: no file can be called so") from None
    except ValueError as error:
        where = "" if kind in str(error) and kind not in own else f"tree: {quoted(kind, MOST_NAME)}: "
        raise ValueError(f"{where}{quoted(str(error))}") from None
