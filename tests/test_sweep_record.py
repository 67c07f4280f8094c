"""A sweep's record, page and figures: what they say of a missed L0, and what a record of others cannot do."""

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import exit_code

from experiments import sweep_report
from experiments.common.cli import as_png
from experiments.sweeps import page as sweep_page
from experiments.sweeps import plots as sweep_plots
from experiments.sweeps.cell import cell_digest, cell_key
from experiments.sweeps.columns import table_of
from experiments.sweeps.lanes import FACTS, METRICS, Row, code_version
from experiments.sweeps.record import checked_record
from experiments.sweeps.spec import parse_sweep
from experiments.sweeps.store import open_store
from toy.features.node import Node
from toy.io import plain, save_json

SHIPPED = sorted((Path(__file__).parents[1] / "figures").glob("sweep_*.json"))
AXES = {"tree": ["reference", "_b.json"], "weighting": ["vanilla", "all"], "control_rate": [0.0, 3e-4], "seed": [0, 1]}
L0 = {"vanilla": 1.0 - 0.11, "all": 1.0 - 0.09}  # of a target of 1


def made(folder: Path, **sweep_entries: Any) -> dict[str, Any]:
    """The record of a store in which no cell was trained: vanilla ones end 11% off their target L0, others 9%."""
    sweep = parse_sweep({"name": "small", "axes": AXES, **sweep_entries}, lambda name: Node(1.0, (Node(0.5),)))
    store = open_store(folder / "s.sqlite", sweep)
    names, rows = dict.fromkeys((*FACTS, *METRICS), 0.25), []
    for i, cell in enumerate(sweep.cells()):
        metrics: dict[str, float | None] = {
            **names,
            "l0": L0[cell.training.weighting],
            "target_l0": 1.0,
            "recovered": 0.0,
        }
        row = Row(None, "it broke", 0.0) if i == 0 else Row(metrics, None, 0.0)
        rows.append((cell_key(cell, code_version()), row))
    store.add(code_version(), rows)
    return json.loads(json.dumps(plain(sweep_report.make_record(store))))


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    return made(tmp_path)


def test_cells_whose_controller_misses_the_target_are_counted_for_each_weighting(record: dict[str, Any]) -> None:
    """Four of 8 vanilla cells have a controller; of 8 others none misses by over a tenth. The failed one has none."""
    assert record["results"]["n_off_target"] == len(record["results"]["off_target"]) == 4
    lines = sweep_page.summary(record)
    assert lines[1].endswith("L0 more than 10% off target 4/7")
    assert "vanilla" in lines[1]
    assert "off target" not in lines[2]
    told = "cells with L0 more than 10% off target 4/15"
    figure = sweep_plots.phase_diagram(record, "recovered", "tree", "weighting")
    assert told in " ".join(figure.get_suptitle().split())
    assert told in " ".join(sweep_plots.main_effects(record, ["recovered"]).get_supxlabel().split())
    page = sweep_page.page(record, {}, "recovered", Path("r.json"))
    assert "L0 more than 10% off target 4/7" in page


def test_records_that_do_not_tell_of_missed_targets_are_drawn_without(record: dict[str, Any]) -> None:
    del record["results"]["off_target"], record["results"]["n_off_target"]
    assert not any("off target" in line for line in sweep_page.summary(checked_record(record)))


@pytest.mark.parametrize("path", [path for path in SHIPPED if "axes" in path.read_text()], ids=lambda path: path.stem)
def test_shipped_records_are_read_as_they_were(path: Path) -> None:
    record = json.loads(path.read_text())
    if "columns" in record["results"]:
        today = {"objective": "weighting"}  # as an axis was called when they were written
        axes = {today.get(name, name): values for name, values in record["config"]["axes"].items()}
        assert checked_record(copy.deepcopy(record)) == changed(record, "config.axes", axes)
        (*_, last) = (cell_digest(cell) for cell in parse_sweep(record["config"], pytest.fail).cells())
        assert last.startswith(record["results"]["cells"][-1])  # by which commands find it


def test_trees_are_drawn_by_the_names_that_they_have(tmp_path: Path) -> None:
    axes = {"tree": ["_b.json", "p$^$.json", "$x_{$", "a\u202eb"], "learning_rate": [0.01, 0.02], "seed": [0]}
    record = made(tmp_path, axes=axes, fixed={"weighting": "all"})
    figure = sweep_plots.phase_diagram(record, "recovered", "tree", "learning_rate")
    assert as_png(figure)  # tick labels are made when a figure is drawn
    names = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert names == ["_b.json", "p$^$.json", "$x_{$", "a\\u202eb"]
    assert as_png(sweep_plots.main_effects(record, ["recovered"]))
    figure = sweep_plots.phase_diagram(record, "recovered", "learning_rate", None)
    assert as_png(figure)
    assert [ax.get_title(loc="left") for ax in figure.axes[:4]] == names


def test_the_criterion_that_a_run_fails_is_told(record: dict[str, Any]) -> None:
    """Runs 0 to 3 have a small cosine, holes, both, and neither; the first of all failed and has no numbers."""
    columns = record["results"]["columns"]
    for name, values in (
        ("min_cosine", [0.8, 0.95, 0.8, 0.95]),
        ("hole_rate", [None, 0.5, 0.5, 0.0]),
        ("recovered", [0, 0, 0, 1]),
    ):
        columns[name] = [None, *(values * 4)[1:]]
    found = table_of(record).criteria()
    assert found is not None
    assert found.tolist() == [-1, 2, 3, 0, *[1, 2, 3, 0] * 3]
    drawn = sweep_plots.criteria(record)
    assert drawn is not None
    assert as_png(drawn)
    figure = sweep_plots.phase_diagram(record, "recovered", "tree", "weighting")
    assert "c, h: in some of the others a matched cosine is below .9" in " ".join(figure.get_suptitle().split())
    assert [text.get_text() for text in figure.axes[0].texts] == ["0/1\nh", *["0/2\nch"] * 3]
    del columns["min_cosine"]
    assert sweep_plots.criteria(record) is None


def test_intervals_stay_in_range_and_settings_are_dots(record: dict[str, Any]) -> None:
    """Over one setting a mean has its interval over seeds; over several there is a dot for each."""
    record["results"]["columns"]["hole_rate"] = [0.0, 0.9] * 8
    spread = sweep_plots.main_effects(record, ["hole_rate"])
    assert all(ax.collections and not ax.containers for ax in spread.axes)
    alone = changed(record, "config.axes", {"weighting": ["vanilla", "all"], "seed": list(range(8))})
    (ax,) = sweep_plots.main_effects(alone, ["hole_rate"]).axes
    bars = [segment for lines in ax.collections for segment in lines.get_segments()]  # type: ignore[attr-defined]
    assert len(bars) == 2
    assert all(0 <= height <= 0.9 for segment in bars for _, height in segment)


# --- records of others ------------------------------------------------------------------------------------


def changed(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    record = copy.deepcopy(record)
    *above, last = path.split(".")
    inside: Any = record
    for name in above:
        inside = inside[int(name) if isinstance(inside, list) else name]
    inside[int(last) if isinstance(inside, list) else last] = value
    return record


HOSTILE = "'; touch pwned; <script>\u202e"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", "../../x", r"name: expected sweep_…, got '\.\./\.\./x'"),
        ("name", "sweep_../x", "name: files are called by it, expected visible text without slashes"),
        ("name", f"sweep_{HOSTILE}", "name: files are called by it, expected visible text without slashes"),
        ("name", 5, "name: expected sweep_…, got 5"),
        ("config", [], "a sweep is an object"),
        ("config.axes.seed", {"range": [0, 10**9]}, "seed: has more than 1,000,000 values"),
        ("config.axes.seed", list(range(10)), "results.n_cells: expected 80, as the sweep has"),
        ("config.axes.seed", [0, "x"], "seed: expected int, got 'x'"),
        ("config.axes.nothing", [1], "nothing: no axis of these trees"),
        ("config.trees", {}, "tree: _b.json: the record does not have this tree"),
        ("seeds", [], "seeds: expected whole numbers"),
        ("seeds", ["a"], "seeds: expected whole numbers"),
        ("seconds", "long", "seconds: expected a number"),
        ("results", [], "results: expected an object"),
        ("results.n_failed", -1, r"results\.n_failed: expected a whole number up to 16"),
        ("results.n_missing", 10**9, r"results\.n_missing: expected a whole number up to 16"),
        ("results.n_cells", 10**9, "results.n_cells: expected 16"),
        ("results.code", None, "results.code: expected text"),
        ("results.columns.x", [0.0] * 16, r"results\.columns\.x: no metric"),
        ("results.columns", {}, "results.columns: expected an object of columns"),
        ("results.columns.fvu", [0.0] * 15, "results.columns.fvu: expected 16 values"),
        ("results.columns.fvu", ["a"] * 16, "results.columns.fvu: expected numbers or null"),
        ("results.columns.fvu", [10**400] * 16, "results.columns.fvu: expected numbers or null"),
        ("results.cells", ["ab"] * 16, "results.cells: expected digests of hexadecimal digits"),
        ("results.cells", [HOSTILE] * 16, "results.cells: expected digests of hexadecimal digits"),
        ("results.cells", ["abcd"], "results.cells: expected 16 digests"),
        ("results.failed", [16], "results.failed: expected places below 16"),
        ("results.failed", [True], "results.failed: expected places of cells"),
        ("results.off_target", "all", "results.off_target: expected places of cells"),
        ("results.errors", [{}], "results.errors: expected errors with their cells"),
        ("results.errors.0.first_cell", HOSTILE, "results.errors: expected errors with their cells"),
    ],
)
def test_a_record_that_no_report_wrote_is_refused_and_nothing_is_written(
    path: str,
    value: Any,
    message: str,
    record: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    save_json(tmp_path / "r.json", changed(record, path, value))
    before = {file for file in tmp_path.rglob("*")}
    assert exit_code(sweep_report.main, monkeypatch, tmp_path / "r.json", "--redraw", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: \S*r\.json: no record of a sweep: {message}.*\n", error), error
    assert {file for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', '{"name": 1, "name": 2}', "[" * 10**5, "[NaN]"])
def test_a_file_that_is_no_record_is_named(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "r.json").write_text(content)
    assert exit_code(sweep_report.main, monkeypatch, tmp_path / "r.json", "--redraw", "--out", tmp_path) == 2
    assert re.fullmatch(r"error: \S*r\.json: no record of a sweep: .{,400}\n", capsys.readouterr().err)


def test_a_page_shows_what_cannot_be_seen_and_runs_nothing(record: dict[str, Any]) -> None:
    record["results"]["errors"][0]["error"] = HOSTILE * 1_000
    record["results"]["code"] = HOSTILE
    page = sweep_page.page(checked_record(record), {}, "recovered", Path(f"-{HOSTILE}.json"))
    assert "<script>" not in page
    assert page.isprintable() or not set(page) & set("\u202e\x1b")
    assert "\u202e" not in page
    assert len(page) < 50_000


@pytest.mark.parametrize("word", ["plain", "a b", HOSTILE, "it's", "a\nb", "\\", "\\n\n'", "é\u202eé", "$HOME\x1b", ""])
def test_a_word_of_a_command_is_that_word_to_the_shell(word: str) -> None:
    written = sweep_page.for_shell(word)
    assert written.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {written}"], capture_output=True, check=True)
    assert done.stdout.decode() == word


def test_a_path_that_begins_with_a_hyphen_is_no_option(record: dict[str, Any]) -> None:
    page = sweep_page.page(record, {}, "recovered", Path("-r.json"))
    assert "python -m experiments.sweep ./-r.json --cell " in page
    assert shlex.split("python -m experiments.sweep ./-r.json")[-1] == "./-r.json"


def test_an_axis_of_many_values_is_read_in_linear_time() -> None:
    n = 200_000
    record = {
        "config": {"axes": {"learning_rate": [i / n for i in range(n)]}, "combine": "product"},
        "results": {"columns": {"fvu": [0.0] * n}, "failed": [3], "cells": ["a"] * n},
    }
    table = table_of(record)
    assert table.places[:, 0].tolist() == list(range(n))
    assert np.flatnonzero(table.failed).tolist() == [3]
