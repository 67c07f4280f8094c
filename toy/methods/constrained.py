"""The standard SAE with a tied encoder, an aligned one, or decoder directions that are pushed apart."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from toy.checks import NOT_NEGATIVE, Whole, check_fields
from toy.loss import LossParts
from toy.loss.products import in_full
from toy.methods.method import Batch, Params
from toy.methods.standard import Standard
from toy.sae import SAE, has_encoder

LEAST = 1e-12


@dataclass(frozen=True)
class Tied(Standard):
    """The encoder is the decoder, whose rows have norm 1: acts = ReLU(x W_decᵀ + b_enc)."""

    pads: ClassVar[bool] = True

    weighting: ClassVar[str] = "sampled_10"

    def sae(self, params: Params, done: Float[Array, ""] | float = 1.0) -> SAE:
        return tied(params, params.b_enc)


@dataclass(frozen=True)
class Aligned(Standard):
    """Each encoder is scaled so that encoder · decoder is 1, unless that product is within 1e-3 of 0."""

    pads: ClassVar[bool] = True

    weighting: ClassVar[str] = "sampled_10"

    def sae(self, params: Params, done: Float[Array, ""] | float = 1.0) -> SAE:
        product = jnp.sum(params.W_enc * params.W_dec.T, axis=0)
        return params._replace(W_enc=params.W_enc / jnp.where(jnp.abs(product) > 1e-3, product, 1.0))


@dataclass(frozen=True)
class Orthogonal(Standard):
    """Adds coef · Σ_i max_j cos(d_i, d_j)² over latents of a group, which keeps directions apart at linear cost.

    Source: Korznikov et al. (OrtSAE, arXiv 2509.22033): the groups are drawn anew for every batch. Differs: the sum
    over latents in place of their mean, so that the coefficient does not depend on how many there are.
    """

    pads: ClassVar[bool] = True

    coef: float = 0.03
    group: int = 1_024  # latents that are compared with each other

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, coef=NOT_NEGATIVE, group=Whole(2))

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        loss, parts = super().loss(params, batch)
        sae = self.sae(params, batch.done)
        directions = in_full(unit_rows(sae).W_dec) * has_encoder(sae)[:, None]
        n_latents, group = directions.shape[0], min(self.group, directions.shape[0])
        n_groups = -(-n_latents // group)
        if n_groups > 1:
            order = jax.random.permutation(batch.key, n_latents)
            directions = directions[jnp.resize(order, (n_groups * group,))]
        groups = directions.reshape(n_groups, group, -1)
        cosines = jnp.einsum("gid,gjd->gij", groups, groups) * (1 - jnp.eye(group))
        return loss + self.coef * jnp.sum(jnp.max(cosines**2, axis=2)), parts


def unit_rows(sae: SAE) -> SAE:
    """The SAE with decoder rows of norm 1."""
    return sae._replace(W_dec=sae.W_dec / jnp.maximum(jnp.linalg.norm(sae.W_dec, axis=1, keepdims=True), LEAST))


def tied(sae: SAE, b_enc: Float[Array, " n_latents"]) -> SAE:
    """The SAE with decoder rows of norm 1 as its encoder, but for latents that have none, which are padding."""
    unit = unit_rows(sae)
    return unit._replace(W_enc=unit.W_dec.T * has_encoder(sae), b_enc=b_enc)
