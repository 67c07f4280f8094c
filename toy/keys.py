"""Keys from which a CPU draws random numbers faster: the same numbers.

JAX computes its default generator, Threefry-2x32 (Salmon et al. 2011), on a CPU by a loop of five rounds that passes
over all the numbers each time. Runs of a sweep, a lane each with a tree of its own, spend a third of their time there.
Written out, the rounds become part of the loop that uses the numbers, and are vectorised with it. That does not always
pay: one run, and lanes that share a tree, were measured to be slower, so their keys stay as they are.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jaxtyping import Array, Int, Key, UInt, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_MOST = 2**32  # numbers of one call
Words = UInt32[Array, "2"]


def unrolled(keys: Key[Array, "*keys"]) -> Key[Array, "*keys"]:
    """The same keys, from which every function of `jax.random` draws the same numbers by other code.

    Keys of another generator, and those of JAX's older way to count (`jax_threefry_partitionable`), stay as they are.
    """
    threefry = jax.random.key_impl(jax.random.key(0, impl="threefry2x32"))
    if jax.random.key_impl(keys) != threefry or not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
        return keys
    return jax.random.wrap_key_data(jax.random.key_data(keys), impl=_UNROLLED)


def _threefry(key: Words, low: UInt32[Array, "*shape"]) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Two random words for each 64-bit count, of which the upper word is 0."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = jnp.zeros_like(low) + keys[0], low + keys[1]
    for i in range(5):
        for bits in _ROTATIONS[i % 2]:
            x += y
            y = (y << jnp.uint32(bits) | y >> jnp.uint32(32 - bits)) ^ x
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x, y


def _counted(key: Words, shape: tuple[int, ...]) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    n = math.prod(shape)
    if n > _MOST:
        raise ValueError(f"shape: {n:,} random numbers are too many to draw at once")
    return _threefry(key, jax.lax.iota(jnp.uint32, n).reshape(shape))


def _random_bits(key: Words, width: int, shape: tuple[int, ...]) -> UInt[Array, "*shape"]:
    x, y = _counted(key, shape)
    if width == 64:
        return x.astype(jnp.uint64) << jnp.uint64(32) | y.astype(jnp.uint64)
    return (x ^ y).astype(f"uint{width}")


def _split(key: Words, shape: tuple[int, ...]) -> UInt32[Array, "*shape 2"]:
    return jnp.stack(_counted(key, shape), axis=-1)


def _fold_in(key: Words, number: Int[Array, ""] | UInt[Array, ""] | int) -> Words:
    return jnp.stack(_threefry(key, jnp.asarray(number, jnp.uint32)))


def _seed(seed: Array) -> Words:
    raise NotImplementedError("unrolled keys are made from others, by `unrolled`")


_UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="unrolled_threefry2x32",
    tag="unrolled",
)
