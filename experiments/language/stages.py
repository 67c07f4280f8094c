"""Stages of a chain: folders of a cache, each named by a digest of all that determines it, and made only once."""

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.common.provenance import code_digest, file_digest
from toy.digest import digest_of, is_signed, signed
from toy.io import load_json, locked, plain, save_json
from toy.training.jax_settings import jax_flags
from toy.training.loop import Progress

DONE = "stage.json"  # written last
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "tokenizers")


def stage(
    cache: Path, name: str, facts: dict[str, Any], code: Sequence[str], make: Callable[[Path], dict[str, Any] | None]
) -> Path:
    """The folder of a stage, made if it is not there yet; what `make` returns is noted with its seconds.

    `facts` are what it is made of, `code` the modules that make it, beside that of `make`; versions of libraries count,
    and settings of JAX that change numbers and are not at their defaults. `stage.json` holds the SHA-256 of itself and
    of every file beside it; stores, in folders of their own, check theirs.

    Raises: ValueError naming a file of a finished stage that has changed since.
    """
    made_by = {"code": code_digest(*code), "maker": file_digest(make.__module__), "libraries": library_versions()}
    flags = jax_flags()
    facts = {**made_by, **({"flags": flags} if flags else {}), **facts}
    folder = cache / f"{name}-{digest_of(facts)[:16]}"
    if (folder / DONE).exists():
        _verify(folder)
    else:
        with locked(folder):  # another run may be making it: then this one waits for it, and takes what it made
            if not (folder / DONE).exists():
                start = time.monotonic()
                noted = make(folder)
                told = {"facts": facts, "seconds": time.monotonic() - start, **(noted or {}), "files": _files(folder)}
                save_json(folder / DONE, signed(plain(told)), digits=None)
    return folder


def _files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a stage, by name."""
    visible = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: digest_of(path) for path in sorted(visible) if path.name != DONE}


def _verify(folder: Path) -> None:
    remedy = f"damaged: its SHA-256 is not that of when it was made: delete {folder}, so that it is made anew"
    told = load_json(folder / DONE)
    if not isinstance(told, dict) or not is_signed(told) or not isinstance(told.get("files"), dict):
        raise ValueError(f"{folder / DONE}: {remedy}")
    for name, sha256 in told["files"].items():
        if not (folder / name).is_file() or digest_of(folder / name) != sha256:
            raise ValueError(f"{folder / name}: {remedy}")


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def notes(folder: Path) -> dict[str, Any]:
    """What a stage noted, its seconds among them."""
    return {name: value for name, value in load_json(folder / DONE).items() if name not in ("files", "sha256")}


class Counted:
    """Tells of steps as they are done, and `rest` of those that were in the cache already."""

    def __init__(self, progress: Progress, n_steps: int) -> None:
        self._progress, self._left = progress, n_steps

    def __call__(self, n: int) -> None:
        self._left -= n
        self._progress(n)

    def rest(self) -> None:
        self._progress(self._left)
