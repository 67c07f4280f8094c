"""Trees as JSON: three dialects in, one out, and the printed form.

- reference: `active_prob` (required), `id`, `mutually_exclusive_children`, `is_binary`, `is_read_out`, `children`;
- hedging: the same with `magnitude_mean` and `magnitude_std` (we write this one, with
  `scale_children_by_parent` and `feature_index` where they are needed);
- SAELens: `roots` of nodes with `feature_index`, `feature_id`, `children`, `mutually_exclusive_children`,
  `scale_children_by_parent`, and the vector `firing_probabilities` beside them. Each entry is read as P(on | parent
  on); an index that no node has is a lone feature, and a node without index is no feature and always on.
"""

import json
from collections.abc import Callable
from numbers import Real
from typing import Any

from toy.node import MAX_DEPTH, Node, TreeError, features, walk

_NODE_KEYS = {
    "active_prob": None,  # None: read by itself
    "id": "name",
    "mutually_exclusive_children": "exclusive",
    "is_binary": None,
    "is_read_out": "is_feature",
    "magnitude_mean": "magnitude_mean",
    "magnitude_std": "magnitude_std",
    "scale_children_by_parent": "scale_children_by_parent",
    "feature_index": "feature_index",
    "children": None,
}
_SAELENS_KEYS = {
    "feature_index": "feature_index",
    "feature_id": "name",
    "id": "name",
    "mutually_exclusive_children": "exclusive",
    "scale_children_by_parent": "scale_children_by_parent",
    "children": None,
}
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


def parse_tree(text: str) -> Node:
    """A checked tree from JSON text in any of the dialects. Raises: `TreeError`, naming path and fault."""
    try:
        data = json.loads(text, object_pairs_hook=_no_repeats)
    except TreeError:
        raise
    except RecursionError:
        raise TreeError(f"nests deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:  # a JSONDecodeError, or a number of more digits than Python reads
        raise TreeError(f"not JSON: {error}") from None
    return tree_from_dict(data)


def tree_from_dict(data: Any) -> Node:
    """A checked tree from parsed JSON in any of the dialects. Raises: `TreeError`, naming path and fault."""
    if not isinstance(data, dict):
        raise TreeError(f"root: expected an object, got {_type_name(data)}")
    root = _saelens_forest(data) if "roots" in data else _node(data, "root", 0, _NODE_KEYS, _reference_prob)
    walk(root)
    return root


def _node(data: Any, path: str, depth: int, keys: dict[str, str | None], prob: Callable[[dict, str], float]) -> Node:
    if not isinstance(data, dict):
        raise TreeError(f"{path}: expected an object, got {_type_name(data)}")
    if depth > MAX_DEPTH:
        raise TreeError(f"{path[:60]}…: nests deeper than {MAX_DEPTH} levels")
    for key, value in data.items():
        if key not in keys:
            raise TreeError(f"{path}: unknown key {key!r}; allowed are {', '.join(keys)}")
        allowed = _TYPES[key]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise TreeError(f"{path}.{key}: expected {_EXPECTED[allowed[0]]}, got {_type_name(value)}")
    fields = {field: data[key] for key, field in keys.items() if field and key in data}
    children = tuple(
        _node(child, f"{path}.children[{i}]", depth + 1, keys, prob) for i, child in enumerate(data.get("children", []))
    )
    return Node(prob(data, path), children, **fields)


def _reference_prob(data: dict, path: str) -> float:
    if "active_prob" not in data:
        raise TreeError(f"{path}: the key 'active_prob' is missing")
    return data["active_prob"]


def _saelens_forest(data: dict) -> Node:
    for key in data:
        if key not in ("roots", "firing_probabilities"):
            raise TreeError(f"root: unknown key {key!r}; beside 'roots' only 'firing_probabilities' is allowed")
    roots, probs = data["roots"], data.get("firing_probabilities")
    if not isinstance(roots, list):
        raise TreeError(f"root.roots: expected a list, got {_type_name(roots)}")
    if not isinstance(probs, list):
        raise TreeError(
            "root.firing_probabilities: a file with 'roots' needs this list, P(on | parent on) by feature_index"
        )
    for i, p in enumerate(probs):
        if not isinstance(p, Real) or isinstance(p, bool):
            raise TreeError(f"root.firing_probabilities[{i}]: expected a number, got {_type_name(p)}")
    used: set[int] = set()

    def prob(node: dict, path: str) -> float:
        index = node.get("feature_index")
        if index is None:
            return 1.0
        if not 0 <= index < len(probs):
            raise TreeError(f"{path}.feature_index: {index} has no entry among {len(probs)} firing_probabilities")
        used.add(index)
        return probs[index]

    nodes = [_node(node, f"root.roots[{i}]", 1, _SAELENS_KEYS, prob) for i, node in enumerate(roots)]
    lone = [Node(p, feature_index=i) for i, p in enumerate(probs) if i not in used]
    return Node(1.0, (*map(_without_index_is_no_feature, nodes), *lone), is_feature=False)


def _without_index_is_no_feature(node: Node) -> Node:
    children = tuple(map(_without_index_is_no_feature, node.children))
    return Node(**{**vars(node), "children": children, "is_feature": node.feature_index is not None})


_EXPECTED = {Real: "a number", str: "a string", int: "a whole number", list: "a list", bool: "true or false"}


def _type_name(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise TreeError(f"not a tree: the key {repeated!r} stands twice in one object")
    return data


def tree_to_dict(root: Node) -> dict:
    """The tree in the hedging dialect; keys at their default are left out."""
    walk(root)

    def write(node: Node) -> dict:
        data: dict[str, Any] = {"active_prob": node.active_prob}
        if node.name is not None:
            data["id"] = node.name
        if not node.is_feature:
            data["is_read_out"] = False
        if node.exclusive:
            data["mutually_exclusive_children"] = True
        if node.magnitude_mean != 1:
            data["magnitude_mean"] = node.magnitude_mean
        if node.magnitude_std != 0:
            data |= {"magnitude_std": node.magnitude_std, "is_binary": False}
        if node.scale_children_by_parent:
            data["scale_children_by_parent"] = True
        if node.feature_index is not None:
            data["feature_index"] = node.feature_index
        if node.children:
            data["children"] = [write(child) for child in node.children]
        return data

    return write(root)


def format_tree(root: Node) -> str:
    """The printed form: a line a node with its column, name, edge probability, magnitude and kind of children."""
    column = {id(node): i for i, node in enumerate(features(root))}
    depths: list[int] = []
    lines = []
    for _, parent, node in walk(root):
        depths.append(0 if parent < 0 else depths[parent] + 1)
        index = f"{column[id(node)]:>4}" if node.is_feature else "   ·"
        name = node.name or ("feature" if node.is_feature else "no feature")
        magnitude = f"  magnitude {node.magnitude_mean:g}" if node.magnitude_mean != 1 else ""
        magnitude += f" ± {node.magnitude_std:g}" if node.magnitude_std else ""
        kind = "  (one of its children at most)" if node.exclusive else ""
        lines.append(f"{index}  {'    ' * depths[-1]}{name}  p {node.active_prob:g}{magnitude}{kind}")
    return "\n".join(lines)
