"""SHA-256 of anything, and the named facts that fix a run, so that a killed one is continued only as itself."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from toy.checks import quoted
from toy.files.json_files import plain

MOST_LISTED = 8  # a larger array is listed by its digest


def leaf_name(name: str, path: tuple) -> str:
    """The name of a leaf of a pytree, such as `state.sae.W_enc`."""
    return ".".join([name, jax.tree_util.keystr(path, simple=True, separator=".")]).rstrip(".")


def config_facts(name: str, cfg: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, such as `cfg.n_steps`."""
    values = {f"{name}.{field.name}": getattr(cfg, field.name) for field in fields(cfg)}
    return {key: value if isinstance(value, int | float | str | None) else repr(value) for key, value in values.items()}


def tree_facts(name: str, tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by name: small arrays as numbers, larger ones as digests."""
    return {leaf_name(name, path): _value(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def key_numbers(leaf: Any) -> Any:
    """The leaf itself, or the key data of a PRNG key."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _value(leaf: Any) -> Any:
    array = np.asarray(jnp.asarray(key_numbers(leaf)))  # a float as the trainer takes it, in float32
    if array.size > MOST_LISTED:
        return f"{array.dtype} {list(array.shape)} SHA-256 {digest_of({'': array})}"
    if array.dtype.kind == "f":  # 0.02 and not 0.0199999996
        array = np.reshape([float(str(number)) for number in array.flat], array.shape)
    return array.tolist()


def digest_of(value: Any) -> str:
    """Returns the SHA-256 of bytes, of a file's content (Path), of arrays by name, or of data as JSON.

    The digest of arrays covers their names, types and shapes.
    """
    if isinstance(value, Path):
        with value.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(value, Mapping) and value and all(isinstance(array, np.ndarray) for array in value.values()):
        return _digest_of_arrays(value)
    content = value if isinstance(value, bytes) else json.dumps(plain(value, None), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _digest_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def signed(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content with its SHA-256, which `is_signed` checks."""
    return {**content, "sha256": digest_of({key: value for key, value in content.items() if key != "sha256"})}


def is_signed(content: dict[str, Any]) -> bool:
    """Returns whether the content holds its own SHA-256."""
    try:
        return content.get("sha256") == signed(content)["sha256"]
    except (RecursionError, ValueError):  # nested too deeply, or a number too long to write
        return False


def check_same(owner: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], remedy: str) -> None:
    """Raises: ValueError naming the first fact in which what a file was made with differs from ours."""
    for name in [*ours, *theirs]:
        was, now = theirs.get(name, "absent"), ours.get(name, "absent")
        if json.dumps(was) != json.dumps(now):
            raise ValueError(f"{owner}: made with {quoted(name)} = {quoted(was)}, which now is {quoted(now)}: {remedy}")
