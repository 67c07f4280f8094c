"""One run, a chunk of steps at a time, compiled."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from toy.compiled import compiled
from toy.data.source import Batches, Source
from toy.training.config import Hypers, TrainConfig
from toy.training.maintenance import next_upkeep, upkeep
from toy.training.mesh import state_shardings
from toy.training.state import Metrics, TrainState, init_state
from toy.training.step import train_step


def many_steps(
    state: TrainState,
    source: Source | Batches,
    hypers: Hypers,
    n_steps: Int[Array, ""] | int,
    *,
    cfg: TrainConfig,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Steps in a loop, and around it one over the stretches between upkeep; both as long as they happen to be."""
    end = state.step + n_steps

    def step(_: Int[Array, ""], carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, total = carry
        state, metrics = train_step(state, source, hypers, cfg=cfg, mesh=mesh)
        return state, jax.tree.map(jnp.add, total, metrics)

    def stretch(carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, total = carry
        n = jnp.minimum(next_upkeep(state.step, cfg), end) - state.step
        return jax.lax.fori_loop(0, n, step, (upkeep(state, source, hypers, cfg=cfg), total))

    zero = jnp.zeros_like(state.sparsity_coef)
    state, total = jax.lax.while_loop(lambda carry: carry[0].step < end, stretch, (state, Metrics(*[zero] * 4)))
    return state, jax.tree.map(lambda sum: sum / n_steps, total)


@compiled(static_argnames=("cfg", "mesh"), donate_argnames="state")
def advance(
    state: TrainState,
    source: Source | Batches,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    n_steps: Int[Array, ""] | int,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """`n_steps` further steps of one run, and the means of their metrics. Two of 10K equal one of 20K.

    The given state's memory is taken over by the new one: do not use it again.
    """
    state, metrics = many_steps(state, source, hypers, n_steps, cfg=cfg, mesh=mesh)
    return _keep_placed(state, cfg, mesh), metrics


def _keep_placed(state: TrainState, cfg: TrainConfig, mesh: Mesh | None) -> TrainState:
    if mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, state_shardings(state, cfg.n_latents, mesh))


@compiled(static_argnames=("d_in", "cfg", "mesh"))
def first_state(
    key: Key[Array, ""], hypers: Hypers, *, d_in: int, cfg: TrainConfig, mesh: Mesh | None = None
) -> TrainState:
    return _keep_placed(init_state(key, hypers, d_in=d_in, cfg=cfg), cfg, mesh)


def no_metrics(state: TrainState) -> Metrics:
    """The history of no steps, of one run or of a grid."""
    return Metrics(*[np.zeros((*state.sparsity_coef.shape, 0), state.sparsity_coef.dtype)] * 4)  # type: ignore[arg-type]
