"""The experiments on when a hierarchy can be found, at a size that proves no claim, and their arithmetic by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.common import cli
from experiments.common.experiment import Experiment, Work
from experiments.theory import identifiability, log_sparsity, mixing, recovery, weightings
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
def test_weightings_measure_the_best_setting_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ("matryoshka:weighting=all", "hierarchical_topk:k=l0,levels=3", "hierarchical_topk:k=l0")
    monkeypatch.setattr(weightings, "METHODS", {method: weightings.METHODS[method] for method in methods})
    cfg = weightings.Config(
        scenes=("reference", weightings.PAIR),
        learning_rates=(0.01,),
        l0_ratios=(1.0, 1.4),
        topk_ratios=(2.0,),
        n_tuning_seeds=1,
        seed=3,
        n_seeds=2,
        n_other_seeds=1,
        n_steps=30,
        store=tmp_path / "a.sqlite",
    )
    assert weightings.EXPERIMENT.n_steps(cfg) == (2 + 2 + 1) + 3 * (2 + 1)
    record = made(weightings.EXPERIMENT, cfg)
    assert {name: list(tried) for name, tried in record["results"]["tuning"].items()} == {
        methods[0]: ["0.01, 1", "0.01, 1.4"],
        methods[1]: ["0.01, 1", "0.01, 1.4"],
        methods[2]: ["0.01, 2"],
    }
    for method, tried in record["results"]["tuning"].items():
        best = max(tried, key=lambda panel: tried[panel]["min_cosine"])  # nothing is recovered in 30 steps
        assert record["results"]["chosen"][method] == best
    found = record["results"]["found"].values()
    assert [[r["n"] for r in scenes.values()] for scenes in found] == [[2, 1]] * 3
    assert len(weightings.summary(record)) == 3 * (1 + 2)


def test_the_best_setting_recovers_most_and_then_has_the_greatest_least_cosines() -> None:
    settings = [weightings.Setting(rate, 1.0) for rate in (0.1, 0.2, 0.3)]
    tried = {"0.1, 1": (7, 0.99), "0.2, 1": (8, 0.91), "0.3, 1": (8, 0.95)}
    found = {name: {"recovered": n, "min_cosine": cosine} for name, (n, cosine) in tried.items()}
    assert weightings.best(settings, found) == settings[2]


@pytest.mark.slow
def test_log_sparsity_draws_the_limits_over_what_was_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"L1": log_sparsity.Row("l1"), "faster": log_sparsity.Row("l1", 3e-3)}
    monkeypatch.setattr(log_sparsity, "ROWS", rows)
    cfg = log_sparsity.Config(prices=(0.5, 5.0), seed=3, n_seeds=2, n_steps=2_000, store=tmp_path / "a.sqlite")
    record = made(log_sparsity.EXPERIMENT, cfg)
    slow, fast = record["results"].values()
    assert [of["n"] for of in slow["found"] + fast["found"]] == [2] * 4
    assert slow["limit"] == fast["limit"]
    assert 1 < slow["growth"] < fast["growth"]
    assert slow["truth_stays"] == [True, True]
    assert len(log_sparsity.summary(record)) == 2 * (1 + 2)


def test_the_controller_can_raise_the_coefficient_from_the_warm_up_to_the_last_restart() -> None:
    """8,000 steps: it moves from step 1,600 on, and 4,500 is the last multiple of 500 up to 4,800."""
    assert log_sparsity.growth(7.5e-4, 8_000) == pytest.approx(1.00075**2_900)
    assert log_sparsity.growth(0.0, 8_000) == 1


@pytest.mark.slow
def test_a_corrector_stays_at_a_low_price_alone() -> None:
    start = log_sparsity.corrector()
    low, high = (log_sparsity.descended(start, "l1", price) for price in (0.5, 8.0))
    cosines = [log_sparsity.least_cosine(sae, [log_sparsity.LOST]) for sae in (start, low, high)]
    assert cosines[0] < 0.5
    assert cosines[1] < 0.6
    assert cosines[2] > 0.9
    assert 5 < log_sparsity.corrector_limit("l1") < 8


def test_the_price_of_a_whole_feature_is_its_penalty() -> None:
    """Inputs are scaled to a mean norm of √32, and a feature has the norm of 1 before."""
    size = log_sparsity.scale()
    assert log_sparsity.whole("l1") == pytest.approx(size, rel=1e-6)
    assert log_sparsity.whole("log_0.1") == pytest.approx(math.log(1 + size / 0.1), rel=1e-6)
    assert log_sparsity.Row("l1").start(2 * size)["sparsity_coef"] == pytest.approx(2, rel=1e-6)
