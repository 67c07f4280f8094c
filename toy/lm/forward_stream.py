"""A stream of activations that a language model computes as they are needed, so that none has to be stored."""

from collections.abc import Iterator, Sequence
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
class Pools:
    """The activations of all tokens but the begins of stories, at several sites, pool by pool.

    An epoch takes the rows of tokens in a new order, and cuts them into pools of about `pool`. The activations of a
    pool are computed at once, for all sites in one forward pass, and shuffled; every site has the same order.
    """

    lm: LM
    tokens: Rows
    sites: tuple[Site, ...]
    seed: int = 0
    pool: int = 2_048  # rows of tokens
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    _held: dict[tuple[int, int], dict[str, np.ndarray]] = field(default_factory=dict, init=False, repr=False)
    _ends: dict[int, tuple[list[np.ndarray], np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(self, seed=SEED, pool=Whole())
        check_option("dtype", self.dtype, tuple(DTYPES))
        for site in self.sites:
            parse_site(str(site), self.lm.cfg.n_layers)
        if not self.n_rows:
            raise ValueError("tokens: they hold no token but the begins of stories")

    @cached_property
    def _counts(self) -> Int[np.ndarray, " n_rows"]:
        """The number of activations of each row of tokens."""
        return is_exported(self.tokens).sum(axis=1)

    @cached_property
    def n_rows(self) -> int:
        """The number of activations in an epoch."""
        return int(self._counts.sum())

    def spans(self, first: int, end: int) -> Iterator[tuple[dict[str, np.ndarray], slice]]:
        """Yields the pools that hold activations first … end − 1 of all epochs, and what is to be taken of each."""
        while first < end:
            epoch, place = divmod(first, self.n_rows)
            ends = self._epoch(epoch)[1]
            pool = int(np.searchsorted(ends, place, side="right"))
            start = place - (int(ends[pool - 1]) if pool else 0)
            n = min(end - first, int(ends[pool]) - place)
            yield self._pool(epoch, pool), slice(start, start + n)
            first += n

    def _epoch(self, epoch: int) -> tuple[list[Int[np.ndarray, " n"]], Int[np.ndarray, " n_pools"]]:
        """The rows of tokens of each pool, and the number of activations up to its end."""
        if epoch not in self._ends:
            self._ends.clear()
            n = len(self.tokens.ids)
            order = np.random.default_rng([self.seed, epoch]).permutation(n)
            pools = np.array_split(order, -(-n // self.pool))
            self._ends[epoch] = pools, np.cumsum([self._counts[rows].sum() for rows in pools])
        return self._ends[epoch]

    def _pool(self, epoch: int, pool: int) -> dict[str, np.ndarray]:
        if (epoch, pool) not in self._held:
            # The batches of a chunk of steps may end one pool and begin the next, and all sites ask for them in turn.
            while sum(len(made["token"]) for made in self._held.values()) > self.pool * self.tokens.ids.shape[1]:
                del self._held[next(iter(self._held))]  # the oldest
            rows, rng = self.tokens.take(self._epoch(epoch)[0][pool]), np.random.default_rng([self.seed, epoch, pool])
            self._held[epoch, pool] = shuffled_acts(self._forward, rows, self.dtype, rng)
        return self._held[epoch, pool]

    @cached_property
    def _forward(self) -> Forward:
        return forward_to(self.lm, self.sites)

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """The facts that activations follow from; not the sites, as those of one do not depend on the others."""
        made_of = {"model_sha256": model_digest(self.lm), "rows_sha256": self.tokens.digest()}
        return made_of | {"seed": self.seed, "pool": self.pool, "dtype": self.dtype}


@dataclass(frozen=True, eq=False)
class ForwardStream:
    """Activations at a site for all tokens but the begins of stories, each once per epoch.

    A pool is handed out before the next one begins. A batch therefore mixes tokens from as many stories as a pool has
    rows (`toy.data.mixing` measures how well). Memory: two pools of all sites, each 134 MB per site for 2,048 rows of
    512 tokens with d_model 64; whoever asks for steps in order computes each pool once.
    """

    pools: Pools
    site: Site

    @property
    def d_in(self) -> int:
        return self.pools.lm.cfg.d_model

    @property
    def n_rows(self) -> int:
        """The number of activations in an epoch."""
        return self.pools.n_rows

    def facts(self) -> dict[str, Any]:
        return self.pools.made_of | {"site": str(self.site)}

    def batches(self, first: int, n_steps: int, batch_size: int) -> Batches:
        """Returns the batches of consecutive steps. Raises: ValueError naming a row that cannot be trained on."""
        x = self.column(str(self.site), first * batch_size, (first + n_steps) * batch_size)
        x = checked_rows(x, str(self.site), lambda i: f"row {first * batch_size + i} of the stream")
        return Batches(jnp.asarray(x.reshape(n_steps, batch_size, -1)), jnp.int32(first))

    def column(self, name: str, first: int, end: int) -> np.ndarray:
        """Rows first … end − 1 of the stream: the activations, or their `token`, `document` or `position`."""
        return np.concatenate([made[name][rows] for made, rows in self.pools.spans(first, end)])


def forward_streams(lm: LM, tokens: Rows, sites: Sequence[Site], **options: Any) -> dict[str, ForwardStream]:
    """A stream for each site, by its name. They share forward passes if they are asked for the same steps in turn.

    `options` are those of `Pools`. Raises: ValueError naming the argument.
    """
    pools = Pools(lm, tokens, tuple(sites), **options)
    return {str(site): ForwardStream(pools, site) for site in sites}
