"""The objective as a mean over states, of any code, and its minima."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from toy.compiled import compiled
from toy.loss import gram_mse, sparsity_penalty
from toy.methods.constrained import tied
from toy.prefixes import Prefixes, inclusion
from toy.sae import SAE, decoder_norms, encode


def minimum(
    start: SAE, x: Float[Array, "n_states d_in"], prob: Float[Array, " n_states"], prefixes: Prefixes, **how: Any
) -> tuple[SAE, Float[Array, ""]]:
    """The SAE at the local minimum that one start leads to, and its loss; `how` are the options of `minimised`."""
    found = minimised(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32)[None], start), x, prob, prefixes, **how)
    return jax.tree.map(lambda leaf: leaf[0], found)


def population_loss(
    sae: SAE,
    acts: Float[Array, "n_states n_latents"],
    x: Float[Array, "n_states d_in"],
    prob: Float[Array, " n_states"],
    prefixes: Prefixes,
    *,
    sparsity_coef: Float[Array, ""] | float,
    sparsity: str = "l1",
) -> Float[Array, ""]:
    """`toy.loss.sae_loss` of any code with latents in their places, as a mean over states in place of a batch's rows.

    The squared error is quadratic in acts and errors, so that scaling a state's by √(p · n_states) weighs it by p.
    """
    weights = jnp.sqrt(prob * len(prob))[:, None]
    s = inclusion(prefixes, jnp.arange(acts.shape[1])).astype(x.dtype)
    mse = gram_mse(weights * acts, sae.W_dec, weights * (x - sae.b_dec), s)
    norms = decoder_norms(sae)
    penalties = jax.vmap(lambda row: sparsity_penalty(row[None], norms, sparsity))(acts)
    return mse + sparsity_coef * jnp.sum(s * (prob @ penalties))


@compiled(static_argnames=("sparsity", "is_tied", "n_steps", "learning_rate"))
def minimised(
    starts: SAE,
    x: Float[Array, "n_states d_in"],
    prob: Float[Array, " n_states"],
    prefixes: Prefixes,
    *,
    sparsity_coef: Float[Array, ""] | float,
    sparsity: str = "l1",
    support: Bool[Array, "n_states n_latents"] | None = None,
    is_tied: bool = False,
    n_steps: int = 20_000,
    learning_rate: float = 1e-2,
) -> tuple[SAE, Float[Array, " starts"]]:
    """The ReLU SAEs at local minima of `population_loss`, by Adam from starts along a leading axis, and the losses.

    With a `support` latents are on in those states alone, with the activations x W_enc + b_enc: the optimum of SAEs
    that already tell when a feature is on. With `is_tied` the encoder is the decoder's transpose, and the
    decoder's rows have norm 1. The learning rate falls to 0 along a cosine, so that a kink of a ReLU does not keep the
    parameters moving.
    """

    def made(sae: SAE) -> SAE:
        return tied(sae, sae.b_enc) if is_tied else sae

    def loss(sae: SAE) -> Float[Array, ""]:
        sae = made(sae)
        acts = encode(sae, x) if support is None else support * (x @ sae.W_enc + sae.b_enc)
        return population_loss(sae, acts, x, prob, prefixes, sparsity_coef=sparsity_coef, sparsity=sparsity)

    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, n_steps))

    def step(_: Array, carry: tuple[SAE, optax.OptState]) -> tuple[SAE, optax.OptState]:
        sae, state = carry
        updates, state = adam.update(jax.grad(loss)(sae), state)
        return optax.apply_updates(sae, updates), state  # type: ignore[return-value]

    def one(start: SAE) -> tuple[SAE, Float[Array, ""]]:
        sae, _ = jax.lax.fori_loop(0, n_steps, step, (start, adam.init(start)))  # type: ignore[arg-type]
        return made(sae), loss(sae)

    return jax.vmap(one)(starts)
