"""Ground-truth feature directions `W_feat`: orthogonal, or random with a bound on their cosines."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from toy.checks import NOT_NEGATIVE, Real, Whole, check_numbers
from toy.decompositions import triangularised

_SEPARATION_STEPS = 5_000
_MOST_NUMBERS = 10**8  # of a matrix: 0.8 GB in float64


def make_directions(
    keys: Key[Array, " lanes"],
    n_features: int,
    d_in: int,
    *,
    max_cosine: float | None = None,
    norm_std: float = 0.05,
) -> Float[Array, "lanes n_features d_in"]:
    """One dictionary per key; each feature's norm is drawn once as 1 + N(0, norm_std²).

    Without `max_cosine` the directions are random orthogonal ones. With it (superposition) random directions are pushed
    apart until no |cosine| exceeds it. Training needs another key, since both start from a Gaussian draw.

    Raises: ValueError if orthogonal directions do not fit, if `max_cosine` cannot be reached, or if the matrices would
    not fit into memory.
    """
    check_directions(n_features, d_in, max_cosine)
    check_numbers({"norm_std": norm_std}, {"norm_std": NOT_NEGATIVE})
    if max_cosine is None:
        keys_directions, keys_norms = jax.vmap(jax.random.split, out_axes=1)(keys)
        norms = jax.vmap(partial(_norms, n_features=n_features, norm_std=norm_std))(keys_norms)
        return _orthogonal(keys_directions, n_features, d_in) * norms
    W_feat, reached = _superposed(keys, n_features, d_in, max_cosine, norm_std)
    worst = float(jnp.max(reached))
    if worst > max_cosine:
        raise ValueError(
            f"max_cosine: {max_cosine} was not reached in {_SEPARATION_STEPS} steps for {n_features} directions in "
            f"d_in = {d_in} (got {worst:.3f}, the Welch bound is {welch_bound(n_features, d_in):.3f}); raise d_in or "
            "max_cosine"
        )
    return W_feat


def check_given(W_feat: Any, n_features: int) -> None:
    """Raises: ValueError if directions that are given are not finite, or not a row for each feature."""
    if isinstance(W_feat, Tracer):
        return
    if np.ndim(W_feat) < 2 or np.shape(W_feat)[-2] != n_features:
        raise ValueError(f"W_feat: expected {n_features} rows, one for each feature, got shape {np.shape(W_feat)}")
    if not np.isfinite(W_feat).all():
        raise ValueError("W_feat: holds numbers that are not finite")


def check_directions(n_features: int, d_in: int, max_cosine: float | None) -> None:
    """Raises: ValueError if such directions cannot exist. Whether they are found is known only afterwards."""
    check_numbers({"n_features": n_features, "d_in": d_in}, {"n_features": Whole(), "d_in": Whole()})
    if max_cosine is None:
        if n_features > d_in:
            raise ValueError(
                f"{n_features} features have no orthogonal directions in d_in = {d_in}: raise d_in to at least "
                f"{n_features}, or use superposition mode by giving max_cosine (for example 0.5)"
            )
        _check_matrix("d_in", d_in, d_in)
        return
    check_numbers({"max_cosine": max_cosine}, {"max_cosine": Real(above=0, most=1)})
    _check_matrix("n_features and d_in", n_features, max(n_features, d_in))
    bound = welch_bound(n_features, d_in)
    if max_cosine < bound:
        raise ValueError(
            f"max_cosine: {n_features} directions in d_in = {d_in} have a |cosine| of at least {bound:.3f} "
            f"(Welch bound), so {max_cosine} is impossible; raise d_in or max_cosine"
        )


def _check_matrix(name: str, n_rows: int, n_columns: int) -> None:
    if n_rows * n_columns > _MOST_NUMBERS:
        raise ValueError(
            f"{name}: a matrix of {n_rows:,} × {n_columns:,} numbers is needed, more than the {_MOST_NUMBERS:,} that "
            "are computed; lower it"
        )


def welch_bound(n_features: int, d_in: int) -> float:
    """The least possible maximum |cosine| of n_features unit vectors: √((n − d) / (d (n − 1))), 0 if n ≤ d."""
    return math.sqrt(max(n_features - d_in, 0) / (d_in * max(n_features - 1, 1)))


@partial(jax.jit, static_argnums=(1, 2))
def _orthogonal(keys: Key[Array, " lanes"], n_features: int, d_in: int) -> Float[Array, "lanes n_features d_in"]:
    """The first rows of random orthogonal matrices, by the QR decomposition of Gaussian ones."""

    def one(key: Key[Array, ""]) -> Float[Array, "n_features d_in"]:
        Q, R = triangularised(jax.random.normal(key, (d_in, d_in)))
        Q = Q * jnp.sign(jnp.diagonal(R))  # without this the matrix is not uniform over rotations
        return Q.T[:n_features]

    return jax.vmap(one)(keys)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _superposed(
    keys: Key[Array, " lanes"], n_features: int, d_in: int, max_cosine: float, norm_std: float
) -> tuple[Float[Array, "lanes n_features d_in"], Float[Array, " lanes"]]:
    """The directions of all keys in one program, since a sweep asks for one dictionary per seed."""
    draw = partial(superposed_directions, n_features=n_features, d_in=d_in, max_cosine=max_cosine, norm_std=norm_std)
    return jax.vmap(draw)(keys)


def superposed_directions(
    key: Key[Array, ""], *, n_features: int, d_in: int, max_cosine: float, norm_std: float
) -> tuple[Float[Array, "n_features d_in"], Float[Array, ""]]:
    """Random directions pushed apart by gradient descent, and the largest |cosine| that remains."""
    key_directions, key_norms = jax.random.split(key)
    opt = optax.adam(1e-2)
    margin = 0.98 * max_cosine  # aim a little lower, so that descent ends in finite time

    def unit(W: Array) -> Array:
        return W / jnp.linalg.norm(W, axis=-1, keepdims=True)

    def cosines(W: Array) -> Array:
        return jnp.abs(unit(W) @ unit(W).T) * (1 - jnp.eye(n_features))

    def step(carry: tuple) -> tuple:
        W, opt_state, i = carry
        grad = jax.grad(lambda W: jnp.sum(jax.nn.relu(cosines(W) - margin) ** 2))(W)
        updates, opt_state = opt.update(grad, opt_state)
        return unit(W + updates), opt_state, i + 1

    def crowded(carry: tuple) -> Array:
        return (cosines(carry[0]).max() > max_cosine) & (carry[2] < _SEPARATION_STEPS)

    W = unit(jax.random.normal(key_directions, (n_features, d_in)))
    W, _, _ = jax.lax.while_loop(crowded, step, (W, opt.init(W), 0))
    return unit(W) * _norms(key_norms, n_features, norm_std), cosines(W).max()


def _norms(key: Key[Array, ""], n_features: int, norm_std: float) -> Float[Array, "n_features 1"]:
    return 1 + norm_std * jax.random.normal(key, (n_features, 1))


def cosine_matrix(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Cosine of every row of a with every row of b (host); 0 where a row is all zero.

    Raises: ValueError if the matrix of cosines would not fit into memory.
    """
    _check_matrix("cosines", len(a), len(b))
    a, b = np.asarray(a, float), np.asarray(b, float)
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return np.divide(a @ b.T, norms, out=np.zeros((len(a), len(b))), where=norms > 0)
