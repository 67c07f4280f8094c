"""The manifest of an activation store, read with each of its entries checked."""

import math
from pathlib import Path
from typing import Any

from toy.checks import quoted
from toy.data.shards import DTYPES, StoreError, shard_name
from toy.digest import is_signed
from toy.files.json_files import load_json

MANIFEST, VERSION = "manifest.json", 2
REMEDY = "copy it again, or delete the store and export it anew"
_MOST_BYTES = 64 * 2**20


def damaged(path: Path, how: str) -> StoreError:
    return StoreError(f"{path}: damaged: {how}: {REMEDY}")


def read_object(path: Path) -> dict[str, Any]:
    try:
        data = load_json(path, most_bytes=_MOST_BYTES)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}: not a store, or one not finished") from None
    except ValueError as error:
        raise StoreError(str(error)) from None
    if not isinstance(data, dict):
        raise StoreError(f"{path}: broken: expected an object")
    return data


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, each of its entries checked: its SHA-256 only tells that no one changed it by mistake."""
    path = folder / MANIFEST
    manifest = read_object(path)
    if manifest.get("version") != VERSION:
        was = quoted(manifest.get("version"))
        raise StoreError(f"{path}: of version {was}, this reads {VERSION}: export it anew")
    if not is_signed(manifest):
        raise damaged(path, "its SHA-256 is not that of what it says")
    if not isinstance(manifest.get("facts"), dict):
        raise damaged(path, "it says no facts")
    for part, kind in (("sites", dict), ("shards", list)):
        if not isinstance(manifest.get(part), kind) or not manifest[part]:
            raise damaged(path, f"it says no {part}")
    for name, site in manifest["sites"].items():
        if not _is_site(site):
            raise damaged(path, f"what it says of site {quoted(name)} is not d_in, dtype, mean and mean_norm")
    for i, told in enumerate(manifest["shards"]):
        if not _is_shard(told, i):
            raise damaged(path, f"what it says of shard {i} is not the name {shard_name(i)}, rows, bytes and sha256")
    return manifest


def _is_shard(told: Any, i: int) -> bool:
    return (
        isinstance(told, dict)
        and told.keys() == {"name", "rows", "bytes", "sha256"}
        and told["name"] == shard_name(i)  # and so no file elsewhere, and none twice
        and all(type(told[name]) is int and told[name] > 0 for name in ("rows", "bytes"))
        and isinstance(told["sha256"], str)
    )


def _is_site(told: Any) -> bool:
    """Whether this is what a manifest says of a site: d_in, type, the mean in every dimension and the mean norm."""
    return (
        isinstance(told, dict)
        and told.keys() == {"d_in", "dtype", "mean", "mean_norm"}
        and type(told["d_in"]) is int
        and told["d_in"] > 0
        and isinstance(told["dtype"], str)
        and told["dtype"] in DTYPES
        and isinstance(told["mean"], list)
        and len(told["mean"]) == told["d_in"]
        and all(type(number) is float and math.isfinite(number) for number in (*told["mean"], told["mean_norm"]))
        and told["mean_norm"] >= 0
    )
