"""The command line of an experiment, and the one place that writes records and figures."""

import contextlib
import dataclasses
import inspect
import io
import os
import platform
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import matplotlib
import tyro
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.exits import clean_exit, say
from experiments.common.experiment import Experiment
from experiments.common.options import check_tree, parse
from experiments.common.progress import progress_bar
from experiments.common.study import TreeConfig, load_root, with_tree
from toy.checks import quoted
from toy.features.tree_json import tree_to_dict
from toy.io import load_json, plain, prepare, save_json, writing
from toy.lm.hub import is_hub_name

DEFAULT_OUT = Path("figures")
Config = TypeVar("Config")


@dataclass(frozen=True)
class Command(Generic[Config]):
    """What every experiment takes beside its own options."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path = DEFAULT_OUT
    """Folder for the record and the figure."""
    redraw: bool = False
    """Draw the figure again from the record in that folder, without running anything."""


def main(experiment: Experiment) -> None:
    """Entry point of `python -m experiments.NAME`."""
    with clean_exit():
        about = inspect.getmodule(experiment.run).__doc__
        command = parse(Command[experiment.config], prog=f"python -m experiments.{experiment.name}", description=about)
        if command.redraw:
            redraw(experiment, command.out)
        else:
            run_experiment(experiment, command.config, command.out)


def run_experiment(experiment: Experiment, config: Any, out: Path) -> dict[str, Any]:
    """Run, write the record, print the result's lines, draw; return the record as it stands on disk.

    The record comes before the figure, so that nothing that was computed is lost if the figure cannot be drawn.
    """
    name = experiment.name
    check_writable(out)
    config = read_once(config)
    experiment.check(config)
    for suffix in ("json", "png"):
        prepare(out / f"{name}.{suffix}")
    start = time.monotonic()
    with progress_bar(experiment.n_steps(config), name) as bar:
        results = experiment.run(config, bar.update)
    seconds = time.monotonic() - start
    record = {"name": name, "config": plain(describe(config), digits=None)}  # exactly what was run, its tree included
    record |= plain({"seeds": config.seeds, "versions": versions(), "seconds": seconds, "results": results})
    if experiment.caption is not None:
        record["caption"] = experiment.caption(record)
    save_json(out / f"{name}.json", record, digits=None)
    with figure_missing(name, out):
        for line in experiment.summary(record):
            print(f"{name}: {line}")
        write_figure(out / f"{name}.png", draw(experiment, record))
    print(f"{name}: {record['seconds']:.0f} s, {out / name}.json, {out / name}.png", flush=True)
    return record


def read_once(config: Any) -> Any:
    """The configuration with the tree itself in place of its file, which may be a pipe and is never read again.

    Prints what the reader noted. Raises: ValueError naming the file and what is wrong in it.
    """
    if not isinstance(config, TreeConfig):
        return config
    check_tree(config.tree)
    read = with_tree(config)
    if read is not config:
        for note in read.tree.notes:
            say(f"{config.tree}: {note}")
    return read


@contextlib.contextmanager
def figure_missing(name: str, out: Path) -> Iterator[None]:
    """Whatever ends the block after the record was written: say that there is a record and no figure of it.

    Raises: ValueError; KeyboardInterrupt.
    """
    image = out / f"{name}.png"
    state = "is of an earlier run" if image.is_file() else "is missing"
    how = f"python -m experiments.{name} --redraw --out {shlex.quote(str(out))}"
    told = f"the record {out / name}.json is kept, its figure {image} {state}: draw it with {how}"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(told) from None
    except BrokenPipeError:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {quoted(str(error), 200)}; {told}") from error


def describe(config: Any) -> dict[str, Any]:
    """The configuration as JSON, with the tree itself in place of the name of its file; not where files are kept."""
    data = dataclasses.asdict(config)
    data.pop("cache", None)
    for name in ("corpus", "model", "tokenizer", "sweep"):
        if data.get(name) is not None and not is_hub_name(str(data[name])):
            data[name] = Path(data[name]).name
    if "tree" in data:
        data["tree"] = tree_to_dict(load_root(config))
    return data


def versions() -> dict[str, str]:
    packages = ("matryoshka-toy", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "matplotlib")
    devices = f"{jax.local_device_count()} x {jax.devices()[0].device_kind}"
    return {"python": platform.python_version(), **{name: version(name) for name in packages}, "devices": devices}


def load_record(path: Path, name: str | None = None) -> dict[str, Any]:
    """A record, of the experiment `name` if one is given. Raises: ValueError naming the file; OSError."""
    try:
        record = load_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no record to draw from; run the experiment first") from None
    expected = {"name": str, "config": dict, "seeds": list, "results": dict}
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in expected.items()):
        raise ValueError(f"{path}: is not an experiment's record; run the experiment anew")
    if name is not None and record["name"] != name:
        raise ValueError(f"{path}: is the record of {quoted(record['name'])}, not of {name}; run {name} anew")
    return record


def redraw(experiment: Experiment, out: Path) -> None:
    """Draw an experiment's figure from its record. Raises: ValueError naming the record; OSError."""
    name = experiment.name
    record = load_record(out / f"{name}.json", name)
    with reading(out / f"{name}.json"):
        image = draw(experiment, record)
    write_figure(out / f"{name}.png", image)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Of a record, which anybody may have changed: what its parts are is found when they are used.

    Raises: ValueError naming the record.
    """
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: cannot be drawn: run the experiment anew: {quoted(told)}") from error


def draw(experiment: Experiment, record: dict[str, Any]) -> bytes:
    """The figure of a record as PNG."""
    matplotlib.use("Agg")
    return as_png(experiment.plot(record))


def as_png(figure: Figure) -> bytes:
    image = io.BytesIO()
    with plots.style():
        figure.savefig(image, format="png", dpi=200, metadata={"Software": None})
    return image.getvalue()


def write_figure(path: Path, image: bytes) -> None:
    with writing(path) as file:
        file.write(image)


def check_writable(out: Path, option: str = "--out") -> None:
    """Before any work. Raises: ValueError if files cannot be written to `out`."""
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{option} {out}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{option} {out}: {existing} is not writable")
