"""The same trainer on a TinyStories language model: from text to four figures, one command.

One pass: tokens, model (trained here unless --model is given), activations of every layer, SAEs, and the figures
tinystories_mmc, _fvu, _absorption and _matches. What each stage makes is kept in --cache, named by what
determines it, so that a run that was stopped goes on.
Command: python -m experiments.tinystories; --corpus stories.txt for your own text, --stage model to stop after one.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from experiments.common.cli import DEFAULT_OUT, Format, check_writable, keep, prepare_files, redraw
from experiments.common.exits import clean_exit
from experiments.common.options import parse
from experiments.common.progress import progress_bar
from experiments.language.absorption import ABSORPTION
from experiments.language.chain import (
    Activations,
    Chain,
    Given,
    Model,
    Tokens,
    facts_of,
    make_activations,
    make_model,
    make_tokens,
    read_given,
    sites_of,
)
from experiments.language.config import LanguageConfig
from experiments.language.elsewhere import Trained, trained_elsewhere
from experiments.language.found import told
from experiments.language.fvu import FVU
from experiments.language.matches import MATCHES
from experiments.language.measure import Measure, Record
from experiments.language.mmc import MMC
from experiments.language.saes import OffTarget, families, site_saes, train_families
from experiments.language.stages import makers
from experiments.language.tuning import n_tuning_steps, tuned

MEASURES = {"mmc": MMC, "fvu": FVU, "absorption": ABSORPTION, "matches": MATCHES}
Name = Literal["mmc", "fvu", "absorption", "matches"]
Stage = Literal["tokens", "model", "activations", "saes", "figures"]


@dataclass(frozen=True)
class Options:
    """The chain from text to figures."""

    config: Annotated[LanguageConfig, tyro.conf.arg(name="")]
    stage: Stage = "figures"
    """The last stage to make; those before it come from the cache, or are made too."""
    only: tuple[Name, ...] = ("mmc", "fvu", "absorption", "matches")
    """The figures to make."""
    out: Path = DEFAULT_OUT
    """Folder for records and figures."""
    format: Format | None = None
    """Write the figures as vectors, too."""
    list: bool = False
    """List the SAEs of the cache with the line of Python that loads one, without running anything."""
    redraw: bool = False
    """Draw the figures again from the records in that folder, without running anything."""


class Made(NamedTuple):
    """The outcome of one language model: lines to print, and for the records its facts and what was measured."""

    lines: list[str]
    facts: Record | None = None
    off_target: Sequence[OffTarget] = ()
    sites: Sequence[Record] = ()  # for each measure, by site


def main() -> None:
    with clean_exit("finished stages and checkpoints are kept in the cache; the same command goes on"):
        options = parse(Options, prog="python -m experiments.tinystories", description=__doc__)
        cfg, out, stage = options.config, options.out, options.stage
        measures = [MEASURES[name] for name in options.only]
        if options.list:
            print("\n".join(told(cfg.cache)))
            return
        if options.redraw:
            redraw_kept(measures, out, options.format)
            return
        check_writable(out)
        check_writable(cfg.cache, "--cache")
        given = read_given(cfg)
        there = None if cfg.trained is None else trained_elsewhere(cfg, sites_of(cfg, given))
        start = time.monotonic()
        made: list[Made] = []
        with progress_bar(n_steps(cfg, given), "tinystories") as bar:
            bar.tell("making tokens")
            tokens = [make_tokens(one, given) for one in cfg.of_models]
            for measure in measures if stage == "figures" else []:
                measure.check(cfg, tokens)
                prepare_files(measure, out, options.format)
            for one, of_one in zip(cfg.of_models, tokens, strict=True):
                made.append(make(one, given, of_one, stage, measures, there, bar))
        seconds = time.monotonic() - start
        if stage != "figures":
            print("\n".join(line for one in made for line in one.lines))
            return
        for measure, results in zip(measures, gathered(cfg, made, measures), strict=True):
            keep(measure, cfg, results, seconds, out, options.format)


def n_steps(cfg: LanguageConfig, given: Given) -> int:
    """Steps of all that is trained, for the progress bar."""
    if cfg.trained is not None:
        return 0
    own = cfg.sizes.lm_steps if given.lm is None else 0
    of_saes = sum(len(families(cfg, site)) for site in sites_of(cfg, given)) * cfg.sizes.n_steps
    return len(cfg.of_models) * (own + n_tuning_steps(cfg) + of_saes)


def redraw_kept(measures: list[Measure], out: Path, vector: Format | None) -> None:
    """Draw the figures whose records are there, and tell of the others.

    Raises: ValueError naming the first record where none is.
    """
    records = {measure: out / f"{measure.name}.json" for measure in measures}
    kept = [measure for measure, record in records.items() if record.exists()]
    for measure in kept or measures:
        redraw(measure, out, vector)
    for measure, record in records.items():
        if measure not in kept:
            print(f"{record}: there is no such record, and no figure of it was drawn", file=sys.stderr)


def make(
    cfg: LanguageConfig,
    given: Given,
    tokens: Tokens,
    stage: Stage,
    measures: list[Measure],
    there: Trained | None,
    bar: progress_bar,
) -> Made:
    """Make everything of one language model up to a stage; every site is measured while its SAEs are at hand.

    SAEs that are `there` are not trained.
    """
    if stage == "tokens":
        return Made([_told_of_tokens(tokens)])
    bar.tell("training the language model" if given.lm is None else "reading the language model")
    model = make_model(cfg, given, tokens, bar.update)
    if stage == "model":
        return Made(_told_of_model(model))
    bar.tell("computing activations")
    acts = make_activations(cfg, tokens, model.lm, sites_of(cfg, given))
    if stage == "activations":
        return Made([f"activations: {acts.stage.notes['seconds']:.0f} s: {acts.stage.folder}"])
    chain = Chain(cfg, tokens, model, acts)
    of_site = [measure.of_model(chain) for measure in measures if stage == "figures"]
    sites: list[Record] = [{} for _ in of_site]
    trained, rates, tried = trained_here(cfg, acts, bar) if there is None else there
    missed, seconds = [], 0.0
    for site in acts.sites:
        bar.tell(f"measuring {site}")
        saes = site_saes(cfg, {family: trained[family] for family in families(cfg, site)})
        for found, of_one in zip(sites, of_site, strict=True):
            found[str(site)] = of_one(site, saes)
        missed += saes.off_target
        seconds += saes.seconds
    facts = facts_of(chain)
    facts["seconds"]["saes"] = seconds
    facts["saes_made_by"] = makers(made for _, made in trained.values())
    facts |= {"learning_rate": rates, "tuning": tried}
    return Made([f"saes: {seconds:.0f} s: {cfg.cache}"], facts, missed, sites)


def trained_here(cfg: LanguageConfig, acts: Activations, bar: progress_bar) -> Trained:
    """The SAEs of all sites, from the cache or trained now."""
    bar.tell("tuning")
    rates, tried = tuned(cfg, acts, bar.update)
    bar.tell("training SAEs")
    wanted = [one for site in acts.sites for one in families(cfg, site)]
    return Trained(train_families(cfg, acts, wanted, rates, bar.update), rates, tried)


def _told_of_tokens(tokens: Tokens) -> str:
    n_train, n_valid = (int(rows.length.sum()) if rows else 0 for rows in (tokens.train, tokens.valid))
    n_ids = tokens.tokenizer.vocab_size
    return f"tokens: {n_train:,} for training, {n_valid:,} held out, {n_ids:,} ids: {tokens.stage.folder}"


def _told_of_model(model: Model) -> list[str]:
    told, folder = model.stage.notes, model.stage.folder
    losses = f"held-out loss {told['loss']:.3f} nats per token, unigram entropy {told['unigram_entropy']:.3f}"
    return [*told["stories"], f"model: {losses}, {told['seconds']:.0f} s: {folder}"]


def gathered(cfg: LanguageConfig, made: list[Made], measures: list[Measure]) -> list[Record]:
    """The results of each figure's record: the seeds of all language models, one after the other."""
    models, missed = [one.facts for one in made], [list(sae) for one in made for sae in one.off_target]
    return [
        measure.facts(cfg)
        | {"models": models, "sites": reduce(_joined, (one.sites[i] for one in made)), "off_target": missed}
        for i, measure in enumerate(measures)
    ]


def _joined(one: Any, other: Any) -> Any:
    """Dictionaries of lists, each list followed by the other's."""
    return one + other if isinstance(one, list) else {name: _joined(one[name], other[name]) for name in one}


if __name__ == "__main__":
    sys.exit(main())
