"""The SAEs of the TinyStories figures: at every site a ladder of reference SAEs, and large ones of both kinds."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from experiments.common.measured import lane
from experiments.language.chain import Activations
from experiments.language.config import LanguageConfig
from experiments.language.found import load_saes, save_saes
from experiments.language.stages import Stage, is_done, stage
from toy import prefixes
from toy.files.digest import digest_of
from toy.lm.model import Site
from toy.loss import choose_form
from toy.methods.from_file import method_facts
from toy.methods.named import named
from toy.methods.topk import TargetedBatchTopK
from toy.sae import SAE, is_finite
from toy.training.checkpoint import FileCheckpoint
from toy.training.config import Hypers, TrainConfig
from toy.training.controllers import off_target
from toy.training.grid import Grid, hyper_axes, train_grids, trained_saes
from toy.training.loop import Facts, Progress, Run

KINDS = ("vanilla", "matryoshka")  # that are compared in summaries; a figure shows the others, too
CODE = ("toy.training.grid", "toy.data.stream", "toy.lm.forward_stream")  # what trains SAEs
END_SHARE = 0.05  # the last share of the steps, over which the L0 of training is averaged
NO_NAME = r"[^A-Za-z0-9_.]+"  # what folders are not called
CHUNK = 4_096  # held-out rows in memory at once …
WIDE_CHUNK = 32_768  # … on a GPU


class Family(NamedTuple):
    """SAEs of one shape, method and L0 at one site, trained in one program; a lane for each seed."""

    site: Site
    name: str  # reference_WIDTH, vanilla, matryoshka, or another method
    n_latents: int
    method: str
    target_l0: float

    @property
    def stage_name(self) -> str:
        return stage_name(self.site, self.name, self.n_latents, self.target_l0)

    @property
    def label(self) -> str:
        """A name that no other family of a chain has."""
        return f"{self.site}, {self.name}: {self.method}, {self.n_latents} latents, L0 {self.target_l0:g}"


def stage_name(site: Site, name: str, n_latents: int, target_l0: float, kept: str = "saes") -> str:
    """The name of the stage that keeps the SAEs of a family, or something else of them."""
    return f"{kept}-{site}-{re.sub(NO_NAME, '_', name)}-{n_latents}-l0_{target_l0:g}"


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
        Family(site, f"reference_{width}", width, cfg.vanilla, min(cfg.reference_l0, width / 4))
        for width in cfg.reference_widths
    ]
    return ladder + large_families(cfg, site)


def large_families(cfg: LanguageConfig, site: Site) -> list[Family]:
    """One family for each kind and L0."""
    return [
        Family(site, kind, cfg.n_latents, _at_l0(method, cfg.n_latents, l0), l0)
        for kind, method in cfg.kinds.items()
        for l0 in cfg.sizes.target_l0
    ]


def _at_l0(method: str, n_latents: int, l0: float) -> str:
    """The method as it is; but BatchTopK with its k, which its program needs to know at width."""
    if not isinstance(named(method).method, TargetedBatchTopK) or choose_form(n_latents) != "wide":
        return method
    name, _, rest = method.partition(":")
    return f"{name}:k={l0:g}" + (f",{rest}" if rest else "")


def train_families(
    cfg: LanguageConfig, acts: Activations, wanted: Sequence[Family], rates: Mapping[str, float], progress: Progress
) -> dict[Family, tuple[SAE, Stage]]:
    """The SAEs of each family with a leading axis of seeds, and its stage, which notes each one's L0.

    All see the same batches. Families that are not in the cache are trained in step, so that a forward pass serves
    all, and resumed where their training was stopped. `rates` are the learning rates of kinds.

    Raises: ValueError naming a family whose training ends with numbers that are not finite; the others are kept. If all
    diverge, training ends at once.
    """
    of_acts = {"activations": acts.stage.folder.name}
    parts = {one: (cfg.cache, one.stage_name, of_acts | facts_of_family(cfg, one, rates)) for one in wanted}
    new = [one for one in wanted if not is_done(*parts[one], __name__, *CODE)]
    progress((len(wanted) - len(new)) * cfg.sizes.n_steps)
    checkpoint = cfg.cache / f"training-{digest_of([parts[one][2] for one in new])[:16]}.safetensors"
    start, trained = time.monotonic(), {}
    if new:
        trained = train_grids(
            {one.label: grid_of(cfg, acts, one, rate_of(one, rates)) for one in new},
            chunk=100,
            progress=lambda n_steps: progress(len(new) * n_steps),
            checkpoint=FiniteCheckpoint(checkpoint),
        )
    saes = {label: trained_saes(state) for label, (state, _) in trained.items()}
    diverged = [label for label, one in saes.items() if not is_finite(one).all()]
    found = {}
    for family in wanted:
        if family.label in diverged:
            continue  # the others are kept before this is told
        with stage(*parts[family], __name__, *CODE) as made:
            if not made.done:
                _, history = trained[family.label]
                save_saes(made.folder, saes[family.label])
                made.notes["l0_of_training"] = l0_at_end(np.asarray(history.l0))
                made.notes["seconds"] = (time.monotonic() - start) / len(new)
        found[family] = load_saes(made.folder), made
    checkpoint.unlink(missing_ok=True)
    if diverged:
        n_steps = first_not_finite(np.asarray(trained[diverged[0]][1].loss), cfg.sizes.n_steps)
        raise ValueError(
            f"{diverged[0]}: its parameters are not finite: the training of {len(diverged)} of {len(new)} families "
            f"diverged, of this one within about {n_steps:,} steps; lower --learning-rate (the others are kept)"
        )
    return found


def first_not_finite(losses: Float[np.ndarray, "lanes chunks"], n_steps: int) -> int:
    """About how many steps were done at the end of the first chunk with a loss that is not finite in some lane."""
    chunks = np.flatnonzero(~np.isfinite(losses).all(axis=0))
    return round(n_steps * (chunks[0] + 1) / losses.shape[1]) if len(chunks) else n_steps


def rate_of(family: Family, rates: Mapping[str, float]) -> float:
    return rates.get(family.name, rates["vanilla"])


def grid_of(
    cfg: LanguageConfig,
    acts: Activations,
    family: Family,
    rate: float | Float[Array, " n"],
    n_steps: int | None = None,
) -> Grid:
    """The runs of a family, a lane for each seed; or of the first seed, a lane for each of several learning rates."""
    _, method, weighting = named(family.method)
    axes, seeds = {}, cfg.seeds
    hypers = Hypers(
        prefixes.named(weighting, family.n_latents),
        learning_rate=rate,
        sparsity_coef=cfg.coef_of(method),
        control_rate=cfg.control_rate,
        target_l0=family.target_l0 if method.aims_at_l0 else None,
    )
    if isinstance(rate, Array):
        seeds, axes["learning_rate"] = seeds[:1] * len(rate), 0
    return Grid(
        jax.vmap(jax.random.key)(np.array(seeds)),
        acts.streams[str(family.site)],
        hypers,
        _train_config(cfg, family, n_steps or cfg.sizes.n_steps),
        (None, hyper_axes(**axes)),
    )


def _train_config(cfg: LanguageConfig, family: Family, n_steps: int) -> TrainConfig:
    method = named(family.method).method
    return TrainConfig(family.n_latents, n_steps=n_steps, batch_size=cfg.batch_size, method=method)


def facts_of_family(cfg: LanguageConfig, family: Family, rates: Mapping[str, float]) -> dict[str, Any]:
    """Returns what a family is made of, beside the activations."""
    training = _train_config(cfg, family, cfg.sizes.n_steps)
    return {
        "family": [str(family.site), *family[1:]],
        "training": asdict(training) | method_facts(training.method),
        "hypers": [rate_of(family, rates), cfg.coef_of(training.method), cfg.control_rate],
        "seeds": cfg.seeds,
    }


def site_saes(cfg: LanguageConfig, trained: Mapping[Family, tuple[SAE, Stage]]) -> SiteSAEs:
    """The SAEs of all families of a site, one by one."""
    found: dict[str, list[list[SAE]]] = {}
    missed = []
    for family, (saes, made) in trained.items():
        of_seeds = found.setdefault(family.name, [[] for _ in cfg.seeds])
        for i, of_seed in enumerate(of_seeds):
            of_seed.append(lane(saes, i))
        missed += missing(cfg, family, made.notes["l0_of_training"])
    reference = {width: [one for (one,) in found[f"reference_{width}"]] for width in cfg.reference_widths}
    seconds = sum(made.notes["seconds"] for _, made in trained.values())
    return SiteSAEs(reference, {kind: found[kind] for kind in cfg.kinds}, missed, seconds)


def l0_at_end(l0: np.ndarray) -> np.ndarray:
    """The mean of `[lanes steps]` over the last steps."""
    n_last = max(1, round(END_SHARE * l0.shape[1]))
    return l0[:, -n_last:].mean(axis=1)


def missing(cfg: LanguageConfig, family: Family, l0_of_training: list[float | None]) -> list[OffTarget]:
    """The SAEs of a family that are off target; one whose L0 is not finite counts, too."""
    return [
        OffTarget(str(family.site), family.name, seed, family.target_l0, l0)
        for seed, l0 in zip(cfg.seeds, l0_of_training, strict=True)
        if l0 is None or off_target(l0, family.target_l0)
    ]


class FiniteCheckpoint(FileCheckpoint):
    """Ends a training once all SAEs of all families have diverged, and keeps the run of before.

    If the rate is not too high, something is at fault that they share, such as the machine: then going on may succeed.
    """

    def save(self, run: Run, facts: Facts, *, last: bool) -> None:
        """Raises: ValueError if no SAE's loss over the last chunk is finite."""
        if not any(np.isfinite(metrics.loss[..., -1]).any() for metrics in run.history.values()):
            raise ValueError(
                f"after step {run.n_done:,} the loss of no SAE is finite: lower --learning-rate; if that is not the "
                "reason, run the command again, which goes on from the last checkpoint if there is one"
            )
        super().save(run, facts, last=last)


class HeldOut:
    """Held-out activations at a site, a chunk of rows at a time, again and again."""

    def __init__(self, acts: Activations, site: Site) -> None:
        self._of_site = acts.valid.activations(str(site))

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._of_site.slices(CHUNK if jax.default_backend() == "cpu" else WIDE_CHUNK)
