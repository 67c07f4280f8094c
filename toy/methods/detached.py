"""Matryoshka levels without gradients between them: what is learnt first is not bent by what comes later."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from toy.loss import LossParts, sparsity_penalty
from toy.loss.products import in_full
from toy.methods.method import Batch, Params
from toy.methods.standard import Standard
from toy.prefixes import FixedPrefixes, FixedWeights, Prefixes, inclusion
from toy.sae import decoder_norms, encode

MOST_LATENTS = 4_096  # whose Gram matrices are small beside everything else


@dataclass(frozen=True)
class Detached(Standard):
    """The standard SAE on a few lengths, where each latent learns from the shortest prefix that it is in alone.

    Source: the detached variant of Chanin et al. (arXiv 2505.11756), which leads SynthSAEBench. The value of the loss
    is that of `toy.loss.sae_loss`. Its penalty is the standard SAE's, of every prefix.
    """

    weighting: ClassVar[str] = "levels:25%=1,50%=1,full=1"
    pads: ClassVar[bool] = True

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        sae = self.sae(params, batch.done)
        acts, W_dec = in_full(encode(sae, batch.x)), in_full(sae.W_dec)
        mse, parts = self.acts_loss(sae, acts, batch)
        end, weight = _levels(batch.prefixes, batch.ranks)
        n_rows, fixed = len(acts), jax.lax.stop_gradient
        held = batch.ranks < end[:, None]  # [i j]: latent j is in the shortest prefix of latent i
        gram = held * (acts.T @ fixed(acts) / n_rows) * (W_dec @ fixed(W_dec).T)
        error = in_full(batch.x) - fixed(in_full(sae.b_dec))
        products = acts.T @ error / n_rows * W_dec
        of_latents = 2 * (jnp.sum(weight[:, None] * gram) - jnp.sum(weight[:, None] * products))
        residual = in_full(batch.x) - in_full(sae.b_dec) - fixed(acts @ W_dec)
        of_bias = jnp.mean(jnp.sum(residual**2, axis=1))
        gradient = of_latents + of_bias
        value = fixed(mse - gradient) + gradient
        s = inclusion(batch.prefixes, batch.ranks)
        penalty = jnp.sum(s * sparsity_penalty(acts, decoder_norms(sae), self.sparsity))
        return value + batch.sparsity_coef * penalty, parts

    def check(self, n_latents: int) -> None:
        if n_latents > MOST_LATENTS:
            raise ValueError(f"method: detached levels take at most {MOST_LATENTS:,} latents, got {n_latents:,}")


def _levels(
    prefixes: Prefixes, ranks: Int[Array, " n_latents"]
) -> tuple[Int[Array, " n_latents"], Float[Array, " n_latents"]]:
    """The length of the shortest prefix with a weight that each latent is in, and its weight."""
    n_latents = ranks.shape[0]
    if isinstance(prefixes, FixedPrefixes):
        weights = jnp.zeros(n_latents).at[prefixes.lengths - 1].add(prefixes.weights)
    elif isinstance(prefixes, FixedWeights):
        weights = jnp.asarray(prefixes.weights)
    else:
        raise ValueError("weighting: detached levels need fixed lengths, such as levels:25%=1,full=1")
    lengths = jnp.where(weights > 0, jnp.arange(n_latents), n_latents - 1)
    end = jax.lax.cummin(lengths, reverse=True)[ranks]
    return end + 1, weights[end]
