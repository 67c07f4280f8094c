"""Sweeps and their reports as a user runs them."""

import json
import os
import re
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import exit_code

from experiments import sweep, sweep_report, sweep_speed
from experiments.common import cli, signals
from experiments.sweeps import page as sweep_page
from experiments.sweeps import plots as sweep_plots
from experiments.sweeps.columns import table_of
from experiments.sweeps.drive import make_plan, run_plan, stub_cells
from experiments.sweeps.engines import LocalEngine
from experiments.sweeps.lanes import code_version
from experiments.sweeps.program import program_of
from experiments.sweeps.store import open_store, read_store

SWEEP: dict[str, Any] = {
    "axes": {"branching": [2, 3], "edge_prob": [0.2, 0.4], "weighting": ["vanilla", "expected_3"], "seed": [0, 4]},
    "fixed": {"n_roots": 1, "n_lone": 2, "n_steps": 30, "batch_size": 16, "n_eval_rows": 50},
}
EXAMPLES = sorted((Path(__file__).parents[1] / "experiments" / "sweeps").glob("*.yaml"))


def command(monkeypatch: pytest.MonkeyPatch, module: Any, *arguments: object) -> int:
    return exit_code(module.main, monkeypatch, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.yaml, its store and its report."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.yaml").write_text(yaml.safe_dump(SWEEP))
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, sweep, folder / "small.yaml", "--store", folder / "s.sqlite") == 0
        assert command(patch, sweep_report, folder / "s.sqlite", "--out", folder / "out") == 0
    return folder


def record_at(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def record_of(made: Path) -> dict[str, Any]:
    return record_at(made / "out" / "sweep_small.json")


@pytest.mark.slow
def test_a_report_is_a_record_a_page_and_figures(made: Path) -> None:
    names = {path.name for path in (made / "out").iterdir()}
    figures = {
        f"sweep_small_{part}.png" for part in ("recovered", "hole_rate", "parent_to_child", "effects", "criteria")
    }
    assert names == {"sweep_small.json", "sweep_small.html", *figures}
    record = record_of(made)
    assert record["config"]["axes"] == SWEEP["axes"]
    assert record["seeds"] == [0, 4]
    results = record["results"]
    assert (results["n_cells"], results["n_failed"], results["n_missing"]) == (16, 4, 0)
    assert [len(column) for column in results["columns"].values()] == [16] * len(results["columns"])
    assert sum(value is None for value in results["columns"]["fvu"]) == 4
    assert [error["n_cells"] for error in results["errors"]] == [4]
    table = table_of(record)
    assert table.failed.sum() == np.isnan(table.metrics["fvu"]).sum() == 4


def test_the_page_needs_no_other_file_and_names_every_failure_and_its_command(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page = (made / "out" / "sweep_small.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    failure = page[page.index("<h2>Failures") :]
    assert "4 cells: root.children[0].children: probabilities of mutually exclusive children sum to 1.2" in failure
    record, cell = re.findall(r"python -m experiments\.sweep (\S+) --cell (\w+)", failure)[0]
    assert command(monkeypatch, sweep, record, "--cell", cell) == 2
    assert "probabilities of mutually exclusive children sum to 1.2" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_of_a_worst_cell_gives_its_numbers(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page, results = (made / "out" / "sweep_small.html").read_text(), record_of(made)["results"]
    file, digest = re.findall(r"python -m experiments\.sweep (\S+) --cell (\w+)", page)[0]
    assert command(monkeypatch, sweep, file, "--cell", digest) == 0
    told = json.loads(capsys.readouterr().out)
    stored = [row.metrics for row in read_store(made / "s.sqlite").rows()]
    assert told["metrics"] in stored
    assert told["code"] == results["code"] == code_version()
    place = results["cells"].index(digest)
    assert told["metrics"]["hole_rate"] == pytest.approx(results["columns"]["hole_rate"][place], rel=1e-5)
    assert told["cell"]["training"]["seed"] in (0, 4)
    assert command(monkeypatch, sweep, made / "small.yaml", "--cell", digest) == 0  # the file makes the same cells
    assert json.loads(capsys.readouterr().out)["metrics"] == told["metrics"]


def test_figures_are_drawn_again_from_the_record_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert command(monkeypatch, sweep_report, made / "out" / "sweep_small.json", "--redraw", "--out", tmp_path) == 0
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes() == (made / "out" / path.name).read_bytes()
    record = made / "out" / "sweep_small.json"
    assert f"experiments.sweep {record} --cell" in (tmp_path / "sweep_small.html").read_text()  # which is not there
    assert len(list(tmp_path.glob("*.png"))) == 5
    assert (
        command(
            monkeypatch,
            sweep_report,
            made / "out" / "sweep_small.json",
            "--redraw",
            "--out",
            tmp_path,
            *("--metrics", "fvu", "l0", "--x", "weighting", "--y", "branching"),
        )
        == 0
    )
    assert (tmp_path / "sweep_small_l0.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entries", "shown", "panels"),  # of the phase diagram: texts, and hatched places
    [
        ({"axes": {"edge_prob": [0.1, 0.2]}}, 5, [(2, 0)]),  # one axis: a row
        ({"axes": {"seed": [0, 1]}}, 5, [(2, 0)]),
        ({"axes": {"weighting": ["vanilla", "all"], "seed": [0, 1]}}, 5, [(2, 0)]),
        ({"axes": {"depth": [0, 1], "weighting": ["vanilla", "all"]}, "combine": "zip"}, 5, [(2, 0)]),
        ({"axes": {"depth": [1, 1, 2], "seed": [0, 1, 0]}, "combine": "zip"}, 5, [(2, 0)]),
        ({"axes": {"depth": [1, 1], "seed": [0, 0]}}, 5, [(1, 0)]),  # the same cell four times
        ({"axes": {"branching": [2, 3], "seed": [1]}, "metrics": ["fvu", "l0"]}, 3, [(2, 0)]),
        ({"axes": {"edge_prob": [0.2, 0.6], "weighting": ["vanilla"]}}, 5, [(1, 1)]),  # 0.6 is impossible
    ],
)
def test_a_sweep_of_any_axes_and_metrics_has_a_report(
    entries: dict[str, Any], shown: int, panels: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "any.yaml").write_text(yaml.safe_dump({"fixed": SWEEP["fixed"], **entries}))
    store, out = tmp_path / "s.sqlite", tmp_path / "out"
    assert command(monkeypatch, sweep, tmp_path / "any.yaml", "--store", store, "--stub") == 0
    assert command(monkeypatch, sweep_report, store, "--out", out) == 0
    assert len(list(out.glob("*.png"))) == shown
    record = json.loads((out / "sweep_any.json").read_text())
    x, y = sweep_report.choose_axes(table_of(record), None, None)
    figure = sweep_plots.phase_diagram(record, next(iter(record["results"]["columns"])), x, y)
    drawn = [ax for ax in figure.axes if ax.get_images()]
    assert [(len(ax.texts), len(ax.patches)) for ax in drawn] == panels


def test_a_zip_of_seeds_is_counted_over_seeds_and_the_same_cell_once() -> None:
    record = {
        "config": {"axes": {"depth": [1, 1, 2, 1], "seed": [3, 5, 3, 5]}, "combine": "zip"},
        "results": {"columns": {"fvu": [0.1, 0.3, None, 0.3]}, "failed": [2], "cells": ["a", "b", "c", "b"]},
    }
    table = table_of(record)
    assert table.axes == {"depth": [1, 2]}
    assert table.places.tolist() == [[0], [0], [1]]
    assert table.seeds.tolist() == [0, 1, 0]
    assert table.failed.tolist() == [False, False, True]
    assert table.having(depth=0).tolist() == [True, True, False]


def test_the_worst_mixing_is_the_largest_of_either_sign() -> None:
    record = {
        "config": {"axes": {"depth": [1, 2, 3]}, "combine": "product"},
        "results": {
            "columns": {"parent_to_child": [-0.5, 0.1, 0.4], "recovered": [1, 0, 1]},
            "failed": [],
            "cells": ["a", "b", "c"],
        },
    }
    table = table_of(record)
    assert np.argsort(sweep_page.badness(table, "parent_to_child")).tolist() == [0, 2, 1]
    assert np.argmin(sweep_page.badness(table, "recovered")) == 1


@pytest.mark.slow
def test_a_report_by_a_metric_that_no_cell_has_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trees of depth 0 have no parents, so no holes."""
    lone = {"axes": {"seed": [0, 1]}, "fixed": SWEEP["fixed"] | {"depth": 0, "n_lone": 4}}
    (tmp_path / "lone.yaml").write_text(yaml.safe_dump(lone))
    store, out = tmp_path / "s.sqlite", tmp_path / "out"
    assert command(monkeypatch, sweep, tmp_path / "lone.yaml", "--store", store) == 0
    assert command(monkeypatch, sweep_report, store, "--out", out) == 0
    page = (out / "sweep_lone.html").read_text()
    assert "Worst cells by recovered" in page
    figure = sweep_plots.phase_diagram(record_at(out / "sweep_lone.json"), "hole_rate", "seed", None)
    assert "dotted: not known" in figure.get_suptitle()
    assert command(monkeypatch, sweep_report, store, "--out", out, "--worst", "hole_rate") == 0
    assert "No cell has a number for hole_rate" in (out / "sweep_lone.html").read_text()


def test_a_second_start_trains_nothing(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "run_cells", lambda *_: pytest.fail("trained twice"))
    assert command(monkeypatch, sweep, made / "small.yaml", "--store", made / "s.sqlite") == 0
    captured = capsys.readouterr()
    assert "16 cells: 16 finished, 0 to train" in captured.err
    assert "16 of 16 cells have a row, 4 failed" in captured.out


def test_a_dry_run_says_what_it_would_do_and_makes_nothing(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert command(monkeypatch, sweep, made / "small.yaml", "--store", tmp_path / "new.sqlite", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "16 cells: 0 finished, 12 to train in 1 compiled programs, 4 impossible; about a minute" in said
    assert "12 cells of up to 12 features and 12 latents in 32 dimensions" in said
    assert not list(tmp_path.iterdir())
    other = {**SWEEP, "axes": {"seed": [0]}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    before = (made / "s.sqlite").read_bytes()
    assert command(monkeypatch, sweep, tmp_path / "other.yaml", "--store", made / "s.sqlite", "--dry-run") == 2
    assert "holds another sweep" in capsys.readouterr().err
    assert (made / "s.sqlite").read_bytes() == before


def test_other_metrics_are_shown_of_the_same_rows(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "s.sqlite").write_bytes((made / "s.sqlite").read_bytes())
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SWEEP | {"metrics": ["mcc", "dead_latents"]}))
    assert command(monkeypatch, sweep, tmp_path / "small.yaml", "--store", tmp_path / "s.sqlite") == 0
    assert "16 finished, 0 to train" in capsys.readouterr().err
    assert command(monkeypatch, sweep_report, tmp_path / "s.sqlite", "--out", tmp_path) == 0
    columns = record_at(tmp_path / "sweep_small.json")["results"]["columns"]
    assert list(columns) == ["mcc", "dead_latents"]
    assert columns["mcc"] == record_of(made)["results"]["columns"]["mcc"]


def test_more_seeds_extend_a_store(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    store = tmp_path / "s.sqlite"
    store.write_bytes((made / "s.sqlite").read_bytes())
    more = SWEEP | {"name": "small", "axes": SWEEP["axes"] | {"seed": [0, 4, 5]}}
    (tmp_path / "more.json").write_text(json.dumps(more))
    assert command(monkeypatch, sweep, tmp_path / "more.json", "--store", store) == 2
    assert "holds another sweep: sweep.axes.seed is [0, 4] there and [0, 4, 5] here" in capsys.readouterr().err
    assert command(monkeypatch, sweep, tmp_path / "more.json", "--store", store, "--extend") == 0
    captured = capsys.readouterr()
    assert "24 cells: 16 finished, 6 to train" in captured.err
    assert "24 of 24 cells have a row, 6 failed" in captured.out
    assert command(monkeypatch, sweep, made / "small.yaml", "--store", store, "--extend") == 0
    assert "16 of 16 cells have a row, 4 failed" in capsys.readouterr().out  # of this sweep


def test_stubs_store_zeros_in_a_store_of_their_own(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert command(monkeypatch, sweep, made / "small.yaml", "--stub") == 2
    assert "--stub: give a --store" in capsys.readouterr().err
    assert command(monkeypatch, sweep, made / "small.yaml", "--stub", "--store", tmp_path / "stub.sqlite") == 0
    rows = list(read_store(tmp_path / "stub.sqlite").rows())
    assert {row.code for row in rows} == {"stub"}
    assert len(rows) == 16
    assert command(monkeypatch, sweep, made / "small.yaml", "--store", tmp_path / "stub.sqlite") == 2
    assert "stub.sqlite: has the zeros of --stub: give another --store" in capsys.readouterr().err


def test_a_report_is_of_this_code_though_other_code_was_later(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    store = tmp_path / "s.sqlite"
    store.write_bytes((made / "s.sqlite").read_bytes())
    small = sweep.read_sweep(made / "small.yaml")
    run_plan(small, make_plan(small, code="other"), open_store(store, small), LocalEngine(), run=stub_cells)
    assert command(monkeypatch, sweep_report, store, "--out", tmp_path) == 0
    assert "also has rows by other code, which are left out: other" in capsys.readouterr().out
    assert record_at(tmp_path / "sweep_small.json")["results"] == record_of(made)["results"]


def test_cells_without_a_row_end_in_an_error(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "run_plan", lambda *_, **__: None)
    assert command(monkeypatch, sweep, made / "small.yaml", "--store", tmp_path / "s.sqlite") == 2
    assert "16 cells have no row: start again to run them" in capsys.readouterr().err


def test_the_first_interrupt_is_told_and_the_second_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    before = signal.getsignal(signal.SIGINT)
    with signals.interruptible(sweep.STOPPING):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert "stopping after the groups under way" in capsys.readouterr().err
        with pytest.raises(SystemExit, match="130"):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_termination_is_as_an_interrupt_with_an_exit_code_of_its_own(capsys: pytest.CaptureFixture) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"), cli.clean_exit(sweep.KEPT), signals.interruptible(sweep.STOPPING):
        signal.raise_signal(signal.SIGTERM)
    error = capsys.readouterr().err
    assert "stopping after the groups under way" in error
    assert "terminated; finished cells are kept" in error
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_damaged_row_is_told_and_its_cell_run_again(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    store = tmp_path / "s.sqlite"
    store.write_bytes((made / "s.sqlite").read_bytes())
    (key, *_) = read_store(store).finished(failed=False)
    with sqlite3.connect(store) as inside:
        inside.execute("UPDATE cells SET metrics = replace(metrics, '1', '2') WHERE key = ?", (key,))
    inside.close()
    assert command(monkeypatch, sweep_report, store, "--out", tmp_path) == 0
    assert f"s.sqlite: 1 rows are damaged, which a start of the sweep runs again: {key}" in capsys.readouterr().err
    assert record_at(tmp_path / "sweep_small.json")["results"]["n_missing"] == 1
    assert command(monkeypatch, sweep, made / "small.yaml", "--store", store) == 0
    captured = capsys.readouterr()
    assert captured.err.count("1 rows are damaged") == 1
    assert "16 cells: 15 finished, 1 to train" in captured.err
    assert [row._replace(seconds=0.0) for row in read_store(store).rows()] == [
        row._replace(seconds=0.0) for row in read_store(made / "s.sqlite").rows()
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("axes: {brunching: [2]}", "bad.yaml: brunching: no axis of these trees; did you mean branching"),
        ("axes: [", "bad.yaml: neither YAML nor JSON"),
        ("- 1", "bad.yaml: a sweep is an object with entries"),
        ("[" * 3_000, "bad.yaml: is nested too deeply"),
        ("axes: {tree: [nowhere.json]}", "nowhere.json: No such file"),
        ("axes: {seed: [0]}\nfixed: {lerning_rate: 1}", "did you mean learning_rate"),
    ],
)
def test_a_fault_in_the_file_is_one_line_before_any_work(
    content: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    assert command(monkeypatch, sweep, tmp_path / "bad.yaml", "--store", tmp_path / "s.sqlite") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "s.sqlite").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.yaml",), "nowhere.yaml: No such file"),
        (("{made}/small.yaml", "--store", "{made}/small.yaml"), "small.yaml: is no store of a sweep"),
        (("{made}/small.yaml", "--store", "{made}/small.yaml/s.sqlite"), "cannot be written"),
        (("{made}/small.yaml", "--store", "{made}"), "is a folder: give a file as --store"),
        (("{made}/small.yaml", "--store", "{made}/s.sqlite", "--stub"), "s.sqlite: has results: give another --store"),
        (("{made}/small.yaml", "--engine", "slurm", "--slurm-jobs", "0"), "--slurm-jobs: must be at least 1, got 0"),
        (("{made}/small.yaml", "--cpus", "0"), "--cpus: must be above 0, got 0"),
        (("{made}/small.yaml", "--gpus", "-1"), "--gpus: must not be negative, got -1"),
        (("{made}/small.yaml", "--engine", "slurm"), "there is no srun here: start it on Slurm, or with"),
        (("{made}/small.yaml", "--cell", "zzz"), "no cell of this sweep has that digest"),
        (("{made}/small.yaml", "--cell", ""), "16 cells have digests that start so"),
        (("{made}/small.yaml", "--engine", "slrm"), "slrm"),
    ],
)
def test_a_bad_option_is_told(
    arguments: tuple[str, ...], message: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = (made / "small.yaml").read_bytes()
    assert command(monkeypatch, sweep, *(argument.format(made=made) for argument in arguments)) == 2
    assert message in capsys.readouterr().err
    assert (made / "small.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.sqlite",), "nowhere.sqlite: there is no such store"),
        (("{made}/s.sqlite", "--metrics", "holes"), "metrics: 'holes' is not in this sweep, which has recovered"),
        (("{made}/s.sqlite", "--x", "depth"), "axes: 'depth' is not in this sweep, which has branching"),
        (("{made}/nowhere.json", "--redraw"), "there is no record to draw from"),
    ],
)
def test_a_bad_report_is_told(
    arguments: tuple[str, ...], message: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = (argument.format(made=made) for argument in arguments)
    assert command(monkeypatch, sweep_report, *given, "--out", made / "none") == 2
    assert message in capsys.readouterr().err
    assert not (made / "none").exists()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_shipped_sweeps_can_be_read(path: Path) -> None:
    assert len(sweep.read_sweep(path)) >= 300


def test_the_thousand_cells_are_of_many_shapes_and_few_programs() -> None:
    assert {path.stem for path in EXAMPLES} >= {"branching", "latents", "sparsity", "thousand"}
    cells = list(sweep.read_sweep(sweep_speed.Config().sweep).cells())
    assert len(cells) == 1_000
    assert len({cell.tree for cell in cells}) == 40
    assert len({program_of(cell) for cell in cells}) <= 8
    assert {cell.training.n_steps for cell in cells} == {5_000}


def test_help_shows_the_engines_and_a_misspelt_option_its_spelling(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert command(monkeypatch, sweep, "--help") == 0
    assert "--engine" in capsys.readouterr().out
    assert command(monkeypatch, sweep, "a.yaml", "--engin", "ray") == 2
    assert "--engine" in capsys.readouterr().err
