"""Decompositions of small matrices, each by itself.

JAX divides those of a batch among the threads of its CPU client, and waits for them on one of these threads. Where two
batches are at work, as on two devices, each can wait for the other for ever (jaxlib 0.10). So `vmap` takes one after
the other here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_batching.sequential_vmap
def principal_axes(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The eigenvectors of a symmetric matrix in columns, by rising eigenvalue."""
    return jnp.linalg.eigh(matrix)[1]


@jax.custom_batching.sequential_vmap
def polar_factor(matrix: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """The matrix with orthonormal rows or columns that is nearest to this one."""
    left, _, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left @ right


@jax.custom_batching.sequential_vmap
def triangularised(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """An orthogonal matrix Q and an upper triangular one R with Q R = matrix."""
    return tuple(jnp.linalg.qr(matrix))  # type: ignore[return-value]
