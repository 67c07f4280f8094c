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
from jaxtyping import Array, Key, PyTree

from toy.sae import SAE
from toy.source import Source
from toy.step import Hypers, Metrics, TrainConfig, TrainState, init_state, train_step, trained_sae

__all__ = ["Hypers", "Metrics", "TrainConfig", "TrainState", "advance", "train", "train_grid", "trained_saes"]

Progress = Callable[[int], Any]  # told how many steps were just done


def _advance(
    state: TrainState, source: Source, hypers: Hypers, *, cfg: TrainConfig, n_steps: int
) -> tuple[TrainState, Metrics]:
    def step(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        return train_step(state, source, hypers, cfg=cfg)

    state, metrics = jax.lax.scan(step, state, length=n_steps)
    return state, jax.tree.map(partial(jnp.mean, axis=0), metrics)


@partial(jax.jit, static_argnames=("cfg", "n_steps"))
def advance(
    state: TrainState, source: Source, hypers: Hypers, *, cfg: TrainConfig, n_steps: int
) -> tuple[TrainState, Metrics]:
    """`n_steps` further steps of one run, and the means of their metrics. Two of 10K equal one of 20K."""
    return _advance(state, source, hypers, cfg=cfg, n_steps=n_steps)


@partial(jax.jit, static_argnames=("d_in", "cfg"))
def _init(key: Key[Array, ""], hypers: Hypers, *, d_in: int, cfg: TrainConfig) -> TrainState:
    return init_state(key, hypers, d_in=d_in, cfg=cfg)


def train(
    key: Key[Array, ""],
    source: Source,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    chunk: int = 1_000,
    progress: Progress | None = None,
) -> tuple[TrainState, Metrics]:
    """One run: the final state and its history, one row a chunk of steps. `trained_sae(state)` is the SAE."""
    _check_hypers(hypers, cfg)
    state = _init(key, hypers, d_in=source.d_in, cfg=cfg)
    return _run(lambda state, n: advance(state, source, hypers, cfg=cfg, n_steps=n), state, cfg, chunk, progress)


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


@partial(jax.jit, static_argnames=("cfg", "n_steps", "in_axes", "mesh"), donate_argnames="state")
def _advance_grid(
    state: TrainState, source: Source, hypers: Hypers, *, cfg: TrainConfig, n_steps: int, in_axes: Any, mesh: Mesh
) -> tuple[TrainState, Metrics]:
    move = partial(_advance, cfg=cfg, n_steps=n_steps)
    return _lanewise(move, mesh, (_STATE_AXES, *in_axes), (_STATE_AXES, 0))(state, source, hypers)
