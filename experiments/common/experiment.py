"""Experiments as values that the command line runs, records and draws."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from matplotlib.figure import Figure

from toy.sae import SAE


class Options(Protocol):
    """Options of an experiment: a frozen dataclass."""

    @property
    def seeds(self) -> list[int]:
        """The seeds that the record names."""
        ...


Config = TypeVar("Config", bound=Options)
Record = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """The argument of `run`, which calls it with the number of steps that were just done.

    An experiment that needs no more can take it as a `Progress`.
    """

    progress: Callable[[int], Any] = lambda n: None
    compiling: Callable[[], Any] = lambda: None
    """Called before a program is compiled, which the progress bar shows until the next steps are done."""
    trained: dict[Hashable, SAE] = field(default_factory=dict)
    """SAEs by what determines them: `python -m experiments` trains those that several figures show only once."""

    def __call__(self, n_steps: int) -> None:
        self.progress(n_steps)


class Told(Protocol):
    """Anything that is summarised and drawn from its record: an experiment, or one of several figures of a command."""

    @property
    def name(self) -> str: ...
    @property
    def command(self) -> str: ...
    @property
    def summary(self) -> Callable[[Record], list[str]]: ...
    @property
    def plot(self) -> Callable[[Record], Figure]: ...
    @property
    def caption(self) -> Callable[[Record], str] | None: ...


@dataclass(frozen=True)
class Experiment(Generic[Config]):
    """An experiment: its options, what it computes, and how its record is summarised and drawn."""

    name: str
    """The name of the module, of the record and of the figure."""
    config: type[Config]
    run: Callable[[Config, Work], Record]
    """Returns the results as lists, numbers and NumPy arrays, which the record holds as JSON."""
    summary: Callable[[Record], list[str]]
    """Returns lines to print about a record."""
    plot: Callable[[Record], Figure]
    check: Callable[[Config], object]
    """Raises ValueError before any work for options that cannot be."""
    n_steps: Callable[[Config], int]
    """Returns the number of steps that `run` reports."""
    caption: Callable[[Record], str] | None = None
    """Returns the figure's caption, which the record keeps."""
    folder: str = ""
    """The folder of its module within `experiments/`, such as `bench.`."""

    @property
    def command(self) -> str:
        """The name of the command that makes it."""
        return self.folder + self.name
