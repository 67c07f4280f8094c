"""A JumpReLU SAE with an L1 penalty, whose thresholds learn through a sigmoid in place of the step."""

import jax
import jax.numpy as jnp

from toy.methods import Method
from toy.sae import decoder_norms


class JumpReLU(Method):
    aims_at_l0 = controls_l0 = True

    def init(self, key, d_in, n_latents):
        return super().init(key, d_in, n_latents)._replace(threshold=jnp.full(n_latents, 0.1))

    def loss(self, params, batch):
        pre_acts = jax.nn.relu(batch.x @ params.W_enc + params.b_enc)
        on = (pre_acts > params.threshold).astype(pre_acts.dtype)
        soft = jax.nn.sigmoid((pre_acts - params.threshold) / 0.1)
        acts = pre_acts * (soft + jax.lax.stop_gradient(on - soft))  # the step forward, the sigmoid backward
        mse, parts = self.acts_loss(params, acts, batch)
        return mse + batch.sparsity_coef * jnp.sum(jnp.mean(acts, axis=0) * decoder_norms(params)), parts


jumprelu = JumpReLU()
