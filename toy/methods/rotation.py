"""A search for the sparsest code among the rotations of a decoder."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from toy.checks import NOT_NEGATIVE, POSITIVE, Whole, check_fields
from toy.decompositions import polar_factor, principal_axes, triangularised

LEAST_ENERGY = 1e-3  # of a sample in a block, over the squared mean norm: less says nothing about the block
OWN_SUBSPACE = 1e-6  # weight of the decoder's own directions, which counts where the data has none
MOST_UNROLLED = 8  # rows of a matrix whose products are written out


@dataclass(frozen=True)
class Search:
    """The settings of a search for rotations.

    An orthonormal decoder that spans the data codes it without an error, y = W_dec x, and so does each of its
    rotations. Of these codes the search wants the sparsest one, by the concave penalty Σ_i E[|y_i| / (|y_i| + ε)],
    which tends to L0 as ε falls, and by Σ_i E[min(y_i, 0)²], since no activation is negative. It has two parts:

    1. all latents descend from the given decoder, and from rotations at random, of which the best one goes on;
    2. what is then wrong concerns few latents. So a latent and others that are on with it are rotated at a time: they
       descend from where they are and from rotations at random, and the best of these is taken where it is better.
    """

    n_rows: int = 8_192  # samples that the search sees
    n_whole_starts: int = 2  # starts of the first part from each centre
    n_whole_steps: int = 600  # of each descent in the first part
    n_whole_rows: int = 1_024  # samples in the first part
    n_rounds: int = 12  # of the second part, in which every latent has its turn
    block: int = 6  # latents that are rotated in a turn
    n_starts: int = 8  # starts in a turn
    n_steps: int = 200  # of each descent in a turn
    n_block_rows: int = 256  # samples in a turn, of those on which the block is on
    step: float = 0.3  # size of a descent's steps, roughly in radians; it falls to 0
    first_offset: float = 0.5  # ε over the mean norm of samples at the start of a descent …
    offset: float = 0.05  # … and at its end
    negative: float = 3.0  # weight of squared negative activations, over the squared mean norm
    margin: float = 2e-3  # by which the objective of a block has to fall

    def __post_init__(self) -> None:
        counts = ("n_rows", "n_whole_starts", "n_whole_steps", "n_whole_rows", "n_rounds", "n_starts", "n_steps")
        check_fields(self, **dict.fromkeys((*counts, "n_block_rows"), Whole()), block=Whole(2))
        check_fields(self, step=POSITIVE, first_offset=POSITIVE, offset=POSITIVE)
        check_fields(self, negative=NOT_NEGATIVE, margin=NOT_NEGATIVE)


class Code(NamedTuple):
    W_dec: Float[Array, "n_latents d_in"]  # orthonormal rows
    y: Float[Array, "n_latents rows"]  # W_dec (x − centre)


def rotate(
    key: Key[Array, ""],
    W_dec: Float[Array, "n_latents d_in"],
    x: Float[Array, "rows d_in"],
    centres: Float[Array, "n_centres d_in"],
    there: Bool[Array, " n_latents"],
    how: Search,
) -> tuple[Float[Array, "n_latents d_in"], Float[Array, " d_in"]]:
    """The decoder of the sparsest code that the search finds, and the centre, of those given, from which it codes x.

    Latents that are not `there` stay as they are.
    """
    key_whole, key_turns = jax.random.split(key)

    def from_centre(centre: Float[Array, " d_in"]) -> tuple[Code, Float[Array, ""]]:
        centred = (x - centre) / jnp.maximum(jnp.mean(jnp.linalg.norm(x - centre, axis=1)), 1e-12)
        start = orthonormal(W_dec, centred, there)
        return _rotate_all(key_whole, Code(start, start @ centred.T * there[:, None]), there, how)

    codes, values = jax.lax.map(from_centre, centres)
    best = jnp.argmin(values)
    code = jax.tree.map(lambda leaf: leaf[best], codes)

    n_there = jnp.sum(there)

    def turn(i: Int[Array, ""], code: Code) -> Code:
        return _rotate_block(jax.random.fold_in(key_turns, i), code, i % n_there, there, how)

    code = jax.lax.fori_loop(0, how.n_rounds * n_there, turn, code)
    return jnp.where(there[:, None], code.W_dec, W_dec), centres[best]


def orthonormal(
    W_dec: Float[Array, "n_latents d_in"], x: Float[Array, "rows d_in"], there: Bool[Array, " n_latents"]
) -> Float[Array, "n_latents d_in"]:
    """The orthonormal rows that are nearest to the decoder's, of those that span the principal subspace of x.

    Where x has no energy they span the decoder's own directions.
    """
    unit = W_dec / jnp.maximum(jnp.linalg.norm(W_dec, axis=1, keepdims=True), 1e-12) * there[:, None]
    moments = x.T @ x / len(x)
    axes = principal_axes(moments + OWN_SUBSPACE * jnp.trace(moments) * unit.T @ unit)
    axes = axes[:, ::-1] * (jnp.arange(x.shape[1]) < jnp.sum(there))
    return polar_factor(unit @ axes) @ axes.T


def objective(
    y: Float[Array, "*starts n rows"], offset: Float[Array, ""] | float, how: Search
) -> Float[Array, "*starts"]:
    """Least for the sparsest code without negative activations: a sum over latents, a mean over rows."""
    size = jnp.abs(y)
    penalty = size / (size + offset) + how.negative * jnp.minimum(y, 0) ** 2
    return jnp.sum(jnp.mean(penalty, axis=-1), axis=-1)


def _rotate_all(
    key: Key[Array, ""], code: Code, there: Bool[Array, " n_latents"], how: Search
) -> tuple[Code, Float[Array, ""]]:
    """The best code of several descents, and its objective."""
    z = code.y[:, : how.n_whole_rows]
    starts = first_rotations(key, z, there, how.n_whole_starts, n_here=1)
    ends = descend(starts, z, there, how.n_whole_steps, how)
    values = objective(ends @ z, how.offset, how)
    best = ends[jnp.argmin(values)]
    return Code(best @ code.W_dec, best @ code.y), jnp.min(values)


def _rotate_block(
    key: Key[Array, ""], code: Code, first: Int[Array, ""], there: Bool[Array, " n_latents"], how: Search
) -> Code:
    """Rotates the latent `first` with others, drawn the more often the more they are on together with it."""
    key_block, key_rows, key_starts = jax.random.split(key, 3)
    n_latents, n_rows = code.y.shape
    size = jnp.abs(code.y)
    together = size @ size[first] / (jnp.linalg.norm(size, axis=1) + 1e-9)
    odds = jnp.where(there, jnp.log(together + 1e-6), -1e9) + jax.random.gumbel(key_block, (n_latents,))
    _, block = jax.lax.top_k(odds.at[first].set(jnp.inf), min(how.block, n_latents))
    y = code.y[block]
    is_on = jnp.sum(y**2, axis=0) > LEAST_ENERGY
    _, rows = jax.lax.top_k(is_on * jax.random.uniform(key_rows, (n_rows,)), min(how.n_block_rows, n_rows))
    z = y[:, rows]
    starts = first_rotations(key_starts, z, there[block], how.n_starts, n_here=how.n_starts // 2)
    ends = descend(starts, z, there[block], how.n_steps, how)
    values = objective(ends @ z, how.offset, how)
    best = jnp.argmin(values)
    is_better = values[best] < objective(z, how.offset, how) - how.margin
    rotation = jnp.where(is_better, ends[best], jnp.eye(len(block)))
    return Code(code.W_dec.at[block].set(rotation @ code.W_dec[block]), code.y.at[block].set(rotation @ y))


def first_rotations(
    key: Key[Array, ""], z: Float[Array, "n rows"], there: Bool[Array, " n"], n_starts: int, n_here: int
) -> Float[Array, "starts n n"]:
    """Starting points: `n_here` identities, and random rotations for the rest, each the identity on padding.

    Rows are flipped so that most of their code's energy is positive. Numbers are drawn row by row, so that they do not
    depend on how many latents are padding.
    """
    eye, n = jnp.eye(len(z)), len(z)

    def row(key: Key[Array, ""], i: Int[Array, ""]) -> Float[Array, " n"]:
        return jax.random.normal(jax.random.fold_in(key, i), (n,))

    rows_of = jax.vmap(jax.vmap(row, in_axes=(None, 0)), in_axes=(0, None))
    random = rows_of(jax.random.split(key, n_starts - n_here), jnp.arange(n))
    random = jnp.where(there[:, None] & there, random, eye)
    starts = jnp.concatenate([jnp.broadcast_to(eye, (n_here, *eye.shape)), jax.vmap(triangularised)(random)[0]])
    y = starts @ z
    is_negative = jnp.sum(jnp.minimum(y, 0) ** 2, axis=-1) > jnp.sum(jnp.maximum(y, 0) ** 2, axis=-1)
    return starts * jnp.where(is_negative, -1.0, 1.0)[..., None]


def descend(
    rotations: Float[Array, "starts n n"],
    z: Float[Array, "n rows"],
    there: Bool[Array, " n"],
    n_steps: int,
    how: Search,
) -> Float[Array, "starts n n"]:
    """The rotations after steps of one size along the gradient on the orthogonal group, while ε and the size fall."""

    def step(i: Int[Array, ""], q: Float[Array, "starts n n"]) -> Float[Array, "starts n n"]:
        done = i / n_steps
        offset = how.first_offset * (how.offset / how.first_offset) ** done
        y = q @ z
        slope = jnp.sign(y) * offset / (jnp.abs(y) + offset) ** 2 + 2 * how.negative * jnp.minimum(y, 0)
        gradient = product(slope @ z.T / z.shape[1], q.mT)
        turning = (gradient - gradient.mT) / 2  # its part along the group
        size = jnp.sqrt(jnp.sum(turning**2, axis=(-2, -1), keepdims=True) / jnp.sum(there))
        return nearest_rotation(q - (1 - done) ** 2 * how.step * product(turning / jnp.maximum(size, 1e-3), q), 1)

    return nearest_rotation(jax.lax.fori_loop(0, n_steps, step, rotations), 8)


def nearest_rotation(matrix: Float[Array, "*starts n n"], n_steps: int) -> Float[Array, "*starts n n"]:
    """The polar factor of a matrix that is nearly a rotation, by the iteration of Newton and Schulz."""
    for _ in range(n_steps):
        matrix = 1.5 * matrix - 0.5 * product(matrix, product(matrix.mT, matrix))
    return matrix


def product(a: Float[Array, "*starts n n"], b: Float[Array, "*starts n n"]) -> Float[Array, "*starts n n"]:
    """a @ b. Many small products take a CPU less time as sums of outer products, which XLA fuses with the rest."""
    if a.shape[-1] > MOST_UNROLLED:
        return a @ b
    return sum((a[..., i, None] * b[..., i, None, :] for i in range(a.shape[-1])), start=jnp.zeros(()))
