"""Shards of the activation store: checks of their arrays, and statistics over all of them."""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from toy.checks import quoted

SHARDS = r"shard-\d{5,}\.safetensors"  # a pattern of the names of shards
COLUMNS = ("token", "document", "position")
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}

_PIECE = 4096  # rows that are summed at a time
_SPARE_FILES = 256  # other files that a process may want to open

try:
    import resource
except ImportError:  # Windows, whose limit is much higher
    resource = None

Shard = dict[str, np.ndarray]  # `[rows d_in]` per site, and the columns `[rows]`


class StoreError(ValueError):
    """A store that cannot be read or written; the message names the file, the fault and the remedy."""


def shard_name(i: int) -> str:
    return f"shard-{i:05d}.safetensors"


def check_shard(path: Path, shard: Shard, sites: dict[str, tuple[int, str]] | None) -> None:
    """Check names, shapes and types; `sites` gives (d_in, type) of each site, if known. Raises: StoreError."""
    n_rows = shard[COLUMNS[0]].size if COLUMNS[0] in shard else 0
    found = {name: array for name, array in shard.items() if name not in COLUMNS}
    names = found if sites is None else sites
    if {*shard} != {*names, *COLUMNS} or not names:
        expected = ", ".join([*names, *COLUMNS])
        got = ", ".join(sorted(shard)) or "none"
        raise StoreError(f"{path}: expected arrays {quoted(expected)}, got {quoted(got)}")
    for name in COLUMNS:
        if shard[name].dtype != np.int32 or shard[name].shape != (n_rows,) or not n_rows:
            raise StoreError(f"{path}: {name}: expected int32 (rows), got {shard[name].dtype} {shard[name].shape}")
    for name, array in found.items():
        d_in, dtype = (array.shape[-1:], str(array.dtype)) if sites is None else ((sites[name][0],), sites[name][1])
        if array.shape != (n_rows, *d_in) or str(array.dtype) != dtype or dtype not in DTYPES or 0 in array.shape:
            wanted = "float32 or bfloat16" if dtype not in DTYPES else dtype
            raise StoreError(
                f"{path}: {quoted(name)}: expected {wanted} {(n_rows, *d_in)}, got {array.dtype} {array.shape}"
            )


class Total:
    """Sums over shards, in float64 and in order, so that a resumed export gives the same statistics."""

    def __init__(self) -> None:
        self.sites: dict[str, tuple[int, str]] | None = None
        self._n_rows = 0
        self._sums: dict[str, np.ndarray] = {}
        self._norms: dict[str, float] = {}

    def add(self, path: Path, shard: Shard) -> None:
        """Add a shard. Raises: StoreError if it has other sites or numbers that are not finite."""
        check_shard(path, shard, self.sites)
        found = {name: array for name, array in shard.items() if name not in COLUMNS}
        self.sites = self.sites or {name: (array.shape[1], str(array.dtype)) for name, array in found.items()}
        self._n_rows += len(shard[COLUMNS[0]])
        for name, array in found.items():
            for first in range(0, len(array), _PIECE):
                piece = array[first : first + _PIECE].astype(np.float64)
                self._sums[name] = self._sums.get(name, 0) + piece.sum(axis=0)
                self._norms[name] = self._norms.get(name, 0.0) + float(np.linalg.norm(piece, axis=1).sum())
            if not np.isfinite(self._norms[name]):
                raise StoreError(f"{path}: {name}: has numbers that are not finite")

    def of_sites(self) -> dict[str, Any]:
        return {
            name: {
                "d_in": d_in,
                "dtype": dtype,
                "mean": self._sums[name] / self._n_rows,
                "mean_norm": self._norms[name] / self._n_rows,
            }
            for name, (d_in, dtype) in (self.sites or {}).items()
        }


def allow_files(folder: Path, n: int) -> None:
    """Raise this process's limit of open files so that it can open n more. Raises: StoreError if that is forbidden."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(os.listdir("/dev/fd")) + n + _SPARE_FILES
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise StoreError(
            f"{folder}: {n:,} shards need as many open files, but this process may open only {hard:,}: have the "
            "limit raised (ulimit -Hn), or export larger shards"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
