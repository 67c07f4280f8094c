"""Benchmarks time every case in every round, in processes of their own, and tell what they could not measure."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from commands import change, command

from experiments import speed, sweep_speed
from experiments.bench import report, store_speed, wide
from experiments.bench.timing import Job, Table
from experiments.common import cli
from toy.io import load_json


def tables_of(folder: Path, name: str) -> list[dict[str, Any]]:
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return load_json(folder / f"{name}.json")["results"]["tables"]


def n_calls(table: dict[str, Any]) -> dict[str, int]:
    """Calls of each case. All took some time."""
    assert all(min(case["seconds"]) > 0 for case in table["cases"].values())
    return {name: len(case["seconds"]) for name, case in table["cases"].items()}


@pytest.mark.slow
def test_speed_measures_toy_width_and_says_what_it_has_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "CHUNK", 20)
    monkeypatch.setattr(speed, "N_FEATURES", (20, 40))
    config = speed.Config(n_seeds=2, n_rounds=2, width=False, peers=False, against="HEAD")
    cli.run_experiment(speed.EXPERIMENT, config, tmp_path)
    reference, toy, generator = tables_of(tmp_path, "speed")
    names = ("one run", "2 seeds at once")
    assert n_calls(reference) == {name + of: 4 for of in ("", " as of HEAD") for name in names}  # 2 chunks per round
    assert {"ReLU, full prefix", "BatchTopK, every prefix", "drawing a batch"} <= n_calls(toy).keys()
    assert n_calls(generator) == {"20 features": 2, "40 features": 2}
    said = capsys.readouterr().out
    assert "not measured: GPU (python -m experiments.speed --device gpu)" in said
    assert "not measured: SAELens" in said


@pytest.mark.slow
def test_every_weighting_is_timed_at_width() -> None:
    table = speed.wide_table((640, 16, 32), "one thread").measure(1, lambda _: None)
    expected = {*wide.SPARSE, *(f"ReLU, {name}" for name in wide.DENSE), *(f"step of {name}" for name in wide.STEPS)}
    assert n_calls(table) == dict.fromkeys((*expected, "one dense product", "TopK as first written"), 1)


def test_ratios_are_call_by_call_in_what_is_shown() -> None:
    cases = {"a": {"seconds": [1.0, 4.0]}, "b": {"seconds": [2.0, 2.0], "to": "a"}}
    times = Table("t", "s", ()).of(cases, "cpu")
    rates = Table("t", "rows per second", (), 10, per_second=True).of(cases, "cpu")
    assert report.ratios(times, "b") == pytest.approx([2, 0.5])
    assert report.values(rates, "b") == pytest.approx([5, 5])
    assert report.ratios(rates, "b") == pytest.approx([0.5, 2])
    assert report.ratios(times, "a") is None
    assert "1.25 of a (0.50 to 2.00)" in report.describe(times, "b")


@pytest.mark.slow
def test_a_process_that_fails_is_told_by_its_last_line() -> None:
    with pytest.raises(ValueError, match=r"measuring stores\.cases on cpu failed: KeyError: 'n_latents'"):
        Table("t", "s", (Job("stores.cases"),)).measure(1, lambda _: None)


def test_a_revision_that_is_not_there_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "speed", "--against", "never", "--out", tmp_path) == 2
    assert "against: never is no revision" in capsys.readouterr().err


@pytest.mark.slow
def test_store_speed_times_reading_and_training_in_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--n-rows", "3000", "--d-in", "8", "--n-latents", "150", "--batch-size", "16", "--n-rounds", "2")
    assert command(monkeypatch, "bench.store_speed", *sizes, "--out", tmp_path) == 0
    (table,) = tables_of(tmp_path, "store_speed")
    trainings = ("training, vanilla", "training, Matryoshka", "training, Matryoshka, rows in memory")
    assert n_calls(table) == dict.fromkeys((*trainings, "reading float32", "reading bfloat16"), 2)
    ratio = np.median(report.ratios(table, "reading float32"))  # type: ignore[arg-type]
    assert f"{ratio:.2f} of training, Matryoshka" in capsys.readouterr().out


@pytest.mark.slow
def test_forward_speed_times_the_pass_the_training_and_both_in_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = (
        "--site",
        "resid_pre.1",
        "--n-latents",
        "150",
        "--batch-sizes",
        "64",
        "--n-tokens",
        "512",
        "--n-rounds",
        "2",
    )
    assert command(monkeypatch, "bench.forward_speed", *sizes, "--out", tmp_path) == 0
    (table,) = tables_of(tmp_path, "forward_speed")
    assert n_calls(table) == dict.fromkeys(("forward pass alone", "training alone, batch 64", "both, batch 64"), 2)
    alone, both = (np.median(report.values(table, f"{name}, batch 64")) for name in ("training alone", "both"))
    assert both < alone  # as a call computes what it trains on


def test_a_site_that_is_none_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "bench.forward_speed", "--site", "resid_pre.5", "--out", tmp_path / "out") == 2
    assert "site: 'resid_pre.5' is not one of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_store_speed_is_refused_where_its_stores_do_not_fit_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store_speed.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    change(monkeypatch, "bench.store_speed", run=lambda *_: pytest.fail("ran in spite of a disk that is too small"))
    assert store_speed.check(store_speed.Config(n_rows=1_000_000)) is None  # 792 bytes per row
    assert command(monkeypatch, "bench.store_speed", "--n-rows", "2e6", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "n_rows and d_in: the stores take 1 GiB in" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_store_speed_needs_a_row_per_shard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "bench.store_speed", "--n-rows", "1", "--out", tmp_path) == 2
    assert "n_rows" in capsys.readouterr().err


@pytest.mark.slow
def test_sweep_speed_counts_cells_programs_and_shapes(tmp_path: Path) -> None:
    sweep_speed.check(sweep_speed.Config())
    axes = {"branching": [2, 3], "edge_prob": [0.2, 0.3], "objective": ["vanilla", "expected_3"], "seed": [0, 1]}
    fixed = {"n_roots": 1, "n_lone": 2, "n_steps": 30, "batch_size": 16, "n_eval_rows": 50}
    file = tmp_path / "possible.yaml"
    file.write_text(yaml.safe_dump({"name": "small", "axes": axes, "fixed": fixed}))
    config = sweep_speed.Config(sweep=file, peers=False)
    record = cli.run_experiment(sweep_speed.EXPERIMENT, config, tmp_path / "out")
    assert record["config"]["sweep"] == "possible.yaml"  # and no path of this machine
    case = record["results"]["tables"][0]["cases"]["this sweep"]
    assert (case["n_cells"], case["n_failed"], case["n_programs"], case["n_tree_shapes"]) == (16, 0, 1, 2)
    assert case["n_compilations"] <= 2
    assert 50 < case["peak_memory_mb"] < 100_000


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_one_line_before_any_work(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.speed", "--device", "gpu", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "on gpu failed" in done.stderr
    assert not list(tmp_path.iterdir())
