"""One training step: the pure core that `toy.training.advance` and `toy.training.grid` compile."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from toy.data.source import Batches, Source
from toy.loss import LossParts
from toy.methods.method import Batch, Params
from toy.prefixes import Prefixes, draw
from toy.sae import SAE, map_parts
from toy.training.config import Hypers, TrainConfig
from toy.training.controllers import control, ramped
from toy.training.mesh import batch_sharding
from toy.training.state import (
    INPUT_NORM_DECAY,
    Metrics,
    TrainState,
    input_scale,
    latent_ranks,
    lr_share,
    optimizer,
    step_keys,
)

CONTRIBUTION_DECAY = 0.95


def draw_steps(
    state: TrainState, source: Source | Batches, hypers: Hypers, n_steps: int, *, cfg: TrainConfig
) -> tuple[Batches, Prefixes]:
    """The batches and the prefixes of the next `n_steps` steps, each with the keys of its own step.

    The prefixes lead with an axis of steps. Drawing many steps at once changes no number and takes half the time.
    """

    def one(step: Int[Array, ""]) -> tuple[Float[Array, "batch d_in"] | None, Prefixes]:
        key_data, key_prefixes, _ = step_keys(state.key, step)
        x = None if isinstance(source, Batches) else source.sample(key_data, cfg.batch_size)
        return x, draw(key_prefixes, hypers.prefixes)

    if n_steps == 1:  # not `vmap`, which makes XLA's loops over random bits slower in lanes
        x, prefixes = jax.tree.map(lambda leaf: leaf[None], one(state.step))
    else:
        x, prefixes = jax.vmap(one)(state.step + jnp.arange(n_steps))
    return (source if x is None else Batches(x, state.step)), prefixes  # type: ignore[return-value]


def train_step(
    state: TrainState,
    x: Float[Array, "batch d_in"],
    prefixes: Prefixes,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Scales a batch, weighs the prefixes by rank, descends, and follows what the batch shows."""
    step = state.step
    if mesh is not None:
        x = jax.lax.with_sharding_constraint(x, batch_sharding(mesh))
    mean_norm = jnp.mean(jnp.linalg.norm(x, axis=1))
    if hypers.input_size is not None:
        mean_norm /= hypers.input_size
    state = state._replace(
        step=step + 1,
        input_norm=INPUT_NORM_DECAY * state.input_norm + (1 - INPUT_NORM_DECAY) * mean_norm,
    )
    x = x * input_scale(state, x.shape[1])

    ranks = jnp.arange(cfg.n_latents) if cfg.moves_latents else latent_ranks(state.contribution)
    coef = ramped(state.sparsity_coef, step, cfg.n_sparsity_warmup_steps)
    done = step / cfg.n_steps
    key = jax.random.fold_in(step_keys(state.key, step)[2], 1)
    batch = Batch(
        x=x,
        prefixes=prefixes,
        ranks=ranks,
        sparsity_coef=coef,
        target_l0=hypers.target_l0,
        done=done,
        key=key,
        memory=state.memory,
        form=cfg.loss_form,
        aux_coef=hypers.aux_coef,
    )

    def loss(params: Params, x: Float[Array, "part d_in"]) -> tuple[Float[Array, ""], LossParts]:
        if cfg.dtype == "bfloat16":
            params = map_parts(_with_bfloat16_products, lambda leaf: leaf, params)
        return cfg.method.loss(params, batch._replace(x=x))

    value_and_grad = partial(jax.value_and_grad(loss, has_aux=True), state.params)
    (value, parts), grads = (
        value_and_grad(x) if cfg.n_microbatches == 1 else _mean(value_and_grad, x, cfg.n_microbatches)
    )
    updates, opt_state = optimizer(hypers, cfg).update(grads, state.opt_state)
    params = cfg.method.project(jax.tree.map(jnp.add, state.params, updates), done)
    state = state._replace(params=params, opt_state=opt_state)
    return _follow(state, parts, hypers, step, cfg), Metrics(value, parts.mse, parts.l0, coef)


def _with_bfloat16_products(sae: SAE) -> SAE:
    return sae._replace(W_enc=sae.W_enc.astype(jnp.bfloat16), W_dec=sae.W_dec.astype(jnp.bfloat16))


def _mean(
    value_and_grad: Callable, x: Float[Array, "batch d_in"], n_parts: int
) -> tuple[tuple[Float[Array, ""], LossParts], Params]:
    """The mean of a function over equal parts of the batch, with one part in memory at a time."""
    parts = x.reshape(-1, n_parts, x.shape[1]).swapaxes(0, 1)  # so that a part has rows of every device's share
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(value_and_grad, parts[0]))
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, value_and_grad(part)), None), total, parts
    )
    return jax.tree.map(lambda leaf: leaf / n_parts, total)


def _follow(state: TrainState, parts: LossParts, hypers: Hypers, step: Int[Array, ""], cfg: TrainConfig) -> TrainState:
    """Move the L0 controller, the method's memory and the running means by what a batch showed."""
    if state.memory is not None:
        memory = cfg.method.remember(state.memory, parts, jnp.asarray(lr_share(cfg)(step)))
        state = state._replace(memory=memory)
    if cfg.method.controls_l0 and hypers.target_l0 is not None:
        warmup = cfg.n_sparsity_warmup_steps
        coef = control(state.sparsity_coef, parts.l0, hypers.target_l0, hypers.control_rate, step, warmup)
        state = state._replace(sparsity_coef=coef)
    seen = (1 - CONTRIBUTION_DECAY) * cfg.method.importance(parts)
    return state._replace(contribution=CONTRIBUTION_DECAY * state.contribution + seen)
