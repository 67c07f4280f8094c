"""Gated SAEs: whether a latent is on, and how strongly, have parameters of their own."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from toy.loss import LossParts
from toy.methods.method import Batch, Method, Params
from toy.sae import SAE, decoder_norms, init_sae


class GatedParams(NamedTuple):
    sae: SAE  # with the bias of magnitudes
    log_scale: Float[Array, "*lanes n_latents"]  # of magnitudes, over that of gates
    b_gate: Float[Array, "*lanes n_latents"]


@dataclass(frozen=True)
class Gated(Method):
    """Latents are on where x W_enc + b_gate > 0, and are ReLU(exp(log_scale) · x W_enc + b_enc) there.

    The loss is the squared error, sparsity_coef · Σ ReLU(gate) · decoder norm, and the squared error of the gates as
    activations with a decoder held fixed. Source: Rajamanoharan et al. (arXiv 2404.16014). A gated SAE is a
    JumpReLU SAE with threshold b_enc − exp(log_scale) · b_gate (their appendix), as which it is exported.
    """

    pads: ClassVar[bool] = True

    aims_at_l0: ClassVar[bool] = True
    controls_l0: ClassVar[bool] = True

    def init(self, key: Key[Array, ""], d_in: int, n_latents: int) -> Params:
        return GatedParams(init_sae(key, d_in, n_latents), jnp.zeros(n_latents), jnp.zeros(n_latents))

    def sae(self, params: Params, done: Float[Array, ""] | float = 1.0) -> SAE:
        scale, sae = jnp.exp(params.log_scale), params.sae
        return sae._replace(W_enc=sae.W_enc * scale, threshold=sae.b_enc - scale * params.b_gate)

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        sae, x = params.sae, batch.x
        products = x @ sae.W_enc
        gate = products + params.b_gate
        acts = jnp.where(gate > 0, jax.nn.relu(products * jnp.exp(params.log_scale) + sae.b_enc), 0)
        mse, parts = self.acts_loss(sae, acts, batch)
        gates = jax.nn.relu(gate)
        frozen = sae._replace(W_dec=jax.lax.stop_gradient(sae.W_dec), b_dec=jax.lax.stop_gradient(sae.b_dec))
        auxiliary, _ = self.acts_loss(frozen, gates, batch)
        penalty = jnp.sum(jnp.mean(gates, axis=0) * decoder_norms(sae))
        return mse + auxiliary + batch.sparsity_coef * penalty, parts
