"""Language models on disk: our own folders, and those of other programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toy.checks import quoted
from toy.files.arrays import load_arrays, save_arrays
from toy.files.digest import digest_of
from toy.files.json_files import load_object, plain, save_json
from toy.files.torch_file import read_torch_file
from toy.lm.config import LMConfig, field_names
from toy.lm.gguf_file import GGUF, read_gguf
from toy.lm.hub import fetch, is_hub_name, packaged, split_name
from toy.lm.llama import llama_from
from toy.lm.llama2c import LLAMA2C, read_llama2c
from toy.lm.model import LM
from toy.lm.state import check_finite, check_names, config_from, model_from, parameters, shapes_of

_CONFIG, _TENSORS, _TORCH = "config.json", "model.safetensors", "pytorch_model.bin"
_INDEX = f"{_TENSORS}.index.json"
_TINY_MODEL = {"blocks.": "torso.", "embed.embedding": "embed.weight", ".kernel": ".weight"}
_GPT_NEO = {
    "blocks.": "transformer.h.",
    "pos_embed": "transformer.wpe.weight",
    "embed.embedding": "transformer.wte.weight",
    "ln_f.": "transformer.ln_f.",
    **{f"attn.{letter}.": f"attn.attention.{letter.lower()}_proj." for letter in "QKV"},
    "attn.O.": "attn.attention.out_proj.",
    "mlp.read_in.": "mlp.c_fc.",
    "mlp.write_out.": "mlp.c_proj.",
    ".scale": ".weight",
    ".kernel": ".weight",
}
_MOST_CONFIG = 2**20  # bytes
_SAVED_WITH = "toy.training.config"  # the entry of our tensors' metadata that holds their configuration
_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".attn.attention.bias", ".attn.attention.masked_bias")


def load_model(path: Path | str, *, n_heads: int | None = None) -> LM:
    """A model in float32 from disk, from the hub for `hub:OWNER/NAME` and `hub:OWNER/NAME/FILE`, or named `smollm2`.

    A folder is one of `save_model`, or a GPT-Neo or Llama of Transformers. A file is a Llama in GGUF (`.gguf`), a
    checkpoint of llama2.c (`.bin`), or a state dict of tiny_model, which has 16 heads if d_model is 768 and else
    `n_heads`. Raises: ValueError in one line that names the fault.
    """
    path = _from_hub(path) if isinstance(path, str) and is_hub_name(path) else packaged(path)
    try:
        return _from_folder(path) if path.is_dir() else _from_file(path, n_heads)
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {error}") from None


def save_model(folder: Path, lm: LM) -> None:
    """Write a model as a folder of `config.json` and `model.safetensors`, where tensors are named by path.

    The tensors' file also holds the configuration and a SHA-256, which `load_model` checks.

    Raises: ValueError naming the parameters that are not finite; OSError.
    """
    tensors = parameters(lm)
    check_finite(tensors)
    config = plain(lm.cfg.facts(), None)
    save_arrays(folder / _TENSORS, tensors, {_SAVED_WITH: json.dumps(config, sort_keys=True)})
    save_json(folder / _CONFIG, config, digits=None)


def model_digest(lm: LM) -> str:
    """SHA-256 of the configuration, with its defaults filled in, and of the parameters."""
    return digest_of([lm.cfg.full_facts(), digest_of(parameters(lm))])


def tiny_model_from(state: Mapping[str, np.ndarray], n_heads: int | None = None) -> LM:
    """The model of a state dict of noanabeshima/tiny_model. Raises: ValueError naming every tensor that is wrong."""
    state = {name: values[0] if _has_batch(name, values) else values for name, values in state.items()}
    layers = {name.split(".")[1] for name in state if name.startswith("torso.") and name.count(".") > 1}
    sizes: dict[str, Any] = {"vocab_size": 1, "context": 1, "d_model": 1, "d_mlp": 1, "n_layers": max(1, len(layers))}
    check_names(shapes_of(LMConfig(n_heads=1, **sizes), _TINY_MODEL), state)
    if state["embed.weight"].ndim == 2:
        sizes["vocab_size"], sizes["d_model"] = state["embed.weight"].shape
    if state["pos_embed"].ndim == 2:
        sizes["context"] = state["pos_embed"].shape[0]
    if state["torso.0.mlp.read_in.weight"].ndim == 2:
        sizes["d_mlp"] = state["torso.0.mlp.read_in.weight"].shape[0]
    if n_heads is None and sizes["d_model"] != 768:
        raise ValueError(f"the file does not give the number of heads: pass n_heads (d_model is {sizes['d_model']})")
    return model_from(LMConfig(n_heads=16 if n_heads is None else n_heads, **sizes), state, _TINY_MODEL)


def _has_batch(name: str, values: np.ndarray) -> bool:
    return name == "pos_embed" and values.ndim == 3 and len(values) == 1


def gpt_neo_from(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> LM:
    """The model of Transformers' GPTNeoForCausalLM. Raises: ValueError naming every tensor that is wrong."""
    if config.get("activation_function", "gelu_new") != "gelu_new":
        got = quoted(repr(config["activation_function"]))
        raise ValueError(f"activation_function: only gelu_new is known, got {got}")
    if config.get("tie_word_embeddings", True) is not True:
        raise ValueError("tie_word_embeddings: only true is known")
    try:
        kinds = config.get("attention_layers") or _expanded(config["attention_types"], config["num_layers"])
        values = {
            "family": "gpt_neo",
            "vocab_size": config["vocab_size"],
            "context": config["max_position_embeddings"],
            "n_layers": config["num_layers"],
            "d_model": config["hidden_size"],
            "n_heads": config["num_heads"],
            "d_mlp": config.get("intermediate_size"),
            "window": config.get("window_size", 256),
            "norm_eps": config.get("layer_norm_epsilon", 1e-5),
            "attention": kinds,
        }
    except KeyError as error:
        raise ValueError(f"config: {error.args[0]} is missing") from None
    weights = {k: v for k, v in state.items() if k != "lm_head.weight" and not k.endswith(_NOT_WEIGHTS)}
    return model_from(config_from(values), weights, _GPT_NEO)


def _expanded(types: Any, n_layers: Any) -> list[str]:
    """The kind of each layer, from a list such as `[[["global", "local"], 2]]`."""
    if not isinstance(types, list) or not all(
        isinstance(one, list) and len(one) == 2 and isinstance(one[0], list) and type(one[1]) is int for one in types
    ):
        raise ValueError(f"attention_types: expected lists of kinds with a number each, got {quoted(types)}")
    if sum(len(pattern) * max(0, times) for pattern, times in types) != n_layers:
        raise ValueError(f"attention: must be global or local for each of {quoted(n_layers)} layers: {quoted(types)}")
    return [kind for pattern, times in types for kind in pattern * times]


def _from_hub(name: str) -> Path:
    repository, file = split_name(name)
    if file is not None:
        return fetch(repository, file)
    folder = fetch(repository, _CONFIG).parent
    try:
        fetch(repository, _TENSORS)
    except ValueError:  # older models have no safetensors file
        fetch(repository, _TORCH)
    return folder


def _from_file(path: Path, n_heads: int | None) -> LM:
    if path.suffix == GGUF:
        return read_gguf(path)
    return read_llama2c(path) if path.suffix == LLAMA2C else tiny_model_from(_read_tensors(path)[0], n_heads)


def _from_folder(folder: Path) -> LM:
    config = load_object(folder / _CONFIG, "a model", most_bytes=_MOST_CONFIG)
    state, metadata = _tensors_of(folder)
    if config.get("model_type") in _OF_TRANSFORMERS:
        return _OF_TRANSFORMERS[config["model_type"]](state, config)
    lm = model_from(_own_config(config), state, {})
    if metadata.get(_SAVED_WITH, saved := json.dumps(config, sort_keys=True)) != saved:
        raise ValueError(f"{_CONFIG} is not the one that {_TENSORS} was saved with: save the model again")
    return lm


_OF_TRANSFORMERS = {"gpt_neo": gpt_neo_from, "llama": llama_from}  # by model_type


def _own_config(config: dict[str, Any]) -> LMConfig:
    names = field_names(str(config.get("family")))
    if config.keys() != set(names):
        got = quoted(", ".join(config))
        raise ValueError(f"{_CONFIG}: expected just the keys {', '.join(sorted(names))}, got {got}")
    return config_from(config)


def _tensors_of(folder: Path) -> tuple[Mapping[str, np.ndarray], dict[str, str]]:
    """The tensors of a folder's one file, or of those that its index lists, and the metadata of a single file."""
    if (folder / _TENSORS).exists():
        return _read_tensors(folder / _TENSORS)
    if (folder / _INDEX).exists():
        return _of_shards(folder), {}
    if indices := sorted(folder.glob("*.index.json")):
        raise ValueError(f"{indices[0]}: only safetensors are read in several files: save it as one (max_shard_size)")
    return _read_tensors(folder / _TORCH)


def _of_shards(folder: Path) -> dict[str, np.ndarray]:
    path = folder / _INDEX
    places = load_object(path, "an index of tensors").get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and file == Path(file).name for file in places.values()
    ):
        raise ValueError(f"{path}: broken: expected a weight_map from tensors to files beside it")
    shards = {file: load_arrays(folder / file)[0] for file in sorted(set(places.values()))}
    if lost := [name for name, file in places.items() if name not in shards[file]]:
        raise ValueError(f"{path}: not in the file that it names: {quoted(', '.join(lost))}: copy all files again")
    return {name: shards[file][name] for name, file in places.items()}


def _read_tensors(path: Path) -> tuple[Mapping[str, np.ndarray], dict[str, str]]:
    """Returns tensors by name, and the metadata of the file."""
    if path.suffix == ".safetensors":
        return load_arrays(path)
    tensors = read_torch_file(path)
    if isinstance(tensors, np.ndarray):
        raise ValueError(f"{path}: a single tensor, and not those of a model by name")
    return tensors, {}
