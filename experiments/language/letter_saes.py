"""The data and the SAEs of first-letter absorption: text, activations of a few layers, and what is trained on them."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.language.found import load_saes, save_saes
from experiments.language.letter_config import LetterConfig
from experiments.language.saes import CHUNK, CODE, l0_at_end, stage_name
from experiments.language.stages import Stage, stage
from toy import prefixes
from toy.data.store import Store
from toy.data.stream import ShardSource
from toy.io import load_arrays, save_arrays, writing
from toy.lm.export import export_activations, forward_to
from toy.lm.first_letter import Task, acts_at_words
from toy.lm.model import LM, Site
from toy.lm.sample import sample_stories
from toy.lm.text import END_OF_STORY, held_out, read_stories
from toy.lm.tokens import Tokenizer, make_rows
from toy.lm.weights import model_digest
from toy.methods.from_file import method_facts
from toy.methods.method import Method
from toy.methods.named import named
from toy.sae import SAE
from toy.training.config import Hypers, TrainConfig, check_memory
from toy.training.grid import train_grid, trained_saes
from toy.training.loop import Progress

TEXTS = "texts.txt"
WORDS = "words.safetensors"


class LetterData(NamedTuple):
    """Stores of the activations of all tokens but begins, and the activations at the words of the task."""

    train: Store
    valid: Store
    task: Task
    words: dict[str, np.ndarray]  # by site
    n_tokens: dict[str, int]  # of training and held-out rows, by where the text is from
    stage: Stage


class LetterFamily(NamedTuple):
    """SAEs of one method, L0 and site, trained in one program; a lane for each seed."""

    site: Site
    name: str
    method: Method
    weighting: str
    target_l0: float


def families(cfg: LetterConfig, site: Site) -> list[LetterFamily]:
    """The families of a site, one for each method and L0."""
    return [LetterFamily(site, *named(text, l0), l0) for text in cfg.methods for l0 in cfg.target_l0]


def check_families(cfg: LetterConfig, d_in: int) -> None:
    """Raises: ValueError for SAEs that cannot be trained so, or need more memory than there is."""
    for family in families(cfg, cfg.at[0]):
        check_memory(d_in, train_config(cfg, family.method), cfg.n_seeds)


def make_data(cfg: LetterConfig) -> LetterData:
    """The activations of texts and of the task's words, from passes that end at the last site."""
    (lm, tokenizer), task = cfg.given, cfg.task
    parts = {name: held_out(texts) for name, texts in texts_of(cfg, lm, tokenizer).items()}
    rows = {
        part: make_rows([text for of in parts.values() for text in getattr(of, part)], tokenizer, cfg.context)
        for part in ("train", "valid")
    }
    n_tokens = {name: sum(map(len, tokenizer.encode(of.train))) for name, of in parts.items()}
    facts = {
        "model": model_digest(lm),
        "sites": cfg.sites,
        "rows": {part: of.digest() for part, of in rows.items()},
        "prompts": task.prompts.digest(),
    }
    with stage(cfg.cache, "letters", facts, __name__, "toy.lm.export", "toy.lm.first_letter") as made:
        train, valid = (
            export_activations(made.folder / part, lm, of, cfg.at, facts={"tokenizer_sha256": tokenizer.digest()})
            for part, of in rows.items()
        )
        if made.done:
            words = load_arrays(made.folder / WORDS)[0]
        else:
            words = acts_at_words(forward_to(lm, cfg.at), task.prompts)
            save_arrays(made.folder / WORDS, words, {})
    return LetterData(train, valid, task, words, n_tokens, made)


def texts_of(cfg: LetterConfig, lm: LM, tokenizer: Tokenizer) -> dict[str, list[str]]:
    """Real texts, where a corpus is given, and texts that the model writes, or has written before."""
    found = {} if cfg.corpus is None else {"real": read_stories(cfg.corpus).texts}
    if cfg.sampled is not None:
        return found | {"sampled": read_stories(str(cfg.sampled)).texts}
    if not cfg.n_sampled:
        return found
    facts = {"model": model_digest(lm), "n": cfg.n_sampled, "context": cfg.context, "seed": cfg.seed}
    with stage(cfg.cache, "sampled", facts, __name__, "toy.lm.sample") as made:
        if not made.done:
            written = sample_stories(
                jax.random.key(cfg.seed), lm, tokenizer, cfg.n_sampled, context=cfg.context - 1
            )  # one token less than a row, which has an end, too
            texts = (tokenizer.decode(ids[:n]).strip() for ids, n in zip(written.ids, written.length, strict=True))
            with writing(made.folder / TEXTS) as file:
                file.write("".join(f"{text}\n{END_OF_STORY}\n" for text in texts).encode())
    return found | {"sampled": read_stories(str(made.folder / TEXTS)).texts}


def train_config(cfg: LetterConfig, method: Method) -> TrainConfig:
    return TrainConfig(cfg.n_latents, n_steps=cfg.n_steps, batch_size=cfg.batch_size, method=method)


def train_family(cfg: LetterConfig, data: LetterData, family: LetterFamily, progress: Progress) -> tuple[SAE, Stage]:
    """The SAEs with a leading axis of seeds; the stage notes their L0 in training."""
    train_cfg = train_config(cfg, family.method)
    hypers = Hypers(
        prefixes.named(family.weighting, cfg.n_latents),
        target_l0=family.target_l0 if family.method.aims_at_l0 else None,
        learning_rate=cfg.learning_rate,
        sparsity_coef=cfg.sparsity_coef,
        control_rate=cfg.control_rate,
    )
    facts = {
        "activations": data.stage.folder.name,
        "family": [str(family.site), family.name, cfg.n_latents, family.name, family.target_l0],
        "training": asdict(train_cfg) | method_facts(family.method),
        "hypers": [family.weighting, cfg.learning_rate, cfg.sparsity_coef, cfg.control_rate],
        "seeds": cfg.seeds,
    }
    name = stage_name(family.site, family.name.partition(":")[0], cfg.n_latents, family.target_l0)
    with stage(cfg.cache, name, facts, __name__, *CODE) as made:
        if made.done:
            progress(cfg.n_steps)
        else:
            source = ShardSource(data.train.activations(str(family.site)), seed=cfg.seed)
            keys = jax.vmap(jax.random.key)(np.array(cfg.seeds))
            state, history = train_grid(
                keys, source, hypers, cfg=train_cfg, in_axes=(None, None), chunk=100, progress=progress
            )
            save_saes(made.folder, trained_saes(state))
            made.notes["l0_of_training"] = l0_at_end(np.asarray(history.l0))
    return load_saes(made.folder), made


def held_out_chunks(data: LetterData, site: Site) -> Iterator[Any]:
    return data.valid.activations(str(site)).slices(CHUNK)
