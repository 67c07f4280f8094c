"""A cell's numbers depend on the cell alone, and a sweep ends in the same table whatever happens on the way."""

import concurrent.futures
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import submitit
from killed import few_lanes, run_and_die_once, small_sweep
from processes import killed, start

from experiments.sweeps import drive, engines, lanes, program
from experiments.sweeps.cell import Cell, GivenTree, Training, built, cell_key, n_latents, target_l0
from experiments.sweeps.drive import Done, make_plan, run_plan, stub_cells
from experiments.sweeps.engines import (
    MOST_ATTEMPTS,
    Failure,
    LocalEngine,
    RayEngine,
    SlurmEngine,
    WorkerFault,
    answer_of,
)
from experiments.sweeps.lanes import METRICS, Row, code_version, n_compiled, run_cells
from experiments.sweeps.program import program_of
from experiments.sweeps.spec import Sweep, parse_sweep
from experiments.sweeps.store import SweepStore, open_store
from toy import prefixes
from toy.data.source import TreeSource
from toy.eval.against_tree import evaluate
from toy.features.directions import _superposed, make_directions
from toy.features.named import RegularTree
from toy.features.node import Node
from toy.features.tree import held_out_key, sample_features
from toy.methods import method
from toy.training.config import Hypers, TrainConfig
from toy.training.run import train
from toy.training.state import trained_sae

RBG = "jax_default_prng_impl=rbg"
SHORT: Any = {"n_steps": 50, "batch_size": 32, "n_eval_rows": 300}
CELLS = [
    Cell(RegularTree(n_roots=1, branching=branching, n_lone=3), Training(weighting=weighting, seed=seed, **SHORT))
    for branching, weighting, seed in [(2, "vanilla", 0), (3, "expected_3", 1), (5, "all", 2), (4, "balanced_0.5", 3)]
]


def single_run(cell: Cell) -> dict[str, float]:
    """Trains one run as a user would: without padding or lanes."""
    training, tree = cell.training, built(cell.tree).tree
    key = jax.random.key(training.seed)
    key_directions, key_training = jax.random.split(key)
    W_feat = make_directions(key_directions[None], tree.n_features, 32, norm_std=training.norm_std)[0]
    hypers = Hypers(
        jax.tree.map(np.float32, prefixes.named(training.weighting, n_latents(cell))),
        target_l0=target_l0(cell),
        learning_rate=training.learning_rate,
    )
    cfg = TrainConfig(n_latents(cell), n_steps=training.n_steps, batch_size=training.batch_size)
    if isinstance(hypers.prefixes, prefixes.FixedPrefixes):
        hypers = hypers._replace(prefixes=prefixes.named(training.weighting, n_latents(cell)))
    state, _ = train(key_training, TreeSource(tree, W_feat), hypers, cfg=cfg)
    features = sample_features(held_out_key(key), tree, training.n_eval_rows)
    found = evaluate(trained_sae(state), W_feat, tree, features)
    return {name: getattr(found, name) for name in ("fvu", "l0", "min_cosine", "mcc", "shrinkage", "hole_rate")}


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.training.weighting)
def test_a_cell_equals_the_single_run_up_to_rounding(cell: Cell) -> None:
    """In float32 50 steps multiply a rounding of 1e-7 by some 100 (test_padding has it in float64, to 1e-7)."""
    (row,) = run_cells([cell])
    assert row.metrics is not None
    for name, value in single_run(cell).items():
        assert row.metrics[name] == pytest.approx(value, abs=1e-4), name


def metrics_of(cells: list[Cell]) -> list[Any]:
    return [row.metrics for row in run_cells(cells)]


def test_neighbours_and_lanes_change_not_one_bit() -> None:
    together = metrics_of(CELLS)
    assert [metrics_of([cell])[0] for cell in CELLS] == together
    assert metrics_of(CELLS[::-1]) == together[::-1]
    many = [CELLS[i % 4] for i in range(program.MOST_LANES)]
    assert metrics_of(many) == together * (len(many) // 4)


@pytest.mark.slow
def test_a_function_that_was_replaced_trains_with_what_it_now_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before, loss = metrics_of(CELLS[:1]), method.sae_loss
    with monkeypatch.context() as patch:
        patch.setattr(method, "sae_loss", lambda *given, **options: loss(*given, **options | {"sparsity": "log"}))
        replaced = metrics_of(CELLS[:1])
        with pytest.raises(
            ValueError, match=r"^toy\.methods\.method\.sae_loss: replaced while the program runs, .* use run_cells"
        ):
            make_plan(small_sweep())
    assert replaced != before
    training = CELLS[0].training
    logarithmic = CELLS[0]._replace(training=replace(training, sparsity="log"))
    assert replaced == metrics_of([logarithmic])
    assert metrics_of(CELLS[:1]) == before


def test_a_row_has_every_metric_and_the_sizes() -> None:
    (row,) = run_cells(CELLS[:1])
    assert row.metrics is not None
    assert list(row.metrics) == ["n_features", "n_latents", "target_l0", *METRICS]
    assert row.metrics["n_features"] == row.metrics["n_latents"] == 6
    assert row.metrics["target_l0"] == pytest.approx(0.15 * 1.4 + 3 * 0.05)


@pytest.mark.slow
def test_superposed_directions_are_compiled_once_for_all_seeds() -> None:
    before = _superposed._cache_size()  # type: ignore[attr-defined]
    training = {"max_cosine": 0.9, "d_in": 13, **SHORT}
    rows = run_cells([Cell(RegularTree(), Training(seed=seed, **training)) for seed in range(4)])
    assert len({row.metrics["fvu"] for row in rows if row.metrics is not None}) == 4
    assert _superposed._cache_size() - before == 1  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "tree"),
    [
        ({"weighting": "sampled_4"}, RegularTree()),
        ({"latents_per_feature": 0.5}, RegularTree()),
        ({"latents_per_feature": 3.0}, RegularTree(n_roots=1, n_lone=0)),
        ({"max_cosine": 0.6, "d_in": 12}, RegularTree()),
        ({"norm_std": 0.0, "sparsity": "log"}, RegularTree()),
        ({}, RegularTree(n_roots=1, branching=2, depth=0, n_lone=0)),
        ({}, GivenTree("x", '{"active_prob": 0.5, "is_read_out": false, "children": [{"active_prob": 0.5}]}')),
        ({}, GivenTree("x", '{"active_prob": 0.5, "magnitude_std": 0.1, "is_binary": false}')),
    ],
)
def test_cells_of_every_kind_have_numbers(training: Any, tree: Any) -> None:
    (row,) = run_cells([Cell(tree, Training(**SHORT, **training))])
    assert row.error is None
    assert row.metrics is not None
    assert row.metrics["fvu"] is not None


@pytest.mark.slow
def test_a_cell_may_start_at_its_features() -> None:
    """With next to no learning they stay; padding is no latent that could be lost."""
    still = {**SHORT, "n_steps": 5, "learning_rate": 1e-9, "norm_std": 0.0}
    tree = CELLS[0].tree
    (row,) = run_cells([Cell(tree, Training(start="features", method="matryoshka:order=fixed", **still))])
    assert row.metrics is not None
    assert row.metrics["min_cosine"] == pytest.approx(1, abs=1e-5)
    (row,) = run_cells([Cell(tree, Training(start="features", latents_per_feature=0.5, **still))])
    assert row.error is None


def test_a_training_that_diverges_is_a_failure_of_its_cell_alone() -> None:
    wild = CELLS[0]._replace(training=Training(**SHORT, learning_rate=1e30, clip_norm=1e30))
    good, bad = run_cells([CELLS[0], wild])
    assert good == Row(metrics_of(CELLS[:1])[0], None, good.seconds)
    assert bad.metrics is None
    assert "not finite: its training diverged" in str(bad.error)


def test_cells_of_different_programs_or_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="of different programs"):
        run_cells([CELLS[0], CELLS[0]._replace(training=Training(**(SHORT | {"n_steps": 51})))])
    with pytest.raises(ValueError, match="33 do not fit into 32 lanes"):
        run_cells([CELLS[0]] * 33)


@pytest.mark.slow
def test_trees_of_many_shapes_share_few_programs_each_compiled_once() -> None:
    shapes = [
        Cell(RegularTree(n_roots=1, branching=b, depth=d, expanded=1, exclusive=e, edge_prob=0.1), Training(**SHORT))
        for b in (2, 3, 4, 5, 6)
        for d in (0, 1, 2, 3)
        for e in (True, False)
    ]
    programs = {program_of(cell) for cell in shapes}
    assert len(programs) == 4
    before = n_compiled()
    for one in programs:
        own = [cell for cell in shapes if program_of(cell) == one]
        run_cells(own[:1])
        run_cells(own)
    assert n_compiled() - before <= 4


# --- whole sweeps -----------------------------------------------------------------------------------------


@pytest.fixture
def tiny_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "MOST_LANES", program.MOST_LANES)
    few_lanes()


def opened(folder: Path, sweep: Sweep) -> SweepStore:
    return open_store(folder / "sweep.sqlite", sweep)


def table(store: SweepStore) -> list[Any]:
    """Returns all of a store but the times."""
    return [(row.key, row.code, row.metrics, row.error) for row in store.rows()]


def run_all(folder: Path, engine: Any, **options: Any) -> SweepStore:
    sweep = small_sweep()
    store = opened(folder, sweep)
    run_plan(sweep, make_plan(sweep, store.finished()), store, engine, **options)
    return store


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "MOST_LANES", program.MOST_LANES)
        few_lanes()
        return table(run_all(tmp_path_factory.mktemp("undisturbed"), LocalEngine()))


def test_every_cell_has_one_row_and_impossible_ones_say_why(undisturbed: list[Any]) -> None:
    keys = {cell_key(cell, code_version()) for cell in small_sweep().cells()}
    assert {key for key, *_ in undisturbed} == keys
    assert len(undisturbed) == len(keys) == 32
    errors = [error for *_, metrics, error in undisturbed if metrics is None]
    assert len(errors) == 8
    assert set(errors) == {
        "root.children[0].children: probabilities of mutually exclusive children sum to 1.2 > 1; "
        "lower them, or divide each by the sum",
    }


def test_a_second_start_does_only_what_is_missing(tiny_groups: None, tmp_path: Path, undisturbed: list[Any]) -> None:
    sweep = small_sweep()
    store = opened(tmp_path, sweep)
    half = [(key, Row(metrics, error, 0.0)) for key, _, metrics, error in undisturbed[::2]]
    store.add(code_version(), half)
    told: list[Done] = []
    plan = make_plan(sweep, store.finished())
    assert (plan.n_finished, plan.n_missing + len(plan.impossible)) == (16, 16)
    run_plan(sweep, plan, store, LocalEngine(), progress=told.append)
    assert sum(done.n_rows for done in told) == 16
    assert table(store) == undisturbed
    told.clear()
    run_plan(sweep, make_plan(sweep, store.finished()), store, LocalEngine(), progress=told.append)
    assert not told


def test_what_another_driver_has_done_meanwhile_is_left_out(
    tiny_groups: None, tmp_path: Path, undisturbed: Any
) -> None:
    sweep = small_sweep()
    store = opened(tmp_path, sweep)
    plan = make_plan(sweep, store.finished())
    run_plan(sweep, plan, store, LocalEngine(), run=stub_cells)
    trained: list[Any] = []
    run_plan(sweep, plan, store, LocalEngine(), run=lambda cells: trained.append(cells) or [])  # type: ignore[func-returns-value]
    assert not trained


def test_a_group_that_fails_is_halved_until_the_cell_at_fault_stands_alone(
    tiny_groups: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any]
) -> None:
    monkeypatch.setenv("DIED", str(tmp_path / "died"))
    (tmp_path / "died").touch()  # nobody is killed
    monkeypatch.setenv("BROKEN", "3")
    store = run_all(tmp_path, LocalEngine(), run=run_and_die_once)
    failed = [row for row in store.rows() if row.error is not None and row.error.startswith("RuntimeError")]
    assert {row.error for row in failed} == {"RuntimeError: seed 3 is not to be had"}
    seeds = {cell_key(cell, code_version()): cell.training.seed for cell in small_sweep().cells()}
    assert [seeds[row.key] for row in failed] == [3] * 6
    others = [row for row in undisturbed if seeds[row[0]] != 3]
    assert [row for row in table(store) if seeds[row[0]] != 3] == others
    sweep = small_sweep()
    again = make_plan(sweep, store.finished(failed=False))
    assert again.n_missing == 6
    run_plan(sweep, again, store, LocalEngine(), retry=True)
    assert table(store) == undisturbed


def test_another_version_of_the_code_makes_all_cells_anew(tmp_path: Path) -> None:
    sweep = small_sweep()
    store = opened(tmp_path, sweep)
    for code, rows in (("one", 32), ("two", 64)):
        run_plan(sweep, make_plan(sweep, store.finished(), code), store, LocalEngine(), run=stub_cells)
        assert len(table(store)) == rows
    assert store.codes() == ["two", "one"]


def test_a_worker_with_other_code_stops_the_sweep_and_fails_no_cell(tmp_path: Path) -> None:
    sweep = small_sweep()
    store = opened(tmp_path, sweep)
    told = (
        rf"workers failed: a worker has \({re.escape(code_version())}\), the driver \(other\): install and set the same"
    )
    with pytest.raises(WorkerFault, match=told):
        run_plan(sweep, make_plan(sweep, store.finished(), "other"), store, LocalEngine())
    assert [row.error is not None for row in store.rows()] == [True] * 8  # the impossible ones


def test_a_version_of_the_code_is_its_source_its_libraries_and_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")
    assert re.fullmatch(r"source \w{16}, jax [\d.]+, jaxlib [\d.]+, optax [\d.]+, numpy .+, cpu", code_version())
    assert code_version("gpu") == code_version()[:-3] + "gpu"
    before = lanes._source_and_libraries.__wrapped__()
    monkeypatch.setattr(lanes, "version", lambda name: "0")
    assert lanes._source_and_libraries.__wrapped__() != before


@pytest.mark.slow
def test_cells_trained_with_other_settings_of_jax_are_not_finished(tmp_path: Path) -> None:
    sweep = parse_sweep({"axes": {"seed": [0]}, "fixed": {**SHORT, "n_steps": 5}}, lambda name: pytest.fail(name))
    store = opened(tmp_path, sweep)
    run_plan(sweep, make_plan(sweep), store, LocalEngine())
    assert make_plan(sweep, store.finished()).n_finished == 1
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        plan = make_plan(sweep, store.finished())
        assert (plan.n_finished, plan.n_missing) == (0, 1)
        run_plan(sweep, plan, store, LocalEngine())
    finally:
        jax.config.update("jax_default_prng_impl", "threefry2x32")
    assert make_plan(sweep, store.finished()).n_finished == 1
    first, second = store.rows()
    assert first.metrics != second.metrics  # so they must not share a key
    assert {first.code, second.code} == {code_version(), code_version().replace(" cpu,", f" cpu, {RBG},")}


def test_a_worker_with_other_settings_stops_the_sweep(tmp_path: Path) -> None:
    """A setting of this thread alone is not one of the engine's threads."""
    sweep = small_sweep()
    store = opened(tmp_path, sweep)
    told = r"the driver \(.*jax_enable_x64=True.*\): install and set the same"
    with jax.enable_x64(True), pytest.raises(WorkerFault, match=told):
        run_plan(sweep, make_plan(sweep), store, LocalEngine())
    assert [row.error is not None for row in store.rows()] == [True] * 8  # the impossible ones


class Faulty:
    """Workers that fail at some groups, counted from 0."""

    def __init__(self, *at: int) -> None:
        self.at, self.n = at, 0

    def run(self, function: Any, tasks: Any) -> Iterator[tuple[Any, Any]]:
        for i, task in enumerate(tasks):
            self.n += 1
            yield task, Failure("the node was lost", of_worker=True) if i in self.at else answer_of(function, task)


@pytest.mark.slow
def test_cells_whose_workers_fail_stay_missing_and_the_others_are_done(
    tiny_groups: None, tmp_path: Path, undisturbed: list[Any]
) -> None:
    sweep = small_sweep()
    store = opened(tmp_path, sweep)
    with pytest.raises(WorkerFault, match="2 groups of cells have no rows, since their workers failed: the node was"):
        run_plan(sweep, make_plan(sweep), store, Faulty(1, 5))
    assert len(table(store)) == 32 - 4
    assert all(row in undisturbed for row in table(store))
    run_plan(sweep, make_plan(sweep, store.finished()), store, LocalEngine())
    assert table(store) == undisturbed


def test_workers_that_always_fail_stop_the_sweep(tiny_groups: None, tmp_path: Path) -> None:
    sweep, engine = small_sweep(), Faulty(*range(12))
    with pytest.raises(WorkerFault, match="10 groups of cells have no rows"):
        run_plan(sweep, make_plan(sweep), opened(tmp_path, sweep), engine)
    assert engine.n == drive.MOST_LOST == 10


@pytest.mark.parametrize(
    ("error", "of_worker"),
    [
        (MemoryError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), True),
        (WorkerFault("other code"), True),
        (RuntimeError("of the\ntask"), False),
    ],
)
def test_what_a_worker_lacks_is_no_fault_of_the_task(error: Exception, of_worker: bool) -> None:
    def fail(task: int) -> None:
        raise error

    answer = answer_of(fail, 0)
    assert isinstance(answer, Failure)
    assert answer.of_worker == of_worker
    assert "\n" not in answer.told


def test_a_tree_that_is_far_too_large_is_an_impossible_cell(tmp_path: Path) -> None:
    axes = {"depth": [1, 1_500], "branching": [1]}
    plan = make_plan(parse_sweep({"axes": axes}, lambda name: Node(1.0)))
    assert (plan.n_missing, len(plan.impossible)) == (1, 1)


@pytest.mark.slow
def test_a_driver_killed_while_it_writes_rows_ends_in_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_points: np.random.Generator
) -> None:
    """A group has one cell, so that kills leave something to do."""
    monkeypatch.setattr(program, "MOST_LANES", 1)
    points = kill_points.integers(900, 1_500, 2).tolist()  # opening the store takes some hundred lines
    missing = [int(killed("sweep", tmp_path, at, LANES=1).split()[0]) for at in points]
    assert missing == sorted(missing, reverse=True)  # no kill takes a row back
    assert missing[0] > missing[-1] > 0
    assert table(run_all(tmp_path, LocalEngine())) == table(run_all(tmp_path / "whole", LocalEngine()))


@pytest.mark.slow
def test_two_drivers_on_one_store_make_one_table(tiny_groups: None, tmp_path: Path, undisturbed: list[Any]) -> None:
    processes = [start("killed.py", "sweep", tmp_path) for _ in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert table(opened(tmp_path, small_sweep())) == undisturbed


# --- engines ----------------------------------------------------------------------------------------------


def on_ray(folder: Path, **environment: str) -> SweepStore:
    """In a process of its own: Ray forks, which JAX's threads do not bear."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        output, code = finished(start("killed.py", "ray", folder))
    assert code == 0, output
    return opened(folder, small_sweep())


def finished(process: subprocess.Popen) -> tuple[str, int]:
    output, _ = process.communicate(timeout=240)
    return output, process.returncode


@pytest.mark.slow
def test_a_ray_worker_that_dies_is_replaced_and_a_cell_at_fault_fails_alone(
    tiny_groups: None, tmp_path: Path, undisturbed: list[Any]
) -> None:
    store = on_ray(tmp_path, DIED=str(tmp_path / "died"), BROKEN="3")
    assert (tmp_path / "died").exists()
    sweep = small_sweep()
    seeds = {cell_key(cell, code_version()): cell.training.seed for cell in sweep.cells()}
    assert [row for row in table(store) if seeds[row[0]] != 3] == [row for row in undisturbed if seeds[row[0]] != 3]
    told = [row.error for row in store.rows() if row.error and "seed 3 is not to be had" in row.error]
    assert len(told) == 6
    run_plan(sweep, make_plan(sweep, store.finished(failed=False)), store, LocalEngine(), retry=True)
    assert table(store) == undisturbed


@pytest.mark.slow
def test_slurm_s_local_executor_gives_the_same_table_though_a_job_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "MOST_LANES", 12)  # each job is a process that has to start
    monkeypatch.setenv("LANES", "12")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("DIED", str(tmp_path / "died"))
    engine = SlurmEngine(tmp_path / "jobs", "local", most_jobs=2, parameters={"timeout_min": 5}, poll_s=0.1)
    by_slurm = table(run_all(tmp_path / "slurm", engine, run=run_and_die_once))
    assert (tmp_path / "died").exists()
    assert by_slurm == table(run_all(tmp_path / "local", LocalEngine()))


def test_an_interrupt_ends_once_what_is_under_way_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []

    def wait(running: Any, **options: Any) -> Any:
        waited.append(options)
        if len(waited) == 1:
            raise KeyboardInterrupt
        return concurrent.futures.wait(running, **options)

    monkeypatch.setattr(engines, "wait", wait)
    answers: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        answers.extend(LocalEngine().run(lambda task: 2 * task, iter(range(10))))
    assert sorted(answers) == [(0, 0), (1, 2)]


def test_a_ray_cluster_that_can_never_take_a_task_is_refused_or_waited_for() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}}]
    RayEngine(cpus=2)._check(nodes)
    with pytest.raises(ValueError, match="no node of the Ray cluster has 1 CPUs and 1 GPUs, which a task is to have"):
        RayEngine(gpus=1)._check(nodes)
    with pytest.warns(UserWarning, match="has 4 CPUs and 0 GPUs, which a task is to have: waiting for the cluster"):
        RayEngine("auto", cpus=4)._check(nodes)


class FakeJob:
    def __init__(self, executor: "FakeExecutor", call: Any) -> None:
        self.executor, self.call, self.cancelled = executor, call, False

    def done(self) -> bool:
        return self.executor.ends

    def result(self) -> Any:
        self.executor.n_ended += 1
        if self.executor.n_ended <= self.executor.n_deaths:
            raise OSError("the job died")
        return self.call()

    def cancel(self, check: bool) -> None:
        self.cancelled = True


class FakeExecutor:
    """In place of submitit's: its jobs end at once or never, and the first ones die."""

    def __init__(self, n_deaths: int = 0, ends: bool = True) -> None:
        self.n_deaths, self.ends, self.n_ended, self.jobs = n_deaths, ends, 0, []

    def update_parameters(self) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> FakeJob:
        self.jobs.append(FakeJob(self, lambda: function(*arguments)))
        return self.jobs[-1]


def on_slurm(executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[tuple[int, Any]]:
    monkeypatch.setattr(submitit, "AutoExecutor", lambda folder, cluster: executor)
    return SlurmEngine(Path("none"), poll_s=0.0, **options).run(lambda task: 2 * task, iter(range(20)))


def test_a_slurm_job_that_dies_is_submitted_again_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    again = dict(on_slurm(FakeExecutor(MOST_ATTEMPTS - 1), monkeypatch, most_jobs=1))
    assert again == {i: 2 * i for i in range(20)}
    given_up = dict(on_slurm(FakeExecutor(MOST_ATTEMPTS), monkeypatch, most_jobs=1))
    assert given_up[0] == Failure("OSError: the job died", of_worker=True)
    assert {i: given_up[i] for i in range(1, 20)} == {i: 2 * i for i in range(1, 20)}


def test_no_more_slurm_jobs_wait_than_may_and_a_driver_that_stops_cancels_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor = FakeExecutor(ends=False)

    def sleep(seconds: float) -> None:
        if len(executor.jobs) != 3:
            raise AssertionError(f"{len(executor.jobs)} jobs")
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        list(on_slurm(executor, monkeypatch, most_jobs=3))
    assert [job.cancelled for job in executor.jobs] == [True] * 3
    finished = FakeExecutor()
    assert len(list(on_slurm(finished, monkeypatch, most_jobs=3))) == 20
    assert not any(job.cancelled for job in finished.jobs)


def test_an_engine_asks_for_few_tasks_ahead() -> None:
    asked: list[int] = []

    def tasks() -> Iterator[int]:
        for i in range(100):
            asked.append(i)
            yield i

    answers = LocalEngine().run(lambda task: 2 * task, tasks())
    first = next(answers)
    assert len(asked) == engines.N_AHEAD + 1  # two devices have one each, chosen from so many
    assert sorted([first, *answers]) == [(i, 2 * i) for i in range(100)]


def test_groups_of_a_program_go_to_the_device_that_compiled_it_while_there_are_others() -> None:
    """A device takes another's program only where no other is left, as with five groups of one program."""
    by_device: dict[Any, list[int]] = {}

    def note(group: drive.Group) -> None:
        by_device.setdefault(jax.config.jax_default_device, []).append(group.kind)  # type: ignore[arg-type]
        time.sleep(0.02)

    for kinds, most in (([0, 0, 0, 1, 1, 1], 1), ([0] * 5, 1), ([0, 0, 0, 0, 0, 1], 2)):
        by_device.clear()
        list(LocalEngine().run(note, [drive.Group((), (), kind) for kind in kinds]))
        assert sorted(kind for of_device in by_device.values() for kind in of_device) == kinds
        assert len(by_device) == 2
        assert max(len(set(of_device)) for of_device in by_device.values()) <= most


@pytest.mark.slow
def test_every_device_works_and_changes_not_one_bit() -> None:
    first, second = jax.local_devices()
    with jax.default_device(first):
        one = metrics_of(CELLS)
    with jax.default_device(second):
        other = metrics_of(CELLS)
    assert one == other


def test_the_halves_of_a_group_are_all_of_it() -> None:
    group = drive.Group(tuple("abcde"), (*CELLS, CELLS[0]), 3)
    first, second = drive._halves(group)
    assert (first.keys + second.keys, first.cells + second.cells) == (group.keys, group.cells)
    assert first.kind == second.kind == group.kind
