"""Trees as JSON, which is read in three dialects and written in one, and trees as printed text.

- reference: `active_prob` (required), `id`, `mutually_exclusive_children`, `is_read_out`, `children`, and `is_binary`.
  A false `is_binary` means a magnitude uniform on (0, 1), which our trees lack, so it is refused without magnitudes.
- hedging: the same with `magnitude_mean` and `magnitude_std` for a magnitude |N(mean, std²)|, as in our trees. We write
  this dialect, with `is_binary` false beside a standard deviation, and with `scale_children_by_parent` and
  `feature_index` where needed.
- SAELens: `roots` and `firing_probabilities`, converted by `toy.features.saelens_tree`.

A reader may name the dialect: then a file of another is refused, keys of other dialects are unknown, and exclusive
probabilities mean what the dialect's program makes of them. In hedging's, `is_binary` means nothing.

**Mutually exclusive children whose probabilities sum to less than 1.** In our trees, none of them is on with the
remaining probability. The program of the hedging paper (and the latest reference code) divides by the sum instead, so
that one is always on. The two agree if the sum is 1 (within 1e-5, as files hold rounded numbers). Otherwise the key
`exclusive_rest` of the root says which is meant, "none" or "scaled" (divided by the sum). Without this key, a file with
`magnitude_mean` or `magnitude_std` is refused, since either program may have written it; any other file is read as
"none", with a note. `tree_to_dict` writes the key if the file would be refused without it.
"""

import math
from typing import Any, Literal, get_args

from toy.checks import quoted
from toy.features.json_nodes import Entry, children_of, entries, parse_nodes, type_name
from toy.features.node import MAX_EXCESS, Node, TreeError, assembled, features, shown, walk
from toy.features.saelens_tree import tree_of_forest

Dialect = Literal["reference", "hedging", "saelens"]
_NODE_KEYS = {
    "active_prob": "active_prob",
    "id": "name",
    "mutually_exclusive_children": "exclusive",
    "is_binary": None,  # None: not a field of Node
    "is_read_out": "is_feature",
    "magnitude_mean": "magnitude_mean",
    "magnitude_std": "magnitude_std",
    "scale_children_by_parent": "scale_children_by_parent",
    "feature_index": "feature_index",
    "children": None,
}
_LATER = ("magnitude_mean", "magnitude_std", "scale_children_by_parent", "feature_index")  # not in the first dialect
_DEFAULTS = {key: getattr(Node(1.0), field) for key, field in _NODE_KEYS.items() if field and key != "active_prob"}
_KEYS_OF = {"reference": tuple(key for key in _NODE_KEYS if key not in _LATER)}
_KEYS_OF["hedging"] = (*_KEYS_OF["reference"], "magnitude_mean", "magnitude_std")
_REST = {"reference": "none", "hedging": "scaled"}  # the meaning of exclusive probabilities of a sum below 1
_ROUNDED = 1e-5  # the error of a sum of probabilities rounded to 6 digits
_NAME_SHOWN = 60  # characters


def parse_tree(text: str) -> Node:
    """A checked tree from JSON text in any of the dialects. Raises: `TreeError`, naming path and fault."""
    return parse_with_notes(text)[0]


def parse_with_notes(text: str, dialect: Dialect | None = None) -> tuple[Node, tuple[str, ...]]:
    """The tree of a text, as `parse_tree` reads it, and one-line notes on how it was read. Raises: `TreeError`."""
    return _from_dict(parse_nodes(text), dialect)


def tree_from_dict(data: Any) -> Node:
    """A checked tree from parsed JSON in any of the dialects. Raises: `TreeError`, naming path and fault."""
    return _from_dict(data)[0]


def check_dialect(dialect: Any) -> None:
    """Raises: TreeError for a name that is no dialect's."""
    if dialect is not None and dialect not in get_args(Dialect):
        raise TreeError(f"dialect: expected {', '.join(get_args(Dialect))} or None, got {quoted(dialect, 60)}")


def _from_dict(data: Any, dialect: Dialect | None = None) -> tuple[Node, tuple[str, ...]]:
    check_dialect(dialect)
    if not isinstance(data, dict):
        raise TreeError(f"root: expected an object, got {type_name(data)}")
    if dialect is not None and (dialect == "saelens") != ("roots" in data):
        raise TreeError(
            f"root: {'has no' if dialect == 'saelens' else 'has'} 'roots': this is not the dialect {dialect}"
        )
    root, notes = tree_of_forest(data) if "roots" in data else _nested(data, dialect)
    return root, (*notes, *name_notes(root))


def name_notes(root: Node) -> list[str]:
    """Checks the tree, and returns a note if names have unprintable characters. Raises: `TreeError`."""
    strange = [node.name for *_, node in walk(root) if node.name and not node.name.isprintable()]
    if not strange:
        return []
    return [f"{len(strange)} names have control or invisible characters, such as {quoted(strange[0], _NAME_SHOWN)}"]


def _nested(data: dict[str, Any], dialect: Dialect | None) -> tuple[Node, list[str]]:
    rest = data.get("exclusive_rest")
    if rest not in (None, "none", "scaled"):
        raise TreeError(f"root.exclusive_rest: expected 'none' or 'scaled', got {quoted(rest, 60)}")
    meant = None if dialect is None else _REST[dialect]
    if meant is not None and rest not in (None, meant):
        raise TreeError(f"root.exclusive_rest: {rest!r} is not what the dialect {dialect} means, which is {meant!r}")
    known = _NODE_KEYS if dialect is None else _KEYS_OF[dialect]
    found = entries([("root", {key: value for key, value in data.items() if key != "exclusive_rest"})], 0, known)
    for entry in found:
        _check_keys(entry, dialect)
    rest = rest or meant
    probs, notes = _exclusive_probs(found, rest)
    fields = (
        {field: entry.data[key] for key, field in _NODE_KEYS.items() if field and key in entry.data}
        | {"active_prob": prob}
        for entry, prob in zip(found, probs, strict=True)
    )
    [root] = assembled([(entry.parent, given) for entry, given in zip(found, fields, strict=True)])
    return root, notes


def _check_keys(entry: Entry, dialect: Dialect | None) -> None:
    path, data = entry.path, entry.data
    if "active_prob" not in data:
        raise TreeError(f"{shown(path)}: the key 'active_prob' is missing")
    if dialect == "hedging":
        return
    if data.get("is_binary") is False and "magnitude_std" not in data and data.get("is_read_out", True):
        raise TreeError(
            f"{shown(path)}.is_binary: false is a magnitude uniform on (0, 1) in the reference code, which no tree "
            "here has; give magnitude_mean and magnitude_std, or leave is_binary out for a magnitude of 1"
        )
    if data.get("is_binary") is True and data.get("magnitude_std", 0) != 0:
        raise TreeError(f"{shown(path)}.is_binary: true contradicts magnitude_std; leave one of them out")


def _exclusive_probs(found: list[Entry], rest: str | None) -> tuple[list[float], list[str]]:
    """Each entry's P(on | parent on), by the rules of the module's docstring, and notes on them."""
    probs = [entry.data["active_prob"] for entry in found]
    other = rest is None and any("magnitude_mean" in e.data or "magnitude_std" in e.data for e in found)
    left: list[str] = []
    for entry, below in zip(found, children_of(found), strict=True):
        given = [probs[i] for i in below]
        if not below or not entry.data.get("mutually_exclusive_children") or not all(0 <= p <= 1 for p in given):
            continue  # `walk` refuses wrong probabilities
        total, path = math.fsum(given), shown(entry.path)
        exact = abs(total - 1) <= _ROUNDED
        if other and not exact:
            raise TreeError(
                f"{path}.children: probabilities of mutually exclusive children sum to {total:.6g}, which the hedging "
                'paper\'s program scales to 1 and this one leaves; say which is meant at the root by "exclusive_rest": '
                '"scaled" or "none"'
            )
        if total > 0 and (rest == "scaled" or (exact and total > 1 + MAX_EXCESS)):
            for i in below:
                probs[i] /= total
        if not exact and (rest == "scaled" or (rest is None and total < 1)):
            left.append(f"{path} ({total:.6g})")
    return probs, _rest_notes(left, rest)


def _rest_notes(left: list[str], rest: str | None) -> list[str]:
    if not left:
        return []
    what = "sum to less than 1: none of them is on with what is left" if rest is None else "are divided by their sum"
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return [f"the probabilities of mutually exclusive children of {left[0]}{more} {what}"]


def tree_to_dict(root: Node) -> dict:
    """The tree in the hedging dialect, without keys at their defaults."""
    found = walk(root)
    written: list[dict[str, Any]] = []
    for _, parent, node in found:
        data = _write(node)
        written.append(data)
        if parent < 0:
            data |= {"exclusive_rest": "none"} if _is_ambiguous(found) else {}
        else:
            written[parent].setdefault("children", []).append(data)
    return written[0]


def _is_ambiguous(found: list[tuple[str, int, Node]]) -> bool:
    """Returns whether another program would read the tree's exclusive children differently."""
    sized = any(node.magnitude_mean != 1 or node.magnitude_std != 0 for *_, node in found)
    totals = (math.fsum(c.active_prob for c in node.children) for *_, node in found if node.exclusive and node.children)
    return sized and any(abs(total - 1) > _ROUNDED for total in totals)


def _write(node: Node) -> dict[str, Any]:
    values = {key: getattr(node, field) for key, field in _NODE_KEYS.items() if field}
    data = {key: value for key, value in values.items() if value != _DEFAULTS.get(key)}
    return data | ({"is_binary": False} if node.magnitude_std else {})


def format_tree(root: Node) -> str:
    """The tree as text, one line per node: its column, name, edge probability, magnitude and kind of children.

    Unprintable characters of names are escaped, and long names are cut.
    """
    column = {id(node): i for i, node in enumerate(features(root))}
    depths: list[int] = []
    lines = []
    for _, parent, node in walk(root):
        depths.append(0 if parent < 0 else depths[parent] + 1)
        index = f"{column[id(node)]:>4}" if node.is_feature else "   ·"
        name = quoted(node.name or ("feature" if node.is_feature else "no feature"), _NAME_SHOWN)
        magnitude = f"  magnitude {node.magnitude_mean:g}" if node.magnitude_mean != 1 else ""
        magnitude += f" ± {node.magnitude_std:g}" if node.magnitude_std else ""
        kind = "  (one of its children at most)" if node.exclusive else ""
        lines.append(f"{index}  {'    ' * depths[-1]}{name}  p {node.active_prob:g}{magnitude}{kind}")
    return "\n".join(lines)
