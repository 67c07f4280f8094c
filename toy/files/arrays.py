"""Arrays in files of safetensors: written with a SHA-256 of all that they say, read within the bounds of the file."""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from toy.checks import MOST_QUOTED, quoted
from toy.digest import digest_of
from toy.files.atomic import writing
from toy.files.json_files import parse_json

SIGNATURE = "toy.sha256"  # the name of the digest among a file's metadata
_MOST_HEADER = 4 * 2**20  # bytes: some 40,000 arrays
_MOST_AXES = 32
_DTYPES = {  # by the names of safetensors, whose own reader for numpy knows no bfloat16
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype(bool),
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}


def save_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str], *, sign: bool = True) -> str:
    """Write arrays as one safetensors file; gives the file's SHA-256.

    With `sign` the metadata hold a SHA-256 of the arrays and of the other metadata, which `load_arrays` checks. Files
    with more than one entry of metadata are not the same byte for byte each time: safetensors orders entries at will.
    """
    # safetensors writes wrong values for arrays that are not C-contiguous; ascontiguousarray makes scalars vectors.
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    content = save(arrays, metadata | ({SIGNATURE: _digest(arrays, metadata)} if sign else {}))
    with writing(path) as file:
        file.write(content)
    return digest_of(content)


def _digest(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    return digest_of(f"{json.dumps(metadata, sort_keys=True)} {digest_of(arrays)}".encode())


def load_arrays(path: Path, *, signed: bool = False) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file, in memory, and its metadata but for the SHA-256, which is checked if there.

    Raises: ValueError naming the file if it is broken, if its SHA-256 is not that of what it says, or if it has none
    and is to be `signed`.
    """
    arrays, metadata = map_arrays(path)
    digest = metadata.pop(SIGNATURE, None)
    if signed and digest is None:
        raise ValueError(f"{path}: broken, or of another kind or version: it holds no SHA-256 of this project")
    if digest is not None and digest != _digest(arrays, metadata):
        raise ValueError(f"{path}: broken: its SHA-256 is not that of what it says: copy it or make it again")
    return {name: np.array(array) for name, array in arrays.items()}, metadata


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """As `load_arrays`, but views into a map of the file, and no SHA-256 is checked: what is not used is not read."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("no regular file")
        content = np.memmap(path, np.uint8, "r").view(np.ndarray)
        header, data = _header_and_data(content)
        metadata = _metadata(header.pop("__metadata__", {}))
        return {name: _view(data, *place) for name, place in _places(header, data.nbytes).items()}, metadata
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: broken, or no safetensors file: {quoted(str(error), 2 * MOST_QUOTED)}") from None


def _header_and_data(content: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    size = int.from_bytes(content[:8].tobytes(), "little")
    if len(content) < 8 or size > len(content) - 8:
        raise ValueError(f"a header of {size:,} bytes in a file of {len(content):,}")
    if size > _MOST_HEADER:
        raise ValueError(f"a header of {size:,} bytes, at most {_MOST_HEADER:,} are read")
    try:
        text = content[8 : 8 + size].tobytes().decode()
    except UnicodeDecodeError:
        raise ValueError("the header is no UTF-8 text") from None
    header = parse_json(text)
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    return header, content[8 + size :]


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("the metadata are no texts by name")
    return dict(found)


def _places(header: dict[str, Any], n_bytes: int) -> dict[str, tuple[int, int, np.dtype, list[int]]]:
    """First and last byte, type and shape of every array. Raises: ValueError unless they fill the data one by one."""
    places = {name: _place(name, entry) for name, entry in header.items()}
    end_so_far = 0
    for name, (first, end, _, _) in sorted(places.items(), key=lambda item: item[1][:2]):
        if first != end_so_far:
            raise ValueError(f"{quoted(name)} begins at byte {first:,}, expected {end_so_far:,}")
        end_so_far = end
    if end_so_far != n_bytes:
        raise ValueError(f"it holds {n_bytes:,} bytes of arrays, expected {end_so_far:,}")
    return places


def _place(name: str, entry: Any) -> tuple[int, int, np.dtype, list[int]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{quoted(name)} is described by something else than dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"{quoted(name)} has values of type {quoted(kind)}, which is not read: {', '.join(_DTYPES)}")
    if not _are_sizes(shape) or len(shape) > _MOST_AXES or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{quoted(name)} has shape {quoted(shape)} and offsets {quoted(offsets)}")
    first, end = offsets
    if end - first != math.prod(shape) * _DTYPES[kind].itemsize:
        raise ValueError(f"{quoted(name)} has {end - first:,} bytes, which are not those of {kind} {quoted(shape)}")
    return first, end, _DTYPES[kind], shape


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _view(data: np.ndarray, first: int, end: int, dtype: np.dtype, shape: list[int]) -> np.ndarray:
    return data[first:end].view(dtype).reshape(shape)
