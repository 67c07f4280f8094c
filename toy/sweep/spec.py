"""A sweep is data: axes with values, and the cells that they make."""

import difflib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from toy.node import Node
from toy.sweep.cell import Cell, GivenTree, Training, TreeSpec
from toy.sweep.lanes import METRICS
from toy.tree_json import tree_to_dict
from toy.trees import TREES, RandomTree, RegularTree

GENERATORS: dict[str, type] = {"regular": RegularTree, "random": RandomTree}
TREE_SEED = "tree_seed"  # of random trees; `seed` is that of directions, initialisation and data
ENTRIES = ("name", "combine", "axes", "fixed", "metrics")
NUMBER = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # 1e-3, which YAML takes for text
_TRAINING = {field.name for field in fields(Training)}


@dataclass(frozen=True)
class Sweep:
    """Cells: one for every combination of the axes' values (product), or one for each place in them (zip)."""

    name: str
    axes: dict[str, tuple[Any, ...]]
    fixed: dict[str, Any]
    combine: str
    metrics: tuple[str, ...]
    trees: dict[str, GivenTree]  # those of files, and named ones, by what the sweep calls them

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
        training = Training(**{name: value for name, value in given.items() if name in _TRAINING})
        if kind not in GENERATORS:
            return Cell(self.trees[kind], training)
        own = {name: given[key] for name, key in _parameters(kind).items() if key in given}
        spec: TreeSpec = GENERATORS[kind](**own)
        return Cell(spec, training)

    def as_data(self) -> dict[str, Any]:
        """As JSON; `parse_sweep` reads it again, with the trees in it."""
        return {
            "name": self.name,
            "combine": self.combine,
            "axes": {name: list(values) for name, values in self.axes.items()},
            "fixed": self.fixed,
            "metrics": list(self.metrics),
            "trees": {name: json.loads(tree.text) for name, tree in self.trees.items()},
        }


def parse_sweep(data: Any, read_tree: Callable[[str], Node], *, name: str = "sweep") -> Sweep:
    """A checked sweep from what a YAML or JSON file holds, or a Python value. `read_tree` reads that of a file.

    Raises: ValueError naming the axis or entry and what may stand there, or the file of a tree that cannot be.
    Impossible trees of a generator are no fault of the sweep: they are cells that fail.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"a sweep is an object with entries {', '.join(ENTRIES)}, got {type(data).__name__}")
    for entry in data:
        if entry not in (*ENTRIES, "trees"):
            raise ValueError(f"{entry}: no entry of a sweep{_hint(str(entry), ENTRIES)}")
    axes, fixed = data.get("axes"), data.get("fixed") or {}
    if not isinstance(axes, Mapping) or not axes:
        raise ValueError("axes: expected an object of at least one axis and its values")
    if not isinstance(fixed, Mapping):
        raise ValueError("fixed: expected an object of names and values")
    both = sorted(set(axes) & set(fixed))
    if both:
        raise ValueError(f"{both[0]}: is an axis and fixed, too")
    for names in (axes, fixed, data):
        for key in names:
            if not isinstance(key, str):
                raise ValueError(f"{key!r}: names are text, got {type(key).__name__}; quote it in YAML")
    kinds = _values("tree", axes["tree"]) if "tree" in axes else (fixed.get("tree", "regular"),)
    for kind in kinds:
        if not isinstance(kind, str):
            raise ValueError(f"tree: expected the name of a generator, a tree or a file, got {kind!r}")
    own_trees = data.get("trees") or {}
    if not isinstance(own_trees, Mapping):
        raise ValueError(f"trees: expected an object of names and trees, got {type(own_trees).__name__}")
    trees = {str(kind): _given(str(kind), read_tree, own_trees) for kind in kinds if kind not in GENERATORS}
    typed = {
        name: tuple(_typed(name, value, kinds) for value in _values(name, values)) for name, values in axes.items()
    }
    metrics = data.get("metrics") or METRICS
    if not isinstance(metrics, list | tuple):
        raise ValueError(f"metrics: expected a list of names, got {metrics!r}")
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"metrics: {metric!r} is none{_hint(str(metric), METRICS)}")
    name = data.get("name", name)
    if not isinstance(name, str) or not name.strip() or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(f"name: files are called by it, expected text without slashes or a leading dot, got {name!r}")
    combine = data.get("combine", "product")
    if combine not in ("product", "zip"):
        raise ValueError(f"combine: expected 'product' or 'zip', got {combine!r}")
    if combine == "zip" and len({len(values) for values in typed.values()}) > 1:
        raise ValueError(
            "axes: with combine zip all have as many values; here "
            + ", ".join(f"{name} {len(values)}" for name, values in typed.items())
        )
    return Sweep(
        name=name,
        axes=typed,
        fixed={name: _typed(name, value, kinds) for name, value in fixed.items()},
        combine=combine,
        metrics=tuple(dict.fromkeys(metrics)),
        trees=trees,
    )


def _given(kind: str, read_tree: Callable[[str], Node], known: Mapping[str, Any]) -> GivenTree:
    if kind in known:
        try:
            return GivenTree(kind, json.dumps(known[kind]))
        except TypeError as error:
            raise ValueError(f"trees: {kind}: is not JSON: {error}") from None
    return GivenTree(kind, json.dumps(tree_to_dict(TREES[kind]() if kind in TREES else read_tree(kind))))


def _parameters(kind: str) -> dict[str, str]:
    """A generator's fields, and what a sweep calls them."""
    return {field.name: TREE_SEED if field.name == "seed" else field.name for field in fields(GENERATORS[kind])}


def _values(name: str, values: Any) -> tuple[Any, ...]:
    """Those of an axis: a list, or {range: [first, end]} with an optional step."""
    if isinstance(values, Mapping) and list(values) == ["range"]:
        try:
            values = list(range(*values["range"]))
        except (TypeError, ValueError):
            raise ValueError(
                f"{name}: range needs two integers, or three of which the last is not 0, got {values['range']!r}"
            ) from None
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"{name}: expected a list of values, or range: [first, end], got {values!r}")
    return tuple(values)


def _typed(name: str, value: Any, kinds: Sequence[Any]) -> Any:
    """The value as the cell's field has it. Raises: ValueError if no cell can have it."""
    if name == "tree":
        return str(value)
    owners: list[tuple[type, str]] = [(Training, name)] if name in _TRAINING else []
    for kind in GENERATORS:
        if kind in kinds:
            owners += [(GENERATORS[kind], field) for field, key in _parameters(kind).items() if key == name]
    if not owners:
        known = sorted(_TRAINING | {key for kind in GENERATORS if kind in kinds for key in _parameters(kind).values()})
        raise ValueError(f"{name}: no axis of these trees{_hint(name, ['tree', *known])}")
    typed = value
    for owner, field in owners:  # generators side by side must all be able to have it
        typed = _as_type(name, value, typing.get_type_hints(owner)[field])
        owner(**{field: typed})  # its own checks
    return typed


def _as_type(name: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in options and isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    for option in options:
        if option is type(None) and value is None:
            return None
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            parts = typing.get_args(option)
            if len(parts) == len(value):
                return tuple(_as_type(name, one, part) for one, part in zip(value, parts, strict=True))
        if typing.get_origin(option) is typing.Literal and value in typing.get_args(option):
            return value
        if option is str and isinstance(value, str):
            return value
    expected = " or ".join(_type_name(option) for option in options)
    raise ValueError(f"{name}: expected {expected}, got {value!r}")


def _type_name(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(option)))
    return "none" if option is type(None) else getattr(option, "__name__", str(option))


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
