"""The experiments on when a hierarchy can be found, at a size that proves no claim, and their arithmetic by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.common import cli
from experiments.common.experiment import Experiment, Work
from experiments.theory import identifiability, mixing, recovery
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
