"""The parts of a layer: linear maps, norms, attention and the MLP, of every family."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from toy.lm.config import LMConfig

Heads = Float[Array, "batch pos n_heads d_head"]
Shared = Float[Array, "batch pos n_kv d_head"]  # keys or values


def linear(d_in: int, d_out: int, rngs: nnx.Rngs, *, variance: float = 1.0, use_bias: bool = True) -> nnx.Linear:
    """Weights N(0, variance / d_in)."""
    init = nnx.initializers.variance_scaling(variance, "fan_in", "normal")
    return nnx.Linear(d_in, d_out, use_bias=use_bias, kernel_init=init, rngs=rngs)


def norm(cfg: LMConfig, rngs: nnx.Rngs) -> Callable[[jax.Array], jax.Array]:
    if cfg.family == "tiny_model":
        return _identity
    kind = nnx.RMSNorm if cfg.family == "llama" else nnx.LayerNorm
    return kind(cfg.d_model, epsilon=cfg.norm_eps, use_fast_variance=False, rngs=rngs)


def _identity(x: jax.Array) -> jax.Array:
    return x


class Attention(nnx.Module):
    """Causal self-attention, in float32 whatever the parameters are."""

    def __init__(self, cfg: LMConfig, window: int | None, *, rngs: nnx.Rngs) -> None:
        d, d_head, scaled = cfg.d_model, cfg.head_size, cfg.family != "gpt_neo"
        self.d_head, self.window, self.scale = d_head, window, d_head**-0.5 if scaled else 1.0
        self.rope_theta = cfg.rope_theta if cfg.family == "llama" else None
        # Where scores are not scaled, small queries take the place of the scale when training starts.
        self.Q = linear(d, cfg.n_heads * d_head, rngs, variance=1.0 if scaled else 1 / d_head, use_bias=False)
        self.K = linear(d, cfg.n_kv * d_head, rngs, use_bias=False)
        self.V = linear(d, cfg.n_kv * d_head, rngs, use_bias=False)
        variance, use_bias = 1 / (2 * cfg.n_layers), cfg.family != "llama"
        self.O = linear(cfg.n_heads * d_head, d, rngs, variance=variance, use_bias=use_bias)

    def __call__(self, x: Float[Array, "batch pos d_model"]) -> Float[Array, "batch pos d_model"]:
        window = None if self.window is None else (self.window - 1, 0)  # positions to the left and to the right
        q, k, v = self.heads(x, jnp.arange(x.shape[1]))
        seen = jax.nn.dot_product_attention(q, k, v, scale=self.scale, is_causal=True, local_window_size=window)
        return self.written(seen, x.dtype)

    def heads(
        self, x: Float[Array, "batch pos d_model"], positions: Int[Array, " pos"]
    ) -> tuple[Heads, Shared, Shared]:
        """Queries, keys and values of the tokens at these positions; each head of keys serves as many of queries."""
        q, k, v = (
            layer(x).astype(jnp.float32).reshape(*x.shape[:2], -1, self.d_head) for layer in (self.Q, self.K, self.V)
        )
        if self.rope_theta is None:
            return q, k, v
        return rotated(q, positions, self.rope_theta), rotated(k, positions, self.rope_theta), v

    def written(self, seen: Heads, dtype: Any) -> Float[Array, "batch pos d_model"]:
        """Returns what is added to the residual stream, given the values that each head of queries has gathered."""
        return self.O(seen.reshape(*seen.shape[:2], -1).astype(dtype))


def rotated(x: Heads, positions: Int[Array, " pos"], theta: float) -> Heads:
    """Rotary positions: number i of a head and number i + d_head / 2 are turned, as a pair, by an angle ∝ position."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None] * theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class MLP(nnx.Module):
    def __init__(self, cfg: LMConfig, *, rngs: nnx.Rngs) -> None:
        d, n_hidden, use_bias = cfg.d_model, cfg.n_hidden, cfg.family != "llama"
        self.read_in = linear(d, n_hidden, rngs, use_bias=use_bias)
        self.write_out = linear(n_hidden, d, rngs, variance=1 / (2 * cfg.n_layers), use_bias=use_bias)
        self.gate = linear(d, n_hidden, rngs, use_bias=False) if cfg.family == "llama" else None
        self.act = {"tiny_model": jax.nn.relu, "gpt_neo": jax.nn.gelu, "llama": jax.nn.silu}[cfg.family]
        # jax.nn.gelu is the tanh approximation, which Transformers calls gelu_new.

    def __call__(self, x: Float[Array, "batch pos d_model"]) -> Float[Array, "batch pos d_model"]:
        read = self.read_in(x)
        return self.write_out(self.act(read) if self.gate is None else self.act(self.gate(x)) * read)
