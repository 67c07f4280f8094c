"""The SAEs that the TinyStories chain has left in its cache: their names, and how to load one."""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.common.measured import lane
from experiments.language.stages import DONE
from toy.checks import quoted
from toy.io import load_arrays, load_json, save_arrays
from toy.sae import SAE

SAES = "saes.safetensors"


class Found(NamedTuple):
    """The SAEs of a family, a lane for each seed."""

    folder: Path
    activations: str  # the stage that they were trained on
    site: str
    kind: str  # reference_WIDTH, vanilla, matryoshka, or another method
    n_latents: int
    method: str
    target_l0: float
    seeds: tuple[int, ...]

    def load(self) -> SAE:
        """The SAEs with a leading axis of seeds."""
        return load_saes(self.folder)


def save_saes(folder: Path, saes: SAE) -> None:
    """Write SAEs, with a leading axis of seeds, to the folder of their stage."""
    arrays = {name: np.asarray(leaf) for name, leaf in saes._asdict().items() if leaf is not None}
    save_arrays(folder / SAES, arrays, {})


def load_saes(folder: Path) -> SAE:
    return SAE(**{name: jnp.asarray(array) for name, array in load_arrays(folder / SAES)[0].items()})


def find_saes(cache: Path) -> list[Found]:
    """The families in a cache whose training has ended, by site, width, kind and L0."""
    found = [family_at(path.parent) for path in cache.glob(f"saes-*/{DONE}")]
    return sorted(found, key=lambda one: (one.site, one.n_latents, one.kind, one.target_l0, one.folder.name))


def family_at(folder: Path) -> Found:
    facts = load_json(folder / DONE)["facts"]
    site, kind, n_latents, method, l0 = facts["family"]
    return Found(folder, facts["activations"], site, kind, n_latents, method, l0, tuple(facts["seeds"]))


def load_sae(folder: Path | str, seed: int) -> SAE:
    """One SAE of a folder that `python -m experiments.tinystories --list` names.

    Raises: ValueError that says which seeds there are; OSError.
    """
    found = family_at(Path(folder))
    if seed not in found.seeds:
        raise ValueError(f"{quoted(str(folder))}: has SAEs of seeds {_listed(found.seeds)}, not of seed {seed}")
    return lane(found.load(), found.seeds.index(seed))


def told(cache: Path) -> list[str]:
    """Lines that name every SAE of a cache, and the code that loads one."""
    found = find_saes(cache)
    if not found:
        return [f"{cache}: holds no trained SAE yet"]
    lines = [
        f"{one.site:12s} {one.kind:14s} {one.n_latents:6,} latents, L0 {one.target_l0:g}, "
        f"seeds {_listed(one.seeds)}: {one.folder.name}"
        for one in found
    ]
    last = found[-1]
    lines += ["", "from experiments.language.found import load_sae"]
    return [*lines, f'load_sae("{last.folder}", seed={last.seeds[0]})']


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))
