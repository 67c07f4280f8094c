"""A run in two phases: Matryoshka finds the hierarchy, and a tied encoder then takes the mixing out of it."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from toy import prefixes
from toy.checks import NOT_NEGATIVE, Real, check_fields
from toy.loss import LossParts
from toy.methods.constrained import tied
from toy.methods.method import Batch, Params
from toy.methods.standard import Standard
from toy.prefixes import Prefixes
from toy.sae import SAE, decoder_norms, encode, init_sae


class Phases(NamedTuple):
    sae: SAE  # of the first phase; the second has its decoder, with rows of norm 1
    b_tied: Float[Array, "*lanes n_latents"]  # encoder bias of the second phase


@dataclass(frozen=True)
class TiedFinish(Standard):
    """The standard SAE on prefixes, and from `share` of the run on a tied one on the full prefix, hardly penalised.

    A hole needs an encoder that subtracts the child from the parent, and a tied encoder cannot. Alone it rarely finds
    the hierarchy; after Matryoshka it need only keep it. `coef` is the L1 coefficient of the second phase for inputs
    of mean norm 1, `bias` what the biases start it with.
    """

    weighting: ClassVar[str] = "sampled_10"
    pads: ClassVar[bool] = True

    share: float = 0.6
    coef: float = 1e-3
    bias: float = -0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, share=Real(least=0, below=1), coef=NOT_NEGATIVE, bias=Real(most=0))

    def init(self, key: Key[Array, ""], d_in: int, n_latents: int) -> Params:
        return Phases(init_sae(key, d_in, n_latents), jnp.full(n_latents, self.bias * d_in**0.5))

    def sae(self, params: Params, done: Float[Array, ""] | float = 1.0) -> SAE:
        first = jnp.asarray(done) < self.share
        return jax.lax.cond(first, lambda p: p.sae, self._tied, params)

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        def search(params: Params) -> tuple[Float[Array, ""], LossParts]:
            loss = self.reconstruction_loss
            return loss(params.sae, batch, sparsity_coef=batch.sparsity_coef, sparsity=self.sparsity)

        return jax.lax.cond(batch.done < self.share, search, lambda params: self._finish(params, batch), params)

    def _tied(self, params: Params) -> SAE:
        return tied(params.sae, params.b_tied)

    def _coef(self, batch: Batch) -> Float[Array, ""] | float:
        return self.coef * batch.x.shape[1] ** 0.5

    def _finish(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        sae = self._tied(params)
        acts = encode(sae, batch.x)
        full: Prefixes = prefixes.full(acts.shape[1])
        mse, parts = self.acts_loss(sae, acts, batch._replace(prefixes=full))
        penalty = jnp.sum(jnp.mean(acts, axis=0) * decoder_norms(sae))
        return mse + self._coef(batch) * penalty, parts


@dataclass(frozen=True)
class HeldFinish(TiedFinish):
    """The tied finish for activations that no SAE codes exactly: the L0 is held at the target to the end.

    The controller of the first phase goes on with its coefficient, and `coef` is not used. The encoder sees inputs less
    the decoder's bias, because the mean of a language model's activations is far from 0.
    """

    pads: ClassVar[bool] = True

    def _tied(self, params: Params) -> SAE:
        sae = tied(params.sae, params.b_tied)
        return sae._replace(b_enc=sae.b_enc - sae.b_dec @ sae.W_enc)

    def _coef(self, batch: Batch) -> Float[Array, ""] | float:
        return batch.sparsity_coef
