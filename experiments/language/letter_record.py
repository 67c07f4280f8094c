"""Reads what a record of `first_letter` says of each letter, and compares methods by pairs of letters."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from experiments.common.plots import Interval, bootstrap

EQUAL_F1 = 0.05  # main latents whose F1 differ by less stand for their letter equally well
PAIRED = ("fraction", "full")  # measures of which less is better
PAIRED_METHOD = "matryoshka"


class Pairs(NamedTuple):
    """One measure of two methods' SAEs on the same letters and seeds."""

    less: int  # pairs in which the first method has less
    more: int
    less_at_equal_f1: int  # likewise, where the main latents of both have about the same F1
    more_at_equal_f1: int
    difference: Interval  # of letters, each a mean over seeds: another training of the SAEs is not in it

    def text(self) -> str:
        mean, low, high = self.difference
        return (
            f"{self.less} : {self.more} ({self.less_at_equal_f1} : {self.more_at_equal_f1} at equal F1), "
            f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        )


def read_letters(record: dict[str, Any], site: str) -> list[str]:
    """The letters that the probe reads well enough."""
    letters = record["results"]["words"]["letters"]
    return [letter for letter, read in zip(letters, _is_read(record, site), strict=True) if read]


def values_of(saes: list[dict[str, Any]], name: str) -> list[float]:
    """A measure of each seed's SAE."""
    return [sae[name] if name in sae else sae["mean"][name] for sae in saes]


def pairs(record: dict[str, Any], site: str, l0: str, method: str, other: str, measure: str) -> Pairs | None:
    """Compares a method with another on the letters that the probe reads; None without any."""
    methods, is_read = record["results"]["sites"][site]["methods"], _is_read(record, site)

    def differences(name: str) -> np.ndarray:
        ours, theirs = (
            np.array([sae["letters"][name] for sae in methods[of][l0]], float)[:, is_read] for of in (method, other)
        )
        return ours - theirs

    found, equal = differences(measure), np.abs(differences("f1_main")) < EQUAL_F1
    known = ~np.isnan(found).any(axis=0)
    if not known.any():
        return None
    found, equal = found[:, known], equal[:, known]
    less, more = found < 0, found > 0
    counts = (int(np.sum(of)) for of in (less, more, less & equal, more & equal))
    return Pairs(*counts, difference=bootstrap(found.mean(axis=0)))


def paired_lines(record: dict[str, Any], site: str) -> list[str]:
    """A line for each L0 that compares Matryoshka SAEs with those of every other method."""
    methods = record["results"]["sites"][site]["methods"]
    ours = next((name for name in methods if name.partition(":")[0] == PAIRED_METHOD), None)
    n = len(record["seeds"]) * len(read_letters(record, site))
    if ours is None or not n:
        return []
    lines = []
    for l0 in methods[ours]:
        parts = [f"than {of}: {_pairs_text(record, site, l0, ours, of)}" for of in methods if of != ours]
        lines.append(f"{site}, L0 {l0}: {ours} absorbs less : more, of {n} letters and seeds, {'; '.join(parts)}")
    return lines


def _pairs_text(record: dict[str, Any], site: str, l0: str, ours: str, other: str) -> str:
    found = {name: pairs(record, site, l0, ours, other, name) for name in PAIRED}
    return ", ".join(f"{name} {of.text() if of else 'unknown'}" for name, of in found.items())


def _is_read(record: dict[str, Any], site: str) -> Bool[np.ndarray, " n_letters"]:
    return np.array(record["results"]["sites"][site]["probe"]["f1"]) >= record["config"]["min_f1"]
