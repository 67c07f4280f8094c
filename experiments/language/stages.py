"""Stages of a chain: folders of a cache, each named by a digest of all that determines it, and made only once."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.provenance import code_digest, file_digest
from toy.files.digest import digest_of, is_signed, signed
from toy.io import load_json, locked, plain, save_json
from toy.training.jax_settings import jax_flags

DONE = "stage.json"  # written last
MADE_BY = ("code", "maker", "libraries", "flags", "activations")  # facts that do not follow from the options
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "tokenizers")


class Stage(NamedTuple):
    """A stage's folder, whether an earlier run has made it, and its notes, its seconds among them."""

    folder: Path
    done: bool
    notes: dict[str, Any]


@contextmanager
def stage(cache: Path, name: str, facts: dict[str, Any], *code: str) -> Iterator[Stage]:
    """Give the folder of a stage to a block that fills it, and adds to its notes, unless it is `done`.

    `facts` are what the stage is made of. `code` are the module of the block, and modules that count with all that they
    import. Versions of libraries count too, and settings of JAX that change numbers. `stage.json` holds the SHA-256 of
    itself and of every file beside it; stores, in folders of their own, check theirs.

    Raises: ValueError naming a file of a finished stage that has changed since.
    """
    facts = _made_by(*code) | facts
    folder = _folder(cache, name, facts)
    if not (folder / DONE).exists():
        with locked(folder):  # another run may be making it: then this one waits for it, and takes what it made
            if not (folder / DONE).exists():
                made, start = Stage(folder, False, {}), time.monotonic()
                yield made
                made.notes.update(plain({"facts": facts, "seconds": time.monotonic() - start, **made.notes}))
                save_json(folder / DONE, signed(made.notes | {"files": _files(folder)}), digits=None)
                return
    yield Stage(folder, True, _verified(folder))


def is_done(cache: Path, name: str, facts: dict[str, Any], *code: str) -> bool:
    """Returns whether an earlier run has made the `stage` of these arguments."""
    return (_folder(cache, name, _made_by(*code) | facts) / DONE).exists()


def adopted(cache: Path, name: str, facts: dict[str, Any]) -> Stage:
    """A finished stage of these facts in the cache, whatever code, libraries and activations it was made by.

    Raises: ValueError if there is none.
    """
    wanted = plain(facts)
    for path in sorted(cache.glob(f"{name}-*/{DONE}")):
        told = load_json(path)
        if isinstance(told, dict) and {k: v for k, v in told["facts"].items() if k not in MADE_BY} == wanted:
            return Stage(path.parent, True, _verified(path.parent))
    raise ValueError(f"{cache}: has no {name} of these options; give those with which it was trained")


def makers(stages: Iterable[Stage]) -> list[dict[str, Any]]:
    """Returns what has made stages of SAEs: code, versions and activations, those that several share once."""
    found: list[dict[str, Any]] = []
    for made in stages:
        one = {name: made.notes["facts"][name] for name in ("code", "libraries", "activations")}
        if one not in found:
            found.append(one)
    return found


def _folder(cache: Path, name: str, facts: dict[str, Any]) -> Path:
    return cache / f"{name}-{digest_of(facts)[:16]}"


def _made_by(maker: str, *modules: str) -> dict[str, Any]:
    flags = jax_flags()
    made_by = {"code": code_digest(*modules), "maker": file_digest(maker), "libraries": library_versions()}
    return made_by | ({"flags": flags} if flags else {})


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def _files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a stage, by name."""
    visible = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: digest_of(path) for path in sorted(visible) if path.name != DONE}


def _verified(folder: Path) -> dict[str, Any]:
    """The notes of a finished stage whose files are as they were made. Raises: ValueError."""
    remedy = f"damaged: its SHA-256 is not that of when it was made: delete {folder}, so that it is made anew"
    told = load_json(folder / DONE)
    if not isinstance(told, dict) or not is_signed(told) or not isinstance(told.get("files"), dict):
        raise ValueError(f"{folder / DONE}: {remedy}")
    for name, sha256 in told["files"].items():
        if not (folder / name).is_file() or digest_of(folder / name) != sha256:
            raise ValueError(f"{folder / name}: {remedy}")
    return {name: value for name, value in told.items() if name not in ("files", "sha256")}
