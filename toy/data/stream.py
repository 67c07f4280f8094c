"""A stream of stored activations, which may be larger than memory, in a new order every epoch."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from toy.checks import SEED, Whole, check_fields
from toy.data.activations import Activations
from toy.data.rows import checked_rows
from toy.data.source import Batches

SHUFFLED_BLOCK = 64  # rows


@dataclass(frozen=True)
class ShardSource:
    """A stream that takes each row once per epoch, in blocks of `block` consecutive rows whose order is random.

    Rows keep their order within a block, because whole blocks are read many times as fast. Batches are cut from the
    sequence of all epochs. Memory: the batches (twice if stored as neither float32 nor bfloat16), and 8 bytes per
    block for the order of an epoch.
    """

    activations: Activations
    seed: int = 0
    block: int | None = None  # rows; None: 64 if the rows already are in a random order (`toy.data.store`), else 1

    def __post_init__(self) -> None:
        check_fields(self, seed=SEED, block=Whole())

    @property
    def d_in(self) -> int:
        return self.activations.d_in

    @property
    def block_size(self) -> int:
        return self.block or (SHUFFLED_BLOCK if self.activations.shuffled else 1)

    def facts(self) -> dict[str, Any]:
        acts = self.activations
        of_rows = {"rows": acts.fingerprint(), "n_rows": acts.n_rows, "d_in": acts.d_in, "dtype": str(acts.dtype)}
        return of_rows | {"seed": self.seed, "block": self.block_size}

    def batches(self, first: int, n_steps: int, batch_size: int) -> Batches:
        """Returns the batches of consecutive steps. Raises: ValueError naming a row that cannot be trained on."""
        rows = self.rows(first * batch_size, (first + n_steps) * batch_size)
        x = checked_rows(self.activations.take_stored(rows), self.activations.name, lambda i: f"row {rows[i]}")
        return Batches(jnp.asarray(x.reshape(n_steps, batch_size, -1)), jnp.int32(first))

    def rows(self, first: int, end: int) -> Int[np.ndarray, " n"]:
        """Returns the numbers of the rows at places first … end − 1 of the sequence."""
        n_rows, block = self.activations.n_rows, self.block_size
        epochs = range(first // n_rows, -(-end // n_rows))
        parts = [
            _rows_of_epoch(self.seed, epoch, n_rows, block, max(first - epoch * n_rows, 0), end - epoch * n_rows)
            for epoch in epochs
        ]
        return np.concatenate(parts) if parts else np.zeros(0, int)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n_blocks: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_blocks)


def _rows_of_epoch(seed: int, epoch: int, n_rows: int, block: int, first: int, end: int) -> np.ndarray:
    order = _order(seed, epoch, -(-n_rows // block))
    places = np.arange(first, min(end, n_rows))
    missing = -n_rows % block  # rows that the last block lacks; whatever follows it moves up by as many
    if missing:
        (at,) = np.flatnonzero(order == len(order) - 1)
        places += missing * (places >= (at + 1) * block - missing)
    return order[places // block] * block + places % block
