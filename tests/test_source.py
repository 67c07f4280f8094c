"""Sources draw batches as pure functions of a key."""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import within_binomial_bounds

from toy.data.source import ArraySource, TreeSource
from toy.features.named import reference_tree
from toy.features.tree import build_tree, sample_features

KEY = jax.random.key(0)


def test_a_tree_source_gives_the_sum_of_the_directions_of_the_features_that_are_on() -> None:
    tree, W_feat = build_tree(reference_tree()), np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    source = TreeSource(tree, jnp.array(W_feat))
    x, features = source.sample(KEY, 300), np.asarray(sample_features(KEY, tree, 300))
    assert source.d_in == 7
    assert features.any()
    slow = [sum((W_feat[i] for i in np.flatnonzero(row)), np.zeros(7)) for row in features]
    np.testing.assert_allclose(x, slow, rtol=1e-5, atol=1e-6)


def test_an_array_source_draws_every_row_equally_often_and_nothing_else() -> None:
    source = ArraySource(jnp.arange(8.0)[:, None] * jnp.ones(3))
    x = np.asarray(source.sample(KEY, 40_000))
    assert source.d_in == x.shape[1] == 3
    rows, counts = np.unique(x, axis=0, return_counts=True)
    assert rows[:, 0].tolist() == list(range(8))
    assert within_binomial_bounds(counts, 40_000, np.full(8, 1 / 8)).all()


def test_a_source_is_a_pytree_that_jit_takes_as_an_argument() -> None:
    draw = jax.jit(lambda source, key: source.sample(key, 5))
    for source in (ArraySource(jnp.eye(4)), TreeSource(build_tree(reference_tree()), jnp.eye(20))):
        assert (draw(source, KEY) == source.sample(KEY, 5)).all()
        assert (draw(source, KEY) != draw(source, jax.random.key(1))).any()
