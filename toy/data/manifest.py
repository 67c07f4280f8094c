"""The manifest of an activation store, checked when it is read."""

import math
from pathlib import Path
from typing import Any

from toy.checks import quoted
from toy.data.shards import DTYPES, StoreError, shard_name
from toy.files.digest import is_signed
from toy.files.json_files import load_object

MANIFEST, VERSION = "manifest.json", 2
REMEDY = "copy it again, or delete the store and export it anew"
_MOST_BYTES = 64 * 2**20


def damaged(path: Path, how: str) -> StoreError:
    return StoreError(f"{path}: damaged: {how}: {REMEDY}")


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file of a store. Raises: StoreError naming the file."""
    try:
        return load_object(path, "a finished store", most_bytes=_MOST_BYTES)
    except ValueError as error:
        raise StoreError(str(error)) from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a store. Raises: StoreError naming the file, also if it is signed but malformed."""
    path = folder / MANIFEST
    manifest = read_object(path)
    if manifest.get("version") != VERSION:
        was = quoted(manifest.get("version"))
        raise StoreError(f"{path}: of version {was}, but this program reads {VERSION}: export it anew")
    if not is_signed(manifest):
        raise damaged(path, "its SHA-256 is not that of its content")
    facts, sites, shards = (manifest.get(key) for key in ("facts", "sites", "shards"))
    if not (isinstance(facts, dict) and isinstance(sites, dict) and isinstance(shards, list) and sites and shards):
        raise damaged(path, "it must have facts, sites and shards")
    for name, site in sites.items():
        if not _is_site(site):
            raise damaged(path, f"site {quoted(name)} must have d_in, dtype, mean and mean_norm")
    for i, shard in enumerate(shards):
        if not _is_shard(shard, i):
            raise damaged(path, f"shard {i} must have the name {shard_name(i)}, rows, bytes and sha256")
    return manifest


def _is_shard(shard: Any, i: int) -> bool:
    return (
        isinstance(shard, dict)
        and shard.keys() == {"name", "rows", "bytes", "sha256"}
        and shard["name"] == shard_name(i)  # which rules out files elsewhere and repeated ones
        and all(type(shard[key]) is int and shard[key] > 0 for key in ("rows", "bytes"))
    )


def _is_site(site: Any) -> bool:
    return (
        isinstance(site, dict)
        and site.keys() == {"d_in", "dtype", "mean", "mean_norm"}
        and isinstance(site["mean"], list)
        and site["dtype"] in [*DTYPES]
        and site["d_in"] == len(site["mean"]) > 0
        and all(type(number) is float and math.isfinite(number) for number in (*site["mean"], site["mean_norm"]))
        and site["mean_norm"] >= 0
    )
