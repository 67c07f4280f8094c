"""The search for the sparsest rotation: what it looks for, by hand, and the wrong codes that it leaves."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Key

from toy import prefixes
from toy.data.source import TreeSource
from toy.features.directions import make_directions
from toy.features.named import forest, reference_tree
from toy.features.node import Node
from toy.features.tree import build_tree, mean_l0, sample_features
from toy.methods import Method, named
from toy.methods.method import Params, Sample
from toy.methods.rotation import (
    Search,
    descend,
    first_rotations,
    nearest_rotation,
    objective,
    orthonormal,
    product,
    rotate,
)
from toy.training.config import Hypers, TrainConfig
from toy.training.run import train
from toy.training.state import TrainState, trained_sae

KEY = jax.random.key(0)
HOW = Search()
HADAMARD = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2


def rows_of(root: Node, n_rows: int = 2_000) -> Float[Array, "rows n_features"]:
    return sample_features(KEY, build_tree(root), n_rows)


@pytest.mark.parametrize(("edge_prob", "truth_is_best"), [(0.4, True), (0.6, False)])
def test_the_objective_tends_to_l0_which_prefers_a_pair_s_truth_below_one_half(
    edge_prob: float, truth_is_best: bool
) -> None:
    """By hand: of p alone and p + c the truth has 1 and 2 latents on, and (p + c, p − c) / √2 has 2 and 1."""
    states = jnp.array([[1.0, 0.0]] * round(100 * (1 - edge_prob)) + [[1.0, 1.0]] * round(100 * edge_prob)).T
    turned = jnp.array([[1, 1], [1, -1]]) / 2**0.5
    values = [float(objective(code @ states, 1e-6, HOW)) for code in (jnp.eye(2), turned)]
    np.testing.assert_allclose(values, [1 + edge_prob, 2 - edge_prob], atol=1e-4)
    assert (values[0] < values[1]) == truth_is_best


def test_negative_activations_cost_their_squares() -> None:
    assert float(objective(jnp.array([[-2.0, 0.0]]), 1e-9, HOW)) == pytest.approx(0.5 + HOW.negative * 2)


@pytest.mark.parametrize("first", [HADAMARD, np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]])
def test_the_search_leaves_wrong_codes_of_exclusive_children(first: np.ndarray) -> None:
    """The Hadamard code of a parent with three exclusive children is exact and has no negative activation, too."""
    x = rows_of(forest(Node(0.5, (Node(0.3), Node(0.3), Node(0.3)), exclusive=True)))
    if first is HADAMARD:
        assert float(jnp.min(x @ first.T)) >= 0
    found = rotate(KEY, jnp.asarray(first), x, jnp.zeros((1, 4)), jnp.ones(4, bool), HOW)[0]
    np.testing.assert_allclose(np.sort(np.abs(found), axis=1)[:, -1], 1, atol=1e-3)
    assert float(jnp.min(found @ x.T)) > -0.05


def test_latents_that_are_not_there_stay_as_they_are() -> None:
    x = rows_of(forest(Node(0.5, (Node(0.3), Node(0.3), Node(0.3)), exclusive=True)))
    x = jnp.concatenate([x, jnp.zeros((len(x), 2))], axis=1)
    W_dec = jax.random.normal(KEY, (6, 6))
    there = jnp.arange(6) < 4
    found = rotate(KEY, W_dec, x, jnp.zeros((1, 6)), there, HOW)[0]
    np.testing.assert_array_equal(found[4:], W_dec[4:])
    np.testing.assert_allclose(found[:4] @ found[:4].T, np.eye(4), atol=1e-4)
    np.testing.assert_allclose(found[:4, 4:], 0, atol=1e-3)


@pytest.mark.usefixtures("x64")
def test_padding_changes_nothing_but_rounding() -> None:
    """Each part is tested alone: over hundreds of steps the kinks of |y| multiply differences in the last bits."""
    there = jnp.arange(9) < 6
    x = jax.random.uniform(KEY, (300, 12), jnp.float64) * (jax.random.uniform(jax.random.key(1), (300, 12)) < 0.3)
    x = x.at[:, 6:].set(0) @ np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    W_dec = jax.random.normal(KEY, (9, 12), jnp.float64)
    own, padded = orthonormal(W_dec[:6], x, there[:6]), orthonormal(W_dec, x, there)
    np.testing.assert_allclose(padded[:6], own, atol=1e-9)
    z = jnp.where(there[:, None], padded @ x.T, 0)
    first = [first_rotations(KEY, z[:n], there[:n], 4, 1) for n in (6, 9)]
    np.testing.assert_array_equal(first[1][:, :6, :6], first[0])
    ends = [descend(start, z[:n], there[:n], 5, HOW) for start, n in zip(first, (6, 9), strict=True)]
    np.testing.assert_allclose(ends[1][:, :6, :6], ends[0], atol=1e-9)
    np.testing.assert_allclose(ends[1][:, 6:, :6], 0, atol=1e-12)


def test_the_centre_is_the_one_with_the_sparser_code() -> None:
    x = rows_of(forest(Node(0.5, (Node(0.3),)), Node(0.1))) + jnp.array([0.5, -0.3, 0.2])
    centres = jnp.array([[0.0, 0, 0], [0.5, -0.3, 0.2], [0.4, 0.0, 0.0]])
    W_dec, centre = rotate(KEY, jnp.eye(3), x, centres, jnp.ones(3, bool), HOW)
    np.testing.assert_array_equal(centre, centres[1])
    np.testing.assert_allclose(np.sort(np.abs(W_dec), axis=1)[:, -1], 1, atol=1e-3)


def test_the_nearest_orthonormal_rows_are_in_the_subspace_of_the_data() -> None:
    """By hand: within the plane of the data the projections of the rows are at right angles."""
    x = jax.random.normal(KEY, (500, 2)) @ jnp.array([[1.0, 0, 0], [0, 1, 0]])
    found = orthonormal(jnp.array([[1.0, 1, 0.3], [1, -1, 0.3]]), x, jnp.ones(2, bool))
    np.testing.assert_allclose(found, np.array([[1, 1, 0], [1, -1, 0]]) / 2**0.5, atol=1e-3)


def test_the_nearest_rotation_is_the_polar_factor() -> None:
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    stretch = np.diag([0.6, 0.9, 1.1, 1.4])
    np.testing.assert_allclose(nearest_rotation(jnp.asarray(rotation @ stretch), 8), rotation, atol=1e-5)


@dataclass(frozen=True)
class Marked(Method):
    """Its search leaves a mark, and the mean norm of what it has seen."""

    pads: ClassVar[bool] = True

    @property
    def search_at(self) -> float | None:
        return 0.5

    def search(self, key: Key[Array, ""], params: Params, sample: Sample) -> Params:
        x = sample(key, 1_000)
        return params._replace(b_dec=params.b_dec + jnp.mean(jnp.linalg.norm(x, axis=1)))


TREE = build_tree(reference_tree())
SOURCE = TreeSource(TREE, make_directions(jax.random.key(0)[None], 20, 30)[0])


def trained(method: Method, weighting: str, n_steps: int, learning_rate: float = 1e-2) -> TrainState:
    target = mean_l0(TREE) if method.aims_at_l0 else None
    hypers = Hypers(prefixes.named(weighting, 20), target, learning_rate)
    return train(KEY, SOURCE, hypers, cfg=TrainConfig(20, n_steps=n_steps, method=method), chunk=7)[0]


@pytest.mark.parametrize("n_steps", [10, 300])
def test_a_run_searches_once_on_scaled_rows(n_steps: int) -> None:
    state = trained(Marked(), "vanilla", n_steps, learning_rate=0.0)
    np.testing.assert_allclose(state.params.b_dec, 30**0.5, rtol=0.15)


@pytest.mark.parametrize(("n_latents", "d_in"), [(20, 16), (513, 600)])
def test_where_there_is_no_search_the_run_is_that_of_the_tied_finish(n_latents: int, d_in: int) -> None:
    method = named("rotated").method
    params = method.init(KEY, d_in, n_latents)
    found = method.search(KEY, params, lambda key, n_rows: jax.random.normal(key, (n_rows, d_in)))
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.slow
def test_a_rotated_sae_finds_a_tree_that_the_tied_finish_does_not() -> None:
    """Three exclusive children of probability .3: see `experiments.recovery` for many seeds."""
    tree = build_tree(forest(*[Node(0.15, tuple(Node(0.3) for _ in range(3)), exclusive=True) for _ in range(3)]))
    source = TreeSource(tree, make_directions(jax.random.key(0)[None], 12, 16)[0])
    least = {}
    for name in ("tied_finish", "rotated"):
        method, weighting = named(name)[1:]
        hypers = Hypers(prefixes.named(weighting, 12), mean_l0(tree), 0.02)
        state, _ = train(KEY, source, hypers, cfg=TrainConfig(12, n_steps=3_000, method=method))
        sae = trained_sae(state)
        directions = source.W_feat / jnp.linalg.norm(source.W_feat, axis=1, keepdims=True)
        least[name] = float(jnp.abs(sae.W_dec @ directions.T).max(axis=0).min())
    assert least["rotated"] > 0.99 > least["tied_finish"]


def test_small_products_are_products() -> None:
    a, b = jax.random.normal(KEY, (2, 3, 6, 6))
    np.testing.assert_allclose(product(a, b), a @ b, rtol=1e-5, atol=1e-5)
