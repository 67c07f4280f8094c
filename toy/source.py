"""Where training data comes from. A source is a pytree that can draw a batch: the trainer knows no more."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

from toy.tree import Tree, sample_features


@runtime_checkable
class Source(Protocol):
    """Anything with `d_in` and a pure, jittable `sample`. It is passed to the trainer, never closed over."""

    @property
    def d_in(self) -> int: ...

    def sample(self, key: Key[Array, ""], batch_size: int) -> Float[Array, "batch d_in"]: ...


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
    """Activations that fit in memory: rows drawn uniformly, with replacement."""

    x: Float[Array, "*lanes n_rows d_in"]

    @property
    def d_in(self) -> int:
        return self.x.shape[-1]

    def sample(self, key: Key[Array, ""], batch_size: int) -> Float[Array, "batch d_in"]:
        return self.x[jax.random.randint(key, (batch_size,), 0, self.x.shape[0])]
