"""Activations as rows of memory maps, also from numpy files, safetensors files and SAELens' cached activations."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int

from toy.checks import MOST_QUOTED, optional, quoted
from toy.files.archive import open_archive
from toy.files.arrays import map_arrays
from toy.files.digest import digest_of

_BFLOAT16 = np.dtype(jnp.bfloat16)
_N_SAMPLED = 4_096  # rows of which the fingerprint of a matrix is made
_SHORT_RUN = 4  # consecutive rows; shorter runs are gathered row by row


@dataclass(frozen=True, eq=False)
class Activations:
    """Rows of activations in consecutive parts, which are memory maps: only the rows that are taken are read."""

    name: str
    parts: tuple[np.ndarray, ...]  # [rows d_in] each, all of one float type
    shuffled: bool = False  # whether the rows already are in a random order
    digest: str = ""  # of the rows, if it is known

    def __post_init__(self) -> None:
        if len({(part.shape[1:], part.dtype) for part in self.parts}) != 1:
            raise ValueError(f"{self.name}: expected parts (rows, d_in) of one shape and type")
        if self.parts[0].ndim != 2:
            shape = quoted(self.parts[0].shape)
            raise ValueError(f"{self.name}: expected (rows, d_in), got shape {shape}: reshape it, a row per token")
        if not (np.issubdtype(self.dtype, np.floating) or self.dtype == _BFLOAT16):
            got = quoted(str(self.dtype))
            raise ValueError(f"{self.name}: expected floating-point numbers, got {got}: save it as float32")
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
        """Returns rows [n d_in] in the type in which they are stored. Raises: IndexError for rows out of range."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n_rows:
            raise IndexError(f"{self.name}: rows {rows.min()} … {rows.max()} of {self.n_rows}")
        # numpy handles bfloat16 slowly
        parts = [part.view(np.uint16) if self.dtype == _BFLOAT16 else part for part in self.parts]
        starts = self._ends - [len(part) for part in parts]
        part_of = np.searchsorted(self._ends, rows, side="right")
        taken = np.empty((len(rows), self.d_in), parts[0].dtype)
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(part_of) != 0)) + 1
        if len(cuts) * _SHORT_RUN < len(rows):  # consecutive rows are copied at once
            for run in np.split(np.arange(len(rows)), cuts):
                i, first = part_of[run[0]], rows[run[0]]
                taken[run[0] : run[-1] + 1] = parts[i][first - starts[i] :][: len(run)]
        else:
            for i in np.unique(part_of):
                own = np.flatnonzero(part_of == i)
                of_part = rows[own] - starts[i]
                # `take` is faster, but copies an array as a whole if it is transposed or unaligned
                plain = parts[i].flags.c_contiguous and parts[i].flags.aligned
                taken[own] = parts[i].take(of_part, axis=0) if plain else parts[i][of_part]
        return taken.view(self.dtype)

    def take(self, rows: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n d_in"]:
        """Returns rows in float32. Raises: IndexError for rows out of range."""
        return self.take_stored(rows).astype(np.float32, copy=False)

    def fingerprint(self) -> str:
        """Identifies these rows: their digest if known, else the digest of a sample that includes the last row."""
        if self.digest:
            return self.digest
        some = np.linspace(0, self.n_rows - 1, min(self.n_rows, _N_SAMPLED)).astype(int)
        return f"{len(some)} rows: {digest_of({'rows': self.take_stored(some)})}"

    def slices(self, n: int) -> Iterator[Float32[np.ndarray, "rows d_in"]]:
        """Yields all rows in order, at most n at a time."""
        for part in self.parts:
            for first in range(0, len(part), n):
                yield np.array(part[first : first + n], np.float32)


def open_matrix(path: Path, name: str | None = None) -> Activations:
    """Activations from a `.npy`, `.npz` or `.safetensors` file, or a folder of SAELens' cached activations.

    `name` chooses one of several arrays or columns. Arrays of an `.npz` are read into memory; all others are
    memory-mapped. Stores of this project are opened by `toy.data.store.open_store`.

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
        return Activations(str(path), (_map_npy(path),))
    if path.suffix == ".npz":
        name, array = _read_npz(path, name)
    elif path.suffix == ".safetensors":
        arrays = map_arrays(path)[0]
        if name is None and len(arrays) > 1:  # ignore columns of whole numbers, such as those of a store's shard
            arrays = {key: array for key, array in arrays.items() if array.ndim == 2 and array.dtype.kind in "fV"}
        name = _choice(path, "array", arrays, name)
        array = arrays[name]
    else:
        raise ValueError(f"{path}: expected .npy, .npz, .safetensors, or a folder of SAELens' cached activations")
    return Activations(f"{path}/{name}", (array,))


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turns the many errors of libraries that read files into a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        why = quoted(str(error) or type(error).__name__, 2 * MOST_QUOTED)
        raise ValueError(f"{path}: cannot be read as {what}: {why}") from None


def _map_npy(path: Path) -> np.ndarray:
    with _reading(path, "numbers"):
        array: Any = np.lib.format.open_memmap(path, mode="r")
        n_bytes, expected = path.stat().st_size, array.offset + array.nbytes
        if n_bytes != expected:
            raise ValueError(f"it has {n_bytes:,} bytes, expected {expected:,} for shape {array.shape}")
        return array


def _read_npz(path: Path, name: str | None) -> tuple[str, np.ndarray]:
    """The chosen array and its name; no other array is read."""
    with _reading(path, "numbers"), open_archive(path, compressed=True) as archive:
        names = [member.removesuffix(".npy") for member in archive.namelist()]
    name = _choice(path, "array", names, name)
    with _reading(path, "numbers"), open_archive(path, compressed=True) as archive:
        member = next(member for member in archive.namelist() if member.removesuffix(".npy") == name)
        with archive.open(member) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # this reads to the end, where the checksum is compared
                raise ValueError(f"it has more bytes than shape {array.shape} needs")
    return name, array


def _choice(path: Path, kind: str, options: Iterable[str], name: str | None) -> str:
    """The option with this name, or the only one."""
    options = list(options)
    if name is None and len(options) == 1:
        return options[0]
    listed = quoted(", ".join(map(repr, options)) or "none")
    if name is None:
        raise ValueError(f"{path}: expected one {kind} of activations, it has {listed}: give the name of one")
    if name not in options:
        raise ValueError(f"{path}: has no {kind} {quoted(repr(name))}; it has {listed}")
    return name


def _cached_columns(path: Path, name: str | None) -> tuple[np.ndarray, ...]:
    """A column of a `datasets` folder as views into its Arrow files, one part per chunk."""
    datasets: Any = optional("datasets", "hub", f"{path}: SAELens' cached activations")
    with _reading(path, "a folder of datasets"):
        data = datasets.load_from_disk(str(path))
        columns = {key: value for key, value in data.features.items() if isinstance(value, datasets.Array2D)}
    name = _choice(path, "column", columns, name)
    d_in = columns[name].shape[1]
    return tuple(_rows(path, chunk, d_in) for chunk in data.data.column(name).chunks)


def _rows(path: Path, chunk: Any, d_in: int) -> np.ndarray:
    values = getattr(chunk, "storage", chunk)
    while not values.null_count and hasattr(values.type, "value_type"):
        values = values.flatten()
    if values.null_count:
        raise ValueError(f"{path}: has missing values")
    return values.to_numpy().reshape(-1, d_in)
