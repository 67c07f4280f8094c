"""JumpReLU SAEs: each latent has a threshold that is learnt, and the L0 itself is the penalty."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from toy.checks import POSITIVE, check_fields
from toy.loss import LossParts
from toy.methods.method import Batch, Method, Params
from toy.sae import SAE, init_sae


@dataclass(frozen=True)
class JumpReLU(Method):
    """Squared error over weighted prefixes + sparsity_coef · (L0 / target L0 − 1)².

    Source: Rajamanoharan et al. (arXiv 2407.14435), with the quadratic penalty of their appendix, here of
    the batch's mean L0. Gradients pass the step by a rectangle of `bandwidth`, for inputs of mean norm √d_in. Differs:
    the coefficient is moved until the L0 is the target, as that of the standard SAE is; of several prefixes only the
    full one has a target.
    """

    pads: ClassVar[bool] = True

    bandwidth: float = 0.5
    first_threshold: float = 0.5

    aims_at_l0: ClassVar[bool] = True
    controls_l0: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, bandwidth=POSITIVE, first_threshold=POSITIVE)
        if self.bandwidth > 2 * self.first_threshold:
            raise ValueError(
                f"bandwidth: must be at most 2 × first_threshold = {2 * self.first_threshold:g}, got "
                f"{self.bandwidth:g}, or latents that are far from being on move their thresholds"
            )

    def init(self, key: Key[Array, ""], d_in: int, n_latents: int) -> Params:
        """An SAE whose `threshold` holds logarithms, so that thresholds stay positive."""
        return init_sae(key, d_in, n_latents)._replace(threshold=jnp.full(n_latents, jnp.log(self.first_threshold)))

    def sae(self, params: Params, done: Float[Array, ""] | float = 1.0) -> SAE:
        return params._replace(threshold=jnp.exp(params.threshold))

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        sae = self.sae(params)
        assert sae.threshold is not None
        assert batch.target_l0 is not None
        pre_acts = jax.nn.relu(batch.x @ sae.W_enc + sae.b_enc)
        acts: Array = jump(pre_acts, sae.threshold, self.bandwidth)  # type: ignore[assignment]
        mse, parts = self.acts_loss(sae, acts, batch)
        l0 = jnp.mean(jnp.sum(is_on(pre_acts, sae.threshold, self.bandwidth), axis=1))
        return mse + batch.sparsity_coef * (l0 / batch.target_l0 - 1) ** 2, parts


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def jump(pre_acts: Float[Array, "batch n"], threshold: Float[Array, " n"], bandwidth: float) -> Float[Array, "batch n"]:
    """The pre-activations above their thresholds, and 0 elsewhere."""
    return jnp.where(pre_acts > threshold, pre_acts, 0)


def _jump_forward(pre_acts: Array, threshold: Array, bandwidth: float) -> Any:
    return jump(pre_acts, threshold, bandwidth), (pre_acts, threshold)


def _jump_backward(bandwidth: float, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    pre_acts, threshold = kept
    of_threshold = -threshold / bandwidth * _rectangle(pre_acts, threshold, bandwidth) * gradient
    return jnp.where(pre_acts > threshold, gradient, 0), jnp.sum(of_threshold, axis=0)


jump.defvjp(_jump_forward, _jump_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def is_on(
    pre_acts: Float[Array, "batch n"], threshold: Float[Array, " n"], bandwidth: float
) -> Float[Array, "batch n"]:
    """1 for pre-activations above their thresholds, and 0 elsewhere; its gradient moves thresholds alone."""
    return (pre_acts > threshold).astype(pre_acts.dtype)


def _is_on_forward(pre_acts: Array, threshold: Array, bandwidth: float) -> Any:
    return is_on(pre_acts, threshold, bandwidth), (pre_acts, threshold)


def _is_on_backward(bandwidth: float, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    pre_acts, threshold = kept
    of_threshold = -_rectangle(pre_acts, threshold, bandwidth) / bandwidth * gradient
    return jnp.zeros_like(pre_acts), jnp.sum(of_threshold, axis=0)


is_on.defvjp(_is_on_forward, _is_on_backward)


def _rectangle(pre_acts: Array, threshold: Array, bandwidth: float) -> Array:
    return (jnp.abs(pre_acts - threshold) < bandwidth / 2).astype(pre_acts.dtype)
