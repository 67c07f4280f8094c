"""The command line of an experiment, and the one place that writes records and figures."""

import contextlib
import dataclasses
import io
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Generic, TypeVar

import jax
import matplotlib
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments import plots
from experiments.study import load_root
from toy.io import load_json, plain, save_json, writing
from toy.lm.hub import is_hub_name
from toy.tree_json import tree_to_dict

MAX_CPU_DEVICES = 8
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


def main(name: str) -> None:
    """Entry point of `python -m experiments.NAME`."""
    module = experiment_module(name)
    with clean_exit():
        command = parse(Command[module.Config], prog=f"python -m experiments.{name}", description=module.__doc__)
        if command.redraw:
            write_figure(command.out / f"{name}.png", draw(module, load_record(command.out / f"{name}.json")))
        else:
            run_experiment(module, command.config, command.out)


def parse(options: Any, **described: Any) -> Any:
    return tyro.cli(options, config=(tyro.conf.FlagCreatePairsOff,), **described)


def experiment_module(name: str) -> ModuleType:
    return __import__(f"experiments.{name}", fromlist=["run"])


@contextlib.contextmanager
def clean_exit(kept: str = "nothing of the unfinished experiment was written") -> Iterator[None]:
    """A fault of the user's is one line and exit code 2; an interrupt says what is `kept`. No half of a file stays."""
    try:
        use_all_cores()
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted; {kept}", file=sys.stderr)
        sys.exit(130)


def use_all_cores() -> None:
    """Make every core a device of its own: lanes of a grid then run on all of them (about twice as fast on two)."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX is already running: keep its devices
        jax.config.update("jax_num_cpu_devices", min(n_cores, MAX_CPU_DEVICES))


def run_experiment(module: ModuleType, config: Any, out: Path) -> dict[str, Any]:
    """Run, print the result's lines, write figure and record; return the record as it stands on disk."""
    name = module.__name__.rpartition(".")[2]
    check_writable(out)
    module.check(config)
    start = time.monotonic()
    with tqdm(total=module.n_steps(config), desc=name, unit="step", disable=None, leave=False) as bar:
        results = module.run(config, bar.update)
    record = plain(
        {
            "name": name,
            "config": describe(config),
            "seeds": config.seeds,
            "versions": versions(),
            "seconds": time.monotonic() - start,
            "results": results,
        }
    )
    image = draw(module, record)  # before anything is written: record and figure come together
    save_json(out / f"{name}.json", record)
    write_figure(out / f"{name}.png", image)
    for line in module.summary(record):
        print(f"{name}: {line}")
    print(f"{name}: {record['seconds']:.0f} s, {out / name}.json, {out / name}.png", flush=True)
    return record


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


def load_record(path: Path) -> dict[str, Any]:
    try:
        return load_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no record to draw from; run the experiment first") from None


def draw(module: ModuleType, record: dict[str, Any]) -> bytes:
    """The figure of a record as PNG."""
    matplotlib.use("Agg")
    return as_png(module.plot(record))


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
