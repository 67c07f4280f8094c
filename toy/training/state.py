"""The state of a run: how it starts, and what is read from it (ranks, input scale, the trained SAE)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from toy.methods.method import Memory, Method, Params
from toy.sae import MOST_PAIRS, SAE, fold_input_scale, map_parts, take_latents
from toy.training.config import Hypers, TrainConfig

INPUT_NORM_DECAY = 0.99


class TrainState(NamedTuple):
    """Everything a run needs to go on."""

    step: Int[Array, ""]
    key: Key[Array, "*lanes"]
    params: Params  # of the method; its SAE acts on scaled inputs (`input_scale`)
    opt_state: PyTree
    sparsity_coef: Float[Array, "*lanes"]
    contribution: Float[Array, "*lanes n_latents"]  # running mean of `Method.importance`
    input_norm: Float[Array, "*lanes"]  # running mean of ‖x‖ / input_size, still to be divided by 1 − decay^step
    memory: Memory  # what the method keeps beside its parameters
    method: Method  # static: no leaf


class Metrics(NamedTuple):
    """Means over the steps of a chunk."""

    loss: Float[Array, "*chunk"]
    mse: Float[Array, "*chunk"]  # weighted over prefixes, of scaled inputs
    l0: Float[Array, "*chunk"]
    sparsity_coef: Float[Array, "*chunk"]


def init_state(key: Key[Array, ""], hypers: Hypers, *, d_in: int, cfg: TrainConfig) -> TrainState:
    """The state before the first step."""
    key_sae, key_steps = jax.random.split(key)
    params = cfg.method.init(key_sae, d_in, cfg.n_latents)
    if hypers.start is not None:
        params = map_parts(partial(_started, hypers.start), lambda leaf: leaf, params)
    if hypers.n_latents is not None:  # with no encoder a latent is never on, and gets no gradient
        there = jnp.arange(cfg.n_latents) < hypers.n_latents
        params = map_parts(lambda sae: sae._replace(W_enc=jnp.where(there, sae.W_enc, 0)), lambda leaf: leaf, params)
    return TrainState(
        step=jnp.int32(0),
        key=key_steps,
        params=params,
        opt_state=optimizer(hypers, cfg).init(params),
        sparsity_coef=jnp.array(hypers.sparsity_coef, jax.tree.leaves(params)[0].dtype),
        contribution=jnp.zeros(cfg.n_latents),
        input_norm=jnp.zeros(()),
        memory=cfg.method.init_memory(d_in, cfg.n_latents),
        method=cfg.method,
    )


def _started(start: SAE, own: SAE) -> SAE:
    """The parameters with the first latents, and the decoder's bias, of another SAE; thresholds stay a method's own."""
    n = start.b_enc.shape[0]
    W_enc, b_enc = own.W_enc.at[:, :n].set(start.W_enc), own.b_enc.at[:n].set(start.b_enc)
    return SAE(W_enc, b_enc, own.W_dec.at[:n].set(start.W_dec), jnp.asarray(start.b_dec, b_enc.dtype), own.threshold)


def check_key(key: Any, n_axes: int = 0) -> None:
    """Raises: ValueError if `key` is not a typed key, or not a vector of keys where there are several runs."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key: expected a key, such as jax.random.key(0), got {type(key).__name__}")
    if key.ndim != n_axes:
        expected = "one key: train_grid takes several" if n_axes == 0 else "a vector of keys, one per run"
        raise ValueError(f"key: expected {expected}; got shape {key.shape}")


def lr_share(cfg: TrainConfig) -> optax.Schedule:
    """The multiplier of the learning rate at a step: linear warm-up, constant, linear cool-down (reference code)."""
    n_cooldown = round(cfg.lr_cooldown_share * cfg.n_steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, 1.0, cfg.n_lr_warmup_steps),
            optax.linear_schedule(1.0, cfg.final_lr_share, n_cooldown),
        ],
        [cfg.n_steps - n_cooldown],
    )


def optimizer(hypers: Hypers, cfg: TrainConfig) -> Any:  # optax's types know no SAE without a threshold
    """Clip by global norm, then Adam (reference code). XLA folds the clipping into Adam's passes."""
    share = lr_share(cfg)
    return optax.chain(
        optax.clip_by_global_norm(hypers.clip_norm),  # type: ignore[arg-type]
        optax.scale_by_adam(hypers.b1, hypers.b2),  # type: ignore[arg-type]
        optax.scale_by_learning_rate(lambda count: hypers.learning_rate * share(count)),
    )


def latent_ranks(contribution: Float[Array, " n_latents"]) -> Int[Array, " n_latents"]:
    """The place of each latent, from 0, when latents are sorted by descending contribution; ties keep their order."""
    n_latents = contribution.shape[0]
    place = jnp.arange(n_latents)
    if n_latents > MOST_PAIRS:
        return jnp.zeros_like(place).at[jnp.argsort(-contribution, stable=True)].set(place, unique_indices=True)
    ahead = (contribution > contribution[:, None]) | (
        (contribution == contribution[:, None]) & (place < place[:, None])
    )
    return ahead.sum(axis=1)


def input_scale(state: TrainState, d_in: int) -> Float[Array, ""]:
    """The factor that scales inputs to a mean norm of input_size · √d_in.

    The running mean is corrected for its start at 0, as Adam's moments are.
    """
    mean_norm = state.input_norm / (1 - INPUT_NORM_DECAY**state.step)
    return jnp.sqrt(d_in) / jnp.maximum(mean_norm, 1e-12)


def trained_sae(state: TrainState) -> SAE:
    """The SAE of a run, on unscaled inputs, with its latents sorted by contribution."""
    sae = state.method.export(state.params, state.memory)
    order = jnp.argsort(-state.contribution, stable=True)
    return take_latents(fold_input_scale(sae, input_scale(state, sae.b_dec.shape[0])), order)


def step_keys(key: Key[Array, ""], step: Int[Array, ""]) -> tuple[Key[Array, ""], ...]:
    """The keys of a step's data, of its prefixes, and of the maintenance before it."""
    return tuple(jax.random.split(jax.random.fold_in(key, step), 3))
