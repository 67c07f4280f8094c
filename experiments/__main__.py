"""Run all experiments of the toy set in order: `python -m experiments`. See `--help` and `--list`."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import BENCHMARKS, LANGUAGE_SET, TOY_SET
from experiments.common.cli import DEFAULT_OUT, experiment_module, read_once, run_experiment
from experiments.common.exits import clean_exit
from experiments.common.options import parse
from experiments.common.study import TreeConfig


@dataclass(frozen=True)
class All:
    """Make every figure of the toy set and its record. `python -m experiments.NAME --help` has each one's options."""

    list: bool = False
    """List the experiments with their claims, and stop."""
    out: Path = DEFAULT_OUT
    """Folder for records and figures."""
    tree: Path | None = None
    """JSON file of your own tree, or the name of one, for every experiment."""
    n_seeds: int | None = None
    """Number of seeds; default: each experiment's own."""
    n_steps: int | None = None
    """Training steps; default: each experiment's own."""


def main() -> None:
    with clean_exit():
        options = parse(All, prog="python -m experiments")
        if options.list:
            print("\n".join(describe(name) for name in (*TOY_SET, *LANGUAGE_SET, *BENCHMARKS)))
            return
        # Configurations of all experiments first: a fault in an option stops the run before any work.
        tree = read_once(TreeConfig(tree=options.tree)).tree  # once: it may be a pipe
        configs = {name: configure(name, options, tree) for name in TOY_SET}
        for name, config in configs.items():
            experiment_module(name).check(config)
        for name, config in configs.items():
            run_experiment(experiment_module(name), config, options.out)


def configure(name: str, options: All, tree: Any) -> Any:
    config_type = experiment_module(name).Config
    known = {field.name for field in dataclasses.fields(config_type)}
    given = {"tree": tree, "n_seeds": options.n_seeds, "n_steps": options.n_steps}
    return config_type(**{key: value for key, value in given.items() if value is not None and key in known})


def describe(name: str) -> str:
    claim = (experiment_module(name).__doc__ or "").splitlines()[0]
    return f"{name:22s} {claim}"


if __name__ == "__main__":
    sys.exit(main())
