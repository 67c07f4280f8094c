"""Language models on disk: our own folders, state dicts of tiny_model, and GPT-Neo folders of Transformers."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from toy.checks import quoted
from toy.files.arrays import load_arrays, save_arrays
from toy.files.digest import digest_of
from toy.files.json_files import load_object, plain, save_json
from toy.files.torch_file import read_torch_file
from toy.lm.hub import fetch, is_hub_name, split_name
from toy.lm.model import LM, LMConfig

_CONFIG, _TENSORS, _TORCH = "config.json", "model.safetensors", "pytorch_model.bin"
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
_MOST_NAMES = 1_000  # characters of the names of tensors in a message
_TYPES: dict[str, tuple[type, ...]] = {  # of the configuration in JSON; others are whole numbers
    "family": (str,),
    "d_mlp": (int, type(None)),
    "norm_eps": (float, int),
    "attention": (list, type(None)),
}
_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".attn.attention.bias", ".attn.attention.masked_bias")


def load_model(path: Path | str, *, n_heads: int | None = None) -> LM:
    """A model in float32 from disk, or from the hub for `hub:OWNER/NAME` and `hub:OWNER/NAME/FILE`.

    A folder is one of `save_model` or a GPT-Neo of Transformers. A file is a state dict of tiny_model, which has 16
    heads if d_model is 768 and else `n_heads`. Raises: ValueError in one line that names the fault.
    """
    path = _from_hub(path) if isinstance(path, str) and is_hub_name(path) else Path(path)
    try:
        return _from_folder(path) if path.is_dir() else tiny_model_from(_read_tensors(path)[0], n_heads)
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {error}") from None


def save_model(folder: Path, lm: LM) -> None:
    """Write a model as a folder of `config.json` and `model.safetensors`, where tensors are named by path.

    The tensors' file also holds the configuration and a SHA-256, which `load_model` checks.

    Raises: ValueError naming the parameters that are not finite; OSError.
    """
    parameters = _parameters(lm)
    _check_finite(parameters)
    config = plain(asdict(lm.cfg), None)
    save_arrays(folder / _TENSORS, parameters, {_SAVED_WITH: json.dumps(config, sort_keys=True)})
    save_json(folder / _CONFIG, config, digits=None)


def model_digest(lm: LM) -> str:
    """SHA-256 of the configuration, with its defaults filled in, and of the parameters."""
    config = asdict(lm.cfg) | {"d_mlp": lm.cfg.n_hidden, "attention": lm.cfg.windows}
    return digest_of([config, digest_of(_parameters(lm))])


def tiny_model_from(state: Mapping[str, np.ndarray], n_heads: int | None = None) -> LM:
    """The model of a state dict of noanabeshima/tiny_model. Raises: ValueError naming every tensor that is wrong."""
    layers = {name.split(".")[1] for name in state if name.startswith("torso.") and name.count(".") > 1}
    sizes: dict[str, Any] = {"vocab_size": 1, "context": 1, "d_model": 1, "d_mlp": 1, "n_layers": max(1, len(layers))}
    _check_names(_shapes(LMConfig(n_heads=1, **sizes), _TINY_MODEL), state)
    if state["embed.weight"].ndim == 2:
        sizes["vocab_size"], sizes["d_model"] = state["embed.weight"].shape
    if state["pos_embed"].ndim == 3:
        sizes["context"] = state["pos_embed"].shape[1]
    if state["torso.0.mlp.read_in.weight"].ndim == 2:
        sizes["d_mlp"] = state["torso.0.mlp.read_in.weight"].shape[0]
    if n_heads is None and sizes["d_model"] != 768:
        raise ValueError(f"the file does not give the number of heads: pass n_heads (d_model is {sizes['d_model']})")
    return _model_from(LMConfig(n_heads=16 if n_heads is None else n_heads, **sizes), state, _TINY_MODEL)


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
    return _model_from(_config(values), weights, _GPT_NEO)


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


def _from_folder(folder: Path) -> LM:
    config = load_object(folder / _CONFIG, "a model", most_bytes=_MOST_CONFIG)
    if indices := sorted(folder.glob("*.index.json")):
        raise ValueError(f"{indices[0]}: a model in several files is not read: save it as one (max_shard_size)")
    state, metadata = _read_tensors(folder / (_TENSORS if (folder / _TENSORS).exists() else _TORCH))
    if config.get("model_type") == "gpt_neo":
        return gpt_neo_from(state, config)
    lm = _model_from(_own_config(config), state, {})
    if metadata.get(_SAVED_WITH, saved := json.dumps(config, sort_keys=True)) != saved:
        raise ValueError(f"{_CONFIG} is not the one that {_TENSORS} was saved with: save the model again")
    return lm


def _own_config(config: dict[str, Any]) -> LMConfig:
    names = {field.name for field in fields(LMConfig)}
    if config.keys() != names:
        got = quoted(", ".join(config))
        raise ValueError(f"{_CONFIG}: expected just the keys {', '.join(sorted(names))}, got {got}")
    return _config(config)


def _config(values: dict[str, Any]) -> LMConfig:
    """Check the types of values from JSON; `LMConfig` checks their ranges."""
    for name, value in values.items():
        if type(value) not in _TYPES.get(name, (int,)):
            raise ValueError(f"config: {name}: must be {_TYPES.get(name, (int,))[0].__name__}, got {quoted(value)}")
    family, kinds = values["family"], values["attention"]
    if family not in ("tiny_model", "gpt_neo"):
        raise ValueError(f"config: family: must be tiny_model or gpt_neo, got {quoted(family)}")
    if not all(kind in ("global", "local") for kind in kinds or ()):
        raise ValueError(f"config: attention: must be a list of global and local, got {quoted(kinds)}")
    checked: dict[str, Any] = values | {"attention": None if kinds is None else tuple(kinds)}
    return LMConfig(**checked)


def _read_tensors(path: Path) -> tuple[Mapping[str, np.ndarray], dict[str, str]]:
    """Returns tensors by name, and the metadata of the file."""
    if path.suffix == ".safetensors":
        return load_arrays(path)
    tensors = read_torch_file(path)
    if isinstance(tensors, np.ndarray):
        raise ValueError(f"{path}: a single tensor, and not those of a model by name")
    return tensors, {}


def _parameters(lm: LM) -> dict[str, np.ndarray]:
    # safetensors writes wrong values for arrays that are not C-contiguous.
    flat = nnx.to_flat_state(nnx.state(lm, nnx.Param))
    return {".".join(map(str, path)): np.ascontiguousarray(leaf[...], np.float32) for path, leaf in flat}


def _abstract(cfg: LMConfig) -> tuple[Any, Any]:
    """Returns the graph of a model, and the shapes of its parameters by path, without allocating them."""
    graph, state = nnx.split(nnx.eval_shape(lambda: LM(cfg, rngs=nnx.Rngs(0))))
    return graph, nnx.to_flat_state(state)


def _renamed(path: tuple[Any, ...], names: Mapping[str, str]) -> str:
    name = ".".join(map(str, path))
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def _shapes(cfg: LMConfig, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the file of such a model; a Linear of PyTorch is (out, in)."""
    shapes = {}
    for path, leaf in _abstract(cfg)[1]:
        shape = leaf.shape[::-1] if names and path[-1] == "kernel" else leaf.shape
        shapes[_renamed(path, names)] = (1, *shape) if names is _TINY_MODEL and path == ("pos_embed",) else shape
    return shapes


def _check_names(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, np.ndarray]) -> None:
    missing, extra = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    parts = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(extra)}"] * bool(extra)
    if parts:
        raise ValueError(f"tensors: {quoted('; '.join(parts), _MOST_NAMES)}")


def _check_finite(tensors: Mapping[str, np.ndarray]) -> None:
    """Raises: ValueError naming the tensors that are not finite in float32."""
    with np.errstate(over="ignore"):
        wrong = [name for name, values in tensors.items() if not np.isfinite(values.astype(np.float32)).all()]
    if wrong:
        raise ValueError(f"tensors: not finite in float32: {quoted(', '.join(wrong))}")


def _model_from(cfg: LMConfig, state: Mapping[str, np.ndarray], names: Mapping[str, str]) -> LM:
    shapes = _shapes(cfg, names)
    _check_names(shapes, state)
    wrong = [f"{k} has shape {v.shape}, not {shapes[k]}" for k, v in state.items() if v.shape != shapes[k]]
    wrong += [f"{k} has {v.dtype} values" for k, v in state.items() if not jnp.issubdtype(v.dtype, jnp.floating)]
    if wrong:
        raise ValueError(f"tensors: {quoted('; '.join(wrong), _MOST_NAMES)}")
    _check_finite(state)
    graph, flat = _abstract(cfg)
    loaded = []
    for path, leaf in flat:
        values = state[_renamed(path, names)].reshape(shapes[_renamed(path, names)])
        values = values.T if names and path[-1] == "kernel" else values.reshape(leaf.shape)
        loaded.append((path, leaf.replace(jnp.asarray(np.ascontiguousarray(values, np.float32)))))
    return nnx.merge(graph, nnx.from_flat_state(loaded))
