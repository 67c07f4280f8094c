"""Where a hierarchy can be found: closed forms by hand, against brute force, and against the exact objective."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toy import prefixes
from toy.features.named import forest
from toy.features.node import Node
from toy.features.tree import build_tree
from toy.methods.rotation import Search, descend, first_rotations
from toy.sae import SAE, decode, encode, sae_of_directions
from toy.theory import (
    Population,
    absorbed,
    absorption_gain,
    edge_limit,
    enumerate_states,
    first_latent_angle,
    mean_penalty,
    minimised,
    population_loss,
    staircase,
    truth,
    turned,
)

HADAMARD = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
PENALTIES: dict[str, Any] = {"l1": "l1", "log": lambda act: float(np.log1p(act / 0.1)), "l0": "l0"}


def states_of(edge_prob: float, ratio: float = 1.0, n_children: int = 1, *, exclusive: bool = True) -> Population:
    """The states of a parent that is always on."""
    children = tuple(Node(edge_prob, magnitude_mean=ratio) for _ in range(n_children))
    return enumerate_states(build_tree(forest(Node(1.0, children, exclusive=exclusive))))


def is_exact(sae: SAE, states: Population) -> bool:
    x = jnp.asarray(states.features)
    return bool(np.allclose(decode(sae, encode(sae, x)), x, atol=1e-5))


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("edge_prob", "ratio", "n_children"), [(0.01, 1, 1), (0.5, 5, 1), (0.2, 2, 3)])
def test_the_absorbed_code_is_exact_and_sparser_than_the_truth_at_every_probability(
    penalty: str, edge_prob: float, ratio: float, n_children: int
) -> None:
    states = states_of(edge_prob, ratio, n_children)
    code, given = absorbed(n_children, ratio), PENALTIES[penalty]
    assert is_exact(code, states)
    gain = mean_penalty(truth(n_children), states, given) - mean_penalty(code, states, given)
    assert gain == pytest.approx(absorption_gain(edge_prob, ratio, given, n_children), abs=1e-5)
    assert gain > 0


def test_absorption_by_hand() -> None:
    """The truth has 1 + q latents on, of a mean size of 1 + q r, and the absorbed code one, of 1 − q + q √(1 + r²)."""
    assert absorption_gain(0.3, 1.0, "l0") == pytest.approx(0.3)
    assert absorption_gain(0.3, 1.0) == pytest.approx(0.3 * (2 - 2**0.5))
    assert absorption_gain(0.3, 0.75, n_exclusive=2) == pytest.approx(2 * 0.3 * (1.75 - 1.25))


def test_the_exact_objective_leads_from_the_truth_to_the_absorbed_code() -> None:
    """Its values at both are .3 of the mean penalty where the parent is on, since both are exact."""
    states = enumerate_states(build_tree(forest(Node(0.3, (Node(0.3),)))))
    given = (jnp.asarray(states.features, jnp.float32), jnp.asarray(states.prob, jnp.float32), prefixes.full(2))
    codes = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), code) for code in (truth(1), absorbed(1))]
    at_codes = [float(population_loss(code, encode(code, given[0]), *given, sparsity_coef=0.01)) for code in codes]
    assert at_codes == pytest.approx([0.0039, 0.0021 + 0.0009 * 2**0.5], abs=1e-6)
    start = codes[0]._replace(W_enc=codes[0].W_enc.at[1, 0].set(-0.01))
    (found, losses) = minimised(jax.tree.map(lambda leaf: leaf[None], start), *given, sparsity_coef=0.01, n_steps=4_000)
    assert float(losses[0]) <= at_codes[1]
    child = np.asarray(found.W_dec[0, 1])
    np.testing.assert_allclose(child / np.linalg.norm(child), [0.5**0.5] * 2, atol=0.03)
    assert float(encode(jax.tree.map(lambda leaf: leaf[0], found), jnp.ones((1, 2)))[0, 0]) < 0.01


def test_the_turned_code_ends_as_the_staircase_of_one_child() -> None:
    """In between it is exact, too; beyond it an activation would be negative."""
    states = states_of(0.3, 2.0, 2, exclusive=False)
    end = float(np.arctan(1 / 2))
    assert all(is_exact(turned(2, angle), states) for angle in (0.0, 0.5 * end, end))
    assert not is_exact(turned(2, 1.1 * end), states)
    given = mean_penalty(turned(2, end), states), mean_penalty(staircase(2, 2.0, 1), states)
    assert given[0] == pytest.approx(given[1], abs=1e-6)


def test_the_staircase_of_two_children_by_hand() -> None:
    """(1, 1, 0) / √2 has p + c_1 to itself, (1, −1, 2) / √6 is on for p + c_2, and (1, −1, −1) / √3 for p alone."""
    acts = encode(staircase(2), jnp.array([[1.0, 1, 0], [1, 0, 1], [1, 0, 0]]))
    expected = [[2**0.5, 0, 0], [0.5**0.5, 1.5**0.5, 0], [2**-0.5, 6**-0.5, 3**-0.5]]
    np.testing.assert_allclose(acts, expected, atol=1e-6)


def test_limits_by_hand() -> None:
    """L0, with 3 (1 − 2 q) + q + 2 q against 1 + 2 q latents on for two children: q = 2 / 5."""
    assert [edge_limit(ratio, "l0", k) for ratio in (0.5, 1, 5) for k in (1, 2, 3, 4)] == pytest.approx(
        [1 / 2, 2 / 5, 1 / 3, 1 / 4] * 3
    )
    alone, difference = 2**-0.5 + 6**-0.5 + 3**-0.5, 2**0.5 + 2**-0.5 + 1.5**0.5
    assert edge_limit(1.0, "l1", 2) == pytest.approx((alone - 1) / (2 * alone + 2 - difference))
    assert edge_limit(1.0, "l1", 4) == 1 / 4


def test_the_hadamard_code_of_three_children_is_no_sparser_than_the_truth_below_one_third() -> None:
    """By hand, by L0 and L1: 4 (1 − 3 q) + 3 q · 2 and 2 against 1 + 3 q; equal at 1/3, where p is never alone."""
    code = sae_of_directions(HADAMARD)
    for penalty, of_code in (("l0", 4 - 6 * 0.33), ("l1", 2.0)):
        states = states_of(0.33, 1.0, 3)
        assert mean_penalty(code, states, penalty) == pytest.approx(of_code, abs=1e-5)
        assert mean_penalty(truth(3), states, penalty) == pytest.approx(1.99)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("ratio", "n_children"), [(0.5, 2), (1.0, 2), (2.0, 3), (5.0, 4)])
def test_at_the_limit_the_truth_and_a_staircase_are_equally_sparse(penalty: str, ratio: float, n_children: int) -> None:
    given = PENALTIES[penalty]
    limit = edge_limit(ratio, given, n_children)
    assert limit <= 1 / n_children
    for q, sign in ((limit - 0.002, 1), (limit + 0.002, -1)):
        if q > 1 / n_children:
            continue
        states = states_of(q, ratio, n_children)
        rivals = [staircase(n_children, ratio, j) for j in range(1, n_children + 1)]
        assert all(is_exact(rival, states) for rival in rivals)
        least = min(mean_penalty(rival, states, given) for rival in rivals)
        assert np.sign(least - mean_penalty(truth(n_children), states, given)) == sign


@pytest.mark.parametrize(("edge_prob", "truth_is_best"), [(0.39, True), (0.44, False)])
def test_the_exact_optimum_of_a_tied_encoder_is_the_truth_below_the_limit(
    edge_prob: float, truth_is_best: bool
) -> None:
    """With hardly a penalty, from turns all over the range; √2 − 1 = .414 is the limit of L1."""
    states = enumerate_states(build_tree(forest(Node(0.3, (Node(edge_prob),)))))
    given = (jnp.asarray(states.features, jnp.float32), jnp.asarray(states.prob, jnp.float32), prefixes.full(2))
    starts = sae_of_directions(np.stack([turned(1, angle).W_dec for angle in np.linspace(0, np.pi / 4, 5)]))
    options: dict[str, Any] = {"sparsity_coef": 1e-3, "is_tied": True, "n_steps": 4_000}
    saes, losses = minimised(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), starts), *given, **options)
    best = jax.tree.map(lambda leaf: leaf[jnp.argmin(losses)], saes)
    np.testing.assert_allclose(best.W_enc, best.W_dec.T, atol=1e-6)
    np.testing.assert_allclose(best.W_dec, (truth(1) if truth_is_best else turned(1, np.pi / 4)).W_dec, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [10.0, 0.5, 0.02])
@pytest.mark.parametrize(
    ("n_children", "exclusive", "tenths"),
    [
        (2, True, 3),
        (2, True, 4),
        (3, True, 3),
        (4, True, 2),
        (2, False, 4),
        (3, False, 4),
        (3, False, 5),
        (3, False, 2),
    ],
)
@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_no_rotation_that_a_search_finds_is_sparser_than_the_truth_and_the_staircases(
    offset: float, n_children: int, exclusive: bool, tenths: int, ratio: float
) -> None:
    """Brute force, descents from 100 rotations; a / (a + ε) is all but L1 where ε is large, and L0 where it is small.

    Rows of the search are the states, each as often as its probability says.
    """
    states = states_of(tenths / 10, ratio, n_children, exclusive=exclusive)
    counts = np.round(states.prob * 10 ** (1 if exclusive else n_children)).astype(int)
    z = jnp.asarray(np.repeat(states.features, counts, axis=0).T, jnp.float32)
    there = jnp.ones(1 + n_children, bool)
    how = Search(first_offset=max(offset, 0.5), offset=offset, negative=30.0 if offset < 1 else 3.0, step=0.1)
    starts = first_rotations(jax.random.key(0), z, there, 100, n_here=0)
    y = descend(starts, z, there, 600, how) @ z
    y = y[jnp.min(y, axis=(1, 2)) > -0.02]
    assert len(y) > 20
    found = float(jnp.min(jnp.sum(jnp.mean(jnp.abs(y) / (jnp.abs(y) + offset), axis=2), axis=1)))
    rivals = [staircase(n_children, ratio, j) for j in range(1, (n_children if exclusive else 1) + 1)]
    known = [mean_penalty(code, states, lambda act: act / (act + offset)) for code in (truth(n_children), *rivals)]
    assert found == pytest.approx(min(known), rel=1e-3)


@pytest.mark.parametrize(("ratio", "limit"), [(1, 0.41421), (2, 0.309), (5, 0.164), (10, 0.090)])
def test_the_truth_is_the_sparsest_tied_code_below_the_limit_and_not_above(ratio: float, limit: float) -> None:
    """Brute force over all turns of two orthonormal latents that reconstruct both states."""
    assert edge_limit(ratio) == pytest.approx(limit, abs=6e-4)
    turns = np.linspace(0, np.arctan(1 / ratio), 400)
    directions = np.stack([[np.cos(turns), -np.sin(turns)], [np.sin(turns), np.cos(turns)]])  # [latent, feature, turn]
    parent, both = directions[:, 0], directions[:, 0] + ratio * directions[:, 1]
    assert min(parent.min(), both.min()) > -1e-9
    for q, best in ((edge_limit(ratio) - 0.01, 0), (edge_limit(ratio) + 0.01, 399)):
        assert np.argmin((1 - q) * parent.sum(axis=0) + q * both.sum(axis=0)) == best


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 5.0])
def test_a_concave_penalty_has_its_limit_between_those_of_l1_and_l0(ratio: float) -> None:
    """Brute force, with the log penalty of activations near .1, over all turns of two orthonormal latents."""
    assert edge_limit(ratio, "l0") == 0.5
    limit = edge_limit(ratio, lambda act: float(np.log1p(act / 0.1)))
    assert edge_limit(ratio) < limit < 0.5
    turns = np.linspace(0, np.arctan(1 / ratio), 400)
    directions = np.stack([[np.cos(turns), -np.sin(turns)], [np.sin(turns), np.cos(turns)]])
    acts = directions[:, 0], directions[:, 0] + ratio * directions[:, 1]
    parent, both = (np.log1p(np.maximum(of_state, 0) / 0.1) for of_state in acts)
    for q, best in ((limit - 0.01, 0), (limit + 0.01, 399)):
        assert np.argmin((1 - q) * parent.sum(axis=0) + q * both.sum(axis=0)) == best


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize(("edge_prob", "ratio", "n_children"), [(0.1, 1, 1), (0.5, 2, 1), (0.3, 1, 3), (0.2, 0.5, 4)])
def test_a_lone_latent_takes_the_principal_axis(
    edge_prob: float, ratio: float, n_children: int, exclusive: bool
) -> None:
    states = states_of(edge_prob, ratio, n_children, exclusive=exclusive)
    axis = np.linalg.eigh(states.features.T @ (states.prob[:, None] * states.features))[1][:, -1]
    angle = first_latent_angle(edge_prob, ratio, n_children, exclusive=exclusive)
    assert angle == pytest.approx(np.arccos(abs(axis[0])), abs=1e-9)


def test_a_child_with_more_energy_than_its_parent_takes_the_first_latent() -> None:
    """By hand: θ = 45° where q r² = 1."""
    assert first_latent_angle(0.25, 2.0) == pytest.approx(np.pi / 4)
    assert first_latent_angle(0.25, 1.9) < np.pi / 4 < first_latent_angle(0.25, 2.1)
