"""Checks that rows of activations hold numbers that can be trained on in float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from toy.checks import quoted

MAX_SIZE = 1e15  # sums of squares of larger numbers overflow float32
MIN_SIZE = 1e-12  # squares of smaller numbers underflow float32


def checked_rows(x: Any, name: str, place: Callable[[int], str] = "row {}".format) -> np.ndarray:
    """Returns rows `[… d_in]` in float32, bfloat16 ones as they are, and float64 ones in float64 if JAX enables it.

    `place` names a row by its number, counted with all axes but the last flattened.

    Raises: ValueError naming the first row with a number that is not finite or whose square would overflow, or if
    squares of all numbers would underflow.
    """
    found = np.asarray(x)
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floating-point numbers, got {found.dtype}: convert them to float32")
    if found.ndim < 2 or not found.size:
        raise ValueError(f"{name}: expected rows of activations (rows, d_in), got shape {found.shape}")
    if found.dtype != jnp.bfloat16:
        with np.errstate(over="ignore"):  # infinite numbers are refused below
            found = found.astype(jax.dtypes.canonicalize_dtype(np.promote_types(found.dtype, np.float32)), copy=False)
    sizes = _sizes(found)
    if not sizes.max() < _size_of(MAX_SIZE, found.dtype):
        _refuse_row(found.reshape(-1, found.shape[-1]), name, place)
    if 0 < sizes.max() < _size_of(MIN_SIZE, found.dtype):
        raise ValueError(f"{name}: no number is larger than {MIN_SIZE:g}: scale the activations up")
    return found


def _sizes(x: np.ndarray) -> np.ndarray:
    """The bits of x without the sign: integers that have the order of |x| and compare fast, NaN the largest."""
    n_bits = 8 * x.dtype.itemsize
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") & np.array(2 ** (n_bits - 1) - 1, f"u{n_bits // 8}")


def _size_of(limit: float, dtype: np.dtype) -> np.unsignedinteger:
    return _sizes(np.array([limit]).astype(dtype))[0]


def _refuse_row(x: np.ndarray, name: str, place: Callable[[int], str]) -> None:
    """Raises: ValueError naming the first row that cannot be trained on."""
    bad = ~(_sizes(x) < _size_of(MAX_SIZE, x.dtype)).all(axis=1)
    i = int(np.flatnonzero(bad)[0])
    if not np.isfinite(x[i].astype(np.float64)).all():
        raise ValueError(f"{name}: {place(i)} has numbers that are not finite in float32: leave the row out")
    largest = quoted(f"{np.abs(x[i].astype(np.float64)).max():.3g}")
    raise ValueError(
        f"{name}: {place(i)} has a number of size {largest}: at most {MAX_SIZE:g} is trained on: scale the activations"
    )
