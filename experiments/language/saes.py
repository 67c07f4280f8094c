"""The SAEs of the TinyStories figures: at every site a ladder of reference SAEs, and large ones of both kinds."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.measured import lane
from experiments.language.chain import Activations
from experiments.language.config import SPARSITY_COEF, LanguageConfig
from experiments.language.found import SAES
from experiments.language.stages import Stage, stage
from toy import prefixes
from toy.data.stream import ShardSource
from toy.io import load_arrays, save_arrays
from toy.lm.model import Site
from toy.methods.from_file import method_facts
from toy.methods.named import named
from toy.sae import SAE
from toy.training.checkpoint import FileCheckpoint
from toy.training.config import Hypers, TrainConfig
from toy.training.controllers import off_target
from toy.training.grid import train_grid, trained_saes
from toy.training.loop import Progress

KINDS = ("vanilla", "matryoshka")  # that are compared in summaries; a figure shows the others, too
CODE = ("toy.training.grid", "toy.data.stream")  # what trains SAEs
END_SHARE = 0.05  # the last share of the steps, over which the L0 of training is averaged
NO_NAME = r"[^A-Za-z0-9_.]+"  # what folders are not called
CHUNK = 4_096  # held-out rows in memory at once


class Family(NamedTuple):
    """SAEs of one shape and method at one site, trained in one program; a lane for each seed and L0."""

    site: Site
    name: str  # reference_WIDTH, vanilla, matryoshka, or another method
    n_latents: int
    method: str
    target_l0: tuple[float, ...]


class OffTarget(NamedTuple):
    """An SAE whose L0 at the end of training misses its target by more than `toy.training.controllers.MAX_L0_ERROR`."""

    site: str
    family: str
    seed: int
    target_l0: float
    l0: float | None  # the mean over the last steps; None: not finite


class SiteSAEs(NamedTuple):
    """The SAEs of one site, and those that miss their target."""

    reference: dict[int, list[SAE]]  # by width; of each seed
    large: dict[str, list[list[SAE]]]  # by kind; of each seed, of each L0
    off_target: list[OffTarget]
    seconds: float


def families(cfg: LanguageConfig, site: Site) -> list[Family]:
    ladder = [
        Family(site, f"reference_{width}", width, cfg.vanilla, (min(cfg.reference_l0, width / 4),))
        for width in cfg.reference_widths
    ]
    large = [Family(site, kind, cfg.n_latents, method, cfg.sizes.target_l0) for kind, method in cfg.kinds.items()]
    return ladder + large


def train_family(cfg: LanguageConfig, acts: Activations, family: Family, progress: Progress) -> tuple[SAE, Stage]:
    """The SAEs with a leading axis of lanes, resumed where their training was stopped; the stage notes each one's L0.

    Lanes are seeds × L0s, the L0s of a seed together; all see the same batches.
    """
    n_steps, n_l0 = cfg.sizes.n_steps, len(family.target_l0)
    _, method, weighting = named(family.method)
    train_cfg = TrainConfig(family.n_latents, n_steps=n_steps, batch_size=cfg.batch_size, method=method)
    facts = {
        "activations": acts.stage.folder.name,
        "family": [str(family.site), *family[1:]],
        "training": asdict(train_cfg) | method_facts(method),
        "hypers": [cfg.learning_rate, cfg.sparsity_coef, cfg.control_rate],
        "seeds": cfg.seeds,
    }
    hypers = Hypers(
        prefixes.named(weighting, family.n_latents),
        target_l0=jnp.tile(jnp.array(family.target_l0), cfg.n_seeds),
        learning_rate=cfg.learning_rate,
        sparsity_coef=SPARSITY_COEF[cfg.sparsity] if cfg.sparsity_coef is None else cfg.sparsity_coef,
        control_rate=cfg.control_rate,
    )
    shared = Hypers(*[None] * len(Hypers._fields))._replace(target_l0=0)  # type: ignore[arg-type]
    name = f"saes-{family.site}-{re.sub(NO_NAME, '_', family.name)}-{family.n_latents}"
    with stage(cfg.cache, name, facts, __name__, *CODE) as made:
        file, checkpoint = made.folder / SAES, made.folder / "checkpoint.safetensors"
        if made.done:
            progress(n_steps)
            arrays = load_arrays(file)[0]
        else:
            state, history = train_grid(
                jax.vmap(jax.random.key)(np.repeat(cfg.seeds, n_l0)),
                ShardSource(acts.train.activations(str(family.site)), seed=cfg.seed),
                hypers,
                cfg=train_cfg,
                in_axes=(None, shared),
                chunk=100,
                progress=progress,
                checkpoint=FileCheckpoint(checkpoint),
            )
            arrays = {n: np.asarray(leaf) for n, leaf in trained_saes(state)._asdict().items() if leaf is not None}
            save_arrays(file, arrays, {})
            checkpoint.unlink(missing_ok=True)
            made.notes["l0_of_training"] = l0_at_end(np.asarray(history.l0))
    return SAE(**{name: jnp.asarray(array) for name, array in arrays.items()}), made


def site_saes(cfg: LanguageConfig, trained: Mapping[Family, tuple[SAE, Stage]]) -> SiteSAEs:
    """The SAEs of all families of a site, one by one."""
    found, missed = {}, []
    for family, (saes, made) in trained.items():
        n_l0 = len(family.target_l0)
        found[family.name] = [[lane(saes, s * n_l0 + i) for i in range(n_l0)] for s in range(cfg.n_seeds)]
        missed += missing(cfg, family, made.notes["l0_of_training"])
    reference = {width: [one for (one,) in found[f"reference_{width}"]] for width in cfg.reference_widths}
    seconds = sum(made.notes["seconds"] for _, made in trained.values())
    return SiteSAEs(reference, {kind: found[kind] for kind in cfg.kinds}, missed, seconds)


def l0_at_end(l0: np.ndarray) -> np.ndarray:
    """The mean of `[lanes steps]` over the last steps."""
    n_last = max(1, round(END_SHARE * l0.shape[1]))
    return l0[:, -n_last:].mean(axis=1)


def missing(cfg: LanguageConfig, family: Family, l0_of_training: list[float | None]) -> list[OffTarget]:
    """The SAEs of a family (lanes: seeds × L0s) that are off target; one whose L0 is not finite counts, too."""
    lanes = [(seed, target) for seed in cfg.seeds for target in family.target_l0]
    return [
        OffTarget(str(family.site), family.name, seed, target, l0)
        for (seed, target), l0 in zip(lanes, l0_of_training, strict=True)
        if l0 is None or off_target(l0, target)
    ]


class HeldOut:
    """Held-out activations at a site, `CHUNK` rows at a time, again and again."""

    def __init__(self, acts: Activations, site: Site) -> None:
        self._of_site = acts.valid.activations(str(site))

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._of_site.slices(CHUNK)
