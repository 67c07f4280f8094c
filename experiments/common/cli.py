"""The command line of an experiment, and the one place that writes records and figures."""

import contextlib
import inspect
import io
import os
import platform
import shlex
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Generic, Literal

import jax
import matplotlib as mpl
import tyro
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.exits import clean_exit
from experiments.common.experiment import Config, Experiment, Told, Work
from experiments.common.options import parse
from experiments.common.progress import progress_bar
from experiments.common.study import PRESETS
from toy.checks import quoted
from toy.features.tree_json import tree_to_dict
from toy.io import load_json, plain, prepare, save_json, writing
from toy.lm.hub import is_hub_name
from toy.sae import SAE

DEFAULT_OUT = Path("figures")
OWN_OUT = Path("runs")  # of trees that are not the experiment's
Format = Literal["pdf", "svg"]
LOCAL = ("cache", "store", "trained")  # options that say where files are kept on this machine, and are in no record
NO_DATE: dict[str, dict] = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


@dataclass(frozen=True)
class Command(Generic[Config]):
    """The options that every experiment has beside its own."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder for the record and the figure; default: figures, and with --tree runs/TREE."""
    format: Format | None = None
    """Write the figure as vectors, too."""
    redraw: bool = False
    """Draw the figure again from the record in that folder, without running anything."""

    @property
    def folder(self) -> Path:
        return default_out(self.config) if self.out is None else self.out


def main(experiment: Experiment) -> None:
    """Entry point of `python -m experiments.NAME`."""
    with clean_exit():
        command = parse_command(experiment)
        if command.redraw:
            redraw(experiment, command.folder, command.format)
        else:
            run_experiment(experiment, command.config, command.folder, command.format)


def parse_command(experiment: Experiment) -> Command:
    """The command line's options; those that are not given are the preset's."""
    about = {
        "prog": f"python -m experiments.{experiment.command}",
        "description": inspect.getdoc(inspect.getmodule(experiment.run)),
    }
    kind = Command[experiment.config]
    command = parse(kind, **about)
    preset = preset_of(experiment, getattr(command.config, "preset", "default"))
    return parse(kind, default=Command(experiment.config(**preset)), **about) if preset else command


def preset_of(experiment: Experiment, name: str) -> dict[str, Any]:
    """The options of a preset, but for those that the experiment fixes or varies itself (`no_preset`)."""
    own = getattr(experiment.config, "no_preset", ())
    return {option: value for option, value in PRESETS[name].items() if option not in own}


def default_out(config: Any) -> Path:
    """The committed figures are of the experiments' own trees: others have a folder of their own."""
    if hasattr(config, "own_out"):
        return config.own_out
    tree = getattr(config, "tree", None)
    return DEFAULT_OUT if tree is None or tree is type(config).tree else OWN_OUT / Path(tree.name).stem


def run_experiment(
    experiment: Experiment,
    config: Any,
    out: Path,
    vector: Format | None = None,
    trained: dict[Hashable, SAE] | None = None,
) -> dict[str, Any]:
    """Run an experiment, and return its record as it stands on disk."""
    check_writable(out)
    experiment.check(config)
    prepare_files(experiment, out, vector)
    start = time.monotonic()
    with progress_bar(experiment.n_steps(config), experiment.name) as bar:
        results = experiment.run(config, Work(bar.update, bar.compiling, {} if trained is None else trained))
    return keep(experiment, config, results, time.monotonic() - start, out, vector)


def prepare_files(experiment: Told, out: Path, vector: Format | None) -> None:
    """Checks before any work that the files can be written. Raises: OSError naming one that cannot."""
    for suffix in ("json", *_formats(vector)):
        prepare(out / f"{experiment.name}.{suffix}")


def keep(
    experiment: Told, config: Any, results: dict[str, Any], seconds: float, out: Path, vector: Format | None
) -> dict[str, Any]:
    """Write the record of some results, print their lines, draw; return the record as it stands on disk.

    The record comes before the figure, so that nothing that was computed is lost if the figure cannot be drawn.
    """
    name = experiment.name
    record = {"name": name, "config": plain(describe(config), digits=None)}  # exactly what was run, its tree included
    record |= plain({"seeds": config.seeds, "versions": versions(), "seconds": seconds, "results": results})
    path = out / f"{name}.json"
    save_json(path, record, digits=None)
    with record_is_kept(name, out, experiment.command):
        if experiment.caption is not None:
            record["caption"] = experiment.caption(record)
            save_json(path, record, digits=None)
        for line in experiment.summary(record):
            print(f"{name}: {line}")
        draw(experiment, record, out, vector)
    print(f"{name}: {seconds:.0f} s, {path}, {out / name}.png", flush=True)
    return record


@contextlib.contextmanager
def record_is_kept(name: str, out: Path, command: str) -> Iterator[None]:
    """Says so, and how the figure is drawn, whatever ends the block. Raises: ValueError; KeyboardInterrupt."""
    how = f"python -m experiments.{command} --redraw --out {shlex.quote(str(out))}"
    kept = f"the record {out / name}.json is kept: draw its figure with {how}"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept) from None
    except BrokenPipeError:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {quoted(str(error), 200)}; {kept}") from error


def describe(config: Any) -> dict[str, Any]:
    """The configuration as JSON, with the tree itself in place of the name of its file; not where files are kept."""
    data = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in LOCAL}
    for name in ("corpus", "data", "model", "sampled", "tokenizer", "sweep"):
        if data.get(name) is not None and not is_hub_name(str(data[name])):
            data[name] = Path(data[name]).name
    if "tree" in data:
        data["tree"] = tree_to_dict(data["tree"].root)
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


def redraw(experiment: Told, out: Path, vector: Format | None = None) -> None:
    """Draw an experiment's figure from its record, which anybody may have changed.

    Raises: ValueError naming the record; OSError.
    """
    path = out / f"{experiment.name}.json"
    record = load_record(path, experiment.name)
    try:
        draw(experiment, record, out, vector)
    except (MemoryError, OSError):
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: cannot be drawn: run the experiment anew: {quoted(told)}") from error


def draw(experiment: Told, record: dict[str, Any], out: Path, vector: Format | None = None) -> None:
    """Write the figure of a record as PNG, and as vectors where they are asked for."""
    figure = experiment.plot(record)
    for kind in _formats(vector):
        write_figure(out / f"{experiment.name}.{kind}", as_image(figure, kind))


def write_figure(path: Path, image: bytes) -> None:
    with writing(path) as file:
        file.write(image)


def _formats(vector: Format | None) -> list[str]:
    return ["png"] if vector is None else ["png", vector]


def as_image(figure: Figure, kind: str) -> bytes:
    """The bytes of a file, which are the same every time."""
    image = io.BytesIO()
    with plots.style(), mpl.rc_context({"svg.hashsalt": "matryoshka-toy"}):
        figure.savefig(image, format=kind, dpi=200, metadata=NO_DATE[kind])
    return image.getvalue()


def as_png(figure: Figure) -> bytes:
    return as_image(figure, "png")


def check_writable(out: Path, option: str = "--out") -> None:
    """Checks before any work that files can be written to `out`. Raises: ValueError if they cannot."""
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{option} {out}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{option} {out}: {existing} is not writable")
