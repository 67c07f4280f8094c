"""A stream of activations that a language model computes as they are needed, so that none has to be stored."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from toy.checks import SEED, Whole, check_fields, check_option
from toy.data.rows import checked_rows
from toy.data.shards import DTYPES
from toy.data.source import Batches
from toy.lm.export import Forward, forward_to, is_exported, shuffled_acts
from toy.lm.model import LM, Site, parse_site
from toy.lm.tokens import Rows
from toy.lm.weights import model_digest


@dataclass(frozen=True, eq=False)
class ForwardStream:
    """Activations at a site for all tokens but the begins of stories, each once an epoch.

    An epoch takes the rows of tokens in a new order, and cuts them into pools of about `pool`. The activations of a
    pool are computed at once, shuffled, and handed out before those of the next. A batch therefore mixes tokens from
    as many stories as a pool has rows (`toy.data.mixing` measures how well). Memory: a pool, 134 MB for 2,048 rows of
    512 tokens with d_model 64; whoever asks for steps in order computes each pool once.
    """

    lm: LM
    tokens: Rows
    site: Site
    seed: int = 0
    pool: int = 2_048  # rows of tokens
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    _made: dict[tuple[int, int], dict[str, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(self, seed=SEED, pool=Whole())
        check_option("dtype", self.dtype, tuple(DTYPES))
        parse_site(str(self.site), self.lm.cfg.n_layers)
        if not self.n_rows:
            raise ValueError("tokens: they hold no token but the begins of stories")

    @property
    def d_in(self) -> int:
        return self.lm.cfg.d_model

    @cached_property
    def _counts(self) -> Int[np.ndarray, " n_rows"]:
        """The number of activations of each row of tokens."""
        return is_exported(self.tokens).sum(axis=1)

    @property
    def n_rows(self) -> int:
        """The number of activations in an epoch."""
        return int(self._counts.sum())

    def facts(self) -> dict[str, Any]:
        made_of = {"model_sha256": model_digest(self.lm), "rows_sha256": self.tokens.digest(), "site": str(self.site)}
        return made_of | {"seed": self.seed, "pool": self.pool, "dtype": self.dtype}

    def batches(self, first: int, n_steps: int, batch_size: int) -> Batches:
        """Returns the batches of consecutive steps. Raises: ValueError naming a row that cannot be trained on."""
        x = self.column(str(self.site), first * batch_size, (first + n_steps) * batch_size)
        x = checked_rows(x, str(self.site), lambda i: f"row {first * batch_size + i} of the stream")
        return Batches(jnp.asarray(x.reshape(n_steps, batch_size, -1)), jnp.int32(first))

    def column(self, name: str, first: int, end: int) -> np.ndarray:
        """Rows first … end − 1 of the stream: the activations, or their `token`, `document` or `position`."""
        return np.concatenate([self._pool(*at)[name][rows] for *at, rows in self._spans(first, end)])

    def _spans(self, first: int, end: int) -> Iterator[tuple[int, int, slice]]:
        """Yields the epoch, the pool, and what is taken of it."""
        while first < end:
            epoch, place = divmod(first, self.n_rows)
            ends = np.cumsum([self._counts[rows].sum() for rows in self._pools(epoch)])
            pool = int(np.searchsorted(ends, place, side="right"))
            start = place - int(ends[pool] - self._counts[self._pools(epoch)[pool]].sum())
            n = min(end - first, int(ends[pool]) - place)
            yield epoch, pool, slice(start, start + n)
            first += n

    def _pools(self, epoch: int) -> list[Int[np.ndarray, " n"]]:
        """The rows of tokens of each pool."""
        n = len(self.tokens.ids)
        return np.array_split(np.random.default_rng([self.seed, epoch]).permutation(n), -(-n // self.pool))

    def _pool(self, epoch: int, pool: int) -> dict[str, np.ndarray]:
        if (epoch, pool) not in self._made:
            self._made.clear()
            rows, rng = self.tokens.take(self._pools(epoch)[pool]), np.random.default_rng([self.seed, epoch, pool])
            self._made[epoch, pool] = shuffled_acts(self._forward, rows, self.dtype, rng)
        return self._made[epoch, pool]

    @cached_property
    def _forward(self) -> Forward:
        return forward_to(self.lm, (self.site,))
