"""The learning rate of each kind of SAE: the one whose SAE reconstructs best, of the same few rates for all kinds."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common.measured import lane
from experiments.language.chain import Activations
from experiments.language.config import LanguageConfig
from experiments.language.saes import CODE, Family, grid_of, l0_at_end, large_families, stage_name
from experiments.language.stages import is_done, stage
from toy.eval.streaming import measure_fit
from toy.lm.model import Site
from toy.methods.named import named
from toy.training.controllers import off_target
from toy.training.grid import train_grids, trained_saes
from toy.training.loop import Progress

TOKENS = 100_000  # or a whole epoch, that follow those of the training, on which FVU is measured


def n_tuning_steps(cfg: LanguageConfig) -> int:
    return len(cfg.kinds) * cfg.tuning_steps if len(cfg.learning_rate) > 1 else 0


def tuned(cfg: LanguageConfig, acts: Activations, progress: Progress) -> tuple[dict[str, float], dict[str, Any]]:
    """The learning rate of each kind, and for records the FVU and the L0 of every rate.

    Each kind has as many runs of --tuning-steps as there are rates, of the first seed, at the middle L0, at the first
    site. The lowest FVU on activations that follow in the stream wins, of the rates that hold their L0 if any does.
    """
    if len(cfg.learning_rate) == 1:
        return dict.fromkeys(cfg.kinds, cfg.learning_rate[0]), {}
    of_acts = {"activations": acts.stage.folder.name}
    tried = tried_families(cfg, acts.sites[0])
    parts = {one: (cfg.cache, tuning_name(one), of_acts | facts_of_tuning(cfg, one)) for one in tried}
    new = [one for one in tried if not is_done(*parts[one], __name__, *CODE)]
    progress((len(tried) - len(new)) * cfg.tuning_steps)
    found, of_new = {}, _tried(cfg, acts, new, progress) if new else {}
    for family in tried:
        with stage(*parts[family], __name__, *CODE) as made:
            if not made.done:
                made.notes["tried"] = of_new[family.name]
        found[family.name] = made.notes["tried"]
    return chosen(cfg, found), found


def tried_families(cfg: LanguageConfig, site: Site) -> list[Family]:
    """The family of the middle L0 of each kind."""
    return [one for one in large_families(cfg, site) if one.target_l0 == cfg.reference_l0]


def tuning_name(family: Family) -> str:
    """The name of the stage that keeps what was tried for a kind."""
    return stage_name(family.site, family.name, family.n_latents, family.target_l0, "tuning")


def facts_of_tuning(cfg: LanguageConfig, family: Family) -> dict[str, Any]:
    """Returns what the choice for a kind is made of, beside the activations."""
    return {
        "family": [str(family.site), *family[1:]],
        "hypers": [cfg.learning_rate, cfg.coef_of(named(family.method).method), cfg.control_rate],
        "steps": [cfg.tuning_steps, cfg.batch_size],
        "seed": cfg.seed,
    }


def chosen(cfg: LanguageConfig, tried: dict[str, Any]) -> dict[str, float]:
    """The best rate of each kind."""
    return {kind: cfg.learning_rate[_best(cfg, of_rates)] for kind, of_rates in tried.items()}


def _tried(
    cfg: LanguageConfig, acts: Activations, tried: list[Family], progress: Progress
) -> dict[str, dict[str, list[float]]]:
    """The FVU and the L0 of every rate, by kind."""
    n_steps, rates = cfg.tuning_steps, jnp.array(cfg.learning_rate)
    grids = {one.name: grid_of(cfg, acts, one, rates, n_steps=n_steps) for one in tried}
    trained = train_grids(grids, chunk=100, progress=lambda n: progress(len(grids) * n))
    stream = acts.streams[str(tried[0].site)]
    n_batches = max(1, min(TOKENS, acts.n_train or TOKENS) // cfg.batch_size)
    x = np.asarray(stream.batches(n_steps, n_batches, cfg.batch_size).x, np.float32)
    found = {}
    for name, (state, history) in trained.items():
        saes = trained_saes(state)
        fits = [measure_fit(lane(saes, i), x) for i in range(len(rates))]
        found[name] = {"fvu": [fit.fvu for fit in fits], "l0": [float(l0) for l0 in l0_at_end(np.asarray(history.l0))]}
    return found


def _best(cfg: LanguageConfig, of_rates: dict[str, list[float]]) -> int:
    holds = np.array([not off_target(l0, cfg.reference_l0) for l0 in of_rates["l0"]])
    fvu = np.where(holds | ~holds.any(), of_rates["fvu"], np.inf)
    return int(np.argmin(np.nan_to_num(fvu, nan=np.inf)))
