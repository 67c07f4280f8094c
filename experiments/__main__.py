"""Run all experiments of the toy set in order: `python -m experiments`. See `--help` and `--list`."""

import ast
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments import BENCHMARKS, LANGUAGE_SET, STUDIES, TOY_SET
from experiments.common.exits import clean_exit, set_up_jax
from experiments.common.options import parse

if TYPE_CHECKING:
    from experiments.common.experiment import Experiment


@dataclass(frozen=True)
class All:
    """Make every figure of the toy set and its record. `python -m experiments.NAME --help` has each one's options."""

    list: bool = False
    """List the experiments with their claims, and stop."""
    tree: str | None = None
    """JSON file of your own tree, or the name of one, for every experiment."""
    d_in: int | None = None
    """Dimension of the activations. This, the number of seeds and the steps default to each experiment's own."""
    n_seeds: int | None = None
    """Number of seeds."""
    n_steps: int | None = None
    """Training steps."""
    preset: Literal["default", "post"] = "default"
    """Settings that stand in for those that are not given; post: those for the post's 20,000 steps."""
    out: Path | None = None
    """Folder for records and figures; default: figures, and with --tree runs/TREE."""
    format: Literal["pdf", "svg"] | None = None
    """Write the figures as vectors, too."""


def main() -> None:
    with clean_exit():
        options = parse(All, prog="python -m experiments")
        if options.list:
            print("\n".join(described(name) for name in (*TOY_SET, *LANGUAGE_SET, *STUDIES, *BENCHMARKS)))
        else:
            run_all(options)


def run_all(options: All) -> None:
    """Run the toy set; a fault in an option stops it before any work."""
    from experiments.common.cli import default_out, run_experiment
    from experiments.common.study import PRESETS
    from experiments.common.tree_option import TreeOption

    set_up_jax()
    given = {name: getattr(options, name) for name in ("d_in", "n_seeds", "n_steps", "preset")}
    given["tree"] = None if options.tree is None else TreeOption(options.tree)
    given = PRESETS[options.preset] | {name: value for name, value in given.items() if value is not None}
    configs = [(experiment, configure(experiment, given)) for experiment in toy_set()]
    for experiment, config in configs:
        experiment.check(config)
    trained: dict[Any, Any] = {}
    for experiment, config in configs:
        out = default_out(config) if options.out is None else options.out
        run_experiment(experiment, config, out, options.format, trained)


def toy_set() -> "list[Experiment]":
    """The experiments of `TOY_SET`, in order; importing them takes seconds."""
    from experiments import absorption, all_prefixes, cosines, ground_truth, ordering

    return [module.EXPERIMENT for module in (ground_truth, absorption, cosines, all_prefixes, ordering)]


def configure(experiment: "Experiment", given: dict[str, Any]) -> Any:
    """The experiment's configuration with what of `given` it has."""
    known = {field.name for field in fields(experiment.config)}
    return experiment.config(**{name: value for name, value in given.items() if name in known})


def described(name: str) -> str:
    """Name and claim of an experiment, or what a package of this name does; neither is imported for it."""
    path = Path(__file__).parent.joinpath(*name.split("."))
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    claim = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return f"{name:22s} {claim}"


if __name__ == "__main__":
    sys.exit(main())
