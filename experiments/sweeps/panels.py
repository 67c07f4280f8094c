"""Methods side by side: the runs of an experiment as cells of a sweep, which a store keeps."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from experiments.common.cache import user_cache
from experiments.common.measured import known_where
from experiments.common.seeds import SeedConfig
from experiments.sweeps.cell import cell_key
from experiments.sweeps.drive import make_plan, run_plan
from experiments.sweeps.engines import LocalEngine
from experiments.sweeps.spec import Sweep, parse_sweep
from experiments.sweeps.store import Stored, open_store
from toy.checks import POSITIVE, Whole, check_fields
from toy.features.named import TREES
from toy.features.node import Node
from toy.features.tree_json import tree_to_dict
from toy.methods.named import named
from toy.training.config import MAX_STEPS, Hypers, TrainConfig
from toy.training.loop import Progress

LANES = 16  # the usual number of seeds, so that few lanes are padding
METRICS = ("recovered", "hole_rate", "min_cosine", "mcc", "uniqueness", "max_off_diagonal", "fvu", "l0", "dead_latents")
MIXING = ("parent_to_child", "child_to_sibling", "child_to_parent")


@dataclass(frozen=True)
class RunConfig(SeedConfig):
    """Options of experiments whose runs are cells of a sweep."""

    n_steps: int = TrainConfig.n_steps
    """Training steps."""
    store: Path | None = None
    """SQLite file of what was trained before; default: in the user's cache folder, by the experiment's name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_steps=Whole(most=MAX_STEPS))


@dataclass(frozen=True)
class PanelConfig(RunConfig):
    """The same with one learning rate."""

    learning_rate: float = Hypers._field_defaults["learning_rate"]
    """Adam's learning rate, where a method has none of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, learning_rate=POSITIVE)


class PanelRun(NamedTuple):
    """One training and where its result belongs."""

    method: str
    panel: str
    settings: dict[str, Any]  # of the cell, but for its method


@dataclass(frozen=True)
class Panels:
    """The runs of an experiment, and the trees of its own by name."""

    name: str
    runs: Sequence[PanelRun]
    trees: Mapping[str, Node]
    n_steps: int

    @cached_property
    def sweep(self) -> Sweep:
        """The runs as a sweep, whose axes change together."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings)
        axes = {name: [run.settings.get(name) for run in self.runs] for name in names}
        axes |= {"method": [run.method for run in self.runs]}
        if "random" not in axes["tree"]:
            axes.pop("tree_seed", None)
        own = {name: tree_to_dict(root) for name, root in self.trees.items() if name in axes["tree"]}
        fixed = {"n_steps": self.n_steps, "most_lanes": LANES}
        data = {"name": self.name, "combine": "zip", "axes": axes, "trees": own, "fixed": fixed}
        return parse_sweep(data, lambda name: TREES[name]())

    def check(self) -> None:
        """Raises: ValueError naming the method that is none, or the first run that cannot be."""
        for method in dict.fromkeys(run.method for run in self.runs):
            named(method)
        impossible = make_plan(self.sweep).impossible
        if impossible:
            place, why = impossible[0]
            raise ValueError(f"methods: {self.runs[place].method} on {self.runs[place].panel}: {why}")

    def results(self, path: Path | None, progress: Progress) -> dict[str, dict[str, Any]]:
        """The results by method and panel; what the store at `path` has already is not trained again.

        Without a path the store is in the user's cache folder.
        """
        store = open_store(path or user_cache("sweeps", f"{self.name}.sqlite"), self.sweep, extend=True)
        store.discard(store.damaged())
        plan = make_plan(self.sweep, store.finished(failed=False))
        progress(len(self.sweep) - plan.n_missing)
        run_plan(self.sweep, plan, store, LocalEngine(), progress=lambda done: progress(done.n_rows), retry=True)
        rows = {row.key: row for row in store.rows()}
        found: dict[str, Any] = defaultdict(lambda: defaultdict(list))
        for run, cell in zip(self.runs, self.sweep.cells(), strict=True):
            found[run.method][run.panel].append(rows[cell_key(cell, plan.code)])
        return {
            method: {panel: summarised(of_panel) for panel, of_panel in panels.items()}
            for method, panels in found.items()
        }


class HasPanels(Protocol):
    """A configuration from which all runs follow."""

    @property
    def panels(self) -> Panels: ...


def check_panels(cfg: HasPanels) -> None:
    """Raises: ValueError naming the method that is none, or the first run that cannot be."""
    cfg.panels.check()


def n_runs(cfg: HasPanels) -> int:
    return len(cfg.panels.runs)


def check_scenes(methods: Sequence[str], scenes: Sequence[str], known: Iterable[str]) -> None:
    """Raises: ValueError if there is no method or no scene, or naming a scene that is none of those known."""
    if not methods or not scenes:
        raise ValueError("methods and scenes: need at least one of each")
    names = list(known)
    for scene in scenes:
        if scene not in names:
            raise ValueError(f"scenes: expected {', '.join(names)}, got {scene!r}")


def summarised(rows: list[Stored]) -> dict[str, Any]:
    """Lists with one entry per run that went well, and the counts of runs, of failed and of recovered ones.

    `seconds` is a run's share of the time of those that were trained with it, compiling and measuring included.
    """
    good = [row.metrics for row in rows if row.metrics is not None]
    columns = {name: [metrics.get(name) for metrics in good] for name in (*METRICS, *MIXING)}
    recovered = sum(value == 1 for value in columns["recovered"])
    counts = {"n": len(rows), "n_failed": len(rows) - len(good), "recovered": recovered}
    columns["is_recovered"] = columns.pop("recovered")
    return columns | counts | {"seconds": [row.seconds for row in rows if row.metrics is not None]}


def recovered_only(r: dict[str, Any], metric: str) -> list[float]:
    """A metric of the recovered runs of a panel."""
    return known_where(r[metric], r["is_recovered"])
