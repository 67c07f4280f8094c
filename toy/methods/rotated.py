"""A run in three parts: Matryoshka finds the subspace, a search its sparsest rotation, and a tied encoder finishes."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from toy.methods.method import Params, Sample
from toy.methods.rotation import Search, rotate
from toy.methods.tied_finish import TiedFinish
from toy.sae import has_encoder

MOST_LATENTS = 512  # whose rotation is searched for


@dataclass(frozen=True)
class Rotated(TiedFinish):
    """The tied finish, which starts from the rotation of Matryoshka's decoder whose code is the sparsest.

    Where the tied finish misses the hierarchy it ends in a local minimum, an exact code whose L0 and L1 are higher than
    the truth's (for P(child | parent) below `toy.theory.edge_limit`). It differs from the truth by a rotation of a few
    latents, which `toy.methods.rotation` searches for. Of more latents than d_in there is no orthonormal decoder, and
    of more than `MOST_LATENTS` the search takes too long: there the run is that of `TiedFinish`.
    """

    pads: ClassVar[bool] = True

    how: Search = field(default_factory=Search)

    @property
    def search_at(self) -> float | None:
        return self.share

    def search(self, key: Key[Array, ""], params: Params, sample: Sample) -> Params:
        sae = params.sae
        if len(sae.W_dec) > MOST_LATENTS:
            return params
        there = has_encoder(sae)
        key_rows, key_turns = jax.random.split(key)

        def rotated() -> tuple[Array, Array]:
            # A penalty moves b_dec a little away from where the data has its zero, which is most often 0.
            centres = jnp.stack([jnp.zeros_like(sae.b_dec), sae.b_dec])
            return rotate(key_turns, sae.W_dec, sample(key_rows, self.how.n_rows), centres, there, self.how)

        fits = jnp.sum(there) <= sae.W_dec.shape[1]
        W_dec, b_dec = jax.lax.cond(fits, rotated, lambda: (sae.W_dec, sae.b_dec))
        return params._replace(sae=sae._replace(W_dec=W_dec, b_dec=b_dec))
