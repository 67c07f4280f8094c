"""The SAEs of the TinyStories figures: at every site a ladder of reference SAEs, and large ones of both kinds."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.measured import lane
from experiments.common.provenance import code_digest
from experiments.language.chain import Activations, Chain, facts_of_model, load_chain, n_layers
from experiments.language.config import SPARSITY_COEF, LanguageConfig
from experiments.language.stages import Counted, notes, stage
from toy import prefixes
from toy.data.stream import ShardSource
from toy.io import load_arrays, save_arrays
from toy.lm.model import Site
from toy.sae import SAE
from toy.training.checkpoint import FileCheckpoint
from toy.training.config import Hypers, TrainConfig
from toy.training.controllers import off_target
from toy.training.grid import train_grid, trained_saes
from toy.training.loop import Progress

KINDS = ("vanilla", "matryoshka")
CODE = ("toy.training.grid", "toy.data.stream")  # what trains SAEs
END_SHARE = 0.05  # of the steps, over whose mean the L0 of training is told


class Group(NamedTuple):
    """SAEs of one shape and weighting at one site, trained in one program; a lane each for seeds × L0s."""

    site: Site
    name: str  # reference_WIDTH, vanilla, matryoshka
    n_latents: int
    weighting: str
    target_l0: tuple[float, ...]


class SiteSAEs(NamedTuple):
    """What was trained at one site."""

    reference: dict[int, list[SAE]]  # by width; of each seed
    large: dict[str, list[list[SAE]]]  # by kind; of each seed, of each L0
    off_target: list["OffTarget"]
    seconds: float


class OffTarget(NamedTuple):
    """An SAE whose L0 at the end of training misses its target by more than `toy.training.controllers.MAX_L0_ERROR`."""

    site: str
    group: str
    seed: int
    target_l0: float
    l0: float | None  # the mean over the last steps; None: not finite


def groups(cfg: LanguageConfig, site: Site) -> list[Group]:
    ladder = [
        Group(site, f"reference_{width}", width, "vanilla", (min(cfg.reference_l0, width / 4),))
        for width in cfg.reference_widths
    ]
    weightings = {"vanilla": "vanilla", "matryoshka": f"sampled_{cfg.n_prefixes}"}
    return ladder + [Group(site, kind, cfg.n_latents, weightings[kind], cfg.sizes.target_l0) for kind in KINDS]


def train_config(cfg: LanguageConfig, group: Group) -> TrainConfig:
    return TrainConfig(group.n_latents, n_steps=cfg.sizes.n_steps, batch_size=cfg.batch_size, sparsity=cfg.sparsity)


def saes_stage(cfg: LanguageConfig, acts: Activations, group: Group, progress: Progress) -> Path:
    """One group; resumed where its training was stopped."""
    train_cfg = train_config(cfg, group)
    facts = {
        "activations": acts.digest,
        "group": [str(group.site), *group[1:]],
        "training": asdict(train_cfg) | {"activation": "relu"},
        "hypers": [cfg.learning_rate, cfg.sparsity_coef, cfg.control_rate],
        "seeds": cfg.seeds,
    }

    def make(folder: Path) -> dict[str, Any]:
        checkpoint = folder / "checkpoint.safetensors"
        saes, l0 = _train(cfg, acts, group, train_cfg, progress, FileCheckpoint(checkpoint))
        arrays = {name: np.asarray(leaf) for name, leaf in saes._asdict().items() if leaf is not None}
        save_arrays(folder / "saes.safetensors", arrays, {})
        checkpoint.unlink(missing_ok=True)
        return {"l0_of_training": l0}

    return stage(cfg.cache, "saes", facts, CODE, make)


def _train(
    cfg: LanguageConfig,
    acts: Activations,
    group: Group,
    train_cfg: TrainConfig,
    progress: Progress,
    checkpoint: FileCheckpoint,
) -> tuple[SAE, np.ndarray]:
    """Lanes are seeds × L0s, the L0s of a seed together. The same batches for all of them."""
    n_l0 = len(group.target_l0)
    keys = jax.vmap(jax.random.key)(np.repeat(cfg.seeds, n_l0))
    hypers = Hypers(
        prefixes.named(group.weighting, group.n_latents),
        target_l0=jnp.tile(jnp.array(group.target_l0), cfg.n_seeds),
        learning_rate=cfg.learning_rate,
        sparsity_coef=SPARSITY_COEF[cfg.sparsity] if cfg.sparsity_coef is None else cfg.sparsity_coef,
        control_rate=cfg.control_rate,
    )
    shared = Hypers(*[None] * len(Hypers._fields))._replace(target_l0=0)  # type: ignore[arg-type]
    source = ShardSource(acts.train.activations(str(group.site)), seed=cfg.seed)
    state, history = train_grid(
        keys, source, hypers, cfg=train_cfg, in_axes=(None, shared), chunk=100, progress=progress, checkpoint=checkpoint
    )
    n_last = max(1, round(END_SHARE * train_cfg.n_steps))
    return trained_saes(state), np.asarray(history.l0)[:, -n_last:].mean(axis=1)


def train_site(cfg: LanguageConfig, acts: Activations, site: Site, progress: Progress) -> SiteSAEs:
    found, missed, seconds = {}, [], 0.0
    for group in groups(cfg, site):
        counted = Counted(progress, cfg.sizes.n_steps)
        folder = saes_stage(cfg, acts, group, counted)
        counted.rest()
        saes = SAE(**{name: jnp.asarray(a) for name, a in load_arrays(folder / "saes.safetensors")[0].items()})
        n_l0 = len(group.target_l0)
        found[group.name] = [[lane(saes, s * n_l0 + i) for i in range(n_l0)] for s in range(cfg.n_seeds)]
        noted = notes(folder)
        missed += missing(cfg, group, noted["l0_of_training"])
        seconds += noted["seconds"]
    reference = {width: [one for (one,) in found[f"reference_{width}"]] for width in cfg.reference_widths}
    return SiteSAEs(reference, {kind: found[kind] for kind in KINDS}, missed, seconds)


def missing(cfg: LanguageConfig, group: Group, l0_of_training: list[float | None]) -> list[OffTarget]:
    """The SAEs of a group (lanes: seeds × L0s) that are off target; one whose L0 is not finite counts, too."""
    lanes = [(seed, target) for seed in cfg.seeds for target in group.target_l0]
    return [
        OffTarget(str(group.site), group.name, seed, target, l0)
        for (seed, target), l0 in zip(lanes, l0_of_training, strict=True)
        if l0 is None or off_target(l0, target)
    ]


class Slices:
    """Held-out activations at a site, some thousand rows at a time, again and again."""

    def __init__(self, acts: Activations, site: Site, n_rows: int = 4_096) -> None:
        self._of_site, self._n_rows = acts.valid.activations(str(site)), n_rows

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._of_site.slices(self._n_rows)


def n_steps(cfg: LanguageConfig) -> int:
    """Of all that the chain trains, for the progress bar."""
    n_groups = len(cfg.reference_widths) + len(KINDS)
    own = cfg.sizes.lm_steps if cfg.model is None else 0
    return len(cfg.of_models) * (own + len(cfg.locations) * n_layers(cfg) * n_groups * cfg.sizes.n_steps)


OfSite = Callable[[LanguageConfig, Chain, Site, SiteSAEs], dict[str, Any]]


def measure_sites(cfg: LanguageConfig, progress: Progress, of_site: OfSite) -> dict[str, Any]:
    """What a figure's record has: of every site what `of_site` gives, whose lists lead with an axis of seeds.

    Beside them the language models, and the SAEs that miss their target L0.
    """
    models: list[dict[str, Any]] = []
    missed: list[OffTarget] = []
    sites: dict[str, Any] = {}
    for one in cfg.of_models:
        chain, seconds = load_chain(one, progress), 0.0
        for site in chain.acts.sites:
            saes = train_site(one, chain.acts, site, progress)
            found = of_site(one, chain, site, saes)
            sites[str(site)] = _joined(sites[str(site)], found) if str(site) in sites else found
            missed += saes.off_target
            seconds += saes.seconds
        facts = facts_of_model(one, chain)
        models.append(facts | {"seconds": facts["seconds"] | {"saes": seconds}, "saes_code": code_digest(*CODE)})
    return {"models": models, "sites": sites, "off_target": [list(one) for one in missed]}


def _joined(one: Any, other: Any) -> Any:
    """Of dictionaries of lists: each list followed by the other's."""
    return one + other if isinstance(one, list) else {name: _joined(one[name], other[name]) for name in one}
