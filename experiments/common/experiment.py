"""What an experiment is: a value that the command line runs, records and draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from matplotlib.figure import Figure

from toy.training.loop import Progress


class Options(Protocol):
    """Options of an experiment: a frozen dataclass."""

    @property
    def seeds(self) -> list[int]:
        """The seeds that the record names."""
        ...


Config = TypeVar("Config", bound=Options)
Record = dict[str, Any]


@dataclass(frozen=True)
class Experiment(Generic[Config]):
    """An experiment: its options, what it computes, and how its record is told and drawn."""

    name: str
    """Of the module, the record and the figure."""
    config: type[Config]
    run: Callable[[Config, Progress], Record]
    """Returns the results as plain JSON."""
    summary: Callable[[Record], list[str]]
    """Returns lines to print about a record."""
    plot: Callable[[Record], Figure]
    check: Callable[[Config], object]
    """Raises ValueError before any work for options that cannot be."""
    n_steps: Callable[[Config], int]
    """Returns how many steps `run` will tell to `progress`."""
    caption: Callable[[Record], str] | None = None
    """Returns the figure's caption, which the record keeps."""
