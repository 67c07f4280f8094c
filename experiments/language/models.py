"""The language model that an option names, and its tokenizer."""

from pathlib import Path

from toy.checks import quoted
from toy.lm.gguf_file import GGUF
from toy.lm.hub import PACKAGED, fetch, is_hub_name, packaged, split_name
from toy.lm.model import LM
from toy.lm.tokens import Tokenizer, load_tokenizer
from toy.lm.weights import load_model


def check_there(option: str, model: str) -> None:
    """Raises: ValueError naming the option if a model's path does not exist, or its package is not installed."""
    if not is_hub_name(model) and not packaged(model).exists():
        others = " or ".join(["hub:OWNER/NAME", *PACKAGED])
        raise ValueError(f"{option}: {quoted(model)} does not exist; give a path, {others}")


def read_model(model: str, tokenizer: Path | None = None, n_heads: int | None = None) -> tuple[LM, Tokenizer]:
    """A model that `load_model` takes, and the given tokenizer or its own.

    Raises: ValueError naming what cannot be read, or if the model has fewer ids than the tokenizer.
    """
    lm, found = load_model(model, n_heads=n_heads), read_tokenizer(model, tokenizer)
    n_ids, last = lm.cfg.vocab_size, found.vocab_size - 1
    if last >= n_ids:
        raise ValueError(
            f"model: {model} has {n_ids} ids, but ids of its tokenizer go up to {last}; "
            "give the model's own with --tokenizer PATH"
        )
    return lm, found


def read_tokenizer(model: str, given: Path | None) -> Tokenizer:
    """The given tokenizer, or that in the model's file, in its folder or beside it. Raises: ValueError."""
    path = own_tokenizer(model) if given is None else given
    if given is None and path.suffix != GGUF and not (path / "tokenizer.json").exists():
        raise ValueError(
            f"tokenizer: {quoted(str(path))} has no tokenizer.json; give the tokenizer of {quoted(model)} with "
            "--tokenizer PATH: a folder with tokenizer.json, or llama2.c's .bin"
        )
    return load_tokenizer(path)


def own_tokenizer(model: str) -> Path:
    """Returns what `load_tokenizer` takes for a model's own: the model's file where it holds one, else its folder."""
    if is_hub_name(model):
        repository, file = split_name(model)
        if file is not None and file.endswith(GGUF):
            return fetch(repository, file)
        return fetch(repository, "tokenizer.json").parent
    path = packaged(model)
    return path if path.is_dir() or path.suffix == GGUF else path.parent
