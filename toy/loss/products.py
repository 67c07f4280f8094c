"""Products with float32 sums, and losses that compute their gradients on the way forward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dot(spec: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """einsum of two arrays of one type, summed and returned in float32 or, for float64, in float64."""
    return jnp.einsum(spec, a, b.astype(a.dtype), preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def in_full(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """The array in the type of sums: float64 if it is float64, else float32."""
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


def scalar_loss(loss_and_grads: Callable[..., tuple[Float[Array, ""], Any]]) -> Callable[..., Float[Array, ""]]:
    """Turns a function (x, y, z, rest) -> (loss, gradients in x, y and z) into a loss differentiable in x, y and z.

    The gradients are computed together with the loss and only scaled on the way back. This is for losses whose own
    backward pass would need more memory or more products.
    """

    @jax.custom_vjp
    def loss(*args: Any) -> Float[Array, ""]:
        return loss_and_grads(*args)[0]

    def forward(*args: Any) -> tuple[Float[Array, ""], Any]:
        value, grads = loss_and_grads(*args)
        return value, tuple(grad.astype(arg.dtype) for grad, arg in zip(grads, args[:3], strict=True))

    def backward(grads: Any, cotangent: Float[Array, ""]) -> tuple:
        return (*((cotangent * grad).astype(grad.dtype) for grad in grads), None)

    loss.defvjp(forward, backward)
    return loss
