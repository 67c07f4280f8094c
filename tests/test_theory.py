"""The exact objective: its states against exact statistics, its value against the loss, its minimum by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toy import prefixes
from toy.features.named import forest, reference_tree, three_level_tree
from toy.features.node import Node
from toy.features.tree import build_tree, coactivation, marginals
from toy.loss import sae_loss
from toy.sae import SAE, encode, init_sae, sae_of_directions
from toy.theory import enumerate_states, minimised, population_loss

KEY = jax.random.key(0)
TREES = {
    "reference": reference_tree(),
    "three_level": three_level_tree(),
    "a node that is no feature": forest(
        Node(0.4, (Node(0.5, (Node(0.3), Node(0.6)), exclusive=True, is_feature=False), Node(0.2, magnitude_mean=2.0)))
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_states_have_the_marginals_and_pairs_of_the_tree(name: str) -> None:
    tree = build_tree(TREES[name])
    states = enumerate_states(tree)
    on = states.features > 0
    assert states.prob.sum() == pytest.approx(1)
    assert len(np.unique(on, axis=0)) == len(on) or tree.readout is not None
    np.testing.assert_allclose(states.prob @ on, marginals(tree), rtol=1e-9)
    np.testing.assert_allclose(on.T @ (states.prob[:, None] * on), coactivation(tree), rtol=1e-9, atol=1e-12)


def test_the_states_of_a_pair_by_hand() -> None:
    states = enumerate_states(build_tree(forest(Node(0.3, (Node(0.2, magnitude_mean=5.0),)))))
    found = {tuple(row): p for row, p in zip(states.features.tolist(), states.prob.tolist(), strict=True)}
    assert found == {(0, 0): pytest.approx(0.7), (1, 0): pytest.approx(0.24), (1, 5): pytest.approx(0.06)}
    assert states.mean_norm == pytest.approx(0.24 + 0.06 * np.sqrt(26))


def test_trees_with_random_magnitudes_or_too_many_states_are_refused() -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        enumerate_states(build_tree(forest(Node(0.3, magnitude_std=0.1))))
    with pytest.raises(ValueError, match="more than 65,536 states"):
        enumerate_states(build_tree(forest(*(Node(0.5) for _ in range(17)))))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sparsity", ["l1", "log"])
@pytest.mark.parametrize("weighting", ["vanilla", "levels:1=2,full=1", "all"])
def test_the_objective_is_the_loss_of_a_batch_with_every_state_as_often_as_it_is(sparsity: Any, weighting: str) -> None:
    """P(parent) = 1/2 and P(child | parent) = 1/4: a batch of eight rows has every state in proportion."""
    states = enumerate_states(build_tree(forest(Node(0.5, (Node(0.25),)))))
    W_feat = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0][:2]
    sae = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), init_sae(KEY, 6, 3))
    x = jnp.asarray(states.features @ W_feat)
    given: Any = prefixes.named(weighting, 3)
    rows = jnp.repeat(x, np.round(8 * states.prob).astype(int), axis=0)
    assert len(rows) == 8
    options: dict[str, Any] = {"sparsity": sparsity, "sparsity_coef": 0.3}
    expected, _ = sae_loss(sae, rows, given, jnp.arange(3), **options)
    found = population_loss(sae, encode(sae, x), x, jnp.asarray(states.prob), given, **options)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_one_latent_without_a_penalty_is_the_first_principal_component() -> None:
    """By hand: reconstructions of one latent lie on a line, and no line is nearer than the principal axis."""
    states = enumerate_states(build_tree(forest(Node(0.5, (Node(0.4),)))))
    x, p = states.features, states.prob
    centred = x - p @ x
    variances, axes = np.linalg.eigh(centred.T @ (p[:, None] * centred))
    starts = [
        SAE(jnp.asarray(axes[:, 1:] * sign), jnp.full(1, 2.0), jnp.asarray(axes[:, 1:].T * sign), jnp.asarray(p @ x))
        for sign in (1, -1)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves).astype(jnp.float32), *starts)
    saes, losses = minimised(stacked, jnp.asarray(x), jnp.asarray(p), prefixes.full(1), sparsity_coef=0.0)
    assert float(losses.min()) == pytest.approx(variances[0], rel=1e-3)
    direction = saes.W_dec[int(losses.argmin()), 0]
    assert abs(float(direction @ axes[:, 1])) / float(jnp.linalg.norm(direction)) > 0.999


def test_the_optimum_of_a_given_support_has_no_error_without_a_penalty_or_prefixes() -> None:
    """By hand: with the full prefix alone the truth is exact, and stays where it starts."""
    states = enumerate_states(build_tree(forest(Node(0.3, (Node(0.2),)))))
    starts = jax.tree.map(lambda leaf: leaf[None], sae_of_directions(np.eye(2)))
    given = (jnp.asarray(states.features, jnp.float32), jnp.asarray(states.prob, jnp.float32), prefixes.full(2))
    options: dict[str, Any] = {"sparsity_coef": 0.0, "support": jnp.asarray(states.features > 0), "n_steps": 200}
    sae, losses = minimised(starts, *given, **options)
    np.testing.assert_allclose(losses, 0, atol=1e-6)
    np.testing.assert_allclose(sae.W_dec[0], np.eye(2), atol=1e-3)
    off = jnp.zeros_like(options["support"])
    _, losses = minimised(starts, *given, **(options | {"support": off}))
    mean = states.prob @ states.features
    assert float(losses[0]) == pytest.approx(float(states.prob @ ((states.features - mean) ** 2).sum(axis=1)), rel=1e-2)
