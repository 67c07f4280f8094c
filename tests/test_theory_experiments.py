"""The experiments on when a hierarchy can be found, at a size that proves no claim, and their arithmetic by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.common import cli
from experiments.common.experiment import Experiment, Work
from experiments.theory import codes, corrector, identifiability, mixing, recovery
from experiments.theory.correctors import correctors, lost
from toy.features.named import forest
from toy.features.node import Node
from toy.features.tree import build_tree
from toy.sae import SAE
from toy.theory import edge_limit, first_latent_angle


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
def test_identifiability_draws_limits_over_what_was_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: identifiability.METHODS[name] for name in ("matryoshka", "rotated")}
    monkeypatch.setattr(identifiability, "METHODS", few)
    cfg = identifiability.Config(
        edge_probs=(0.2, 0.6),
        ratios=(1.0,),
        n_children=(2,),
        seed=3,
        n_seeds=2,
        n_steps=30,
        store=tmp_path / "a.sqlite",
    )
    record = made(identifiability.EXPERIMENT, cfg)
    found = record["results"]["methods"]["matryoshka"]
    assert {name: (row["edge_probs"], row["recovered"]) for name, row in found.items()} == {
        "1, ratio 1": ([0.2, 0.6], [0, 0]),
        "2 exclusive": ([0.2], [0]),  # twice .6 is more than 1
        "2 independent": ([0.2, 0.6], [0, 0]),
    }
    assert record["results"]["penalties"]["L0"] == {"1, ratio 1": 0.5, "2 exclusive": 0.4, "2 independent": 0.5}
    assert len(identifiability.summary(record)) == 2 * (1 + 3) + 3


ONE, TWO = identifiability.Row(1.0, 1, True), identifiability.Row(1.0, 2, True)


def test_the_limit_of_matryoshka_is_where_the_first_latent_leans_away_from_its_parent() -> None:
    """By hand: tan 2θ = 2q / (1 − q) and cos θ = .9 give q = .3875 for a child as large as its parent."""
    found = identifiability.limit("matryoshka", ONE)
    assert found == pytest.approx(0.3875, abs=1e-4)
    assert first_latent_angle(found) == pytest.approx(0.451, abs=1e-3)


def test_a_search_has_a_limit_between_those_of_l1_and_l0() -> None:
    """Its penalty is a / (a + ε); of two exclusive children the limits are .340 and .4."""
    rotated = [identifiability.limit(method, TWO) for method in list(identifiability.METHODS)[1:]]
    assert edge_limit(1.0, "l1", 2) < rotated[0] < rotated[1] < edge_limit(1.0, "l0", 2) == 0.4
    assert rotated == pytest.approx([0.340, 0.4], abs=5e-3)


@pytest.mark.parametrize(("row", "agrees"), [((16, 16, 9, 2), True), ((16, 7, 9, 0), True), ((7, 0, 0, 0), False)])
def test_a_limit_agrees_within_a_step_of_the_grid(row: tuple[int, ...], agrees: bool) -> None:
    """The limit .35 has .4 as the first probability beyond it; half of the seeds are 8."""
    result = {"edge_probs": (0.2, 0.3, 0.4, 0.5), "recovered": row, "limit": 0.35}
    assert identifiability.within_a_step(result, 16) == agrees


@pytest.mark.slow
def test_mixing_compares_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        mixing, "SHAPES", {"1 child": mixing.SHAPES["1 child"], "2 exclusive": mixing.SHAPES["2 exclusive"]}
    )
    monkeypatch.setattr(mixing, "ALONE", ("1 child",))
    monkeypatch.setattr(mixing, "N_RECOVERED", 0)
    cfg = mixing.Config(
        sparsity_coefs=(0.2,), alone=(0.1, 0.5), seed=3, n_seeds=2, n_steps=30, store=tmp_path / "a.sqlite"
    )
    record = made(mixing.EXPERIMENT, cfg)
    assert len(record["results"]["cells"]) == 2 * 3
    assert len(mixing.summary(record)) == 6
    few, many = (cell["predicted"]["parent_to_child"] for cell in record["results"]["alone"].values())
    assert 0 < few < many / 2


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


FAMILY = build_tree(forest(Node(0.15, (Node(0.2), Node(0.2), Node(0.2)), exclusive=True), Node(0.05)))
PARENT_ALONE = np.array([1.0, -1, -1, -1, 0])


def with_last(encoder: np.ndarray, decoder: np.ndarray) -> SAE:
    """The true latents of parent, two children and lone feature, and another in the place of the third child's."""
    axes = np.eye(5)[[0, 1, 2, 4]]
    W_enc, W_dec = np.vstack([axes, encoder]).T, np.vstack([axes, decoder])
    return SAE(W_enc, np.zeros(5), W_dec, np.zeros(5))  # type: ignore[arg-type]


def test_a_corrector_points_along_parent_minus_children_and_is_on_for_the_parent_alone() -> None:
    (found,) = correctors(with_last(0.3 * PARENT_ALONE, PARENT_ALONE), np.eye(5), FAMILY)
    assert (found.parent, found.rank) == (0, 4)
    np.testing.assert_allclose(found[2:], (1, 0.5, -0.5, 0.6), rtol=1e-6)


def test_a_latent_that_is_on_with_a_child_or_has_no_part_of_the_children_is_no_corrector() -> None:
    axes = np.eye(5)
    with_child = with_last(PARENT_ALONE + 0.5 * axes[3], PARENT_ALONE)
    absorbed = with_last(PARENT_ALONE, axes[0])  # the parent's own latent in a vanilla SAE
    never_on = with_last(-axes[0], PARENT_ALONE)
    assert [correctors(sae, axes, FAMILY) for sae in (with_child, absorbed, never_on)] == [[], [], []]


def test_a_feature_is_lost_where_no_latent_points_near_it() -> None:
    assert lost(with_last(PARENT_ALONE, PARENT_ALONE), np.eye(5)) == [3]
    assert lost(with_last(PARENT_ALONE, np.array([1.0, 0, 0, 1, 0])), np.eye(5)) == []  # an absorbed child is not


def test_rates_count_failed_runs_and_correctors_among_the_first_runs() -> None:
    found = {"recovered": [True, False, False, False], "correctors": [[{}], [{}, {}], [], [{}]]}
    assert corrector.rate(found, 3) == {"n": 3, "failed": 2, "with_corrector": 2, "both": 1}


def test_the_latents_of_two_subtrees_are_in_the_prefixes_of_their_places() -> None:
    """The first latent is in every prefix, the last in the full one alone, which is one of ten."""
    s = np.cumsum(codes.two_subtrees().weights.weights[::-1])[::-1]
    assert s[0] == pytest.approx(1)
    assert s[-1] == pytest.approx(0.1)


def test_strengths_are_mean_squared_sizes_over_that_of_the_third_latent() -> None:
    """By hand: parent .15 and child .15 · .2 of size 1 over the lone feature's .05 of size 1; bigger decoders count."""
    problem = codes.two_subtrees()
    directions = codes.code(problem, [0, 4, 8, 1]).directions
    sae = SAE(directions.T, np.zeros(4), np.diag([1.0, 2, 1, 1]) @ directions, np.zeros(9))  # type: ignore[arg-type]
    np.testing.assert_allclose(codes.strengths(problem, sae), (3, 12, 1, 0.6), rtol=1e-6)


@pytest.mark.slow
def test_a_corrector_is_the_better_code_at_a_small_coefficient_and_a_worse_minimum_at_a_large_one() -> None:
    small, large = codes.of_subtrees((0.2, 4.0), 2_000)
    assert small["other"]["earned_at_best"] > 1.2
    assert large["other"]["kept"] == 1
    assert large["other"]["earned"] < 0.5
    assert large["other"]["strength"] < 0.2 < large["child_strength"]
    assert large["other"]["aimed"] > 0.6


@pytest.mark.slow
def test_corrector_follows_runs_and_compares_codes() -> None:
    few = {"l0_ratios": (), "sparsity_coefs": (2.0,), "learning_rates": (), "weightings": ("all",), "warmups": (0.5,)}
    tiny = {"seed": 3, "n_seeds": 2, "n_rate_seeds": 1, "n_steps": 40, "n_descent": 30}
    record = made(
        corrector.EXPERIMENT,
        corrector.Config(**tiny, **few, theory_coefs=(1.0,), edge_probs=(0.3,)),
    )
    results = record["results"]
    assert [(one["axis"], one["value"]) for one in results["rates"]] == [
        ("default", ""),
        ("first coefficient", "2"),
        ("prefixes", "all"),
        ("warm-up", "0.5"),
    ]
    runs = results["runs"]["off"]
    assert len(runs["with_corrector"]["failed"]) == 20
    assert len(runs["lost"]) == len(runs["recovered"]) == 2
    assert len(corrector.summary(record)) == 2 + 4 + 1 + 2
