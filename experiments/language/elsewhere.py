"""SAEs of the chain that another run has trained, perhaps on another machine: found by their options, and checked."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.language.config import LanguageConfig
from experiments.language.found import load_saes
from experiments.language.saes import Family, facts_of_family, families
from experiments.language.stages import Stage, adopted
from experiments.language.tuning import chosen, facts_of_tuning, tried_families, tuning_name
from toy.lm.model import Site
from toy.sae import SAE


class Trained(NamedTuple):
    """The SAEs of every family, with the learning rate of each kind and how it was chosen."""

    saes: dict[Family, tuple[SAE, Stage]]
    rates: dict[str, float]
    tried: dict[str, Any]


def trained_elsewhere(cfg: LanguageConfig, sites: Sequence[Site]) -> Trained:
    """The SAEs of the cache that --trained names. Raises: ValueError naming the first that is not there."""
    assert cfg.trained is not None
    rates, tried = dict.fromkeys(cfg.kinds, cfg.learning_rate[0]), {}
    if len(cfg.learning_rate) > 1:
        for one in tried_families(cfg, sites[0]):
            tried[one.name] = adopted(cfg.trained, tuning_name(one), facts_of_tuning(cfg, one)).notes["tried"]
        rates = chosen(cfg, tried)
    wanted = [one for site in sites for one in families(cfg, site)]
    stages = {one: adopted(cfg.trained, one.stage_name, facts_of_family(cfg, one, rates)) for one in wanted}
    return Trained({one: (load_saes(made.folder), made) for one, made in stages.items()}, rates, tried)
