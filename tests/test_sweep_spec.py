"""Specifications of sweeps: those that are read, and those that are refused."""

import json
from typing import Any

import pytest

from experiments.sweeps.cell import (
    Cell,
    GivenTree,
    Training,
    as_data,
    built,
    cell_digest,
    cell_key,
    d_in,
    n_latents,
    root_of,
    target_l0,
)
from experiments.sweeps.program import program_of
from experiments.sweeps.spec import Sweep, parse_sweep
from toy import prefixes
from toy.features.named import RandomTree, RegularTree, reference_tree
from toy.features.node import Node

AXES = {"branching": [2, 3], "weighting": ["vanilla", "expected_10"], "seed": {"range": [0, 3]}}
UNFIT = ("a/b", "..", "a\\b", "", " ", 5, None, "a\0", "-a", "a\nb", "a\u202eb", "\ud800", "é" * 101)
DEEP: list = []
for _ in range(10_000):
    DEEP = [DEEP]


def no_file(name: str) -> Node:
    raise ValueError("No such file")


def parse(axes: Any = None, **entries: Any) -> Sweep:
    return parse_sweep({"axes": AXES if axes is None else axes, **entries}, no_file)


def test_a_product_has_a_cell_for_every_combination_the_last_axis_fastest() -> None:
    sweep = parse()
    assert len(sweep) == 12
    assert [sweep.values(i) for i in (0, 1, 3, 11)] == [
        {"branching": 2, "weighting": "vanilla", "seed": 0},
        {"branching": 2, "weighting": "vanilla", "seed": 1},
        {"branching": 2, "weighting": "expected_10", "seed": 0},
        {"branching": 3, "weighting": "expected_10", "seed": 2},
    ]
    assert len({cell_key(cell, "c") for cell in sweep.cells()}) == 12


def test_a_zip_has_a_cell_for_every_place() -> None:
    sweep = parse({"depth": [1, 2], "edge_prob": [0.1, 0.3]}, combine="zip")
    assert [cell.tree for cell in sweep.cells()] == [
        RegularTree(depth=1, edge_prob=0.1),
        RegularTree(depth=2, edge_prob=0.3),
    ]


def test_values_go_where_their_names_say() -> None:
    axes = {"branching": [[2, 3]], "tree_seed": [7], "seed": [5], "learning_rate": [1], "latents_per_feature": [2]}
    (cell,) = parse(axes, fixed={"tree": "random", "n_steps": 10}).cells()
    assert cell == Cell(
        RandomTree(branching=(2, 3), seed=7), Training(seed=5, learning_rate=1.0, latents_per_feature=2.0, n_steps=10)
    )


def test_a_number_may_be_written_as_yaml_takes_for_text() -> None:
    cells = parse({"learning_rate": ["1e-3", "2E+0", 0.5]}, metrics=["fvu", "fvu"])
    assert [cell.training.learning_rate for cell in cells.cells()] == [0.001, 2.0, 0.5]
    assert cells.metrics == ("fvu",)


def test_trees_are_generators_named_ones_or_files_together() -> None:
    seen: list[str] = []

    def read(name: str) -> Node:
        seen.append(name)
        return Node(1.0, (Node(0.25),), is_feature=False)

    sweep = parse_sweep({"axes": {"tree": ["reference", "mine.json", "regular"]}}, read)
    named, mine, regular = sweep.cells()
    assert seen == ["mine.json"]
    assert isinstance(named.tree, GivenTree)
    assert root_of(named.tree) == reference_tree()
    assert built(mine.tree).mean_l0 == 0.25
    assert regular.tree == RegularTree()


def test_a_sweep_is_read_again_from_what_it_says_of_itself() -> None:
    sweep = parse({"tree": ["reference", "random"], "branching": [[1, 2]]}, name="x", metrics=["fvu"])
    again = parse_sweep(json.loads(json.dumps(sweep.as_data())), no_file)
    assert [cell_key(cell, "c") for cell in again.cells()] == [cell_key(cell, "c") for cell in sweep.cells()]
    assert again == sweep


def test_a_cell_s_sizes_follow_from_its_tree() -> None:
    cell = Cell(RegularTree(), Training(latents_per_feature=1.5, l0_ratio=2.0))
    assert (n_latents(cell), target_l0(cell), d_in(cell)) == (30, pytest.approx(2.24), 32)
    wide = Cell(RegularTree(n_lone=30), Training(latents_per_feature=0.01))
    assert (n_latents(wide), d_in(wide), program_of(wide).cfg.n_latents) == (1, 64, 12)
    assert [program_of(Cell(RegularTree(), Training(most_lanes=n))).n_lanes for n in (None, 16, 1)] == [32, 16, 1]


def test_everything_that_a_cell_says_is_in_its_key() -> None:
    base = Cell(RegularTree(), Training())
    others = [base._replace(tree=tree) for tree in (RegularTree(depth=2), RandomTree(), GivenTree("a", "{}"))]
    other = {"weighting": "all", "sparsity": "log", "d_in": 40, "max_cosine": 0.5, "method": "tied", "most_lanes": 16}
    other["start"] = "features"
    for name, value in vars(base.training).items():
        changed = other.get(name)
        changed = value + (1 if isinstance(value, int) else 0.01) if changed is None else changed  # type: ignore[operator]
        others.append(base._replace(training=Training(**{name: changed})))
    assert len({cell_key(cell, "c") for cell in (base, *others)}) == 1 + len(others)
    assert cell_key(base, "c") != cell_key(base, "d")
    assert json.loads(json.dumps(as_data(base)))["training"]["seed"] == 0


def test_a_start_at_the_features_is_said_only_where_it_is_one_and_needs_as_many_features() -> None:
    assert "start" not in as_data(Cell(RegularTree(), Training()))["training"]  # so that digests stay
    program_of(Cell(RegularTree(), Training(start="features")))
    with pytest.raises(ValueError, match="start: 30 latents cannot start at 20 features"):
        program_of(Cell(RegularTree(), Training(start="features", latents_per_feature=1.5)))


def test_a_method_on_an_impossible_tree_has_a_digest() -> None:
    """Its mean L0, for which a method's k may stand, is not known."""
    impossible, method = RegularTree(edge_prob=0.5), "batchtopk:k=l0"
    one, other = (cell_digest(Cell(impossible, Training(method=method, seed=seed))) for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"brunching": [2]}, "brunching: no axis of these trees; did you mean branching"),
        ({"tree_seed": [2]}, "tree_seed: no axis of these trees"),  # of random ones only
        ({"learning_rates": [0.1]}, "did you mean learning_rate"),
        ({"branching": ["two"]}, "branching: expected int, got 'two'"),
        ({"branching": [2.5]}, "branching: expected int, got 2.5"),
        ({"exclusive": [1]}, "exclusive: expected bool, got 1"),
        ({"learning_rate": [True]}, "learning_rate: expected float, got True"),
        ({"learning_rate": [float("nan")]}, "learning_rate: expected float, got nan"),
        ({"learning_rate": [-1]}, "learning_rate: must be above 0, got -1"),
        ({"weighting": ["matryoshka"]}, "weighting: expected vanilla, all, sampled_N"),
        ({"weighting": ["sampled_0"]}, "weighting: expected vanilla, all, sampled_N"),
        ({"start": ["truth"]}, "start: expected 'random' or 'features', got 'truth'"),
        ({"sparsity": ["l2"]}, "sparsity: expected 'l1' or 'log', got 'l2'"),
        ({"edge_prob": [1.5]}, "edge_prob: must be at most 1, got 1.5"),
        ({"max_cosine": [1.5]}, "max_cosine: must be at most 1, got 1.5"),
        ({"seed": [2**32]}, "seed: must be at most 4,294,967,295, got 4294967296"),
        ({"seed": [-1]}, "seed: must not be negative, got -1"),
        ({"tree": ["random"], "tree_seed": [-1]}, "seed: must not be negative, got -1"),
        ({"seed": []}, "seed: expected a list of values"),
        ({"seed": 5}, "seed: expected a list of values, or range"),
        ({"seed": {"range": 5}}, "seed: range needs two integers, or three of which the last is not 0, got 5"),
        ({"seed": {"range": [0, 9, 0]}}, "seed: range needs two integers, or three of which the last is not 0"),
        ({"learning_rate": ["a1e-3"]}, "learning_rate: expected float, got 'a1e-3'"),
        ({"learning_rate": ["1e999"]}, "learning_rate: expected float, got inf"),
        ({"tree": ["nowhere.json"]}, "^tree: nowhere.json: No such file$"),
        ({"tree": ["regular", "random"], "branching": [2]}, "branching: expected tuple"),
        ({"tree": [{"active_prob": 1}]}, "tree: expected the name of a generator, a tree or a file"),
        ({"seed": {"range": [0, 10**9]}}, r"^seed: has more than 1,000,000 values$"),
        ({"seed": {"range": [0, 10**40]}}, r"^seed: has more than 1,000,000 values$"),
        ({"seed": {"range": [10**40, 0, -1]}}, r"^seed: has more than 1,000,000 values$"),
        ({"seed": {"range": [0, 5000]}, "depth": {"range": [1, 5000]}}, "^axes: make 24,995,000 cells, at most"),
        ({"learning_rate": [10**400]}, r"^learning_rate: expected float, got a number of 1,329 bits$"),
        ({"branching": [10**400]}, r"^branching: expected int, got a number of 1,329 bits$"),
        ({"learning_rate": [1e39]}, r"^learning_rate: must be at most 3\.4\d+e\+38, got 1e\+39$"),  # of float32
        ({"n_steps": [10**12]}, r"^n_steps: must be at most 1,000,000,000, got 1000000000000$"),
        ({"b1": [1.0]}, r"^b1: must be below 1, got 1\.0$"),
        ({"n_eval_rows": [0]}, r"^n_eval_rows: must be at least 1, got 0$"),
        ({"weighting": ["sampled_" + "9" * 5000]}, r"^weighting: expected vanilla.* got 'sampled_9{290}…$"),
        ({"x" * 10**5: [1]}, r"^x{59}…: no axis of these trees; there are tree, b1, .{,400}$"),
        ({"tree": ["x" * 10**5]}, r"^tree: x{59}…: No such file$"),
        ({"tree": ["a\nb"]}, r"^tree: a\\nb: No such file$"),
        ({"tree": ["a\0b"]}, r"^tree: a\\x00b: No such file$"),
        ({"tree": ["\ud800"]}, r"^tree: \\ud800: has a lone surrogate: no file can be called so$"),
        ({True: [1]}, "True: names are text, got bool"),
        ({}, "axes: expected an object of at least one axis"),
        ([], "axes: expected an object of at least one axis"),
    ],
)
def test_an_axis_that_cannot_be_is_named(axes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(axes)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"axis": {}}, "axis: no entry of a sweep; did you mean axes"),
        ({"fixed": {"branching": 3}}, "branching: is an axis and fixed, too"),
        ({"fixed": {"brunching": 3}}, "brunching: no axis of these trees; did you mean branching"),
        ({"fixed": []}, None),
        ({"fixed": [1]}, "fixed: expected an object"),
        ({"metrics": ["hole_rates"]}, "metrics: 'hole_rates' is none; did you mean hole_rate"),
        ({"metrics": "fvu"}, "metrics: expected a list of names, got 'fvu'"),
        *(({"name": name}, "name: files are called by it") for name in UNFIT),
        ({"name": "x" * 10**5}, "^name: files are called by it, expected at most 200 bytes, got 'x{298}…$"),
        ({"trees": {"x": [1]}, "axes": {"tree": ["x"]}}, "^tree: x: root: expected an object, got a list$"),
        ({"trees": {"x": DEEP}, "axes": {"tree": ["x"]}}, "^tree: x: is"),
        ({"trees": {"x": {1, 2}}, "axes": {"tree": ["x"]}}, "tree: x: is not JSON: Object of type set"),
        ({"metrics": 5}, "metrics: expected a list of names, got 5"),
        ({"trees": [1]}, "trees: expected an object of names and trees, got list"),
        ({"fixed": {"tree": ["reference"]}}, "tree: expected the name of a generator"),
        ({"combine": "cross"}, "combine: expected 'product' or 'zip', got 'cross'"),
        ({"combine": "zip"}, "axes: with combine zip all have as many values; here branching 2, weighting 2, seed 3"),
    ],
)
def test_an_entry_that_cannot_be_is_named(entries: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert len(parse(**entries)) == 12
        return
    with pytest.raises(ValueError, match=message):
        parse(**{"axes": AXES} | entries)


def test_a_value_of_another_kind_is_no_sweep() -> None:
    with pytest.raises(ValueError, match="a sweep is an object with entries name, combine, axes"):
        parse_sweep([1], no_file)


def test_impossible_trees_are_cells_that_have_no_program() -> None:
    possible, impossible = parse({"edge_prob": [0.3, 0.4]}).cells()
    assert program_of(possible).shape.n_features == 24
    with pytest.raises(ValueError, match=r"mutually exclusive children sum to 1\.2 > 1"):
        program_of(impossible)
    with pytest.raises(ValueError, match="20 features have no orthogonal directions in d_in = 8"):
        program_of(possible._replace(training=Training(d_in=8)))
    with pytest.raises(ValueError, match=r"20 directions in d_in = 8 have a \|cosine\| of at least 0\.281"):
        program_of(possible._replace(training=Training(d_in=8, max_cosine=0.2)))


def test_cells_far_too_large_are_impossible_and_cost_no_memory() -> None:
    for axes, told in (
        ({"branching": [10**6], "depth": [5]}, "are allowed"),
        ({"latents_per_feature": [1e9]}, "of each are trained"),
        ({"d_in": [10**9]}, "of each are trained"),
        ({"latents_per_feature": [3000]}, "GB are given to a cell: lower one of them"),
        ({"batch_size": [10**8]}, "GB are given to a cell"),
        ({"n_eval_rows": [10**8]}, "GB are given to a cell"),
        ({"n_roots": [9_000], "depth": [0], "d_in": [300], "max_cosine": [0.9]}, "GB are given to a cell"),
        ({"latents_per_feature": [400], "weighting": ["expected_4000"], "n_eval_rows": [9]}, "of the two multiplied"),
    ):
        (cell,) = parse(axes).cells()
        with pytest.raises(ValueError, match=rf"at most [\d,]+ .*{told}"):
            program_of(cell)
    (cell,) = parse({"d_in": [60_000]}).cells()
    with pytest.raises(ValueError, match=r"^d_in: a matrix of 60,000 × 60,000 numbers is needed, more than"):
        program_of(cell)


def test_planning_wide_cells_computes_no_weighting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact expectation over 40,000 latents takes seconds."""
    few = prefixes.inclusion_probabilities
    monkeypatch.setattr(
        prefixes, "inclusion_probabilities", lambda rates, n: few(rates, n) if len(rates) < 9 else 1 / 0
    )
    axes = {"latents_per_feature": [2000], "weighting": ["expected_10", "sampled_10", "balanced_.5"]}
    found = [program_of(cell) for cell in parse(axes, fixed={"n_eval_rows": 100}).cells()]
    assert [(program.cfg.n_latents, program.n_prefixes) for program in found] == [(49_152, n) for n in (0, 10, 0)]


def test_cells_as_large_as_before_are_possible() -> None:
    for latents, rows, width in ((1, 5_000, 32), (200, 5_000, 512), (800, 5_000, 512), (1_600, 1_000, 512)):
        (cell,) = parse({"latents_per_feature": [latents]}, fixed={"n_eval_rows": rows, "d_in": width}).cells()
        assert program_of(cell).n_lanes >= 1
