"""Training data: a source is a pytree that draws batches on the device, a stream reads them on the host.

This is all that the trainer knows about data.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from toy.data.rows import checked_rows
from toy.features.directions import check_given
from toy.features.hierarchy import synthetic
from toy.features.synthetic import Synthetic, synthetic_features, synthetic_rows
from toy.features.synthsaebench import SynthSAEBench, directions, drawn, hierarchy
from toy.features.tree import Tree, sample_features


@runtime_checkable
class Source(Protocol):
    """Anything with `d_in` and a pure `sample` that can be jitted and vmapped. It is passed on, never closed over."""

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
    """Rows without an end that the host reads from files, or that a model makes.

    The rows of a step are a function of (stream, step, batch_size) alone, in whatever order steps are asked for, so
    that a run's step is also the stream's position. Numbers must be finite and below 1e15. `batches` is called in its
    own thread, and may be asked for the same steps again. `facts` are JSON values that determine the rows: a checkpoint
    continues only with the same facts.
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
    """Activations of a feature tree, features @ W_feat, drawn anew for every key."""

    tree: Tree
    W_feat: Float[Array, "*lanes n_features d_in"]

    @property
    def d_in(self) -> int:
        return self.W_feat.shape[-1]

    def sample(self, key: Key[Array, ""], batch_size: int) -> Float[Array, "batch d_in"]:
        return sample_features(key, self.tree, batch_size) @ self.W_feat


class SyntheticSource(NamedTuple):
    """Activations of a `SyntheticModel` of SAELens, features @ W_feat + bias, drawn anew for every key."""

    features: Synthetic
    W_feat: Float[Array, "n_features d_in"]
    bias: Float[Array, " d_in"]

    @property
    def d_in(self) -> int:
        return self.W_feat.shape[-1]

    def sample(self, key: Key[Array, ""], batch_size: int) -> Float[Array, "batch d_in"]:
        return synthetic_rows(key, self.features, self.W_feat, batch_size) + self.bias

    def sample_features(self, key: Key[Array, ""], batch_size: int) -> Float[Array, "batch n_features"]:
        """The features of the rows that `sample` returns for this key."""
        return synthetic_features(key, self.features, batch_size)


def synthsaebench(cfg: SynthSAEBench) -> SyntheticSource:
    """The benchmark's activations. At full size making its directions takes a minute on two cores."""
    return SyntheticSource(synthetic(hierarchy(cfg), drawn(cfg)), *directions(cfg))


class ArraySource(NamedTuple):
    """Activations that fit in memory; rows are drawn uniformly, with replacement.

    Rows may have any float type and are trained on in float32. A row with numbers that float32 cannot compute with is
    refused by its number.
    """

    x: Float[Array, "*lanes n_rows d_in"]

    @property
    def d_in(self) -> int:
        return self.x.shape[-1]

    def sample(self, key: Key[Array, ""], batch_size: int) -> Float[Array, "batch d_in"]:
        return self.x[jax.random.randint(key, (batch_size,), 0, self.x.shape[0])]


def checked_source(source: Any) -> Any:
    """The source, with the rows of an `ArraySource` checked and in float32 at least.

    Raises: ValueError naming the row, or the right class for something that is not a source.
    """
    if not isinstance(source, Source | Stream):
        raise ValueError(
            f"source: {type(source).__name__} is no source of activations: rows in memory are given as "
            "toy.data.source.ArraySource(x), rows on disk as toy.data.stream.ShardSource"
        )
    if isinstance(source, TreeSource):
        check_given(source.W_feat, source.tree.n_features)
    if not isinstance(source, ArraySource) or isinstance(source.x, Tracer):
        return source
    n_rows = np.shape(source.x)[-2] if np.ndim(source.x) > 1 else 1

    def place(i: int) -> str:
        return f"row {i}" if np.ndim(source.x) < 3 else f"lane {i // n_rows}, row {i % n_rows}"

    x = checked_rows(source.x, "source", place)
    if not x.any():
        raise ValueError("source: all rows are 0: there is nothing to learn")
    return source._replace(x=jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)))
