"""Features as SAELens' `SyntheticModel` draws them: a hierarchy whose firings are also correlated.

A feature fires where a Gaussian variable exceeds its threshold. The variables of a row are loading · z + noise · ε with
factors z that all features share and ε of each feature alone. A feature is on if it fires, its magnitude N(mean, std²)
is above 0, its parent is on, and it is the one that is kept, at random, of the mutually exclusive siblings that would
be on. Source: `sae_lens.synthetic` 6.54 (`activation_generator`, `hierarchy.modifier`), whose distribution this is.

SAELens draws every feature of a row. Given z they are independent, so that only features without a parent and the
children of features that are on are drawn here, and what is on is held in slots. Nothing is cut off: where more
features are on than there are slots, further passes take the rest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # loads its parts when they are first asked for
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

T = TypeVar("T")
Slots = Int[Array, "batch slots"]
Values = Float[Array, "batch slots"]
Factors = Float[Array, "batch rank"]
_N_BITS = 16  # of a first draw for every feature without a parent
_WORD = 32  # bits
_LEAST = 1e-30  # of uniform numbers whose quantile is taken


@jax.tree_util.register_static
@dataclass(frozen=True)
class Layout:
    """The sizes that fix the compiled program."""

    n_features: int
    exclusive: tuple[bool, ...]  # for each level of parents, whether at most one child of each can be on
    n_groups: int  # of mutually exclusive children of one parent, at most
    n_parents: int  # number of nodes without a parent that have children
    n_slots: tuple[int, int]  # per row in one pass: of these, and of others; fastest where few rows fill them


class Synthetic(NamedTuple):
    """Arrays by node: the features, then nodes that are always on and no features, then one that is never on."""

    threshold: Float[Array, " nodes"]
    loading: Float[Array, "nodes rank"]
    noise: Float[Array, " nodes"]
    mean: Float[Array, " nodes"]
    std: Float[Array, " nodes"]
    visible: Float[Array, " nodes"]  # P(N(mean, std²) > 0)
    scaled: Bool[Array, " nodes"]  # whether the magnitude is multiplied by the parent's, relative to its mean
    children: Int[Array, "nodes branches"]
    group: Int[Array, " nodes"]  # of exclusive siblings, counted for each parent; -1: none
    top: Int[Array, " n_top"]  # nodes without a parent, those with children first
    layout: Layout


def synthetic_features(key: Key[Array, ""], model: Synthetic, batch_size: int) -> Float[Array, "batch n_features"]:
    """A batch of independent rows: each feature's magnitude where it is on, else 0."""

    def add(features: Array, nodes: Slots, values: Values) -> Array:
        return features.at[jnp.arange(batch_size)[:, None], nodes].add(values)

    start = jnp.zeros((batch_size, model.threshold.shape[0]), model.mean.dtype)
    return accumulate(key, model, batch_size, add, start)[:, : model.layout.n_features]


def synthetic_rows(
    key: Key[Array, ""], model: Synthetic, W_feat: Float[Array, "n_features d_in"], batch_size: int
) -> Float[Array, "batch d_in"]:
    """`synthetic_features(key, …) @ W_feat`, from the directions of features that are on alone."""
    n_features = model.layout.n_features

    def add(rows: Array, nodes: Slots, values: Values) -> Array:
        values = jnp.where(nodes < n_features, values, 0).T
        nodes = jnp.minimum(nodes, n_features - 1).T
        n_used = jnp.max(jnp.where(values > 0, 1 + jnp.arange(len(values))[:, None], 0))
        return jax.lax.fori_loop(0, n_used, lambda i, rows: rows + values[i][:, None] * W_feat[nodes[i]], rows)

    return accumulate(key, model, batch_size, add, jnp.zeros((batch_size, W_feat.shape[1]), W_feat.dtype))


def accumulate(
    key: Key[Array, ""], model: Synthetic, batch_size: int, add: Callable[[T, Slots, Values], T], total: T
) -> T:
    """Draws a batch and adds up all that is on: total = add(total, nodes, values), where a value of 0 is none."""
    key_factors, key_bits, key = jax.random.split(key, 3)
    z = jax.random.normal(key_factors, (batch_size, model.loading.shape[1]))
    n, n_parents = len(model.top), model.layout.n_parents
    words = jax.random.bits(key_bits, (batch_size, math.ceil(n / 2)), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(batch_size, -1)[:, :n]
    # A uniform number of which only the first 16 bits are drawn: all that may fire stay, and `_confirm` draws the rest.
    most = jnp.asarray(_quantiles()).at[bits].get(mode="promise_in_bounds")
    may = z @ model.loading[model.top].T + model.noise[model.top] * most > model.threshold[model.top]
    for i, part in enumerate((slice(0, n_parents), slice(n_parents, n))):
        level = i * len(model.layout.exclusive)  # the others have no level below them
        draw = _Draw(model, z, level, model.layout.n_slots[i], first=True)
        pick = partial(_unscaled, model, part)
        total = _passes(jax.random.fold_in(key, i), draw, may[:, part], pick, add, total)
    return total


def _unscaled(model: Synthetic, part: slice, places: Slots) -> tuple[Slots, Float[Array, ""]]:
    """Nodes without a parent, by their places in a part of `model.top`, and their scale."""
    return model.top[part][places], jnp.ones((), model.mean.dtype)


@cache
def _quantiles() -> Float[np.ndarray, " numbers"]:
    """The most that a normal variable can be, by the first bits of its uniform number; a CPU looks it up faster."""
    return scipy.special.ndtri((np.arange(2**_N_BITS) + 1) / 2**_N_BITS).astype(np.float32)


class _Draw(NamedTuple):
    """Arrays that the parts of a draw share."""

    model: Synthetic
    z: Factors
    level: int
    n_slots: int
    first: bool = False  # whether the nodes may fire, and are not known to


def _passes(
    key: Key[Array, ""],
    draw: _Draw,
    on: Bool[Array, "batch n"],
    pick: Callable[[Slots], tuple[Slots, Float[Array, "..."]]],
    add: Callable[[T, Slots, Values], T],
    total: T,
) -> T:
    """Takes what is on, `n_slots` a row at a time, with everything below; `pick` gives nodes and scales by place."""
    if not on.shape[1]:
        return total

    def take(carry: tuple) -> tuple:
        words, i, total = carry
        words, places, taken = _first_on(words, min(draw.n_slots, on.shape[1]))
        key_confirm, key_grow = jax.random.split(jax.random.fold_in(key, i))
        chosen, scale = pick(places)
        kept = taken * scale
        if draw.first:
            kept *= _confirm(key_confirm, draw, chosen)
        return words, i + 1, _grow(key_grow, draw._replace(first=False), chosen, kept, add, total)

    return jax.lax.while_loop(lambda carry: jnp.any(carry[0] > 0), take, (_packed(on), 0, total))[2]


def _packed(on: Bool[Array, "batch n"]) -> UInt32[Array, "batch words"]:
    """32 flags a number, the first in its lowest bit."""
    padded = jnp.pad(on, ((0, 0), (0, -on.shape[1] % _WORD)))
    bits = padded.reshape(len(on), -1, _WORD).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(_WORD, dtype=jnp.uint32), axis=2, dtype=jnp.uint32)


def _first_on(
    words: UInt32[Array, "batch words"], n: int
) -> tuple[UInt32[Array, "batch words"], Slots, Bool[Array, "batch slots"]]:
    """The flags without their first n that are set, and the places of these; much faster than a sort on a CPU."""

    def one(words: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        i = jnp.argmax(words > 0, axis=1)
        word = jnp.take_along_axis(words, i[:, None], 1)[:, 0]
        lowest = word & -word
        words ^= jnp.where(jnp.arange(words.shape[1]) == i[:, None], lowest[:, None], jnp.uint32(0))
        place = _WORD * i + jax.lax.population_count(lowest - 1).astype(jnp.int32)
        return words, (jnp.where(word > 0, place, 0), word > 0)

    words, (places, found) = jax.lax.scan(one, words, None, length=n)
    return words, places.T, found.T


def _confirm(key: Key[Array, ""], draw: _Draw, nodes: Slots) -> Bool[Array, "batch slots"]:
    """Returns whether nodes that may fire by their first bits do fire, with a magnitude above 0."""
    model = draw.model
    prob = ndtr((_drive(draw, nodes) - model.threshold[nodes]) / model.noise[nodes])
    may = jnp.ceil(prob * 2**_N_BITS)
    return jax.random.uniform(key, nodes.shape) * may < prob * 2**_N_BITS * model.visible[nodes]


def _grow(
    key: Key[Array, ""], draw: _Draw, nodes: Slots, scale: Values, add: Callable[[T, Slots, Values], T], total: T
) -> T:
    """Adds nodes that are on where their scale is not 0, draws their children and goes on with those."""
    model, level = draw.model, draw.level
    key_size, key_fire, key_lot, key = jax.random.split(key, 4)
    below = jax.random.uniform(key_size, nodes.shape, minval=_LEAST) * model.visible[nodes]
    values = jnp.where(scale > 0, scale * (model.mean[nodes] - model.std[nodes] * ndtri(below)), 0.0)
    total = add(total, nodes, values)
    if level == len(model.layout.exclusive):
        return total
    child = model.children[nodes]
    variable = _drive(draw, child) + model.noise[child] * jax.random.normal(key_fire, child.shape)
    lot, visible = jax.random.uniform(key_lot, child.shape), model.visible[child]
    on = (values > 0)[:, :, None] & (variable > model.threshold[child]) & (lot < visible)
    on = _exclude(model, on, lot / visible, model.group[child])
    relative = (values / model.mean[nodes])[:, :, None]
    scale = on * jnp.where(model.scaled[child], relative, 1.0)
    draw = draw._replace(level=level + 1)
    if model.layout.exclusive[level]:
        one = jnp.argmax(on, axis=2, keepdims=True)
        child, scale = (jnp.take_along_axis(values, one, 2)[:, :, 0] for values in (child, scale))
        return _grow(key, draw, child, scale, add, total)
    child, scale = (values.reshape(len(values), -1) for values in (child, scale))

    def pick(places: Slots) -> tuple[Slots, Values]:
        return jnp.take_along_axis(child, places, 1), jnp.take_along_axis(scale, places, 1)

    return _passes(key, draw, scale > 0, pick, add, total)


def _drive(draw: _Draw, nodes: Int[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    return jnp.einsum("br,b...r->b...", draw.z, draw.model.loading[nodes])


def _exclude(
    model: Synthetic,
    on: Bool[Array, "batch slots branches"],
    lot: Float[Array, "batch slots branches"],
    group: Int[Array, "batch slots branches"],
) -> Bool[Array, "batch slots branches"]:
    """Keeps one of the exclusive siblings that are on, at random; their lots are uniform on (0, 1)."""
    for i in range(model.layout.n_groups):
        rivals = group == i
        best = jnp.max(jnp.where(on & rivals, lot, -1.0), axis=2, keepdims=True)
        on = on & (~rivals | (lot == best))
    return on
