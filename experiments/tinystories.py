"""The same trainer on a TinyStories language model: from text to three figures, one command.

Stages: tokens, model (trained here unless --model is given), activations of every layer, SAEs, and the figures
tinystories_mmc, tinystories_fvu and tinystories_absorption. Each stage is kept in --cache, named by what determines it,
so nothing is made twice, and a run that was stopped goes on.
Command: python -m experiments.tinystories; --corpus stories.txt for your own text, --stage model to stop after one.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments import tinystories_absorption, tinystories_fvu, tinystories_mmc
from experiments.common.cli import DEFAULT_OUT, check_writable, run_experiment
from experiments.common.exits import clean_exit
from experiments.common.options import parse
from experiments.common.progress import progress_bar
from experiments.language.chain import (
    activations_stage,
    check,
    load_chain,
    load_lm,
    load_tokens,
    model_stage,
    tokens_stage,
)
from experiments.language.concepts import check_words
from experiments.language.config import LanguageConfig
from experiments.language.saes import n_steps, train_site
from experiments.language.stages import notes
from toy.training.loop import Progress

Stage = Literal["tokens", "model", "activations", "saes", "figures"]


@dataclass(frozen=True)
class All:
    """The chain from text to figures."""

    config: Annotated[LanguageConfig, tyro.conf.arg(name="")]
    stage: Stage = "figures"
    """The last stage to make; those before it come from the cache, or are made too."""
    out: Path = DEFAULT_OUT
    """Folder for records and figures."""


def main() -> None:
    with clean_exit("finished stages and checkpoints are kept in the cache; the same command goes on"):
        options = parse(All, prog="python -m experiments.tinystories", description=__doc__)
        check_writable(options.out)
        check_writable(options.config.cache, "--cache")
        check(options.config)
        if options.stage == "figures":
            for one in options.config.of_models:
                check_words(one, load_tokens(one))
            for module in (tinystories_mmc, tinystories_fvu, tinystories_absorption):
                run_experiment(module.EXPERIMENT, options.config, options.out)
            return
        with progress_bar(n_steps(options.config), options.stage) as bar:
            lines = [line for one in options.config.of_models for line in make(one, options.stage, bar.update)]
        print("\n".join(lines))


def make(cfg: LanguageConfig, stage: Stage, progress: Progress) -> list[str]:
    """Make everything of one language model up to a stage; what there is to say of it."""
    folder = tokens_stage(cfg)
    tokens = load_tokens(cfg)
    if stage == "tokens":
        n_train, n_valid = (int(rows.length.sum()) for rows in (tokens.train, tokens.valid))
        return [
            f"tokens: {n_train:,} for training, {n_valid:,} held out, {tokens.tokenizer.vocab_size:,} ids: {folder}"
        ]
    lm = load_lm(cfg, tokens, progress)
    if stage == "model":
        if cfg.model is not None:
            return [f"model: {cfg.model}, as given"]
        folder = model_stage(cfg, tokens, progress)
        told = notes(folder)
        losses = f"held-out loss {told['loss']:.3f} nats a token, unigram entropy {told['unigram_entropy']:.3f}"
        return [*told["stories"], f"model: {losses}, {told['seconds']:.0f} s: {folder}"]
    folder = activations_stage(cfg, tokens, lm)
    if stage == "activations":
        return [f"activations: {notes(folder)['seconds']:.0f} s: {folder}"]
    chain = load_chain(cfg, progress)
    seconds = sum(train_site(cfg, chain.acts, site, progress).seconds for site in chain.acts.sites)
    return [f"saes: {seconds:.0f} s: {cfg.cache}"]


if __name__ == "__main__":
    sys.exit(main())
