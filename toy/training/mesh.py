"""One run over several devices: the names of a mesh's axes say which axis of which array is cut.

`batch` cuts the rows of a batch (data parallelism), `latents` cuts parameters and optimizer state along the latents.
XLA then places the work and adds the collectives; the loss and the step know nothing of devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from toy.sae import SAE, map_parts

AXES = ("batch", "latents")


def check_mesh(mesh: Mesh, n_latents: int, batch_size: int) -> None:
    """Raises: ValueError if the mesh has other axes, or cannot cut an axis evenly."""
    unknown = set(mesh.axis_names) - set(AXES)
    if unknown:
        raise ValueError(f"mesh: axes are named {' or '.join(map(repr, AXES))}, got {', '.join(map(repr, unknown))}")
    for axis, name, size in (("batch", "batch_size", batch_size), ("latents", "n_latents", n_latents)):
        if size % mesh.shape.get(axis, 1):
            raise ValueError(
                f"{name}: {size} cannot be cut evenly over the {mesh.shape[axis]} devices of mesh axis {axis!r}"
            )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows over the mesh axis `batch`."""
    return NamedSharding(mesh, PartitionSpec(_axis(mesh, "batch")))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places the same values on every device of the mesh; every host gives its own copy of them."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, everywhere, lambda index: values[index])

    return jax.tree.map(place, tree)


def state_shardings(state: PyTree, n_latents: int, mesh: Mesh) -> PyTree:
    """The sharding of every leaf: latent axes over `latents`, everything else on all devices."""
    latents = _axis(mesh, "latents")

    def of_sae(sae: SAE) -> SAE:
        specs = (PartitionSpec(None, latents), *[PartitionSpec(latents)] * 2, PartitionSpec(), PartitionSpec(latents))
        there = [None if leaf is None else NamedSharding(mesh, spec) for leaf, spec in zip(sae, specs, strict=True)]
        return SAE(*there)  # type: ignore[arg-type]

    def of_leaf(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(latents) if leaf.shape[:1] == (n_latents,) else PartitionSpec())

    return map_parts(of_sae, of_leaf, state)


def _axis(mesh: Mesh, name: str) -> str | None:
    return name if name in mesh.axis_names else None
