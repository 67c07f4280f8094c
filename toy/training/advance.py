"""One run, a chunk of steps at a time, compiled."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from toy.compiled import compiled
from toy.data.source import Batches, Source
from toy.training.config import Hypers, TrainConfig
from toy.training.maintenance import maintain, next_maintenance
from toy.training.mesh import state_shardings
from toy.training.state import Metrics, TrainState, init_state
from toy.training.step import draw_steps, train_step

DRAWN_STEPS = 20  # of one run, whose batches take as long to draw as to learn from at toy width
MOST_DRAWN = 2**18  # numbers in the batches of these steps
Carry = tuple[TrainState, Metrics]


def many_steps(
    state: TrainState,
    source: Source | Batches,
    hypers: Hypers,
    n_steps: Int[Array, ""] | int,
    *,
    cfg: TrainConfig,
    mesh: Mesh | None = None,
    n_drawn: int = 1,
) -> tuple[TrainState, Metrics]:
    """Stretches of steps between maintenance, until `n_steps` are done; batches are drawn for `n_drawn` steps at once.

    Drawing many at once pays for one run of small batches. Lanes are many batches already.
    """
    end = state.step + n_steps
    n_block = int(np.clip(MOST_DRAWN // (cfg.batch_size * source.d_in), 1, n_drawn))

    def block(carry: Carry, end: Int[Array, ""]) -> Carry:
        first = carry[0].step
        batches, prefixes = draw_steps(carry[0], source, hypers, n_block, cfg=cfg)

        def step(i: Int[Array, ""], carry: Carry) -> Carry:
            state, total = carry
            drawn = jax.tree.map(lambda leaf: leaf[i], prefixes)
            state, metrics = train_step(state, batches.at(first + i), drawn, hypers, cfg=cfg, mesh=mesh)
            return state, jax.tree.map(jnp.add, total, metrics)

        return jax.lax.fori_loop(0, jnp.minimum(n_block, end - first), step, carry)

    def stretch(carry: Carry) -> Carry:
        state, total = carry
        stop = jnp.minimum(next_maintenance(state.step, cfg), end)
        carry = maintain(state, source, hypers, cfg=cfg), total
        return jax.lax.while_loop(lambda carry: carry[0].step < stop, lambda carry: block(carry, stop), carry)

    # As `zeros_like` this would be one zero for all lanes, and `vmap` would trace each loop again on finding that its
    # sums are not.
    zero = jnp.where(state.sparsity_coef > 0, 0.0, 0.0).astype(state.sparsity_coef.dtype)
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
    state, metrics = many_steps(state, source, hypers, n_steps, cfg=cfg, mesh=mesh, n_drawn=DRAWN_STEPS)
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
