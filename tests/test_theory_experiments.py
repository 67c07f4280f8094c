"""The experiments on when a hierarchy can be found, at a size that proves no claim, and their arithmetic by hand."""

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import cli
from experiments.common.experiment import Experiment, Work
from experiments.sweeps.panels import recovered_only
from experiments.theory import (
    codes,
    corrector,
    identifiability,
    log_sparsity,
    mixing,
    ordering_rules,
    pair_order,
    recovery,
    rivals,
    spare_latents,
    weightings,
)
from experiments.theory.correctors import correctors, lost
from experiments.theory.family_limits import Family, limit
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
    scenes, methods = ("reference", "random", "pair, P .6"), ("matryoshka", "tied")
    cfg = recovery.Config(methods=methods, scenes=scenes, seed=3, n_seeds=2, n_steps=30, store=tmp_path / "a.sqlite")
    record = made(recovery.EXPERIMENT, cfg)
    assert {(method, tuple(found)) for method, found in record["results"].items()} == {
        ("matryoshka", scenes),
        ("tied", scenes),
    }
    assert all(r["n"] == 2 and r["n_failed"] == 0 for found in record["results"].values() for r in found.values())
    told = recovery.summary(record)
    assert len(told) == 6
    assert told[0].startswith("matryoshka, reference: recovered 0/2 [0.00, 0.66]")


def test_the_largest_mixing_is_that_of_recovered_runs() -> None:
    r = {"max_off_diagonal": [0.5, 0.1, 0.2], "is_recovered": [0.0, 1.0, 1.0]}
    assert recovered_only(r, "max_off_diagonal") == [0.1, 0.2]


@pytest.mark.slow
def test_identifiability_draws_limits_over_what_was_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: identifiability.METHODS[name] for name in ("vanilla", "matryoshka", identifiability.LEVELS)}
    monkeypatch.setattr(identifiability, "METHODS", few)
    monkeypatch.setattr(rivals, "N_STEPS", 400)
    cfg = identifiability.Config(
        edge_probs=(0.2, 0.6),
        ratios=(1.0,),
        n_children=(2,),
        n_with_rare=(2,),
        ratios_of_two=(2.0,),
        seed=3,
        n_seeds=2,
        n_steps=30,
        store=tmp_path / "a.sqlite",
    )
    record = made(identifiability.EXPERIMENT, cfg)
    found = record["results"]["methods"]["vanilla"]
    assert {name: (row["edge_probs"], row["recovered"]) for name, row in found.items()} == {
        "1, ratio 1": ([0.2, 0.6], [0, 0]),
        "2 exclusive": ([0.2], [0]),  # twice .6 is more than 1
        "2 exclusive, ratio 2": ([0.2], [0]),
        "2 independent": ([0.2, 0.6], [0, 0]),
        "2 independent, ratio 2": ([0.2, 0.6], [0, 0]),
    }
    assert list(record["results"]["methods"]["matryoshka"]) == [*found, "2 exclusive, lone 0.01"]
    assert list(record["results"]["penalties"]["L0"].values()) == [0.5, 0.4, 0.4, 0.5, 0.5]
    outdone = record["results"]["outdone_by"]
    assert list(outdone) == [
        "1, ratio 1",
        "2 exclusive",
        "2 exclusive, lone 0.01",
    ]  # the others fail by the first latent
    assert all(code["loss"] < code["loss_of_truth"] for code in outdone.values())
    assert len(identifiability.summary(record)) == 1 + 5 + 2 * (1 + 6) + 3 + 1 + 3


ONE, TWO = Family(1.0, 1, exclusive=True), Family(1.0, 2, exclusive=True)


def test_the_limit_of_matryoshka_is_where_the_first_latent_leans_away_from_its_parent() -> None:
    """By hand: tan 2θ = 4q / (1 − 4q) and cos θ = .9 give q = .1396 for a child twice as large as its parent."""
    found = limit("matryoshka", ONE._replace(ratio=2.0))
    assert found == pytest.approx(0.1396, abs=2e-4)
    assert first_latent_angle(found, 2.0) == pytest.approx(0.451, abs=1e-3)


def test_limits_of_the_other_methods() -> None:
    """A penalty between L1 and L0 has its limit between theirs."""
    assert limit("vanilla", TWO) == 0
    rotated = [limit(method, TWO) for method in list(identifiability.METHODS)[4:]]
    assert edge_limit(1.0, "l1", 2) < rotated[0] < rotated[1] < rotated[2] < edge_limit(1.0, "l0", 2) == 0.4
    assert rotated == pytest.approx([0.340, 0.373, 0.4], abs=5e-3)  # of L1, log(1 + a / .1) and L0


def test_rows_that_are_asked_for_twice_are_there_once() -> None:
    cfg = identifiability.Config(ratios=(1.0,), n_children=(2, 2), ratios_of_two=(1.0,), n_with_rare=(2, 2))
    assert [row.name for row in cfg.rows("matryoshka")] == [
        "1, ratio 1",
        "2 exclusive",
        "2 independent",
        "2 exclusive, lone 0.01",
    ]


def test_lone_features_that_are_not_rarer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rare_prob.*0\.05"):
        identifiability.Config(rare_prob=0.05)


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


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (identifiability.Config, "edge_probs"),
        (ordering_rules.Config, "ratios"),
        (log_sparsity.Config, "prices"),
        (corrector.Config, "theory_coefs"),
    ],
)
def test_axes_of_diagrams_ascend(config: Any, name: str) -> None:
    for values in ((), (0.3, 0.1), (0.2, 0.2)):
        with pytest.raises(ValueError, match=f"^{name}: need at least one, each once and in ascending order"):
            config(**{name: values})
