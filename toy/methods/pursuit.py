"""Matching-pursuit SAEs: latents are taken one after the other, each from what the earlier ones have left."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from toy.loss import LossParts
from toy.methods.constrained import unit_rows
from toy.methods.method import Batch, Method, Params
from toy.sae import SAE, Activation, MatchingPursuit, encode


@dataclass(frozen=True)
class Pursuit(Method):
    """The squared error alone, with the activations of matching pursuit on unit directions.

    Source: Costa et al. (MP-SAE, arXiv 2506.03093). The L0 follows from the tolerance, and is at most k.
    """

    pads: ClassVar[bool] = True

    how: MatchingPursuit

    @property
    def activation(self) -> Activation:
        return self.how

    def sae(self, params: Params, done: Float[Array, ""] | float = 1.0) -> SAE:
        return unit_rows(params)

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        sae = self.sae(params, batch.done)
        return self.acts_loss(sae, encode(sae, batch.x, self.how), batch)
