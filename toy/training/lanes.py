"""Functions of one run applied to a lane axis of many, and arrays spread over the devices by lanes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from toy.training.config import TrainConfig

_LANES = PartitionSpec("lanes")


def place(name: str, tree: PyTree, axes: PyTree, *, n_lanes: int, mesh: Mesh) -> PyTree:
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


def _is_none(axis: Any) -> bool:
    return axis is None


def _has_lanes(axes: PyTree, tree: PyTree) -> PyTree:
    """Returns whether each leaf of `tree` has a lane axis."""
    return jax.tree.map(lambda axis, part: jax.tree.map(lambda _: axis is not None, part), axes, tree, is_leaf=_is_none)


def lanewise(function: Callable, cfg: TrainConfig, mesh: Mesh, in_axes: Any, out_axes: Any) -> Callable:
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
