"""A figure of the TinyStories chain as a value: its measures at a site, its summary and its plot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from experiments.language.chain import Chain, Tokens
from experiments.language.config import LanguageConfig
from experiments.language.saes import SiteSAEs
from toy.lm.model import Site

Record = dict[str, Any]
OfSite = Callable[[Site, SiteSAEs], Record]


@dataclass(frozen=True)
class Measure:
    name: str
    """Name of the record and the figure."""
    of_model: Callable[[Chain], OfSite]
    """Returns, for one language model, what measures a site: lists that lead with an axis of seeds."""
    summary: Callable[[Record], list[str]]
    plot: Callable[[Record], Figure]
    facts: Callable[[LanguageConfig], Record] = lambda cfg: {}
    """Returns what else the results hold."""
    check: Callable[[LanguageConfig, list[Tokens]], None] = lambda cfg, tokens: None
    """Raises ValueError, before anything is trained, if the tokens of a language model lack what is to be measured."""
    caption: None = None
    command: str = "tinystories"
