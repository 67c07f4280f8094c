"""From text to activations: text → tokens → language model → activations, each made once and handed on."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.language.config import BUILT_IN, D_HEAD, LanguageConfig
from experiments.language.memory import check_memory
from experiments.language.models import read_model
from experiments.language.stages import Stage, stage
from toy.data.store import Store
from toy.data.stream import ShardSource
from toy.files.digest import digest_of
from toy.io import load_arrays, save_arrays
from toy.lm.corpus import make_stories
from toy.lm.export import export_activations
from toy.lm.forward_stream import ForwardStream, forward_streams
from toy.lm.model import LM, LMConfig, Site, parse_site
from toy.lm.sample import sample_stories, tell
from toy.lm.text import Corpus, Stories, held_out, read_stories
from toy.lm.tokens import Rows, Tokenizer, load_tokenizer, make_rows, save_tokenizer, train_tokenizer
from toy.lm.train_lm import LMTrainConfig, mean_loss, train_lm, unigram_entropy
from toy.lm.weights import load_model, model_digest, save_model
from toy.training.checkpoint import FileCheckpoint
from toy.training.loop import Progress

PROMPTS = ("Once upon a time", "One day, there was a little girl named")
PARTS = ("train", "valid")
PART = 20_000  # stories that a model tells between two files


class Given(NamedTuple):
    """The files that the options name, read once before any work; None where each language model has its own."""

    stories: Stories | None
    lm: LM | None
    tokenizer: Tokenizer | None


class Tokens(NamedTuple):
    """Stories as rows of ids, for training and held out."""

    tokenizer: Tokenizer
    train: Rows | None  # not needed where SAEs are there
    valid: Rows
    stories: dict[str, Any]  # their number, digest, and what was mended and dropped
    stage: Stage


class Model(NamedTuple):
    """A language model; its stage notes losses and stories that it tells."""

    lm: LM
    stage: Stage


class Activations(NamedTuple):
    """Streams of activations to train SAEs on at every site, and the store to measure them on."""

    streams: Mapping[str, ShardSource | ForwardStream]  # by site; none where SAEs are there
    n_train: int | None  # activations in an epoch
    means: dict[str, np.ndarray]  # at every site; where activations are not stored, those of the held-out ones
    valid: Store
    sites: tuple[Site, ...]
    stage: Stage


class Chain(NamedTuple):
    """All that is made before the SAEs."""

    cfg: LanguageConfig
    tokens: Tokens
    model: Model
    acts: Activations


def read_given(cfg: LanguageConfig) -> Given:
    """Read the corpus and the model that are given, and check the options with them.

    Prints what was mended and dropped. Raises: ValueError naming what cannot be read, or does not fit.
    """
    check_memory(cfg)
    stories = None if cfg.corpus == BUILT_IN else _read_corpus(cfg.corpus, cfg.n_stories)
    if cfg.model is None:
        _lm_config(cfg, cfg.sizes.vocab_size)
        return Given(stories, None, None)
    lm, tokenizer = read_model(cfg.model, cfg.tokenizer, cfg.n_heads)
    if cfg.sizes.context > lm.cfg.context:
        raise ValueError(
            f"context: the model's is {lm.cfg.context}, got {cfg.sizes.context}; give --context {lm.cfg.context}"
        )
    return Given(stories, lm, tokenizer)


def _read_corpus(corpus: str, n_stories: int | None) -> Stories:
    """Raises: ValueError naming the corpus if it cannot be read, or has too few stories to hold some out."""
    stories = read_stories(corpus, n_stories)
    try:
        held_out(stories.texts)
    except ValueError as error:
        raise ValueError("; ".join([f"{corpus}: {error}", *stories.notes()])) from None
    for note in stories.notes():
        print(f"{corpus}: {note}", file=sys.stderr)
    return stories


def _lm_config(cfg: LanguageConfig, vocab_size: int) -> LMConfig:
    sizes = cfg.sizes
    return LMConfig(
        vocab_size=vocab_size,
        context=sizes.context,
        n_layers=sizes.n_layers,
        d_model=sizes.d_model,
        n_heads=max(1, sizes.d_model // D_HEAD),
    )


def sites_of(cfg: LanguageConfig, given: Given) -> tuple[Site, ...]:
    n_layers = cfg.sizes.n_layers if given.lm is None else given.lm.cfg.n_layers
    layers = range(n_layers) if cfg.layers is None else cfg.layers
    sites = [Site(layer, location) for location in cfg.locations for layer in layers]
    return tuple(parse_site(str(site), n_layers) for site in sites)


def make_tokens(cfg: LanguageConfig, given: Given) -> Tokens:
    """Stories cut into rows; the tokenizer is trained on those for training, or that of the given model.

    If the model tells the stories for training, all others are held out.
    """
    stories = _built_in(cfg) if given.stories is None else given.stories
    tokenizer = given.tokenizer
    counts = {name: n for name, n in stories._asdict().items() if name != "texts"}
    told = {"stories": len(stories.texts), "sha256": digest_of(stories.texts)} | counts
    facts = {
        "stories": told["sha256"],
        "context": cfg.sizes.context,
        "tokenizer": cfg.sizes.vocab_size if tokenizer is None else tokenizer.digest(),
    }
    parts = PARTS if cfg.trained is None else PARTS[1:]
    if cfg.trained is not None:
        facts |= {"parts": parts}
    elif cfg.sampled_stories is not None:
        assert given.lm is not None
        facts |= {"sampled": cfg.sampled_stories, "seed": cfg.seed, "model": model_digest(given.lm)}
    with stage(cfg.cache, "tokens", facts, __name__, "toy.lm.tokens", "toy.lm.text") as made:
        files = {part: made.folder / f"{part}.safetensors" for part in parts}
        if made.done:
            tokenizer = tokenizer or load_tokenizer(made.folder)
            rows = {part: Rows(**load_arrays(file)[0]) for part, file in files.items()}
        else:
            texts = held_out(stories.texts) if cfg.sampled_stories is None else Corpus([], stories.texts)
            if tokenizer is None:
                tokenizer = train_tokenizer(texts.train, cfg.sizes.vocab_size)
                save_tokenizer(made.folder, tokenizer)
            rows = {part: make_rows(getattr(texts, part), tokenizer, cfg.sizes.context) for part in parts}
            if "train" in parts and cfg.sampled_stories is not None:
                rows["train"] = _sampled(cfg, given, made.folder)
            for part, file in files.items():
                save_arrays(file, rows[part]._asdict(), {})
    return Tokens(tokenizer, rows.get("train"), rows["valid"], stories=told, stage=made)


def _sampled(cfg: LanguageConfig, given: Given, folder: Path) -> Rows:
    """Stories that the given model tells. Parts are kept until all are told, so that a run that was stopped goes on."""
    assert given.lm is not None
    assert given.tokenizer is not None
    assert cfg.sampled_stories is not None
    files, parts = [], []
    for first in range(0, cfg.sampled_stories, PART):
        n = min(PART, cfg.sampled_stories - first)
        files.append(folder / f"sampled_{first}.safetensors")
        if not files[-1].exists():
            key = jax.random.key(cfg.seed)
            told = sample_stories(key, given.lm, given.tokenizer, n, first=first, context=cfg.sizes.context)
            save_arrays(files[-1], told._asdict(), {})
        parts.append(Rows(**load_arrays(files[-1])[0]))
    for file in files:
        file.unlink()
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _built_in(cfg: LanguageConfig) -> Stories:
    texts = make_stories(cfg.sizes.n_stories or 1, cfg.seed)
    return Stories(texts, len(texts), 0, 0, 0)


def make_model(cfg: LanguageConfig, given: Given, tokens: Tokens, progress: Progress) -> Model:
    """The language model: the given one, or one that is trained, and resumed where its training was stopped."""
    facts = {"tokens": tokens.stage.folder.name, "seed": cfg.seed}
    if given.lm is not None:
        facts["model"] = model_digest(given.lm)
        with stage(cfg.cache, "given", facts, __name__, "toy.lm.train_lm") as made:
            if not made.done:
                made.notes.update(_described(cfg, given.lm, tokens))
        return Model(given.lm, made)
    sizes, training = _lm_config(cfg, tokens.tokenizer.vocab_size), LMTrainConfig(n_steps=cfg.sizes.lm_steps)
    facts |= {"model": sizes.facts(), "training": asdict(training)}
    with stage(cfg.cache, "model", facts, __name__, "toy.lm.train_lm") as made:
        if made.done:
            progress(training.n_steps)
            return Model(load_model(made.folder), made)
        key, checkpoint = jax.random.key(cfg.seed), made.folder / "checkpoint.safetensors"
        assert tokens.train is not None  # SAEs that are there have a model that is given
        lm, history = train_lm(
            key, tokens.train, sizes, cfg=training, progress=progress, checkpoint=FileCheckpoint(checkpoint)
        )
        save_model(made.folder, lm)
        checkpoint.unlink(missing_ok=True)
        made.notes.update({"history": history.loss, **_described(cfg, lm, tokens)})
    return Model(lm, made)


def _described(cfg: LanguageConfig, lm: LM, tokens: Tokens) -> dict[str, Any]:
    """Losses in nats per token, and stories that the model tells."""
    key = jax.random.key(cfg.seed)
    longest = cfg.sizes.context - 2  # the begin before, and one token after
    prompts = [prompt for prompt in PROMPTS if len(tokens.tokenizer.encode([prompt])[0]) <= longest]
    return {
        "loss": mean_loss(lm, tokens.valid),
        "unigram_entropy": unigram_entropy(tokens.valid),
        "stories": [tell(key, lm, tokens.tokenizer, prompt) for prompt in prompts],
    }


def make_activations(cfg: LanguageConfig, tokens: Tokens, lm: LM, sites: tuple[Site, ...]) -> Activations:
    """Activations at every site. Stores that are there are verified and opened."""
    named = [str(site) for site in sites]
    facts = {"tokens": tokens.stage.folder.name, "model": model_digest(lm), "sites": named}
    told = {"tokenizer_sha256": tokens.tokenizer.digest()}
    parts = PARTS[1:] if cfg.stream or tokens.train is None else PARTS
    if parts != PARTS:
        facts |= {"stored": parts}
    with stage(cfg.cache, "activations", facts, __name__, "toy.lm.export") as made:
        stores = {
            part: export_activations(made.folder / part, lm, getattr(tokens, part), sites, facts=told) for part in parts
        }
    of_means = stores[parts[0]]
    means = {site: np.array(of_means.sites[site].mean, np.float32) for site in named}
    if tokens.train is None:
        return Activations({}, None, means, stores["valid"], sites, made)
    if cfg.stream:
        streams: Any = forward_streams(lm, tokens.train, sites, seed=cfg.seed)
        return Activations(streams, streams[named[0]].n_rows, means, stores["valid"], sites, made)
    train = stores["train"]
    streams = {site: ShardSource(train.activations(site), seed=cfg.seed) for site in named}
    return Activations(streams, train.n_rows, means, stores["valid"], sites, made)


def facts_of(chain: Chain) -> dict[str, Any]:
    """Returns what a record says of a language model; `seconds` are those of the runs that made each stage."""
    _, tokens, (lm, of_model), acts = chain
    stages = {"tokens": tokens.stage, "activations": acts.stage}
    if chain.cfg.model is None:
        stages["model"] = of_model
    sizes = {name: getattr(lm.cfg, name) for name in ("family", "n_layers", "d_model", "n_heads", "vocab_size")}
    told = {name: value for name, value in of_model.notes.items() if name not in ("facts", "seconds")}
    counts = {name: n for name, n in tokens.stories.items() if name != "sha256"}
    sha256 = {"stories": tokens.stories["sha256"], "tokenizer": tokens.tokenizer.digest(), "model": model_digest(lm)}
    return {
        "model": sizes | told,
        "tokens": {"train": acts.n_train, "valid": acts.valid.n_rows} | counts,
        "seconds": {name: made.notes["seconds"] for name, made in stages.items()},
        "stages": {name: made.folder.name for name, made in stages.items()},
        "sha256": sha256,
    }
