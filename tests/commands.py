"""Command lines, run in the process of the tests."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest

from experiments import __main__
from experiments.common import cli
from experiments.common.experiment import Experiment


def exit_code(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Returns the exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["python -m", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def command(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    """Returns the exit status of `python -m experiments.NAME ARGUMENTS`; without a name, of `python -m experiments`."""
    main = partial(cli.main, experiment(name)) if name else __main__.main
    return exit_code(main, monkeypatch, *arguments)


def experiment(name: str) -> Experiment:
    return import_module(f"experiments.{name}").EXPERIMENT


def change(monkeypatch: pytest.MonkeyPatch, name: str, **fields: Any) -> None:
    """Replace fields of an experiment, such as what it runs."""
    module = import_module(f"experiments.{name}")
    monkeypatch.setattr(module, "EXPERIMENT", replace(module.EXPERIMENT, **fields))
