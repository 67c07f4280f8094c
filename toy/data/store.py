"""The activation store: a folder of safetensors shards, and a manifest that is written last.

A shard holds `[rows d_in]` for every site, and int32 `token`, `document` and `position` of the rows. A killed export
can be resumed: its folder holds `unfinished.json` until the manifest is written.
"""

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from toy.checks import quoted
from toy.data.activations import Activations
from toy.data.manifest import MANIFEST, REMEDY, VERSION, damaged, read_manifest, read_object
from toy.data.shards import SHARDS, Shard, StoreError, Total, allow_files, check_shard, shard_name
from toy.files.arrays import map_arrays, save_arrays
from toy.files.atomic import is_part, locked, remove_parts
from toy.files.digest import check_same, digest_of, signed
from toy.files.json_files import save_json

UNFINISHED = "unfinished.json"


@dataclass(frozen=True)
class SiteStats:
    """Size, type and statistics of the activations at one site."""

    d_in: int
    dtype: str
    mean: tuple[float, ...]
    mean_norm: float


@dataclass(frozen=True, eq=False)
class Store:
    """An opened store, whose arrays are memory maps."""

    folder: Path
    facts: dict[str, Any]
    sites: dict[str, SiteStats]
    digest: str  # SHA-256 of the manifest, which lists those of the shards
    _shards: tuple[Shard, ...]

    def activations(self, site: str) -> Activations:
        """Returns the activations at a site. Raises: StoreError if the store has no such site."""
        if site not in self.sites:
            raise StoreError(
                f"{self.folder}: has no site {quoted(repr(site))}; it has {quoted(', '.join(map(repr, self.sites)))}"
            )
        parts = tuple(shard[site] for shard in self._shards)
        return Activations(f"{self.folder}/{site}", parts, shuffled=True, digest=f"{self.digest} {site}")

    @property
    def n_rows(self) -> int:
        return sum(len(shard["token"]) for shard in self._shards)

    @cached_property
    def token(self) -> Int[np.ndarray, " n_rows"]:
        """The token id of every row, in the same order as `activations`, `document` and `position`."""
        return self._column("token")

    @cached_property
    def document(self) -> Int[np.ndarray, " n_rows"]:
        return self._column("document")

    @cached_property
    def position(self) -> Int[np.ndarray, " n_rows"]:
        return self._column("position")

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([shard[name] for shard in self._shards])


def write_store(
    folder: Path,
    facts: dict[str, Any],
    n_shards: int,
    make_shard: Callable[[int], Shard],
    *,
    progress: Callable[[int], Any] | None = None,
) -> Store:
    """Make the missing shards and the manifest; a finished store with the same facts is only opened.

    `make_shard(i)` must be a pure function of i. `facts` (JSON) are all that the shards depend on. `progress(1)` is
    called once per shard, also for those that exist. Memory: two copies of a shard in addition to the shard itself.

    Raises: StoreError, with the folder unchanged, if it holds anything else, if another process is writing to it, or
    if there are more shards than files that a process may open.
    """
    if n_shards < 1:
        raise StoreError(f"{folder}: n_shards must be at least 1, got {n_shards}")
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder}: is a file: give another folder")
    allow_files(folder, n_shards)
    plan = json.loads(json.dumps({"facts": facts, "n_shards": n_shards}))
    if not (folder / MANIFEST).exists():
        try:
            with locked(folder, wait=False):
                if not (folder / MANIFEST).exists():  # unless another process has just written it
                    _begin(folder, plan)
                    _write_shards(folder, plan, make_shard, progress)
                    return open_store(folder, verify=False)
        except BlockingIOError:
            raise StoreError(f"{folder}: another process is writing to it: wait for its end, or stop it") from None
    manifest = read_manifest(folder)
    _check_same(folder / MANIFEST, {"facts": manifest["facts"], "n_shards": len(manifest["shards"])}, plan)
    with contextlib.suppress(OSError):  # a finished store may be read-only
        (folder / UNFINISHED).unlink(missing_ok=True)
    return open_store(folder)


def _write_shards(
    folder: Path, plan: dict[str, Any], make_shard: Callable[[int], Shard], progress: Callable[[int], Any] | None
) -> None:
    entries: list[dict] = []
    total = Total()
    for i in range(plan["n_shards"]):
        path = folder / shard_name(i)
        mark = f"{i} of {digest_of(plan)}"
        kept = _kept(path, mark)
        shard = make_shard(i) if kept is None else kept
        total.add(path, shard)
        sha256 = save_arrays(path, shard, _metadata(shard, mark), sign=False) if kept is None else digest_of(path)
        n_rows, n_bytes = len(shard["token"]), path.stat().st_size
        entries.append({"name": path.name, "rows": n_rows, "bytes": n_bytes, "sha256": sha256})
        if progress is not None:
            progress(1)
    manifest = {"version": VERSION, "facts": plan["facts"], "sites": total.of_sites(), "shards": entries}
    save_json(folder / MANIFEST, signed(manifest), digits=None)
    (folder / UNFINISHED).unlink(missing_ok=True)  # a process that opens the store may have removed it


def open_store(folder: Path, *, verify: bool = True) -> Store:
    """Open a store after checking the size and shape of every file and, with `verify`, its SHA-256.

    Every shard is a memory map, which keeps its file open. Raises: StoreError naming the file.
    """
    manifest = read_manifest(folder)
    allow_files(folder, len(manifest["shards"]))
    sites = {name: SiteStats(**(site | {"mean": tuple(site["mean"])})) for name, site in manifest["sites"].items()}
    shards = []
    for entry in manifest["shards"]:
        path = folder / entry["name"]
        if not path.is_file():
            raise StoreError(f"{path}: is missing: {REMEDY}")
        if path.stat().st_size != entry["bytes"]:
            raise damaged(path, f"has {path.stat().st_size} bytes, expected {entry['bytes']}")
        if verify and digest_of(path) != entry["sha256"]:
            raise damaged(path, "its SHA-256 is not the one in the manifest")
        try:
            shard = map_arrays(path)[0]
        except ValueError as error:
            raise StoreError(str(error)) from None
        check_shard(path, shard, {name: (site.d_in, site.dtype) for name, site in sites.items()})
        if len(shard["token"]) != entry["rows"]:
            raise StoreError(f"{path}: has {len(shard['token'])} rows, the manifest says {entry['rows']}")
        shards.append(shard)
    return Store(folder, manifest["facts"], sites, manifest["sha256"], tuple(shards))


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Mark the folder as an unfinished export. Raises: StoreError if it holds anything else."""
    unfinished = folder / UNFINISHED
    if unfinished.exists():
        _check_same(unfinished, read_object(unfinished), plan)
    else:
        strangers = [path.name for path in folder.iterdir() if not is_part(path.name, re.escape(UNFINISHED))]
        if strangers:
            raise StoreError(f"{folder}: holds other files ({quoted(strangers[0])}): give an empty folder")
    remove_parts(folder, "|".join((re.escape(UNFINISHED), re.escape(MANIFEST), SHARDS)))
    if not unfinished.exists():
        save_json(unfinished, plan, digits=None)


def _check_same(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    if not isinstance(theirs.get("facts"), dict):
        raise StoreError(f"{path}: broken: it has no facts: delete the folder and export it anew")
    theirs, ours = ({"n_shards": plan.get("n_shards"), **plan["facts"]} for plan in (theirs, ours))
    try:
        check_same(path, theirs, ours, "give another folder")
    except ValueError as error:
        raise StoreError(str(error)) from None


def _kept(path: Path, mark: str) -> Shard | None:
    """A shard that a killed export left, if it is whole and has this mark."""
    try:
        shard, metadata = map_arrays(path)
        check_shard(path, shard, None)
    except ValueError:
        return None
    return shard if metadata == _metadata(shard, mark) else None


def _metadata(shard: Shard, mark: str) -> dict[str, str]:
    """The mark that identifies a kept shard; a single entry, since safetensors orders several at random."""
    return {"shard": f"{mark}: {digest_of(shard)}"}
