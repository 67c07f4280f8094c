"""Command lines: errors in one line, options, records before figures, and redrawing what may be broken."""

import errno
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest
from commands import change, command, experiment

from experiments import TOY_SET, __main__
from experiments.common import cli, exits, options, progress, study
from toy.features.named import TREES

NAME = "ground_truth"
SMALL = ("--n-seeds", "1")
USAGE = b"usage: python -m experiments.cosines"


def started(*arguments: object, **environment: str | None) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own; a variable that is None is not set."""
    variables = {key: value for key, value in (os.environ | environment).items() if value is not None}
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], env=variables, capture_output=True, check=False, timeout=60
    )


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def ended(error: BaseException) -> int:
    """Returns the exit status of a command that raises this."""
    with pytest.raises(SystemExit) as stop, exits.clean_exit():
        raise error
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("a\nb\r\n c"), 2, "error: a b c"),
        (OSError(errno.ENOSPC, "No space left on device", "x.json"), 2, "No space left on device: 'x.json'"),
        (RecursionError("maximum recursion depth exceeded"), 2, "error: something given is nested too deeply"),
        (MemoryError(), 2, "error: out of memory: ask for less"),
        (OverflowError("int too large"), 2, "error: a number given is too large: int too large"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 99 GB"), 2, "error: out of memory: ask for less"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "error: 'utf-8' codec can't decode"),
        (ModuleNotFoundError("No module named 'ray'"), 2, "error: No module named 'ray'"),
        (ValueError("\ud800 \x1b[31m \x00"), 2, "error: \\ud800 \\x1b[31m \\x00"),
        (ValueError("x" * 10_000), 2, "xxx…"),
        (KeyError("gone"), 1, "unexpected KeyError: 'gone'; set TRACEBACK=1 for the traceback and report it"),
        (AssertionError("y" * 10_000), 1, "set TRACEBACK=1 for the traceback and report it"),
        (KeyboardInterrupt(), 130, "interrupted; nothing of the unfinished experiment was written"),
    ],
)
def test_an_error_is_one_short_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACEBACK", raising=False)
    assert ended(error) == code
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert len(told) <= exits.MOST_TOLD + 1


@pytest.mark.parametrize("error", [ValueError("given"), KeyError("ours")])
def test_the_traceback_is_shown_where_it_is_wanted(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises(type(error)), exits.clean_exit():
        raise error


def test_a_device_that_is_not_there_is_named_whatever_jax_made_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", raising(RuntimeError("Unable to initialize backend 'cuda'")))
    assert ended(AssertionError()) == 2
    assert "error: JAX_PLATFORMS=cuda: JAX has no such device here: unset it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "code", "told"),
    [
        ({"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONIOENCODING": "cp1252"}, 0, USAGE),
        ({"XDG_CACHE_HOME": "", "HOME": None, "PYTHONIOENCODING": "ascii", "COLUMNS": "5"}, 0, USAGE),
        ({"JAX_ENABLE_X64": "perhaps"}, 2, b"error: cannot start: ValueError: invalid truth value 'perhaps'"),
    ],
)
def test_help_is_shown_in_any_environment(environment: dict[str, str | None], code: int, told: bytes) -> None:
    done = started("experiments.cosines", "--help", **environment)
    assert done.returncode == code, done.stderr
    assert told in (done.stderr if code else done.stdout)
    assert b"Traceback" not in done.stderr
    assert not code or done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_a_user_without_name_and_home_gets_help_of_every_command() -> None:
    """This covers the modules that know a cache; `Path.home` raises what it does for such a user."""
    homeless = (
        "import sys, pathlib, runpy\n"
        "def home(*_): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = pathlib.Path.expanduser = home\n"
        "sys.argv = ['x', '--help']\n"
        "runpy.run_module(sys.stdin.read(), run_name='__main__')\n"
    )
    for module in ("experiments.tinystories", "experiments.sweep"):
        done = subprocess.run(
            [sys.executable, "-c", homeless],
            input=module,
            env={key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "usage: python -m " + module in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_one_line(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "experiments", "--list"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (2, b"error: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_had_enough_is_no_error(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "--list"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("columns", ["1", "3", "39", "0", "-7", "wide", "9" * 12])
def test_help_has_at_least_40_columns(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert command(monkeypatch, NAME, "--help") == 0
    text = capsys.readouterr().out
    assert "--n-seeds" in text
    assert len(text) < 100_000


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12), ("-3", -3), ("1e3", 1_000), ("1E3", 1_000), ("1.5e3", 1_500), ("2e0", 2), ("1e+6", 10**6)],
)
def test_whole_numbers_may_have_an_exponent(text: str, number: int) -> None:
    assert options.whole(text) == number
    assert options.parse(study.StudyConfig, args=["--n-steps", text.replace("-", "")]).n_steps == abs(number)


@pytest.mark.parametrize(
    "text", ["1.5", "1e-3", "1.5e0", "1e999999999999", "-1e40", "nan", "inf", "e", "", "1,000", "2.0", "one"]
)
def test_other_numbers_are_no_whole_ones(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ValueError, match="is not a whole number"):
        options.whole(text)
    assert command(monkeypatch, NAME, f"--n-seeds={text}") == 2
    assert "--n-seeds" in capsys.readouterr().err


def test_a_class_of_options_refuses_in_its_own_words() -> None:
    @dataclass(frozen=True)
    class Some:
        n: int = 1

        def __post_init__(self) -> None:
            raise ValueError(f"n: {self.n} will not do")

    with pytest.raises(ValueError, match=r"^n: 2000 will not do$"):
        options.parse(Some, args=["--n", "2e3"])


def test_an_optional_whole_number_may_be_left_out() -> None:
    assert options.parse(study.StudyConfig, args=["--n-latents", "None"]).n_latents is None
    assert options.parse(study.StudyConfig, args=["--n-latents", "2e1"]).n_latents == 20
    assert options.parse(__main__.All, args=["--n-steps", "1e3"]).n_steps == 1_000


@pytest.mark.parametrize(
    ("given", "meant"), [("refrence", "reference"), ("Reference", "reference"), ("three-level", "three_level")]
)
@pytest.mark.parametrize("name", ["", NAME])
def test_a_misspelt_tree_gets_the_right_spelling(
    given: str, meant: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert meant in TREES
    assert command(monkeypatch, name, "--tree", given, "--out", tmp_path / "out") == 2
    assert f"--tree {given}: there is no such file; did you mean {meant}?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", ["4294967296", "9223372036854775808", "9" * 400, "-1"])
def test_a_seed_that_jax_would_wrap_is_one_line(
    seed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert command(monkeypatch, NAME, f"--seed={seed}", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: seed: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_tree_is_read_once_so_it_may_come_from_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """All experiments of the set ask for it; a pipe that is read again is empty."""
    read, write = os.pipe()
    os.write(write, b'{"active_prob": 0.5, "id": "piped", "children": [{"active_prob": 0.25}]}')
    os.close(write)
    seen = []
    monkeypatch.setattr(cli, "run_experiment", lambda experiment, config, *_: seen.append(config.tree.root))
    assert command(monkeypatch, "", "--tree", f"/dev/fd/{read}", "--out", tmp_path) == 0, capsys.readouterr().err
    os.close(read)
    assert [root.name for root in seen] == ["piped"] * len(TOY_SET)


def test_the_record_holds_the_tree_with_all_its_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = {"active_prob": 1 / 3, "id": "c", "magnitude_mean": 1.23456789012}
    tree = {"active_prob": 0.123456789012, "id": "p", "children": [child]}
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    assert command(monkeypatch, NAME, *SMALL, "--n-rows", 9, "--tree", tmp_path / "tree.json", "--out", tmp_path) == 0
    assert json.loads((tmp_path / f"{NAME}.json").read_text())["config"]["tree"] == tree


def test_the_record_is_written_before_the_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    plot = experiment(NAME).plot
    change(monkeypatch, NAME, plot=raising(KeyError("a panel")))
    assert command(monkeypatch, NAME, *SMALL, "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"the record {tmp_path}/{NAME}.json is kept: draw its figure with python -m experiments.{NAME}" in error
    assert f"--redraw --out {tmp_path}" in error
    assert "KeyError: 'a panel'" in error
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.json"]
    change(monkeypatch, NAME, plot=plot)
    assert command(monkeypatch, NAME, "--redraw", "--out", tmp_path) == 0
    assert (tmp_path / f"{NAME}.png").exists()


@pytest.mark.parametrize(
    ("stop", "code", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; the record"),
    ],
)
def test_the_record_of_a_figure_that_is_not_written_is_told(
    stop: BaseException,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
) -> None:
    (tmp_path / f"{NAME}.png").write_bytes(b"old")
    monkeypatch.setattr(cli, "write_figure", raising(stop))
    assert command(monkeypatch, NAME, *SMALL, "--out", tmp_path) == code
    error = capsys.readouterr().err
    assert told in error
    assert f"{NAME}.json is kept: draw its figure with" in error
    assert json.loads((tmp_path / f"{NAME}.json").read_text())["name"] == NAME


def test_a_name_that_a_folder_has_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / f"{NAME}.png").mkdir()
    change(monkeypatch, NAME, run=lambda *_: pytest.fail("ran in spite of it"))
    assert command(monkeypatch, NAME, *SMALL, "--out", tmp_path) == 2
    assert f"{NAME}.png" in capsys.readouterr().err


RECORD = {"name": NAME, "config": {}, "seeds": [0], "versions": {}, "seconds": 1.0, "results": {}}
BROKEN_RECORDS = {
    "empty": ("", "broken: no JSON"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "a list": ("[1, 2]", "is not an experiment's record; run the experiment anew"),
    "no results": (json.dumps({"name": NAME}), "is not an experiment's record; run the experiment anew"),
    "another's": (json.dumps(RECORD | {"name": "../../x"}), "is the record of ../../x, not of ground_truth"),
    "nothing in it": (json.dumps(RECORD), "cannot be drawn: run the experiment anew"),
    "wrong types": (json.dumps(RECORD | {"config": {"tree": 3}, "results": {"features": {}}}), "cannot be drawn"),
    "deep tree": (
        json.dumps(RECORD)[:-1] + ', "config": {"tree": ' + '{"children": [' * 400 + "]}" * 400 + "}}",
        f"{NAME}.json: ",
    ),
}


@pytest.mark.parametrize("fault", BROKEN_RECORDS)
def test_a_record_that_cannot_be_drawn_is_named(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    content, message = BROKEN_RECORDS[fault]
    (tmp_path / f"{NAME}.json").write_text(content)
    assert command(monkeypatch, NAME, "--redraw", "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / f"{NAME}.json") in error
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.json"]


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    told, end = io.StringIO(), time.monotonic() + 30
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    with progress.progress_bar(2_000, "cosines") as bar:
        bar.update(500)
        while ", 500 of" not in told.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    assert re.search(r"^cosines: 25% after \d+ s, 500 of 2,000 steps$", told.getvalue(), re.MULTILINE)
    bar = progress.progress_bar(1.5, "a sweep", unit=None)
    bar.tell("3 cells")
    bar.update(0.75)
    assert bar.line() == "a sweep: 50% after 0 s, 3 cells"
    assert progress.progress_bar(0, "nothing").line() == "nothing: 100% after 0 s, 0 of 0 steps"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress_bar(4, "cosines") as bar:
        bar.tell("fast")
        bar.update(4)
        bar.compiling()
        assert bar.line().endswith("4 of 4 steps, compiling")
        bar.update(0)
        assert bar.line().endswith("4 of 4 steps")
    told = capsys.readouterr().err
    assert "cosines: 100%|██████████| 4/4" in told
    assert "compiling" in told
