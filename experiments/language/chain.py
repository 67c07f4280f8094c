"""The stages that the TinyStories figures share: text → tokens → language model → activations."""

import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.language.config import BUILT_IN, D_HEAD, LanguageConfig
from experiments.language.memory import check_memory
from experiments.language.stages import Counted, notes, stage
from toy.data.store import Store
from toy.digest import digest_of
from toy.io import load_arrays, save_arrays
from toy.lm.corpus import make_stories
from toy.lm.export import export_activations
from toy.lm.hub import fetch, is_hub_name, split_name
from toy.lm.model import LM, LMConfig, Site
from toy.lm.text import Stories, held_out, read_stories
from toy.lm.tokens import Rows, Tokenizer, load_tokenizer, make_rows, save_tokenizer, train_tokenizer
from toy.lm.train_lm import LMTrainConfig, generate, mean_loss, train_lm, unigram_entropy
from toy.lm.weights import load_model, model_digest, save_model
from toy.training.checkpoint import FileCheckpoint
from toy.training.loop import Progress

PROMPTS = ("Once upon a time", "One day, there was a little girl named")


class Tokens(NamedTuple):
    """Stories as rows of ids, for training and held out."""

    tokenizer: Tokenizer
    train: Rows
    valid: Rows
    digest: str


class Activations(NamedTuple):
    """Stores of the activations of both."""

    train: Store
    valid: Store
    sites: tuple[Site, ...]
    digest: str


class Chain(NamedTuple):
    """All that is made before the SAEs."""

    tokens: Tokens
    lm: LM
    acts: Activations


def load_stories(cfg: LanguageConfig) -> Stories:
    """The stories of a configuration.

    Raises: ValueError naming the corpus if it cannot be read, or has too few stories to hold some out.
    """
    if cfg.corpus != BUILT_IN:
        return _read(cfg.corpus, cfg.sizes.n_stories)
    texts = _made(cfg.sizes.n_stories or 1, cfg.seed)
    return Stories(texts, len(texts), 0, 0, 0)


_made = cache(make_stories)


@cache
def _read(corpus: str, n_stories: int | None) -> Stories:
    """Read a corpus once per process, and say what was mended and dropped."""
    stories = read_stories(corpus, n_stories)
    try:
        held_out(stories.texts)
    except ValueError as error:
        raise ValueError("; ".join([f"{corpus}: {error}", *stories.notes()])) from None
    for note in stories.notes():
        print(f"{corpus}: {note}", file=sys.stderr)
    return stories


def tokens_stage(cfg: LanguageConfig) -> Path:
    """Stories cleaned, split, and cut into rows; the tokenizer is trained, or that of the given model."""
    stories = load_stories(cfg).texts
    given = None if cfg.model is None else load_tokenizer(_tokenizer_folder(cfg))
    facts = {
        "stories": digest_of(stories),
        "context": cfg.sizes.context,
        "tokenizer": cfg.sizes.vocab_size if given is None else given.digest(),
    }

    def make(folder: Path) -> None:
        corpus = held_out(stories)
        tokenizer = train_tokenizer(corpus.train, cfg.sizes.vocab_size) if given is None else given
        for name, part in corpus._asdict().items():
            save_arrays(folder / f"{name}.safetensors", make_rows(part, tokenizer, cfg.sizes.context)._asdict(), {})
        if given is None:
            save_tokenizer(folder, tokenizer)

    return stage(cfg.cache, "tokens", facts, ["toy.lm.tokens", "toy.lm.text"], make)


def _tokenizer_folder(cfg: LanguageConfig) -> Path:
    if cfg.tokenizer is not None:
        return cfg.tokenizer
    if is_hub_name(cfg.model or ""):
        return fetch(split_name(cfg.model or "")[0], "tokenizer.json").parent
    path = Path(cfg.model or "")
    return path if path.is_dir() else path.parent


def load_tokens(cfg: LanguageConfig) -> Tokens:
    folder = tokens_stage(cfg)
    tokenizer = load_tokenizer(folder if cfg.model is None else _tokenizer_folder(cfg))
    train, valid = (Rows(**load_arrays(folder / f"{name}.safetensors")[0]) for name in ("train", "valid"))
    return Tokens(tokenizer, train, valid, folder.name)


def model_stage(cfg: LanguageConfig, tokens: Tokens, progress: Progress) -> Path:
    """The language model: trained on the training rows, resumed where a training was stopped."""
    sizes = _lm_config(cfg, tokens.tokenizer.vocab_size)
    training = LMTrainConfig(n_steps=cfg.sizes.lm_steps)
    facts = {"tokens": tokens.digest, "model": asdict(sizes), "training": asdict(training), "seed": cfg.seed}

    def make(folder: Path) -> dict[str, Any]:
        checkpoint = folder / "checkpoint.safetensors"
        lm, history = train_lm(
            jax.random.key(cfg.seed),
            tokens.train,
            sizes,
            cfg=training,
            progress=progress,
            checkpoint=FileCheckpoint(checkpoint),
        )
        save_model(folder, lm)
        checkpoint.unlink(missing_ok=True)
        return {"history": history.loss, **described(cfg, lm, tokens)}

    return stage(cfg.cache, "model", facts, ["toy.lm.train_lm"], make)


def described(cfg: LanguageConfig, lm: LM, tokens: Tokens) -> dict[str, Any]:
    """Losses in nats a token, and stories that the model tells."""
    key = jax.random.key(cfg.seed)
    longest = cfg.sizes.context - 2  # the begin before, and one token after
    prompts = [prompt for prompt in PROMPTS if len(tokens.tokenizer.encode([prompt])[0]) <= longest]
    return {
        "loss": mean_loss(lm, tokens.valid),
        "unigram_entropy": unigram_entropy(tokens.valid),
        "stories": [generate(key, lm, tokens.tokenizer, prompt) for prompt in prompts],
    }


def load_lm(cfg: LanguageConfig, tokens: Tokens, progress: Progress) -> LM:
    if cfg.model is None:
        counted = Counted(progress, cfg.sizes.lm_steps)
        folder = model_stage(cfg, tokens, counted)
        counted.rest()
        return load_model(folder)
    lm = given_model(cfg.model, cfg.n_heads)
    check_fits(cfg, tokens.tokenizer, lm)
    return lm


def check_fits(cfg: LanguageConfig, tokenizer: Tokenizer, lm: LM) -> None:
    """Raises: ValueError if the given model has fewer ids than its tokenizer, or a shorter context than is asked."""
    if tokenizer.vocab_size > lm.cfg.vocab_size:
        raise ValueError(
            f"model: {cfg.model} has {lm.cfg.vocab_size} ids, but ids of its tokenizer go up to "
            f"{tokenizer.vocab_size - 1}; give the model's own with --tokenizer FOLDER"
        )
    if cfg.sizes.context > lm.cfg.context:
        raise ValueError(
            f"context: the model's is {lm.cfg.context}, got {cfg.sizes.context}; give --context {lm.cfg.context}"
        )


@cache
def given_model(name: str, n_heads: int | None) -> LM:
    return load_model(name, n_heads=n_heads)


def n_layers(cfg: LanguageConfig) -> int:
    return cfg.sizes.n_layers if cfg.model is None else given_model(cfg.model, cfg.n_heads).cfg.n_layers


def check(cfg: LanguageConfig) -> None:
    """Before any work. Raises: ValueError if the stories, the model or its tokenizer cannot be read."""
    check_memory(cfg)
    load_stories(cfg)
    if cfg.model is None:
        _lm_config(cfg, cfg.sizes.vocab_size)
    else:
        check_fits(cfg, load_tokenizer(_tokenizer_folder(cfg)), given_model(cfg.model, cfg.n_heads))


def _lm_config(cfg: LanguageConfig, vocab_size: int) -> LMConfig:
    sizes = cfg.sizes
    return LMConfig(
        vocab_size=vocab_size,
        context=sizes.context,
        n_layers=sizes.n_layers,
        d_model=sizes.d_model,
        n_heads=max(1, sizes.d_model // D_HEAD),
    )


def sites_of(cfg: LanguageConfig, n_layers: int) -> tuple[Site, ...]:
    return tuple(Site(layer, location) for location in cfg.locations for layer in range(n_layers))


def activations_stage(cfg: LanguageConfig, tokens: Tokens, lm: LM) -> Path:
    """Activations at every site, of training and of held-out rows."""
    sites = sites_of(cfg, lm.cfg.n_layers)
    facts = {"tokens": tokens.digest, "model": model_digest(lm), "sites": [str(site) for site in sites]}

    def make(folder: Path) -> None:
        export(folder, tokens, lm, sites)

    return stage(cfg.cache, "activations", facts, ["toy.lm.export"], make)


def export(folder: Path, tokens: Tokens, lm: LM, sites: tuple[Site, ...]) -> tuple[Store, Store]:
    """The stores of a folder, of training and of held-out rows; what is there is only opened."""
    facts = {"tokenizer_sha256": tokens.tokenizer.digest()}
    train, valid = (
        export_activations(folder / name, lm, rows, sites, facts=facts)
        for name, rows in (("train", tokens.train), ("valid", tokens.valid))
    )
    return train, valid


def load_chain(cfg: LanguageConfig, progress: Progress) -> Chain:
    """All before the SAEs, from the cache where it is there."""
    tokens = load_tokens(cfg)
    lm = load_lm(cfg, tokens, progress)
    folder = activations_stage(cfg, tokens, lm)
    sites = sites_of(cfg, lm.cfg.n_layers)
    stores = export(folder, tokens, lm, sites)  # opened, and one that was deleted since made again
    return Chain(tokens, lm, Activations(*stores, sites, folder.name))


def facts_of_model(cfg: LanguageConfig, chain: Chain) -> dict[str, Any]:
    """What a record says of what SAEs were trained on; `seconds` are of the runs that made each stage."""
    tokens, acts = chain.tokens, chain.acts
    folders = {"tokens": tokens_stage(cfg), "activations": activations_stage(cfg, tokens, chain.lm)}
    if cfg.model is None:
        folders["model"] = model_stage(cfg, tokens, lambda n: None)
        noted = notes(folders["model"])
    else:
        noted = notes(described_stage(cfg, chain))
    told = {name: value for name, value in noted.items() if name not in ("facts", "seconds")}
    sizes = {name: getattr(chain.lm.cfg, name) for name in ("family", "n_layers", "d_model", "n_heads", "vocab_size")}
    stories = load_stories(cfg)
    counts = {name: n for name, n in stories._asdict().items() if name != "texts"}
    return {
        "model": sizes | told,
        "tokens": {"stories": len(stories.texts), "train": acts.train.n_rows, "valid": acts.valid.n_rows} | counts,
        "seconds": {name: notes(folder)["seconds"] for name, folder in folders.items()},
        "stages": {name: folder.name for name, folder in folders.items()},
        "sha256": {
            "stories": digest_of(stories.texts),
            "tokenizer": tokens.tokenizer.digest(),
            "model": model_digest(chain.lm),
        },
    }


def described_stage(cfg: LanguageConfig, chain: Chain) -> Path:
    """`described` of a model that was given."""
    facts = {"tokens": chain.tokens.digest, "model": model_digest(chain.lm), "seed": cfg.seed}
    return stage(cfg.cache, "given", facts, ["toy.lm.train_lm"], lambda folder: described(cfg, chain.lm, chain.tokens))
