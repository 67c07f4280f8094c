"""A run in three parts: Matryoshka finds the subspace, a search its sparsest rotation, and a tied encoder finishes."""

from dataclasses import dataclass
from typing import ClassVar

import jax
from jaxtyping import Array, Float, Key

from toy.methods.method import Params, Sample
from toy.methods.rotation import Search, rotate
from toy.methods.tied_finish import TiedFinish
from toy.sae import has_encoder


@dataclass(frozen=True)
class Rotated(TiedFinish):
    """The tied finish, which starts from the rotation of Matryoshka's decoder whose code is the sparsest.

    What the tied finish ends in where it does not find the hierarchy are local minima: exact codes whose L0 and L1 are
    higher than the truth's (`toy.theory.edge_limit` says up to where they are). They differ from the truth by a
    rotation of a few latents, which `toy.methods.rotation` searches for. Of more latents than d_in there is no
    orthonormal decoder, and the run is that of `TiedFinish`.
    """

    pads: ClassVar[bool] = True

    how: Search = Search()

    @property
    def search_at(self) -> float | None:
        return self.share

    def search(self, key: Key[Array, ""], params: Params, sample: Sample) -> Params:
        sae = params.sae
        if sae.W_dec.shape[0] > sae.W_dec.shape[1]:
            return params
        key_rows, key_turns = jax.random.split(key)
        x: Float[Array, "rows d_in"] = sample(key_rows, self.how.n_rows) - sae.b_dec
        W_dec = rotate(key_turns, sae.W_dec, x, has_encoder(sae), self.how)
        return params._replace(sae=sae._replace(W_dec=W_dec))
