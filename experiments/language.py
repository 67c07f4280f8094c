"""The chain that the TinyStories figures share: text → tokens → language model → activations → SAEs.

Every stage is a folder of the cache, named by a digest of all that determines it, and is made only once.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.study import Progress
from toy.checkpoint import FileCheckpoint
from toy.io import load_arrays, load_json, save_arrays, save_json
from toy.lm.corpus import CONCEPTS, make_stories
from toy.lm.export import export_activations
from toy.lm.hub import fetch, is_hub_name, split_name
from toy.lm.model import LM, LOCATIONS, LMConfig, Site
from toy.lm.text import held_out, read_stories
from toy.lm.tokens import Rows, Tokenizer, load_tokenizer, make_rows, save_tokenizer, train_tokenizer
from toy.lm.train_lm import LMTrainConfig, generate, mean_loss, train_lm, unigram_entropy
from toy.lm.weights import load_model, model_digest, save_model
from toy.loss import Sparsity
from toy.store import Store, open_store

BUILT_IN = "built-in"
D_HEAD = 32
PROMPTS = ("Once upon a time", "One day, there was a little girl named")


@dataclass(frozen=True)
class Sizes:
    """Of the text and of the language model that is trained."""

    n_stories: int | None  # None: all
    context: int
    vocab_size: int
    n_layers: int
    d_model: int
    lm_steps: int


OF_BUILT_IN = Sizes(n_stories=12_000, context=112, vocab_size=640, n_layers=2, d_model=64, lm_steps=500)
OF_OTHERS = Sizes(n_stories=None, context=192, vocab_size=2_048, n_layers=4, d_model=128, lm_steps=700)


@dataclass(frozen=True)
class LanguageConfig:
    """From text to SAEs."""

    corpus: str = BUILT_IN
    """Stories: built-in, a text file with a line <|endoftext|> after each, or hub:OWNER/NAME[/FILE] (a dataset)."""
    model: str | None = None
    """A trained model: tiny_model's .pt, a folder of a GPT-Neo or of ours, or hub:OWNER/NAME; default: train one."""
    tokenizer: Path | None = None
    """Folder with the tokenizer.json of that model (and tiny_model's id tables); default: where the model is."""
    n_heads: int | None = None
    """Attention heads, where a .pt file does not tell."""
    n_stories: int | None = None
    """Stories taken; default: 12,000 of the built-in corpus, all of another."""
    context: int | None = None
    """Tokens a row; default: 112 for the built-in corpus, else 192."""
    vocab_size: int | None = None
    """Of the tokenizer that is trained; default: 640 for the built-in corpus, else 2,048."""
    n_layers: int | None = None
    """Of the model that is trained; default: 2 for the built-in corpus, else 4."""
    d_model: int | None = None
    """Its width, 32 a head; default: 64 for the built-in corpus, else 128."""
    lm_steps: int | None = None
    """Its training steps, of 32 rows; default: 500 for the built-in corpus, else 700."""
    locations: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out")
    """What SAEs are trained on, at every layer; resid_mid is another."""
    reference_widths: tuple[int, ...] = (20, 60, 200)
    """Numbers of latents of the reference SAEs, which are vanilla."""
    n_latents: int = 500
    """Number of latents of the large SAEs."""
    target_l0: tuple[float, ...] = (4.0, 8.0, 16.0)
    """L0 of the large SAEs; reference SAEs have the middle one, at most a quarter of their latents."""
    n_prefixes: int = 10
    """Prefixes a batch of the Matryoshka SAEs, the full one included."""
    n_steps: int = 1_000
    """Training steps of every SAE."""
    batch_size: int = 512
    """Tokens a step."""
    learning_rate: float = 3e-3
    """Adam's, of the SAEs."""
    sparsity: Sparsity = "log"
    """Penalty of the SAEs' activations: the post's logarithm, or L1."""
    concepts: tuple[str, ...] = ()
    """Words of which absorption is measured, as NAME=word,word,...; default: the tree of the built-in corpus."""
    seed: int = 0
    """The first seed of the SAEs; the language model takes it, too."""
    n_seeds: int = 3
    """Number of seeds: of initialisation and prefixes."""
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "matryoshka-toy"
    """Folder for what the stages make."""

    def __post_init__(self) -> None:
        for owner, names in (
            (self.sizes, ("context", "vocab_size", "n_layers", "d_model", "lm_steps")),
            (self, ("n_latents", "n_prefixes", "n_steps", "batch_size", "n_seeds")),
        ):
            for name in names:
                if getattr(owner, name) < 1:
                    raise ValueError(f"{name}: must be at least 1, got {getattr(owner, name)}")
        if self.n_stories is not None and self.n_stories < 2:
            raise ValueError(f"n_stories: must be at least 2, got {self.n_stories}")
        for name in ("locations", "reference_widths", "target_l0"):
            if not getattr(self, name):
                raise ValueError(f"{name}: must have at least one entry")
        unknown = set(self.locations) - set(LOCATIONS)
        if unknown:
            raise ValueError(f"locations: expected {', '.join(LOCATIONS)}, got {', '.join(sorted(unknown))}")
        if min(self.reference_widths) < 4 or min(self.target_l0) <= 0:
            raise ValueError("reference_widths and target_l0: must be at least 4 and above 0")
        for text in self.concepts:
            name, _, words = text.partition("=")
            if not name or len([word for word in words.split(",") if word]) < 2:
                raise ValueError(f"concepts: expected NAME=word,word,... with two words at least, got {text!r}")
        if self.model is not None and not is_hub_name(self.model) and not Path(self.model).exists():
            raise ValueError(f"model: {self.model} does not exist")

    @property
    def sizes(self) -> Sizes:
        """Those given, and the corpus's defaults for the others."""
        defaults = OF_BUILT_IN if self.corpus == BUILT_IN else OF_OTHERS
        given = {field.name: getattr(self, field.name) for field in fields(Sizes)}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.n_seeds))

    @property
    def concept_words(self) -> dict[str, tuple[str, ...]]:
        """By name, broader concepts first."""
        if not self.concepts:
            return {concept.name: concept.all_words() for root in CONCEPTS for concept in root.walk()}
        named = (text.partition("=") for text in self.concepts)
        return {name: tuple(word.lower() for word in words.split(",") if word) for name, _, words in named}

    @property
    def reference_l0(self) -> float:
        return sorted(self.target_l0)[len(self.target_l0) // 2]


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


class Chain(NamedTuple):
    """All that is made before the SAEs."""

    tokens: Tokens
    lm: LM
    acts: Activations


def digest_of(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def stage(cfg: LanguageConfig, name: str, facts: dict[str, Any], make: Callable[[Path], dict[str, Any] | None]) -> Path:
    """The folder of a stage, made if it is not there yet; what `make` returns is noted with its seconds."""
    facts = {"version": version("matryoshka-toy"), **facts}
    folder = cfg.cache / f"{name}-{digest_of(facts)[:16]}"
    if not (folder / "stage.json").exists():
        start = time.monotonic()
        noted = make(folder)
        save_json(folder / "stage.json", {"facts": facts, "seconds": time.monotonic() - start, **(noted or {})})
    return folder


def notes(folder: Path) -> dict[str, Any]:
    """What a stage noted, its seconds among them."""
    return load_json(folder / "stage.json")


@cache
def load_stories(corpus: str, n_stories: int | None, seed: int) -> list[str]:
    return make_stories(n_stories or 1, seed) if corpus == BUILT_IN else read_stories(corpus)[:n_stories]


def tokens_stage(cfg: LanguageConfig) -> Path:
    """Stories cleaned, split, and cut into rows; the tokenizer is trained, or that of the given model."""
    stories = load_stories(cfg.corpus, cfg.sizes.n_stories, cfg.seed)
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

    return stage(cfg, "tokens", facts, make)


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

    return stage(cfg, "model", facts, make)


def described(cfg: LanguageConfig, lm: LM, tokens: Tokens) -> dict[str, Any]:
    """Losses in nats a token, and stories that the model tells."""
    key = jax.random.key(cfg.seed)
    return {
        "loss": mean_loss(lm, tokens.valid),
        "unigram_entropy": unigram_entropy(tokens.valid),
        "stories": [generate(key, lm, tokens.tokenizer, prompt) for prompt in PROMPTS],
    }


class Counted:
    """Tells of steps as they are done, and `rest` of those that were in the cache already."""

    def __init__(self, progress: Progress, n_steps: int) -> None:
        self._progress, self._left = progress, n_steps

    def __call__(self, n: int) -> None:
        self._left -= n
        self._progress(n)

    def rest(self) -> None:
        self._progress(self._left)


def load_lm(cfg: LanguageConfig, tokens: Tokens, progress: Progress) -> LM:
    if cfg.model is None:
        counted = Counted(progress, cfg.sizes.lm_steps)
        folder = model_stage(cfg, tokens, counted)
        counted.rest()
        return load_model(folder)
    lm = given_model(cfg.model, cfg.n_heads)
    if tokens.tokenizer.vocab_size > lm.cfg.vocab_size or cfg.sizes.context > lm.cfg.context:
        raise ValueError(
            f"model: {cfg.model} has {lm.cfg.vocab_size} ids and context {lm.cfg.context}, but the tokenizer has "
            f"{tokens.tokenizer.vocab_size} and --context is {cfg.sizes.context}"
        )
    return lm


@cache
def given_model(name: str, n_heads: int | None) -> LM:
    return load_model(name, n_heads=n_heads)


def n_layers(cfg: LanguageConfig) -> int:
    return cfg.sizes.n_layers if cfg.model is None else given_model(cfg.model, cfg.n_heads).cfg.n_layers


def check(cfg: LanguageConfig) -> None:
    """Before any work. Raises: ValueError if the stories, the model or its tokenizer cannot be read."""
    load_stories(cfg.corpus, cfg.sizes.n_stories, cfg.seed)
    if cfg.model is None:
        _lm_config(cfg, cfg.sizes.vocab_size)
    else:
        given_model(cfg.model, cfg.n_heads)
        load_tokenizer(_tokenizer_folder(cfg))


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
    facts = {"tokens": tokens.digest, "model": model_digest(lm)}

    def make(folder: Path) -> None:
        for name in ("train", "valid"):
            export_activations(folder / name, lm, getattr(tokens, name), sites, facts=facts)

    return stage(cfg, "activations", facts | {"sites": [str(site) for site in sites]}, make)


def load_chain(cfg: LanguageConfig, progress: Progress) -> Chain:
    """All before the SAEs, from the cache where it is there."""
    tokens = load_tokens(cfg)
    lm = load_lm(cfg, tokens, progress)
    folder = activations_stage(cfg, tokens, lm)
    train, valid = (open_store(folder / name) for name in ("train", "valid"))
    return Chain(tokens, lm, Activations(train, valid, sites_of(cfg, lm.cfg.n_layers)))


def facts_of_model(cfg: LanguageConfig, chain: Chain) -> dict[str, Any]:
    """What a record says of what the SAEs were trained on; `seconds` are of the runs that made each stage."""
    tokens, acts = chain.tokens, chain.acts
    folders = {"tokens": tokens_stage(cfg), "activations": activations_stage(cfg, tokens, chain.lm)}
    if cfg.model is None:
        folders["model"] = model_stage(cfg, tokens, lambda n: None)
        noted = notes(folders["model"])
    else:
        noted = notes(described_stage(cfg, chain))
    told = {name: value for name, value in noted.items() if name not in ("facts", "seconds")}
    sizes = {name: getattr(chain.lm.cfg, name) for name in ("family", "n_layers", "d_model", "n_heads", "vocab_size")}
    stories = load_stories(cfg.corpus, cfg.sizes.n_stories, cfg.seed)
    return {
        "model": sizes | told,
        "tokens": {"stories": len(stories), "train": acts.train.n_rows, "valid": acts.valid.n_rows},
        "seconds": {name: notes(folder)["seconds"] for name, folder in folders.items()},
    }


def described_stage(cfg: LanguageConfig, chain: Chain) -> Path:
    """`described` of a model that was given."""
    facts = {"tokens": chain.tokens.digest, "model": model_digest(chain.lm), "seed": cfg.seed}
    return stage(cfg, "given", facts, lambda folder: described(cfg, chain.lm, chain.tokens))
