"""The experiments at tiny size: the shape of records, figures from records alone, and the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import change, command, experiment

from experiments import BENCHMARKS, LANGUAGE_SET, STUDIES, TOY_SET, __main__, absorption, defaults
from experiments.common import cli, study
from toy.io import plain

TINY = {"n_seeds": 2, "n_steps": 60}
REQUIRED = ("n_seeds", "recovered", "hole_rate", "firing_accuracy", "min_cosine")
TREE = {
    "active_prob": 1,
    "is_read_out": False,
    "children": [
        {"active_prob": 0.3, "mutually_exclusive_children": True, "children": [{"active_prob": 0.3}] * 2},
        {"active_prob": 0.2, "id": "lone"},
    ],
}


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> Path:
    """Every experiment of the toy set, run once through the command line's own function."""
    out = tmp_path_factory.mktemp("figures")
    for name in TOY_SET:
        sizes = {} if name == "ground_truth" else TINY
        cli.run_experiment(experiment(name), experiment(name).config(**sizes), out)
    return out


def record_of(figures: Path, name: str) -> dict:
    return json.loads((figures / f"{name}.json").read_text())


@pytest.mark.parametrize("name", TOY_SET)
def test_every_experiment_leaves_a_record_of_the_common_shape_and_a_figure(figures, name):
    record = record_of(figures, name)
    assert list(record) == ["name", "config", "seeds", "versions", "seconds", "results", "caption"]
    assert record["name"] == name
    assert record["config"]["n_seeds"] == len(record["seeds"])
    assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in figures.iterdir() if path.name.startswith(".")]


def test_absorption_record_has_one_entry_a_seed(figures):
    results = record_of(figures, "absorption")["results"]
    for name in ("vanilla", "matryoshka"):
        assert set(REQUIRED) <= set(results[name])
        assert isinstance(results[name]["recovered"], int)
        assert all(len(results[name][field]) == results[name]["n_seeds"] == 2 for field in REQUIRED[2:])
        assert np.shape(results[name]["example"]) == np.shape(results["features"])


def test_all_prefixes_record_maps_each_weighting_to_its_numbers_and_mixing(figures):
    results = record_of(figures, "all_prefixes")["results"]
    assert set(results) == {"vanilla", "sampled_3", "sampled_10", "sampled_30", "expected_10", "all"}
    for result in results.values():
        assert set(REQUIRED) <= set(result)
        assert {"parent_to_child", "child_to_sibling", "child_to_parent"} <= set(result["mixing"])
    matryoshka = record_of(figures, "absorption")["results"]["matryoshka"]
    assert {key: results["sampled_10"][key] for key in REQUIRED} == {key: matryoshka[key] for key in REQUIRED}


def test_ordering_record_has_a_row_a_ratio_and_an_entry_a_seed(figures):
    results = record_of(figures, "ordering")["results"]
    shape = (len(results["ratios"]), 2)
    for field in ("hole_rate", "recovered", "child_first"):
        assert np.shape(results[field]) == shape
    assert results["trees"]["comment"]["energy_crossing"] == [pytest.approx(2**0.5, abs=1e-5)]
    assert {2.0, 5.0} <= set(results["ratios"])  # 5 is the comment's example: magnitudes 2 and 10


@pytest.mark.parametrize("name", TOY_SET)
def test_the_figure_is_drawn_from_the_record_alone(figures, name, monkeypatch, tmp_path):
    record = figures / f"{name}.json"
    (tmp_path / record.name).write_bytes(record.read_bytes())
    change(monkeypatch, name, run=lambda *_: pytest.fail("redrawing must not run anything"))
    assert command(monkeypatch, name, "--redraw", "--out", str(tmp_path)) == 0
    assert (tmp_path / f"{name}.png").read_bytes() == (figures / f"{name}.png").read_bytes()


def test_the_same_seeds_give_the_same_numbers_bit_for_bit(figures, tmp_path):
    again = cli.run_experiment(absorption.EXPERIMENT, absorption.Config(n_seeds=2, n_steps=60), tmp_path)
    assert plain(again["results"]) == record_of(figures, "absorption")["results"]


def test_a_seed_gives_the_same_features_whatever_the_number_of_seeds():
    few, many = (study.TreeConfig(seed=3, n_seeds=n).study for n in (1, 4))
    later = study.TreeConfig(seed=5, n_seeds=1).study
    assert np.array_equal(few.W_feat[0], many.W_feat[0])
    assert np.array_equal(later.W_feat[0], many.W_feat[2])


BAD_TREES = {
    "probability": ('{"active_prob": 1.5}', "root.active_prob: 1.5 is outside"),
    "exclusive": (
        '{"active_prob": 1, "mutually_exclusive_children": true,'
        '"children": [{"active_prob": 0.7}, {"active_prob": 0.7}]}',
        "root.children: probabilities of mutually exclusive children sum to 1.4",
    ),
    "unknown key": ('{"active_prob": 1, "colour": 3}', "unknown key 'colour'"),
    "empty": ('{"active_prob": 1, "is_read_out": false}', "no feature"),
    "type": ('{"active_prob": "high"}', "root.active_prob: expected a number"),
    "nan": ('{"active_prob": NaN}', "root.active_prob: nan"),
    "no json": ("a tree", "not JSON"),
    "endless": ('{"active_prob": 1, "children": [' * 50_000, "nested too deeply"),
}


@pytest.mark.parametrize("fault", BAD_TREES)
@pytest.mark.parametrize("name", ["", "absorption", "ordering"])
def test_a_bad_tree_is_one_line_exit_code_2_and_no_file(name, fault, monkeypatch, capsys, tmp_path):
    text, message = BAD_TREES[fault]
    path, out = tmp_path / "tree.json", tmp_path / "out"
    path.write_text(text)
    assert command(monkeypatch, name, "--tree", str(path), "--out", str(out)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tree", "nowhere.json"), "nowhere.json: No such file"),
        (("--d-in", "10"), "superposition"),
        (("--n-seeds", "0"), "n_seeds"),
        (("--n-steps", "0"), "n_steps"),
        (("--n-latents", "0"), "n_latents"),
        (("--n-prefixes", "0"), "n_prefixes"),
        (("--batch-size", "-1"), "batch_size"),
        (("--max-cosine", "2"), "max_cosine"),
        (("--max-cosine", "nan"), "max_cosine: must be finite"),
        (("--norm-std", "inf"), "norm_std: must be finite"),
        (("--target-l0", "nan"), "target_l0: must be finite"),
        (("--learning-rate", "-1"), "learning_rate: must not be negative"),
        (("--n-eval-rows", "0"), "n_eval_rows: must be at least 1"),
        (("--n-eval-rows", "100"), "n_eval_rows: 100 is less than batch_size = 200"),
        (("--seed", "4294967296"), "seed: must be at most"),
        (("--seed", "4294967295"), "the last seed, 4294967326, is more than"),
        (("--n-topk-seeds", "-1"), "n_topk_seeds: must not be negative"),
        (("--n-shown", "1000000000"), "n_shown: must be at most"),
        (("--n-steps", "1000000000000"), "n_steps: must be at most"),
        (("--d-in", "1000000000"), "d_in: a matrix of"),
        (("--n-seeds", "1000000000"), "n_seeds and d_in: need at least"),
        (("--n-latents", "1000000000"), "n_latents: must be at most"),
        (("--batch-size", "1000000000"), "batch_size = 1,000,000,000"),
        (("--n-eval-rows", "1000000000000"), "n_eval_rows: need at least"),
    ],
)
def test_a_bad_option_is_named_before_any_work(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(study, "train_grid", lambda *_, **__: pytest.fail("trained in spite of a bad option"))
    assert command(monkeypatch, "absorption", *arguments, "--out", str(tmp_path / "out")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ordering", ("--ratios", "nan"), "ratios: must be finite"),
        ("ordering", ("--ratios", "1", "-1"), "ratios: must be above 0"),
        ("ordering", ("--ratios", "1e30"), "ratios: 1e+30 makes a tree that cannot be"),
        ("ordering", ("--prob", "1.5"), "prob: must be at most 1"),
        ("ordering", ("--n-lone", "1000000000"), "n_lone: must be at most"),
        ("all_prefixes", ("--n-prefixes", "3", "0"), "n_prefixes: must be at least 1"),
        ("all_prefixes", ("--n-expected", "0"), "n_expected: must be at least 1"),
        ("ground_truth", ("--n-rows", "0"), "n_rows: must be at least 1"),
        ("ground_truth", ("--n-rows", "1000000000000"), "n_rows: need at least"),
        ("ground_truth", ("--d-in", "1000000000"), "d_in: a matrix of"),
        ("bench.store_speed", ("--n-rows", "1000000000000"), "n_rows and d_in: need at least"),
        ("bench.store_speed", ("--d-in", "1000000000"), "d_in = 1,000,000,000"),
        ("bench.store_speed", ("--batch-size", "1000000000"), "batch_size = 1,000,000,000"),
        ("bench.store_speed", ("--n-latents", "1000000000"), "n_latents: must be at most"),
        ("bench.store_speed", ("--n-rounds", "1000000000000"), "n_rounds: must be at most 10,000"),
        ("bench.store_speed", ("--seed", "4294967296"), "seed: must be at most"),
        ("speed", ("--n-rounds", "1000000000000"), "n_rounds: must be at most 10,000"),
    ],
)
def test_a_bad_option_of_another_experiment_is_named_before_any_work(
    name, arguments, message, monkeypatch, capsys, tmp_path
):
    change(monkeypatch, name, run=lambda *_: pytest.fail("ran in spite of a bad option"))
    assert command(monkeypatch, name, *arguments, "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "ordering"])
def test_a_tree_without_edges_has_no_order_and_is_refused_before_any_experiment_runs(
    name, monkeypatch, capsys, tmp_path
):
    (tmp_path / "tree.json").write_text('{"active_prob": 0.5}')
    assert command(monkeypatch, name, "--tree", str(tmp_path / "tree.json"), "--out", str(tmp_path / "out")) == 2
    assert "no feature has a parent" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_misspelt_option_gets_exit_code_2_and_the_right_spelling(monkeypatch, capsys):
    assert command(monkeypatch, "absorption", "--n-step", "5") == 2
    assert "--n-steps" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_before_any_work(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert command(monkeypatch, "absorption", "--out", str(tmp_path / "file")) == 2
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (ValueError, 2)])
def test_a_stopped_run_leaves_the_old_files_and_no_half_written_ones(stop, code, figures, monkeypatch, tmp_path):
    for suffix in ("json", "png"):
        (tmp_path / f"ground_truth.{suffix}").write_bytes(b"old")

    def stopped(*_):
        raise stop("stopped here")

    change(monkeypatch, "ground_truth", run=stopped)
    assert command(monkeypatch, "ground_truth", "--n-seeds", "1", "--out", str(tmp_path)) == code
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "ground_truth.json": b"old",
        "ground_truth.png": b"old",
    }


@pytest.mark.slow
def test_every_experiment_trains_on_a_tree_of_the_users_own(monkeypatch, tmp_path):
    (tmp_path / "tree.json").write_text(json.dumps(TREE))
    out = tmp_path / "out"
    kinds = absorption.topk_methods
    monkeypatch.setattr(absorption, "topk_methods", lambda cfg, tree: dict(list(kinds(cfg, tree).items())[1:3]))  # time
    arguments = ("--tree", str(tmp_path / "tree.json"), "--out", str(out), "--n-seeds", "2", "--n-steps", "40")
    assert command(monkeypatch, "", *arguments) == 0
    assert sorted(path.stem for path in out.glob("*.png")) == sorted(TOY_SET)
    assert json.loads((out / "absorption.json").read_text())["config"]["tree"]["children"][1]["id"] == "lone"


def test_the_list_names_every_experiment_with_its_claim(monkeypatch, capsys):
    assert command(monkeypatch, "", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*TOY_SET, *LANGUAGE_SET, *STUDIES, *BENCHMARKS]
    home = Path(__main__.__file__).parent
    files = [file for file in home.rglob("*.py") if "    main(EXPERIMENT)" in file.read_text(encoding="utf-8")]
    commands = {".".join(file.relative_to(home).with_suffix("").parts) for file in files}
    assert commands | {"sweep", "sweep_report"} == {*TOY_SET, *STUDIES, *BENCHMARKS}


@pytest.mark.parametrize("option", ["--list", "--help"])
def test_the_list_and_the_help_of_all_need_no_jax(option):
    text = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '{option}']\n"
        "try: runpy.run_module('experiments', run_name='__main__')\n"
        "finally: print({'jax', 'toy', 'matplotlib'} & sys.modules.keys())\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("set()\n")


def test_a_preset_fills_in_what_is_not_given(monkeypatch, tmp_path):
    configs = []
    change(monkeypatch, "cosines", check=lambda config: configs.append(config) or 1 / 0)
    for given in ((), ("--preset", "post"), ("--preset", "post", "--n-steps", "7")):
        command(monkeypatch, "cosines", *given, "--d-in", "31", "--out", str(tmp_path))
    default, post, mixed = configs
    assert {name: getattr(post, name) for name in study.PRESETS["post"]} == study.PRESETS["post"]
    assert default.n_steps == absorption.Config().n_steps
    assert (mixed.n_steps, mixed.learning_rate) == (7, post.learning_rate)
    assert [config.d_in for config in configs] == [31] * 3


@pytest.mark.parametrize("name", [*TOY_SET[1:], "pareto", "defaults"])
def test_every_experiment_takes_the_preset_but_for_what_it_sets_itself(name, monkeypatch, tmp_path):
    configs = []
    change(monkeypatch, name, check=lambda config: configs.append(config) or 1 / 0)
    command(monkeypatch, name, "--preset", "post", "--out", str(tmp_path))
    (config,) = configs
    own = getattr(type(config), "no_preset", ())
    assert own == {"pareto": ("control_rate",), "defaults": tuple(defaults.OWN)}.get(name, ())
    for option, value in study.PRESETS["post"].items():
        assert getattr(config, option) == (getattr(type(config)(), option) if option in own else value)


def test_a_preset_and_the_shared_options_reach_every_experiment(monkeypatch, tmp_path):
    configs = {}
    monkeypatch.setattr(cli, "run_experiment", lambda experiment, config, *_: configs.update({experiment.name: config}))
    assert command(monkeypatch, "", "--preset", "post", "--n-seeds", "2", "--d-in", "40", "--out", str(tmp_path)) == 0
    assert {(config.n_seeds, config.d_in) for config in configs.values()} == {(2, 40)}
    assert {config.n_steps for name, config in configs.items() if name != "ground_truth"} == {20_000}


def test_a_tree_of_the_users_own_has_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps(TREE))
    folders = []
    monkeypatch.setattr(cli, "run_experiment", lambda experiment, config, out, *_: folders.append(str(out)))
    for given in ((), ("--tree", "mine.json"), ("--tree", "three_level"), ("--tree", "mine.json", "--out", "here")):
        assert command(monkeypatch, "cosines", *given) == 0
    assert folders == ["figures", "runs/mine", "runs/three_level", "here"]
    folders.clear()
    assert command(monkeypatch, "", "--tree", "mine.json") == 0
    assert set(folders) == {"runs/mine"}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_figure_is_written_as_vectors_the_same_every_time(kind, start, figures, monkeypatch, tmp_path):
    (tmp_path / "cosines.json").write_bytes((figures / "cosines.json").read_bytes())
    images = []
    for _ in range(2):
        assert command(monkeypatch, "cosines", "--redraw", "--format", kind, "--out", str(tmp_path)) == 0
        images.append((tmp_path / f"cosines.{kind}").read_bytes())
    assert images[0].startswith(start)
    assert images[0] == images[1]
    assert (tmp_path / "cosines.png").exists()


@pytest.mark.slow
def test_a_second_process_finds_every_program_compiled(tmp_path):
    """A program that is not found is compiled and kept under another name."""
    environment = os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_COMPILATION_CACHE_DIR": "",
    }
    arguments = [sys.executable, "-m", "experiments.ground_truth", "--n-seeds", "1", "--out", str(tmp_path)]
    kept = []
    for _ in range(2):
        subprocess.run(arguments, env=environment, check=True, capture_output=True)
        kept.append({path.name for path in (tmp_path / "cache" / "matryoshka-toy" / "compiled").glob("*-cache")})
    assert kept[0]
    assert kept[0] == kept[1]


def test_help_shows_the_claim_and_every_field_of_the_configuration(monkeypatch, capsys):
    assert command(monkeypatch, "absorption", "--help") == 0
    text = capsys.readouterr().out
    fields = absorption.Config.__dataclass_fields__
    assert all("--" + field.replace("_", "-") in text for field in fields)
    assert "Claim:" in text


def test_absorption_counts_the_steps_of_what_it_trains():
    assert absorption.n_steps(absorption.Config(n_steps=100)) == 2 * 100 + 8 * 50
    assert absorption.n_steps(absorption.Config(n_steps=100, n_topk_seeds=0)) == 2 * 100
    assert absorption.n_steps(absorption.Config(n_steps=1)) == 2 + 8


def test_absorption_has_entries_of_the_topk_family_with_the_gap_of_their_thresholds(figures):
    results = record_of(figures, "absorption")["results"]
    kinds = ("topk_1", "topk_2", "batchtopk_1.12", "batchtopk_2")
    for name in [f"{kind}_{weighting}" for kind in kinds for weighting in ("vanilla", "matryoshka")]:
        assert results[name]["n_seeds"] == len(results[name]["hole_rate"]) == TINY["n_seeds"]
        assert ("inference_gap" in results[name]) == name.startswith("batchtopk")
    assert results["topk_1_vanilla"]["l0"] != results["topk_2_vanilla"]["l0"]


def test_the_committed_records_are_of_this_shape_and_their_figures_stand_beside_them():
    folder = Path(__main__.__file__).parents[1] / "figures"
    paths = list(folder.glob("*.json"))
    assert paths
    for path in paths:
        keys = [key for key in json.loads(path.read_text()) if key != "caption"]
        assert keys == ["name", "config", "seeds", "versions", "seconds", "results"]
        stands_for = path.name.startswith("sweep_") and path.stem != "sweep_speed"  # a sweep has a figure a metric
        assert list(folder.glob(f"{path.stem}_*.png" if stands_for else f"{path.stem}.png")), path
