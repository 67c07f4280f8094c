"""What fixes a run, by name, so that one that was killed goes on only as itself."""

import hashlib
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

MOST_LISTED = 8  # numbers of an array that are written out; more are digested


def leaf_name(name: str, path: tuple) -> str:
    """`state.sae.W_enc`"""
    return ".".join([name, jax.tree_util.keystr(path, simple=True, separator=".")]).rstrip(".")


def config_facts(name: str, cfg: Any) -> dict[str, Any]:
    """Of a dataclass: its fields, `cfg.n_steps` and so on."""
    values = {f"{name}.{field.name}": getattr(cfg, field.name) for field in fields(cfg)}
    return {key: value if isinstance(value, int | float | str | None) else repr(value) for key, value in values.items()}


def tree_facts(name: str, tree: PyTree) -> dict[str, Any]:
    """Of a pytree: its leaves, as numbers where they are few and as digests where they are many."""
    return {leaf_name(name, path): _value(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def key_numbers(leaf: Any) -> Any:
    """A leaf as numbers, keys as those that they are made of."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _value(leaf: Any) -> Any:
    array = np.asarray(jnp.asarray(key_numbers(leaf)))  # a float as the trainer takes it, in float32
    if array.size > MOST_LISTED:
        return f"{array.dtype} {list(array.shape)} SHA-256 {digest_of({'': array})}"
    if array.dtype.kind == "f":  # 0.02 and not 0.0199999996
        array = np.reshape([float(str(number)) for number in array.flat], array.shape)
    return array.tolist()


def digest_of(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of arrays with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
