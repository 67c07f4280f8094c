"""Arrays in safetensors files, written with a SHA-256 of arrays and metadata."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from toy.checks import MOST_QUOTED, quoted
from toy.files.atomic import writing
from toy.files.digest import digest_of
from toy.files.json_files import parse_json

SIGNATURE = "toy.sha256"  # the name of the digest among a file's metadata
_MOST_HEADER = 4 * 2**20  # bytes: some 40,000 arrays
_DTYPES = {  # the safetensors library itself gives numpy no bfloat16 and no memory maps
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype(bool),
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}


def save_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str], *, sign: bool = True) -> str:
    """Write arrays as one safetensors file and return the file's SHA-256.

    With `sign` the metadata get a SHA-256 of the arrays and of the other metadata, which `load_arrays` checks. Only
    files with a single entry of metadata are reproducible byte for byte: safetensors orders entries at random.
    """
    # safetensors writes wrong values for arrays that are not C-contiguous; ascontiguousarray would reshape scalars.
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    content = save(arrays, metadata | ({SIGNATURE: _digest(arrays, metadata)} if sign else {}))
    with writing(path) as file:
        file.write(content)
    return digest_of(content)


def _digest(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    return digest_of(f"{json.dumps(metadata, sort_keys=True)} {digest_of(arrays)}".encode())


def load_arrays(path: Path, *, signed: bool = False) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the arrays of a safetensors file, in memory, and its metadata without the SHA-256, which is checked.

    Raises: ValueError naming the file if it is broken, if its SHA-256 does not match, or if it should be `signed` and
    has none.
    """
    arrays, metadata = map_arrays(path)
    digest = metadata.pop(SIGNATURE, None)
    if signed and digest is None:
        raise ValueError(f"{path}: broken, or of another kind or version: it holds no SHA-256 of this project")
    if digest is not None and digest != _digest(arrays, metadata):
        raise ValueError(f"{path}: broken: its SHA-256 is not that of its content: copy it or make it again")
    return {name: np.array(array) for name, array in arrays.items()}, metadata


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Loads arrays as `load_arrays` does, but as views into a map of the file, whose SHA-256 is not checked."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("no regular file")
        content = np.memmap(path, np.uint8, "r").view(np.ndarray)
        size = int.from_bytes(content[:8].tobytes(), "little")
        if size > min(_MOST_HEADER, len(content) - 8):
            raise ValueError(f"a header of {size:,} bytes in a file of {len(content):,}, at most {_MOST_HEADER:,}")
        with safe_open(path, "numpy"):  # refuses a header that is malformed or does not fit the file
            header = parse_json(content[8 : 8 + size].tobytes().decode())
        metadata = header.pop("__metadata__", None) or {}
        return {name: _view(content[8 + size :], name, **entry) for name, entry in header.items()}, metadata
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"{path}: broken, or no safetensors file: {quoted(str(error), 2 * MOST_QUOTED)}") from None


def _view(data: np.ndarray, name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    if dtype not in _DTYPES:
        raise ValueError(f"{quoted(name)} has values of type {dtype}, which is not read: {', '.join(_DTYPES)}")
    return data[slice(*data_offsets)].view(_DTYPES[dtype]).reshape(shape)
