"""Activations as rows of memory maps, and the files of others that hold such: numpy, safetensors, SAELens caches."""

import importlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int

from toy.checks import MOST_QUOTED, quoted
from toy.digest import digest_of
from toy.files.archive import open_archive
from toy.files.arrays import map_arrays

_BFLOAT16 = np.dtype(jnp.bfloat16)
_N_SAMPLED = 4_096  # rows by which a matrix is known again
_SHORT_RUN = 4  # rows that follow each other; shorter runs are gathered row by row


@dataclass(frozen=True, eq=False)
class Activations:
    """Rows of activations in parts that follow each other. Parts are memory maps: what is not asked for is not read."""

    name: str
    parts: tuple[np.ndarray, ...]  # [rows d_in] each, of one float type
    shuffled: bool = False  # rows are in a random order already
    digest: str = ""  # of the rows, where one is known

    def __post_init__(self) -> None:
        shapes = {(part.ndim, part.shape[-1:], part.dtype) for part in self.parts}
        if len(shapes) != 1 or self.parts[0].ndim != 2:
            raise ValueError(f"{self.name}: expected parts (rows, d_in) of one type, got {shapes or 'none'}")
        if not (np.issubdtype(self.dtype, np.floating) or self.dtype == _BFLOAT16):
            raise ValueError(f"{self.name}: expected floating-point numbers, got {self.dtype}")
        if not self.n_rows or not self.d_in:
            raise ValueError(f"{self.name}: has no rows: its shape is ({self.n_rows}, {self.d_in})")

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    @property
    def d_in(self) -> int:
        return self.parts[0].shape[1]

    @property
    def n_rows(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])

    def take_stored(self, rows: Int[np.ndarray, " n"]) -> np.ndarray:
        """[n d_in], in the type that they are stored in. Raises: IndexError if there are no such rows."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n_rows:
            raise IndexError(f"{self.name}: rows {rows.min()} … {rows.max()} of {self.n_rows}")
        # numpy is slow with types that it does not know
        parts = [part.view(np.uint16) if self.dtype == _BFLOAT16 else part for part in self.parts]
        starts = self._ends - [len(part) for part in parts]
        part_of = np.searchsorted(self._ends, rows, side="right")
        taken = np.empty((len(rows), self.d_in), parts[0].dtype)
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(part_of) != 0)) + 1
        if len(cuts) * _SHORT_RUN < len(rows):  # rows that follow each other are copied at once
            for run in np.split(np.arange(len(rows)), cuts):
                i, first = part_of[run[0]], rows[run[0]]
                taken[run[0] : run[-1] + 1] = parts[i][first - starts[i] :][: len(run)]
        else:
            for i in np.unique(part_of):
                own = np.flatnonzero(part_of == i)
                of_part = rows[own] - starts[i]
                # `take` is quicker, but copies the whole of an array that is transposed or unaligned
                plain = parts[i].flags.c_contiguous and parts[i].flags.aligned
                taken[own] = parts[i].take(of_part, axis=0) if plain else parts[i][of_part]
        return taken.view(self.dtype)

    def take(self, rows: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n d_in"]:
        """Raises: IndexError if there are no such rows."""
        return self.take_stored(rows).astype(np.float32, copy=False)

    def fingerprint(self) -> str:
        """What tells these rows from others: their digest where it is known, else that of some, the last among them."""
        if self.digest:
            return self.digest
        some = np.linspace(0, self.n_rows - 1, min(self.n_rows, _N_SAMPLED)).astype(int)
        return f"{len(some)} rows: {digest_of({'rows': self.take_stored(some)})}"

    def slices(self, n: int) -> Iterator[Float32[np.ndarray, "rows d_in"]]:
        """All rows in order, at most n at a time."""
        for part in self.parts:
            for first in range(0, len(part), n):
                yield np.array(part[first : first + n], np.float32)


def open_matrix(path: Path, name: str | None = None) -> Activations:
    """Activations that others wrote: `.npy`, `.npz`, `.safetensors`, or a folder of SAELens' cached activations.

    `name`: which array or column; not needed where only one can be meant. Only an `.npz` is read into memory. A store
    of this project is opened by `toy.data.store.open_store`.

    Raises: ValueError naming the file, what is wrong with it and what to do.
    """
    if (path / "manifest.json").exists():
        raise ValueError(
            f"{path}: is an activation store: open it with toy.data.store.open_store, a site with .activations"
        )
    if path.is_dir():
        return Activations(str(path), _cached_columns(path, name))
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    if path.suffix == ".npy":
        if name is not None:
            raise ValueError(f"{path}: holds one array, which has no name: leave {quoted(repr(name))} out")
        return Activations(str(path), (_as_numbers(path, lambda: _map_npy(path)),))
    if path.suffix == ".npz":
        name, array = _as_numbers(path, lambda: _read_npz(path, name))
    elif path.suffix == ".safetensors":
        arrays = map_arrays(path)[0]
        if name is None and len(arrays) > 1:  # a store's shard holds columns of whole numbers, too
            arrays = {key: array for key, array in arrays.items() if array.ndim == 2 and array.dtype.kind in "fV"}
        name = _choice(path, "array", arrays, name)
        array = arrays[name]
        _check(path, array.shape, array.dtype)
    else:
        raise ValueError(f"{path}: expected .npy, .npz, .safetensors, or a folder of SAELens' cached activations")
    return Activations(f"{path}/{name}", (array,))


class _Header(NamedTuple):
    """What stands before the numbers of an array in numpy's format, and at which byte they begin."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype
    begin: int

    @property
    def order(self) -> Any:
        return "F" if self.is_fortran else "C"


class _RefusedError(ValueError):
    """An error that names its file."""


def _as_numbers(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # numpy and zipfile raise a dozen kinds for what is broken
        raise ValueError(
            f"{path}: cannot be read as numbers: {quoted(str(error) or type(error).__name__, 2 * MOST_QUOTED)}"
        ) from None


def _map_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        header = _npy_header(path, file, path.stat().st_size)
    return np.memmap(path, header.dtype, "r", header.begin, header.shape, header.order)


def _read_npz(path: Path, name: str | None) -> tuple[str, np.ndarray]:
    """The one array that is asked for; only this one is read."""
    with open_archive(path, compressed=True) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        name = _choice(path, "array", members, name)
        with archive.open(members[name]) as file:  # before all is read, which its header may say is not needed
            _npy_header(path, file, members[name].file_size)
        content = archive.read(members[name])
    header = _npy_header(path, io.BytesIO(content), len(content))
    return name, np.frombuffer(content, header.dtype, offset=header.begin).reshape(header.shape, order=header.order)


def _npy_header(path: Path, file: Any, n_bytes: int) -> _Header:
    """Raises: _RefusedError unless the bytes that follow it are just the rows that it says."""
    major, _ = np.lib.format.read_magic(file)
    if major not in (1, 2):
        raise ValueError(f"version {major} of the format, which only arrays with named fields have")
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    _check(path, shape, dtype)
    header = _Header(shape, is_fortran, dtype, file.tell())
    expected = header.begin + math.prod(shape) * dtype.itemsize
    if min(shape) < 0 or expected != n_bytes:
        raise ValueError(f"it has {n_bytes:,} bytes, expected {quoted(expected)} for shape {quoted(shape)}")
    return header


def _check(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) != 2:
        raise _RefusedError(f"{path}: expected (rows, d_in), got shape {quoted(shape)}: reshape it, a row per token")
    if dtype != _BFLOAT16 and not np.issubdtype(dtype, np.floating):
        raise _RefusedError(f"{path}: expected floating-point numbers, got {quoted(str(dtype))}: save it as float32")


def _choice(path: Path, kind: str, options: Any, name: str | None) -> str:
    """The one that is named, or the only one."""
    if name is None and len(options) == 1:
        return next(iter(options))
    listed = quoted(", ".join(map(repr, options)) or "none")
    if name is None:
        raise _RefusedError(f"{path}: expected one {kind} of activations, it has {listed}: give the name of one")
    if name not in options:
        raise _RefusedError(f"{path}: has no {kind} {quoted(repr(name))}; it has {listed}")
    return name


def _cached_columns(path: Path, name: str | None) -> tuple[np.ndarray, ...]:
    """A column of a `datasets` folder, as views into its Arrow files, a part each."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise ValueError(
            f"{path}: SAELens' cached activations are read with the package datasets, of the extra 'hub': "
            "pip install -e '.[hub]'"
        ) from None
    try:
        data = datasets.load_from_disk(str(path))
        columns = {key: value for key, value in data.features.items() if isinstance(value, datasets.Array2D)}
    except Exception as error:  # of many libraries below, with no type in common
        raise ValueError(
            f"{path}: cannot be read as a folder of datasets: {quoted(str(error), 2 * MOST_QUOTED)}"
        ) from None
    name = _choice(path, "column", columns, name)
    d_in = columns[name].shape[1]
    return tuple(_rows(path, chunk, d_in) for chunk in data.data.column(name).chunks)


def _rows(path: Path, chunk: Any, d_in: int) -> np.ndarray:
    values = getattr(chunk, "storage", chunk)
    while not values.null_count and hasattr(values.type, "value_type"):
        values = values.flatten()
    if values.null_count:
        raise ValueError(f"{path}: has missing values")
    rows = values.to_numpy().reshape(-1, d_in)
    _check(path, rows.shape, rows.dtype)
    return rows
