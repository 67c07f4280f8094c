"""The library's files by one name: trees, SAEs, records and arrays. Writes are whole or not at all.

Activations, which are too many for this, have `toy.store` and `toy.matrix`.
"""

from pathlib import Path

from toy.arrays import load_arrays, map_arrays, save_arrays
from toy.files import (
    claim,
    content_digest,
    is_part,
    is_signed,
    load_json,
    locked,
    parse_json,
    plain,
    prepare,
    remove_parts,
    save_json,
    signed,
    writing,
)
from toy.node import Node, TreeError
from toy.saelens import load_sae, save_sae
from toy.tree_json import parse_tree, tree_to_dict

__all__ = [
    "claim",
    "content_digest",
    "is_part",
    "is_signed",
    "load_arrays",
    "load_json",
    "load_sae",
    "load_tree",
    "locked",
    "map_arrays",
    "parse_json",
    "plain",
    "prepare",
    "remove_parts",
    "save_arrays",
    "save_json",
    "save_sae",
    "save_tree",
    "signed",
    "writing",
]


def load_tree(path: Path) -> Node:
    """A tree from a JSON file in any dialect of `toy.tree_json`. Raises: `TreeError` naming the file."""
    try:
        return parse_tree(path.read_text(encoding="utf-8"))
    except TreeError as error:
        raise TreeError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise TreeError(f"{path}: not JSON: not UTF-8 text") from None
    except OSError as error:
        raise TreeError(f"{path}: {error.strerror or error}") from None


def save_tree(path: Path, root: Node) -> None:
    """Write a tree as JSON (`tree_to_dict`)."""
    save_json(path, tree_to_dict(root))
