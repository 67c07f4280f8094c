"""One module for the library's files: trees, SAEs, records and arrays. Files are written whole or not at all.

Large activations have modules of their own, `toy.data.store` and `toy.data.activations`.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from toy.checks import quoted
from toy.data.source import SyntheticSource
from toy.features.json_nodes import parse_nodes
from toy.features.node import Node, TreeError
from toy.features.tree_json import Dialect, check_dialect, name_notes, parse_with_notes, tree_to_dict
from toy.files.arrays import load_arrays, map_arrays, save_arrays
from toy.files.atomic import locked, prepare, writing
from toy.files.json_files import load_json, plain, save_json
from toy.interop.saelens_model import model_of_tree, synthetic_model, synthetic_source
from toy.interop.saes import read_sae, write_sae

_MOST_TREE_BYTES = 32 * 2**20
_MODEL, _HIERARCHY, _DIRECTIONS = "synthetic_model_config.json", "hierarchy.json", "synthetic_model.safetensors"

__all__ = [
    "load_arrays",
    "load_json",
    "load_synthetic",
    "load_tree",
    "locked",
    "plain",
    "prepare",
    "read_sae",
    "read_tree",
    "save_arrays",
    "save_json",
    "save_synthetic",
    "save_tree",
    "write_sae",
    "writing",
]


def load_tree(path: Path, dialect: Dialect | None = None) -> Node:
    """Reads a tree as `read_tree` does, without the notes. Raises: `TreeError` naming the file."""
    return read_tree(path, dialect)[0]


def read_tree(path: Path, dialect: Dialect | None = None) -> tuple[Node, tuple[str, ...]]:
    """Reads a tree, and one-line notes for the user on how it was read.

    `path` is a JSON file or pipe in any dialect of `toy.features.tree_json`, or in the one that is named; or the folder
    of a synthetic model of SAELens (`toy.interop.saelens_model`). Raises: `TreeError` naming the file.
    """
    with _named(path):
        check_dialect(dialect)
        if not path.is_dir():
            return parse_with_notes(_read_text(path), dialect)
        if dialect not in (None, "saelens"):
            raise TreeError(f"Is a directory, as SAELens saves models, and the dialect is to be {dialect}")
        return _read_model(path)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raises: TreeError that names the file for whatever is wrong with it."""
    try:
        yield
    except TreeError as error:
        raise TreeError(f"{path}: {error}") from None
    except OSError as error:
        raise TreeError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # a path with a NUL, or broken arrays
        raise TreeError(f"{path}: cannot be read: {quoted(str(error))}") from None


def _read_text(path: Path) -> str:
    with open(path, "rb") as file:
        too_large = os.fstat(file.fileno()).st_size > _MOST_TREE_BYTES
        content = b"" if too_large else file.read(_MOST_TREE_BYTES + 1)  # the size of a pipe is unknown
    if too_large or len(content) > _MOST_TREE_BYTES:
        raise TreeError(f"holds more than {_MOST_TREE_BYTES:,} bytes, far more than a tree")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TreeError("not JSON: not UTF-8 text") from None


def _read_model(folder: Path) -> tuple[Node, tuple[str, ...]]:
    root, notes = synthetic_model(*_model_files(folder))
    return root, (*notes, *name_notes(root))


def load_synthetic(folder: Path) -> SyntheticSource:
    """The activations of a saved synthetic model of SAELens, correlated ones too. Raises: `TreeError`."""
    with _named(folder):
        return synthetic_source(*_model_files(folder))


def save_synthetic(
    folder: Path, root: Node, W_feat: Float[Array | np.ndarray, "n_features d_in"], bias: np.ndarray | None = None
) -> tuple[str, ...]:
    """Writes a tree and its directions as `SyntheticModel.load_from_disk` of SAELens reads them.

    Returns one-line notes on numbers that had to change. Raises: `TreeError` naming what SAELens cannot express.
    """
    config, hierarchy, tensors, notes = model_of_tree(root, np.asarray(W_feat), bias)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MODEL).unlink(missing_ok=True)  # without it nothing is read: the files of two models never mix
    save_arrays(folder / _DIRECTIONS, tensors, {})
    save_json(folder / _HIERARCHY, hierarchy, digits=None)
    save_json(folder / _MODEL, config, digits=None)
    return notes


def _model_files(folder: Path) -> tuple[Any, Any, dict[str, np.ndarray]]:
    if not (folder / _MODEL).exists():
        raise TreeError(f"Is a directory, but not of a SAELens model, which has a {_MODEL}")
    data = {}
    for name in (_MODEL, _HIERARCHY):
        try:
            data[name] = parse_nodes(_read_text(folder / name)) if (folder / name).exists() else None
        except TreeError as error:
            raise TreeError(f"{name}: {error}") from None
    arrays, _ = map_arrays(folder / _DIRECTIONS)
    return data[_MODEL], data[_HIERARCHY], arrays


def save_tree(path: Path, root: Node) -> None:
    """Write a tree as JSON (`tree_to_dict`) with all digits of its numbers."""
    save_json(path, tree_to_dict(root), digits=None)
