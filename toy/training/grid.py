"""Many runs in one compiled program, spread over the local devices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, PyTree

from toy.compiled import compiled
from toy.data.source import Batches, Source, Stream
from toy.sae import SAE
from toy.training.advance import many_steps, no_metrics
from toy.training.config import Hypers, TrainConfig
from toy.training.feed import checked_run, feed_chunk, feeding, run_facts
from toy.training.loop import Checkpoint, Progress, run_chunks
from toy.training.state import Metrics, TrainState, init_state, trained_sae

_STATE_AXES = TrainState(None, *[0] * (len(TrainState._fields) - 1))  # type: ignore[arg-type]
_LANES = PartitionSpec("lanes")


def train_grid(
    keys: Key[Array, " lanes"],
    source: Source | Stream,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    in_axes: tuple[Any, Any] = (0, 0),
    chunk: int = 1_000,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[TrainState, Metrics]:
    """One run per lane, all in one compiled program spread over the local devices; results lead with a lane axis.

    `in_axes` says as for `jax.vmap`, by pytree prefixes, which leaves of source and hypers have a lane axis (0)
    and which are shared (None). Lane i is `train(keys[i], source_i, hypers_i, cfg=cfg)` up to rounding.

    Raises: ValueError if a lane axis and the number of keys disagree, and as `train`.
    """
    source = checked_run(keys, source, hypers, cfg, n_lanes=np.size(keys))
    if isinstance(source, Stream) and in_axes[0] is not None:
        raise ValueError("in_axes: a stream is shared by all lanes: its entry must be None")
    n_lanes, n_devices = keys.shape[0], jax.local_device_count()
    mesh = jax.make_mesh((n_devices,), ("lanes",), axis_types=(AxisType.Auto,), devices=jax.local_devices())
    place = partial(_place, n_lanes=n_lanes, mesh=mesh)
    facts = None
    if checkpoint is not None:
        facts = run_facts(keys, source, hypers, cfg) | {"in_axes": repr(in_axes), "n_devices": n_devices}
    keys, hypers = place("keys", keys, 0), place("hypers", hypers, in_axes[1])
    static = dict(cfg=cfg, in_axes=in_axes, mesh=mesh)
    state = _init_grid(keys, hypers, d_in=source.d_in, **static)
    chunk = feed_chunk(source, chunk, cfg)
    with feeding(source, chunk, cfg, lambda source: place("source", source, in_axes[0])) as feed:
        state, history = run_chunks(
            lambda state, source, n: _advance_grid(state, source, hypers, n_steps=n, **static),
            state,
            cfg.n_steps,
            feed=feed,
            chunk=chunk,
            progress=progress,
            checkpoint=checkpoint,
            facts=facts,
            empty=no_metrics(state),
        )
    state = jax.device_put(state, jax.local_devices()[0])
    state = TrainState(state.step, *jax.tree.map(lambda leaf: leaf[:n_lanes], tuple(state[1:])))
    return state, jax.tree.map(lambda leaf: leaf[:n_lanes], history)


def _place(name: str, tree: PyTree, axes: PyTree, *, n_lanes: int, mesh: Mesh) -> PyTree:
    """Spreads lanes evenly over the devices, repeating the last to fill them; other leaves go to all devices."""
    lanes = np.minimum(np.arange(-(-n_lanes // mesh.size) * mesh.size), n_lanes - 1)

    def place_leaf(has_lanes: bool, leaf: Any) -> Array:
        if has_lanes and (np.ndim(leaf) == 0 or len(leaf) != n_lanes):
            raise ValueError(f"{name}: a leaf of shape {np.shape(leaf)} has no lane axis of {n_lanes}; see in_axes")
        leaf = jnp.asarray(leaf)
        return jax.device_put(
            leaf[lanes] if has_lanes else leaf, NamedSharding(mesh, _LANES if has_lanes else PartitionSpec())
        )

    return jax.tree.map(place_leaf, _has_lanes(axes, tree), tree)


@compiled()
def trained_saes(state: TrainState) -> SAE:
    """`trained_sae` of every lane of a grid's final state."""
    return jax.vmap(trained_sae, in_axes=(_STATE_AXES,))(state)


def _is_none(axis: Any) -> bool:
    return axis is None


def _has_lanes(axes: PyTree, tree: PyTree) -> PyTree:
    """Returns whether each leaf of `tree` has a lane axis."""
    return jax.tree.map(lambda axis, part: jax.tree.map(lambda _: axis is not None, part), axes, tree, is_leaf=_is_none)


def _lanewise(function: Callable, cfg: TrainConfig, mesh: Mesh, in_axes: Any, out_axes: Any) -> Callable:
    """Applies `function` to every lane, each device to its share of them."""

    def specs(axes: PyTree) -> PyTree:
        return jax.tree.map(lambda axis: PartitionSpec() if axis is None else _LANES, axes, is_leaf=_is_none)

    mapped = each_lane(function, cfg, in_axes, out_axes)
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs(in_axes), out_specs=specs(out_axes), check_vma=False)


def each_lane(function: Callable, cfg: TrainConfig, in_axes: Any, out_axes: Any) -> Callable:
    """Applies `function` to every lane, on one device.

    Small SAEs are batched. At width the products of one lane are large enough, and batching would turn slices at a
    lane's own bounds into gathers, so a device takes its lanes one after the other.
    """
    return (jax.vmap if cfg.loss_form == "gram" else _in_turn)(function, in_axes, out_axes)


def _in_turn(function: Callable, in_axes: Any, out_axes: Any) -> Callable:
    """Does what `jax.vmap` does, one lane after the other."""

    def mapped(*args: Any) -> Any:
        has_lanes = jax.tree.leaves(_has_lanes(in_axes, args))
        leaves, structure = jax.tree.flatten(args)
        lanes = [leaf for leaf, own in zip(leaves, has_lanes, strict=True) if own]

        def of_lane(lane: list[Array]) -> Any:
            own = iter(lane)
            mixed = [next(own) if has else leaf for leaf, has in zip(leaves, has_lanes, strict=True)]
            return function(*jax.tree.unflatten(structure, mixed))

        out = jax.lax.map(of_lane, lanes)
        return jax.tree.map(lambda own, leaf: leaf if own else leaf[0], _has_lanes(out_axes, out), out)

    return mapped


@compiled(static_argnames=("d_in", "cfg", "in_axes", "mesh"))
def _init_grid(
    keys: Key[Array, " lanes"], hypers: Hypers, *, d_in: int, cfg: TrainConfig, in_axes: Any, mesh: Mesh
) -> TrainState:
    init = partial(init_state, d_in=d_in, cfg=cfg)
    return _lanewise(init, cfg, mesh, (0, in_axes[1]), _STATE_AXES)(keys, hypers)


@compiled(static_argnames=("cfg", "in_axes", "mesh"), donate_argnames="state")
def _advance_grid(
    state: TrainState,
    source: Source | Batches,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    n_steps: Int[Array, ""] | int,
    in_axes: Any,
    mesh: Mesh,
) -> tuple[TrainState, Metrics]:
    move = partial(many_steps, cfg=cfg)
    return _lanewise(move, cfg, mesh, (_STATE_AXES, *in_axes, None), (_STATE_AXES, 0))(state, source, hypers, n_steps)
