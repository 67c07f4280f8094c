"""JSON text as a checked list of nested objects, for all dialects of `toy.features.tree_json`."""

from collections.abc import Collection
from numbers import Real
from typing import Any, NamedTuple

from toy.checks import quoted
from toy.features.node import TreeError, check_depth, check_size, shown
from toy.files.json_files import parse_json

_TYPES: dict[str, tuple[type, ...]] = {
    "active_prob": (Real,),
    "magnitude_mean": (Real,),
    "magnitude_std": (Real,),
    "id": (str, type(None)),
    "feature_id": (str, type(None)),
    "feature_index": (int, type(None)),
    "children": (list,),
    "mutually_exclusive_children": (bool,),
    "scale_children_by_parent": (bool,),
    "is_binary": (bool,),
    "is_read_out": (bool,),
}
_EXPECTED = {Real: "a number", str: "a string", int: "a whole number", list: "a list", bool: "true or false"}


class Entry(NamedTuple):
    """One of the nested objects, with its path, the position of its parent (-1 for none) and its keys."""

    path: str
    parent: int
    data: dict[str, Any]


def parse_nodes(text: str) -> Any:
    """The value of JSON text. Raises: TreeError, also for a key that is repeated in one object."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise TreeError(f"not JSON: {quoted(str(error))}") from None


def entries(roots: list[tuple[str, Any]], depth: int, keys: Collection[str]) -> list[Entry]:
    """Lists the roots, given as (path, value) at this depth, and all objects below them, parents first.

    Raises: TreeError for a value of a wrong type, an unknown key, or a tree that is too deep or too large.
    """
    found: list[Entry] = []
    stack = [(path, -1, depth, data) for path, data in reversed(roots)]
    while stack:
        path, parent, depth, data = stack.pop()
        _check_entry(path, depth, data, keys)
        found.append(Entry(path, parent, data))
        children = data.get("children", [])
        check_size(len(found) + len(children))
        position = len(found) - 1
        for i, child in reversed(list(enumerate(children))):
            stack.append((f"{path}.children[{i}]", position, depth + 1, child))
    return found


def _check_entry(path: str, depth: int, data: Any, keys: Collection[str]) -> None:
    if not isinstance(data, dict):
        raise TreeError(f"{shown(path)}: expected an object, got {type_name(data)}")
    check_depth(path, depth)
    for key, value in data.items():
        if key not in keys:
            raise TreeError(f"{shown(path)}: unknown key '{quoted(key, 60)}'; allowed are {', '.join(keys)}")
        allowed = _TYPES[key]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise TreeError(f"{shown(path)}.{key}: expected {_EXPECTED[allowed[0]]}, got {type_name(value)}")


def children_of(found: list[Entry]) -> list[list[int]]:
    """The positions of each entry's children."""
    below: list[list[int]] = [[] for _ in found]
    for i, entry in enumerate(found):
        if entry.parent >= 0:
            below[entry.parent].append(i)
    return below


def type_name(value: Any) -> str:
    """The type of a JSON value in words."""
    return {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )
