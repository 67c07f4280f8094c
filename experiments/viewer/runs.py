"""The SAEs that a page shows: of the TinyStories chain's cache, or of any folder or file that `read_sae` reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.common.measured import lane
from experiments.language.found import SAES, Found, family_at
from experiments.language.stages import DONE
from toy import prefixes
from toy.checks import quoted
from toy.io import load_json, read_sae
from toy.methods.named import named
from toy.sae import RELU, SAE, Activation

REFERENCE, VANILLA, MATRYOSHKA = "reference", "vanilla", "matryoshka"
TREE = "tree.json"  # of a run of `experiments.train`
MOST_LEVELS = 16  # of a tree over prefixes


class Shown(NamedTuple):
    """An SAE by the name that the page has for it."""

    name: str
    kind: str  # reference, vanilla or matryoshka
    sae: SAE
    activation: Activation = RELU
    prefixes: tuple[int, ...] = ()  # lengths in ascending order, the full one included; empty if they were drawn

    @property
    def n_latents(self) -> int:
        return self.sae.b_enc.shape[0]

    @property
    def directions(self) -> Float[np.ndarray, "n_latents d_in"]:
        """The decoder rows, at norm 1."""
        W_dec = np.asarray(self.sae.W_dec, float)
        return W_dec / np.maximum(np.linalg.norm(W_dec, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Wanted:
    """Which SAEs of a chain are shown; None stands for all."""

    site: str
    seed: int | None = None
    l0: tuple[float, ...] | None = None
    activations: str | None = None  # the name of the stage that the SAEs were trained on

    def __str__(self) -> str:
        of_seed = "" if self.seed is None else f" with seed {self.seed}"
        return f"of site {self.site}{of_seed}" + (f" on {self.activations}" if self.activations else "")


def is_toy(run: Path) -> bool:
    return (run / TREE).is_file()


def read_runs(runs: Sequence[Path], wanted: Wanted) -> list[Shown]:
    """The SAEs of some paths, reference SAEs first, as S/0, S/1, … by width.

    Raises: ValueError naming a path that holds none, or an L0 that none has.
    """
    found: list[Shown] = []
    for run in runs:
        of_run = _of_path(run, wanted)
        if not of_run:
            raise ValueError(f"{quoted(str(run))}: holds no SAE {wanted}: {_held(run)}")
        found += of_run
    _check_l0(runs, wanted)
    found.sort(key=lambda one: (one.kind != REFERENCE, one.kind, one.n_latents if one.kind == REFERENCE else 0))
    widths = [one.n_latents for one in found if one.kind == REFERENCE]
    ladder = {width: f"S/{i}" for i, width in enumerate(sorted(set(widths)))}
    if len(ladder) == len(widths):  # else two are of one width, and have their own names
        found = [one._replace(name=ladder[one.n_latents]) if one.kind == REFERENCE else one for one in found]
    return _distinct(found)


def _distinct(found: list[Shown]) -> list[Shown]:
    names = [one.name for one in found]
    return [
        one._replace(name=f"{one.name} ({names[:i].count(one.name) + 1})") if names.count(one.name) > 1 else one
        for i, one in enumerate(found)
    ]


def _of_path(run: Path, wanted: Wanted) -> list[Shown]:
    if (run / SAES).is_file():
        return _of_stage(run, wanted)
    stages = sorted(path.parent for path in run.glob(f"saes-*/{SAES}"))
    if stages:  # a chain's cache
        return [one for folder in stages for one in _of_stage(folder, wanted)]
    folders = sorted(path for path in run.glob("sae_*") if path.is_dir()) or [run]
    return [_of_folder(folder) for folder in folders]


def _families(run: Path) -> list[Found]:
    """The families of a chain's cache, or that of one of its folders; none for SAEs from elsewhere."""
    stages = [run / DONE, *sorted(run.glob(f"saes-*/{DONE}"))]
    return [family_at(path.parent) for path in stages if path.is_file() and (path.parent / SAES).is_file()]


def _held(run: Path) -> str:
    families = _families(run)
    seeds = {seed for one in families for seed in one.seeds}
    return f"its sites are {_listed({one.site for one in families})}, its seeds {_listed(seeds)}"


def _check_l0(runs: Sequence[Path], wanted: Wanted) -> None:
    """Raises: ValueError naming the L0s that no large SAE of the chain was trained to."""
    large = (one for run in runs for one in _families(run) if one.site == wanted.site and not _is_reference(one))
    known = {one.target_l0 for one in large}
    if missing := set(wanted.l0 or ()) - known:
        raise ValueError(f"l0: no large SAE at {wanted.site} has {_listed(missing)}; there are {_listed(known)}")


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values)) or "none"


def _is_reference(family: Found) -> bool:
    return family.kind.startswith(f"{REFERENCE}_")


def _of_stage(folder: Path, wanted: Wanted) -> list[Shown]:
    """The SAEs of one family of the chain that are wanted."""
    if not (folder / DONE).is_file():
        return []  # which is still being trained
    family = family_at(folder)
    if family.site != wanted.site or wanted.activations not in (None, family.activations):
        return []
    saes, weighting = family.load(), named(family.method).weighting
    kind = REFERENCE if _is_reference(family) else _kind(weighting, VANILLA)
    if kind != REFERENCE and wanted.l0 is not None and family.target_l0 not in wanted.l0:
        return []
    several, name = len(family.seeds) > 1, f"{family.kind} L0 {family.target_l0:g}"
    return [
        Shown(
            name + (f" seed {seed}" if several else ""),
            kind,
            lane(saes, i),
            RELU,
            _fixed(weighting, family.n_latents),
        )
        for i, seed in enumerate(family.seeds)
        if wanted.seed in (None, seed)
    ]


def _kind(weighting: str, of_one_prefix: str) -> str:
    return of_one_prefix if weighting == VANILLA else MATRYOSHKA


def _fixed(weighting: str, n_latents: int) -> tuple[int, ...]:
    """The lengths that a weighting names; none where they are drawn, or are so many that they make no levels."""
    found = prefixes.named(weighting, n_latents)
    lengths = np.flatnonzero(found.weights) + 1 if isinstance(found, prefixes.FixedWeights) else np.zeros(0, int)
    return tuple(lengths.tolist()) if len(lengths) <= MOST_LEVELS else ()


def _of_folder(folder: Path) -> Shown:
    sae, activation = read_sae(folder)
    weighting = training_of(folder).get("weighting", VANILLA)
    name = "/".join(folder.absolute().parts[-2:])
    return Shown(name, _kind(weighting, REFERENCE), sae, activation, _fixed(weighting, sae.b_enc.shape[0]))


def training_of(folder: Path) -> dict[str, Any]:
    """Returns what `experiments.train` says of an SAE's training; nothing for SAEs from elsewhere."""
    path = folder / "cfg.json"
    told = load_json(path) if path.is_file() else {}
    metadata = told.get("metadata") if isinstance(told, dict) else None
    training = metadata.get("training") if isinstance(metadata, dict) else None
    return training if isinstance(training, dict) else {}
