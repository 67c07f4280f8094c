"""The trainer: a run is a pure function of a key, a data source and hyperparameters.

`advance` moves one run by a chunk of steps, compiled. `train` and `train_grid` loop over chunks on the host,
which is where progress and history live.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, PyTree

from toy.config import Hypers, TrainConfig
from toy.sae import SAE, ReLU
from toy.shard import check_mesh, replicate, state_shardings
from toy.source import Source
from toy.state import Metrics, TrainState, init_state, trained_sae
from toy.step import train_step
from toy.upkeep import next_upkeep, upkeep

__all__ = [
    "Hypers",
    "Metrics",
    "TrainConfig",
    "TrainState",
    "advance",
    "train",
    "train_grid",
    "trained_sae",
    "trained_saes",
]

Progress = Callable[[int], Any]  # told how many steps were just done


def _advance(
    state: TrainState,
    source: Source,
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


@partial(jax.jit, static_argnames=("cfg", "mesh"), donate_argnames="state")
def advance(
    state: TrainState,
    source: Source,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    n_steps: Int[Array, ""] | int,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """`n_steps` further steps of one run, and the means of their metrics. Two of 10K equal one of 20K.

    The given state's memory is taken over by the new one: do not use it again.
    """
    state, metrics = _advance(state, source, hypers, n_steps, cfg=cfg, mesh=mesh)
    return _keep_placed(state, cfg, mesh), metrics


def _keep_placed(state: TrainState, cfg: TrainConfig, mesh: Mesh | None) -> TrainState:
    if mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, state_shardings(state, cfg.n_latents, mesh))


@partial(jax.jit, static_argnames=("d_in", "cfg", "mesh"))
def _init(key: Key[Array, ""], hypers: Hypers, *, d_in: int, cfg: TrainConfig, mesh: Mesh | None = None) -> TrainState:
    return _keep_placed(init_state(key, hypers, d_in=d_in, cfg=cfg), cfg, mesh)


def train(
    key: Key[Array, ""],
    source: Source,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    chunk: int = 1_000,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One run: the final state and its history, one row a chunk of steps. `trained_sae(state)` is the SAE.

    With a `mesh` the run is spread over its devices, by its axes `batch` and `latents` (`toy.shard`), and is the same
    up to rounding; source and hypers must be the same on every host.

    Raises: ValueError if `cfg`, `hypers` and `mesh` do not fit each other.
    """
    _check_hypers(hypers, cfg)
    if mesh is not None:
        check_mesh(mesh, cfg.n_latents, cfg.batch_size // cfg.n_microbatches)
        key, source, hypers = replicate((key, source, hypers), mesh)
    state = _init(key, hypers, d_in=source.d_in, cfg=cfg, mesh=mesh)
    move = partial(advance, source=source, hypers=hypers, cfg=cfg, mesh=mesh)
    return _run(lambda state, n: move(state, n_steps=n), state, cfg, chunk, progress)


def _run(
    move: Callable[[TrainState, int], tuple[TrainState, Metrics]],
    state: TrainState,
    cfg: TrainConfig,
    chunk: int,
    progress: Progress | None,
) -> tuple[TrainState, Metrics]:
    history = []
    for start in range(0, cfg.n_steps, chunk):
        n_steps = min(chunk, cfg.n_steps - start)
        state, metrics = move(state, n_steps)
        history.append(jax.device_get(metrics))  # waits, so that progress is true
        if progress is not None:
            progress(n_steps)
    return state, jax.tree.map(lambda *rows: np.stack(rows, axis=-1), *history)


def _check_hypers(hypers: Hypers, cfg: TrainConfig) -> None:
    n_latents = hypers.prefixes.n_latents
    if n_latents != cfg.n_latents:
        raise ValueError(f"hypers.prefixes is for {n_latents} latents, but cfg.n_latents is {cfg.n_latents}")
    if isinstance(cfg.activation, ReLU) and hypers.target_l0 is None:
        raise ValueError("hypers.target_l0: a ReLU SAE needs the L0 that its sparsity coefficient is controlled to")


# --- many runs in one program -----------------------------------------------------------------------------

_STATE_AXES = TrainState(None, *[0] * (len(TrainState._fields) - 1))  # type: ignore[arg-type]
_LANES = PartitionSpec("lanes")


def train_grid(
    keys: Key[Array, " lanes"],
    source: Source,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    in_axes: tuple[Any, Any] = (0, 0),
    chunk: int = 1_000,
    progress: Progress | None = None,
) -> tuple[TrainState, Metrics]:
    """One run a lane, all in one compiled program spread over the local devices; results lead with a lane axis.

    `in_axes` says as for `jax.vmap`, by pytree prefixes, which leaves of source and hypers have a lane axis (0)
    and which are shared (None). Lane i is `train(keys[i], source_i, hypers_i, cfg=cfg)` up to rounding.

    Raises: ValueError if a lane axis and the number of keys disagree.
    """
    _check_hypers(hypers, cfg)
    n_lanes, n_devices = keys.shape[0], jax.local_device_count()
    lanes = np.minimum(np.arange(-(-n_lanes // n_devices) * n_devices), n_lanes - 1)  # equal shares: repeat the last
    mesh = jax.make_mesh((n_devices,), ("lanes",), axis_types=(AxisType.Auto,), devices=jax.local_devices())

    def place(name: str, tree: PyTree, axes: PyTree) -> PyTree:
        def place_leaf(has_lanes: bool, leaf: Any) -> Array:
            if has_lanes and (np.ndim(leaf) == 0 or len(leaf) != n_lanes):
                raise ValueError(f"{name}: a leaf of shape {np.shape(leaf)} has no lane axis of {n_lanes}; see in_axes")
            leaf = jnp.asarray(leaf)
            return jax.device_put(
                leaf[lanes] if has_lanes else leaf, NamedSharding(mesh, _LANES if has_lanes else PartitionSpec())
            )

        return jax.tree.map(place_leaf, _has_lanes(axes, tree), tree)

    keys, source, hypers = (
        place("keys", keys, 0),
        place("source", source, in_axes[0]),
        place("hypers", hypers, in_axes[1]),
    )
    static = dict(cfg=cfg, in_axes=in_axes, mesh=mesh)
    state = _init_grid(keys, hypers, d_in=source.d_in, **static)
    state, history = _run(
        lambda state, n: _advance_grid(state, source, hypers, n_steps=n, **static), state, cfg, chunk, progress
    )
    state = jax.device_put(state, jax.local_devices()[0])
    state = TrainState(state.step, *jax.tree.map(lambda leaf: leaf[:n_lanes], tuple(state[1:])))
    return state, jax.tree.map(lambda leaf: leaf[:n_lanes], history)


@jax.jit
def trained_saes(state: TrainState) -> SAE:
    """`trained_sae` of every lane of a grid's final state."""
    return jax.vmap(trained_sae, in_axes=(_STATE_AXES,))(state)


def _is_none(axis: Any) -> bool:
    return axis is None


def _has_lanes(axes: PyTree, tree: PyTree) -> PyTree:
    """Whether each leaf of `tree` has a lane axis."""
    return jax.tree.map(lambda axis, part: jax.tree.map(lambda _: axis is not None, part), axes, tree, is_leaf=_is_none)


def _lanewise(function: Callable, mesh: Mesh, in_axes: Any, out_axes: Any) -> Callable:
    """vmap over lanes, each device taking its share of them."""

    def specs(axes: PyTree) -> PyTree:
        return jax.tree.map(lambda axis: PartitionSpec() if axis is None else _LANES, axes, is_leaf=_is_none)

    mapped = jax.vmap(function, in_axes, out_axes)
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs(in_axes), out_specs=specs(out_axes), check_vma=False)


@partial(jax.jit, static_argnames=("d_in", "cfg", "in_axes", "mesh"))
def _init_grid(
    keys: Key[Array, " lanes"], hypers: Hypers, *, d_in: int, cfg: TrainConfig, in_axes: Any, mesh: Mesh
) -> TrainState:
    init = partial(init_state, d_in=d_in, cfg=cfg)
    return _lanewise(init, mesh, (0, in_axes[1]), _STATE_AXES)(keys, hypers)


@partial(jax.jit, static_argnames=("cfg", "in_axes", "mesh"), donate_argnames="state")
def _advance_grid(
    state: TrainState,
    source: Source,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    n_steps: Int[Array, ""] | int,
    in_axes: Any,
    mesh: Mesh,
) -> tuple[TrainState, Metrics]:
    move = partial(_advance, cfg=cfg)
    return _lanewise(move, mesh, (_STATE_AXES, *in_axes, None), (_STATE_AXES, 0))(state, source, hypers, n_steps)
