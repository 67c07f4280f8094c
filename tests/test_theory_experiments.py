"""The experiments on when a hierarchy can be found, at a size that proves no claim, and their arithmetic by hand."""

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import cli
from experiments.common.experiment import Experiment, Work
from experiments.theory import identifiability, mixing, ordering_rules, pair_order, recovery, spare_latents
from toy.features.node import Node
from toy.features.tree import build_tree
from toy.sae import SAE
from toy.theory import first_latent_angle


def made(experiment: Experiment, cfg: Any) -> dict[str, Any]:
    experiment.check(cfg)
    record = {"config": cli.describe(cfg), "seeds": cfg.seeds, "results": experiment.run(cfg, Work())}
    assert cli.as_png(experiment.plot(record))
    assert experiment.caption is not None
    assert "seeds 3 to 4" in experiment.caption(record)
    return record


@pytest.mark.slow
def test_recovery_counts_the_seeds_of_every_tree(tmp_path: Path) -> None:
    scenes, methods = ("reference", "random", "pair, P .6"), ("matryoshka", "rotated")
    cfg = recovery.Config(methods=methods, scenes=scenes, seed=3, n_seeds=2, n_steps=30, store=tmp_path / "a.sqlite")
    record = made(recovery.EXPERIMENT, cfg)
    assert {(method, tuple(found)) for method, found in record["results"].items()} == {
        ("matryoshka", scenes),
        ("rotated", scenes),
    }
    assert all(r["n"] == 2 and r["n_failed"] == 0 for found in record["results"].values() for r in found.values())
    told = recovery.summary(record)
    assert len(told) == 6
    assert told[0].startswith("matryoshka, reference: recovered 0/2 (95%: 0.00 to 0.66)")


def test_the_largest_mixing_is_that_of_recovered_runs() -> None:
    r = {"max_off_diagonal": [0.5, 0.1, 0.2], "is_recovered": [0.0, 1.0, 1.0]}
    assert recovery.mixing_of_recovered(r) == [0.1, 0.2]


@pytest.mark.slow
def test_identifiability_draws_limits_over_what_was_recovered(tmp_path: Path) -> None:
    cfg = identifiability.Config(
        edge_probs=(0.2, 0.6), ratios=(1.0,), seed=3, n_seeds=2, n_steps=30, store=tmp_path / "a.sqlite"
    )
    record = made(identifiability.EXPERIMENT, cfg)
    assert record["results"]["recovered"]["vanilla"] == [[0, 0]]
    limits = record["results"]["limits"]
    assert limits["rotated"] == [0.5]
    assert limits["vanilla"] == [0.0]
    assert limits["rotated:offset=10,first_offset=10,margin=0.0001"] == [pytest.approx(2**0.5 - 1)]
    assert len(identifiability.summary(record)) == 2 * len(identifiability.METHODS)


def test_the_limit_of_matryoshka_is_where_the_first_latent_leans_away_from_its_parent() -> None:
    """By hand: tan 2θ = 2q / (1 − q) and cos θ = .9 give q = .3875 for a child as large as its parent."""
    found = identifiability._lean_limit(1.0)
    assert found == pytest.approx(0.3875, abs=1e-4)
    assert first_latent_angle(found) == pytest.approx(0.451, abs=1e-3)


@pytest.mark.parametrize(("row", "agrees"), [((16, 16, 9, 2), True), ((16, 7, 9, 0), True), ((7, 0, 0, 0), False)])
def test_a_limit_agrees_within_a_step_of_the_grid(row: tuple[int, ...], agrees: bool) -> None:
    """The limit .35 has .4 as the first probability beyond it; half of the seeds are 8."""
    record = {
        "config": {"edge_probs": (0.2, 0.3, 0.4, 0.5), "n_seeds": 16},
        "results": {"recovered": {"a": [row]}, "limits": {"a": [0.35]}},
    }
    assert identifiability.within_a_step(record, "a") == [agrees]


@pytest.mark.slow
def test_mixing_compares_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        mixing, "SHAPES", {"1 child": mixing.SHAPES["1 child"], "2 exclusive": mixing.SHAPES["2 exclusive"]}
    )
    monkeypatch.setattr(mixing, "N_RECOVERED", 0)
    cfg = mixing.Config(sparsity_coefs=(0.2,), seed=3, n_seeds=2, n_steps=30, store=tmp_path / "a.sqlite")
    record = made(mixing.EXPERIMENT, cfg)
    assert len(record["results"]) == 2 * 3
    assert len(mixing.summary(record)) == 4


def test_activations_of_0_and_1_mix_the_parent_but_not_the_child() -> None:
    """By hand, s the weight of prefixes with the child: d_p = (1, t), t = q (1 − s) / (1 − s q), d_c = (0, 1 − t)."""
    q, s = 0.2, 7 / 8  # a parent, a child and six lone features: every prefix but the first has the child
    t = q * (1 - s) / (1 - s * q)
    found = mixing.binary(mixing.SHAPES["1 child"], "all")
    assert found["parent_to_child"] == pytest.approx(t / math.sqrt(1 + t**2))
    assert found["child_to_parent"] == pytest.approx(0, abs=1e-12)
    assert found["child_to_sibling"] is None


def test_the_weights_of_a_subtree_s_latents_hold_those_of_longer_prefixes() -> None:
    found = mixing.weights_of_subtree(mixing.SHAPES["1 child"], "all").weights
    np.testing.assert_allclose(found, [1 / 8, 7 / 8], rtol=1e-6)


def test_r_squared_by_hand() -> None:
    assert mixing.r_squared(np.array([1.0, 2, 3]), np.array([1.0, 2, 4])) == pytest.approx(1 - 1 / (14 / 3))


@pytest.mark.slow
def test_ordering_rules_compares_rules_and_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules, scenes = ordering_rules.RULES, ordering_rules.SCENES
    monkeypatch.setattr(ordering_rules, "ORDERS", ("energy",))
    monkeypatch.setattr(ordering_rules, "RULES", {name: rules[name] for name in ("energy", "given")})
    monkeypatch.setattr(ordering_rules, "SCENES", {"rare, large lone": scenes["rare, large lone"]})
    given = {"edge_probs": (0.2,), "ratios": (1.0, 5.0), "seed": 3, "n_seeds": 2, "n_scene_seeds": 3, "n_steps": 30}
    record = made(ordering_rules.EXPERIMENT, ordering_rules.Config(**given, store=tmp_path / "a.sqlite"))
    results = record["results"]
    assert results["recovered"] == {"energy": [[0], [0]], "given": [[2], [2]]}  # it starts there
    assert results["predicted"]["first"]["energy"] == [[True], [False]]
    assert results["scenes"]["rare, large lone"]["energy"]["n"] == 3
    assert results["spare"]["energy"]["n"] == results["spare"]["energy"]["n_failed"] == 3
    assert len(ordering_rules.summary(record)) == 2 * 3 + 4 + 1 + 1


@pytest.mark.parametrize(("power", "expected"), [(2, [1, 0]), (1, [0, 1]), (0, [0, 9]), (None, [0, 1])])
def test_a_rule_puts_features_in_its_order(power: float | None, expected: list[int]) -> None:
    """By hand: .3 and .03 of sizes 1 and 4 have energies .3 and .48; of 8 lone features each has .05."""
    tree = build_tree(ordering_rules.among(0.1, 4.0))
    assert pair_order.places(tree, power)[:2].tolist() == expected


def test_a_child_that_comes_first_takes_up_its_parent() -> None:
    """By hand: alone it is on with p + c, whose cosine with a child of size 3 is 3 / √10, and p is then left out."""
    first = pair_order.optimum(ordering_rules.among(0.4, 3.0), 2, "sampled_10", 0.1)
    assert first.has_hole
    assert first.cosines[1] == pytest.approx(3 / math.sqrt(10), abs=1e-2)
    second = pair_order.optimum(ordering_rules.among(0.2, 3.0), 0, "sampled_10", 0.1)
    assert not second.has_hole
    assert min(second.cosines) > 0.97


def test_theory_and_measurement_agree_by_rows_and_cells() -> None:
    record = {
        "config": {"n_seeds": 16},
        "results": {
            "recovered": {"a": [[16, 8, 7], [0, 0, 0]]},
            "predicted": {"lean": {"a": [[True, False, False], [True, True, True]]}},
        },
    }
    assert ordering_rules.agreement(record, "lean") == {"a": (1, 2)}


def test_of_two_latents_of_a_parent_the_one_that_is_less_often_on_is_spare() -> None:
    """By hand: the second latent is on with the parent alone (.7), the third with it (1), the last is neither."""
    tree = build_tree(Node(1.0, (Node(0.3),)))
    features = np.array([[1.0, 0.0]] * 7 + [[1.0, 1.0]] * 3)
    W_dec = np.array([[0.0, 1.0], [1.0, 0.1], [1.0, 0.0], [-1.0, 0.0]])
    W_enc = np.array([[0.0, 1.0], [1.0, -1.0], [1.0, 0.0], [-1.0, 0.0]]).T
    sae = SAE(*map(jnp.asarray, (W_enc, np.zeros(4), W_dec, np.zeros(2))))
    assert spare_latents.spare_of(sae, np.eye(2), tree, features) == [(1, pytest.approx(0.7))]
