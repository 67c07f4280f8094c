"""Keys that a CPU draws from faster give the numbers of the keys that they were made of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Key

from toy.keys import unrolled

DRAWS: dict[str, Callable[[Key[Array, ""]], Array]] = {
    "bits": lambda key: jax.random.bits(key, (5, 7)),
    "no bits": lambda key: jax.random.bits(key, (0, 3)),
    "a number": lambda key: jax.random.bits(key),
    "bytes": lambda key: jax.random.bits(key, (9,), jnp.uint8),
    "halves": lambda key: jax.random.bits(key, (9,), jnp.uint16),
    "uniform": lambda key: jax.random.uniform(key, (33,)),
    "normal": lambda key: jax.random.normal(key, (3, 5)),
    "exponential": lambda key: jax.random.exponential(key, (31,)),
    "gumbel": lambda key: jax.random.gumbel(key, (8,)),
    "integers": lambda key: jax.random.randint(key, (8,), -3, 70_000),
    "permutation": lambda key: jax.random.permutation(key, 20),
    "categorical": lambda key: jax.random.categorical(key, jnp.arange(5.0), shape=(9,)),
    "split": lambda key: jax.random.bits(jax.random.split(key, (2, 3))[1, 2], (4,)),
    "split in two": lambda key: jax.random.key_data(jax.random.split(key)),
    "folded": lambda key: jax.random.key_data(jax.random.fold_in(key, 123_456)),
    "folded high": lambda key: jax.random.key_data(jax.random.fold_in(key, np.uint32(2**32 - 1))),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_every_function_draws_the_same_numbers(name: str, seed: int) -> None:
    draw, keys = DRAWS[name], jax.random.split(jax.random.key(seed), 3)
    np.testing.assert_array_equal(draw(unrolled(keys[0])), draw(keys[0]))
    np.testing.assert_array_equal(jax.jit(jax.vmap(draw))(unrolled(keys)), jax.vmap(draw)(keys))


def test_numbers_of_64_bits_are_the_same_too() -> None:
    with jax.enable_x64(True):
        key = jax.random.key(3)
        np.testing.assert_array_equal(
            jax.random.bits(unrolled(key), (7,), jnp.uint64), jax.random.bits(key, (7,), jnp.uint64)
        )
        assert jax.random.uniform(unrolled(key), (7,)).dtype == np.float64
        np.testing.assert_array_equal(jax.random.uniform(unrolled(key), (7,)), jax.random.uniform(key, (7,)))


def test_a_key_is_unrolled_once_and_others_stay_as_they_are() -> None:
    key, other = jax.random.key(1), jax.random.key(1, impl="rbg")
    once = unrolled(key)
    assert once.dtype != key.dtype
    assert unrolled(once) is once
    assert unrolled(other) is other
    with jax.threefry_partitionable(False):
        assert unrolled(key) is key


def test_too_many_numbers_are_refused_not_repeated() -> None:
    with pytest.raises(ValueError, match="shape: 4,294,967,297 random numbers are too many to draw at once"):
        jax.jit(lambda: jax.random.bits(unrolled(jax.random.key(0)), (2**32 + 1,))).lower()
