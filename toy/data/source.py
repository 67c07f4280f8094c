"""Where training data comes from: a source, a pytree that draws batches on the device, or a stream, which reads them.

The trainer knows no more.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from toy.data.rows import checked_rows
from toy.features.tree import Tree, sample_features


@runtime_checkable
class Source(Protocol):
    """Anything with `d_in` and a pure, jittable `sample`. It is passed to the trainer, never closed over."""

    @property
    def d_in(self) -> int: ...

    def sample(self, key: Key[Array, ""], batch_size: int) -> Float[Array, "batch d_in"]: ...


class Batches(NamedTuple):
    """The batches of consecutive steps, as a stream gives them or a source has drawn them."""

    x: Float[Array, "n_steps batch d_in"]
    first: Int[Array, ""]  # the step of x[0]

    @property
    def d_in(self) -> int:
        return self.x.shape[-1]

    def at(self, step: Int[Array, ""] | int) -> Float[Array, "batch d_in"]:
        """The batch of a step, which must be one of these, in float32 at least."""
        x = jax.lax.dynamic_index_in_dim(self.x, step - self.first, keepdims=False)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@runtime_checkable
class Stream(Protocol):
    """Rows that the host reads: of files, or made by a model. Without an end.

    The rows of a step are a function of (stream, step, batch_size) alone, however steps are asked for; so a run's step
    is the stream's position, too. `batches` is called in a thread of its own. `facts` (JSON) are what the rows follow
    from: a checkpoint goes on only with the same.
    """

    @property
    def d_in(self) -> int: ...

    def batches(self, first: int, n_steps: int, batch_size: int) -> Batches: ...

    def facts(self) -> dict[str, Any]: ...


def draw_batch(
    source: Source | Batches, key: Key[Array, ""], batch_size: int, step: Int[Array, ""]
) -> Float[Array, "batch d_in"]:
    """The batch of a step, which a stream has read for it or a source draws with the key; in float32 at least."""
    batches = source if isinstance(source, Batches) else Batches(source.sample(key, batch_size)[None], step)
    return batches.at(step)


class TreeSource(NamedTuple):
    """Activations of a feature tree: features @ W_feat, fresh ones for every key."""

    tree: Tree
    W_feat: Float[Array, "*lanes n_features d_in"]

    @property
    def d_in(self) -> int:
        return self.W_feat.shape[-1]

    def sample(self, key: Key[Array, ""], batch_size: int) -> Float[Array, "batch d_in"]:
        return sample_features(key, self.tree, batch_size) @ self.W_feat


class ArraySource(NamedTuple):
    """Activations that fit in memory: rows drawn uniformly, with replacement.

    Rows may be of any float type. Training is in float32, and refuses rows that it cannot compute with by number.
    """

    x: Float[Array, "*lanes n_rows d_in"]

    @property
    def d_in(self) -> int:
        return self.x.shape[-1]

    def sample(self, key: Key[Array, ""], batch_size: int) -> Float[Array, "batch d_in"]:
        return self.x[jax.random.randint(key, (batch_size,), 0, self.x.shape[0])]


def checked_source(source: Any) -> Any:
    """A source whose rows are in memory (`ArraySource`) with checked rows; any other as it is.

    Raises: ValueError naming the row, or what takes the place of a `source` that is none.
    """
    if not isinstance(source, Source | Stream):
        raise ValueError(
            f"source: {type(source).__name__} is no source of activations: rows in memory are given as "
            "toy.data.source.ArraySource(x), rows on disk as toy.data.stream.ShardSource"
        )
    if not isinstance(source, ArraySource) or isinstance(source.x, Tracer):
        return source
    n_rows = np.shape(source.x)[-2] if np.ndim(source.x) > 1 else 1

    def place(i: int) -> str:
        return f"row {i}" if np.ndim(source.x) < 3 else f"lane {i // n_rows}, row {i % n_rows}"

    x = checked_rows(source.x, "source", place)
    if not x.any():
        raise ValueError("source: all rows are 0: there is nothing to learn")
    return source._replace(x=jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)))
