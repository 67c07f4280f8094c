"""Codes that compete under Matryoshka: their objective against that of the whole tree, and which of them wins."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sweeps.cell import D_IN
from experiments.theory.family_limits import Family, matryoshka_limit
from experiments.theory.identifiability import LEVELS
from experiments.theory.rivals import Rival, lone_optimum, rivals
from toy import prefixes
from toy.features.named import forest
from toy.features.tree import build_tree
from toy.methods import named
from toy.prefixes import inclusion
from toy.sae import SAE, encode, sae_of_directions
from toy.theory import enumerate_states, minimum, population_loss

TWO = Family(1.0, 2, exclusive=True)


def best(family: Family, prob: float) -> Rival:
    return min(
        rivals(family.tree(prob), prefixes.all_prefixes(family.n_children + 9), 1.0), key=lambda rival: rival.loss
    )


def test_a_lone_latent_has_the_least_objective_of_all_codes_of_its_feature() -> None:
    """By descent, with a latent of no use before it, so that some prefixes hold nothing of the feature."""
    s, x, prob, coef = 0.4, 3.0, 0.1, 1.0
    lone = lone_optimum(s, 1.0, x, prob, coef)
    states, probs = jnp.array([[0.0, 0.0], [0.0, x]]), jnp.array([1 - prob, prob])
    weights = prefixes.FixedWeights(jnp.array([1 - s, s]))
    sae, loss = minimum(sae_of_directions(np.eye(2)), states, probs, weights, sparsity_coef=coef, n_steps=4_000)
    sizes = encode(sae, states) * jnp.linalg.norm(sae.W_dec, axis=1)
    assert lone.loss == pytest.approx(float(loss), rel=1e-4)
    assert lone.act == pytest.approx(float(sizes[1, 1]), rel=2e-3)
    assert lone.bias == pytest.approx(float(sae.b_dec[1]), rel=2e-3)


@pytest.mark.parametrize("is_recovery", [True, False])
def test_the_objective_is_that_of_the_whole_tree(is_recovery: bool) -> None:
    """The family's code and the best latent of each lone feature side by side, over all states of the tree."""
    weights, coef = prefixes.expected(11), 1.0  # of a parent, two children and 8 lone features
    states = enumerate_states(build_tree(TWO.tree(0.2)))
    scale = states.input_scale(D_IN)
    rival = next(one for one in rivals(TWO.tree(0.2), weights, coef) if one.is_recovery == is_recovery)
    s = np.asarray(inclusion(weights, jnp.arange(11)))
    of_lone = range(rival.n_before, rival.n_before + 8)
    of_family = [place for place in range(11) if place not in of_lone]
    W_enc, b_enc, W_dec, b_dec = np.zeros((11, 11)), np.zeros(11), np.zeros((11, 11)), np.zeros(11)
    W_enc[:3, of_family], W_dec[of_family, :3] = rival.sae.W_enc, rival.sae.W_dec
    b_enc[of_family], b_dec[:3] = rival.sae.b_enc * scale, rival.sae.b_dec * scale
    for feature, place in enumerate(of_lone, start=3):
        lone = lone_optimum(s[place], s[0], scale, 0.05, coef)
        W_enc[feature, place], W_dec[place, feature], b_dec[feature] = lone.act / scale, 1.0, lone.bias
    sae = SAE(*(jnp.asarray(part, jnp.float32) for part in (W_enc, b_enc, W_dec, b_dec)))
    x, prob = jnp.asarray(states.features * scale, jnp.float32), jnp.asarray(states.prob, jnp.float32)
    found = population_loss(sae, encode(sae, x), x, prob, weights, sparsity_coef=coef)
    assert rival.loss == pytest.approx(float(found), rel=1e-5)


def test_latents_stand_in_the_order_of_their_energy() -> None:
    """To within 1%, among themselves and on both sides of those of the lone features, whose energy is .05 at most."""
    root = TWO.tree(0.25)
    states = enumerate_states(build_tree(forest(root.children[0])))
    found = rivals(root, prefixes.all_prefixes(11), 1.0)
    assert {rival.n_before for rival in found} >= {2, 3}
    for rival in found:
        sizes = np.asarray(encode(rival.sae, jnp.asarray(states.features))) * np.linalg.norm(rival.sae.W_dec, axis=1)
        energies = states.prob @ sizes**2
        assert np.all(energies[1:] <= energies[:-1] * 1.011)
        assert np.all(energies[rival.n_before :] <= 0.051)


def test_two_exclusive_children_are_outdone_where_independent_ones_and_exclusive_rare_ones_are_not() -> None:
    assert best(TWO, 0.1).is_recovery
    assert not best(TWO, 0.25).is_recovery
    assert best(TWO._replace(exclusive=False), 0.25).is_recovery
    assert best(TWO._replace(lone_prob=0.01), 0.25).is_recovery


def test_the_code_that_outdoes_two_exclusive_children_keeps_one_of_them_for_the_last_place() -> None:
    """One child's latent takes up the parent, and the parent's latent leans to the other child."""
    rival = best(TWO, 0.25)
    assert rival.n_before == 2
    directions = rival.sae.W_dec / np.linalg.norm(rival.sae.W_dec, axis=1, keepdims=True)
    leaning, absorbing = directions[:2]
    assert np.abs(leaning[0]) > 0.8
    assert np.abs(leaning[1:]).max() > 0.4
    assert absorbing[0] > 0.5


@pytest.mark.slow
def test_with_levels_children_are_outdone_from_where_the_first_level_holds_one() -> None:
    """A child has a lone feature's energy at P = .05 / (.3 ratio²)."""
    levels = named(LEVELS).weighting
    for ratio in (1.0, 2.0, 5.0):
        assert matryoshka_limit(levels, Family(ratio, 1, exclusive=True)) == pytest.approx(
            1 / (6 * ratio**2), abs=0.006
        )
