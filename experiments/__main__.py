"""Run all experiments of the toy set in order: `python -m experiments`. See `--help` and `--list`."""

import ast
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import BENCHMARKS, LANGUAGE_SET, TOY_SET
from experiments.common.exits import clean_exit
from experiments.common.options import parse

if TYPE_CHECKING:
    from experiments.common.experiment import Experiment


@dataclass(frozen=True)
class All:
    """Make every figure of the toy set and its record. `python -m experiments.NAME --help` has each one's options."""

    list: bool = False
    """List the experiments with their claims, and stop."""
    out: Path = Path("figures")
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
            print("\n".join(described(name) for name in (*TOY_SET, *LANGUAGE_SET, *BENCHMARKS)))
        else:
            run_all(options)


def run_all(options: All) -> None:
    """Run the toy set; a fault in an option stops it before any work."""
    from experiments.common.cli import read_once, run_experiment
    from experiments.common.study import TreeConfig

    tree = read_once(TreeConfig(tree=options.tree)).tree  # once: it may be a pipe
    given = {"tree": tree, "n_seeds": options.n_seeds, "n_steps": options.n_steps}
    configs = [(experiment, configure(experiment, given)) for experiment in toy_set()]
    for experiment, config in configs:
        experiment.check(config)
    for experiment, config in configs:
        run_experiment(experiment, config, options.out)


def toy_set() -> "list[Experiment]":
    """The experiments of `TOY_SET`, in order; importing them takes seconds."""
    from experiments import absorption, all_prefixes, cosines, ground_truth, ordering

    return [module.EXPERIMENT for module in (ground_truth, absorption, cosines, all_prefixes, ordering)]


def configure(experiment: "Experiment", given: dict[str, Any]) -> Any:
    known = {field.name for field in fields(experiment.config)}
    return experiment.config(**{key: value for key, value in given.items() if value is not None and key in known})


def described(name: str) -> str:
    """Name and claim of an experiment, whose module is not imported for it."""
    text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    claim = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return f"{name:22s} {claim}"


if __name__ == "__main__":
    sys.exit(main())
