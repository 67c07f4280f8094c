"""SAEs in the folders of SAELens, which consist of `cfg.json` and `sae_weights.safetensors`.

All keys and values of `cfg.json` that are read are listed in this file. Anything else is refused by name, because an
ignored setting would silently change the activations.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from toy.checks import quoted
from toy.files.arrays import load_arrays, save_arrays
from toy.files.json_files import load_object, save_json
from toy.sae import RELU, SAE, Activation, BatchTopK, TopK, decoder_norms, fold_decoder_norm

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_VERSION = "6.54.12"  # of SAELens, whose format `save_sae` writes
_MOST_CFG = 2**20  # bytes
_SAVED_WITH = "toy.cfg"  # the entry of the weights' metadata that holds the configuration
_DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(jnp.bfloat16),
}
_DTYPES |= {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
_HOOKS = ("hook_name", "hook_point")
_DESCRIBES = {  # the SAE's origin and use; no activation depends on these keys
    *("metadata", "device", "sae_lens_version", "sae_lens_training_version", "neuronpedia_id", "model_name"),
    *("model_class_name", "model_from_pretrained_kwargs", "hook_layer", "hook_head_index", "hook_name_out"),
    *("hook_head_index_out", "hook_layer_out", "hf_hook_name", "hf_hook_name_out", "hook_point_layer"),
    *("hook_point_head_index", "context_size", "prepend_bos", "exclude_special_tokens", "seqpos_slice"),
    *("dataset_path", "dataset_trust_remote_code", "use_sparse_activations", *_HOOKS),
}


class _Setting(NamedTuple):
    """The allowed values of a key, and what to do about others."""

    allowed: tuple[Any, ...]
    remedy: str
    default: Any = None  # SAELens' own default; None if the key is required


_OLD = "load it with SAELens 6 and save it again"
_FOLD = "fold it into the weights with SAELens, and save it again"
_TRUTHS = (False, True)
_SETTINGS = {
    "architecture": _Setting(
        ("standard", "jumprelu", "topk", "gated"), "other architectures are not read, nor old folders"
    ),
    "dtype": _Setting((*_DTYPES,), "save it in one of these types"),
    "apply_b_dec_to_input": _Setting(_TRUTHS, "it says whether b_dec is subtracted from the input", True),
    "normalize_activations": _Setting(("none",), f"no normalisation is done here; where it is linear, {_FOLD}", "none"),
    "reshape_activations": _Setting(("none",), "heads are not flattened here", "none"),
    "activation_fn_str": _Setting(("relu",), _OLD, "relu"),
    "activation_fn": _Setting(("relu",), _OLD, "relu"),
    "activation_fn_kwargs": _Setting(({},), _OLD, {}),
    "finetuning_scaling_factor": _Setting((False,), _FOLD, False),
}
_TENSORS = {"jumprelu": SAE._fields, "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")}
_RESCALES = "rescale_acts_by_decoder_norm"
_OF_TOPK = {_RESCALES: _Setting(_TRUTHS, "it says by what activations are compared", False)}


def save_sae(folder: Path, sae: SAE, activation: Activation = RELU, *, metadata: dict[str, Any] | None = None) -> None:
    """Write an SAE as the folder SAELens loads: `sae_weights.safetensors` and `cfg.json`.

    The architecture is `topk` for TopK, `jumprelu` for an SAE with a threshold (BatchTopK), else `standard`. `sae` must
    act on unscaled inputs, as those of `trained_sae` do. Decoder norms of a TopK SAE are folded into the encoder, since
    SAELens compares activations and not their sizes. The weights' file also holds the configuration, so that a folder
    whose saving was killed between the two files is refused.

    Raises: ValueError naming a tensor that is not finite or has a wrong shape, before anything is written; OSError.
    """
    if isinstance(activation, BatchTopK) and sae.threshold is None:
        raise ValueError("sae: a BatchTopK SAE is saved with its threshold; trained_sae gives it")
    if isinstance(activation, TopK):
        sae = fold_decoder_norm(sae)._replace(threshold=None)
    tensors = {name: np.asarray(leaf, np.float32) for name, leaf in sae._asdict().items() if leaf is not None}
    if tensors["W_enc"].ndim != 2:
        raise ValueError(f"sae: W_enc: expected (d_in, n_latents), got shape {tensors['W_enc'].shape}: save one lane")
    d_in, n_latents = tensors["W_enc"].shape
    _check_weights("sae", tensors, d_in, n_latents)
    cfg: dict[str, Any] = {
        "architecture": "standard" if sae.threshold is None else "jumprelu",
        "d_in": d_in,
        "d_sae": n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": _VERSION, **(metadata or {})},
    }
    if isinstance(activation, TopK):
        cfg |= {"architecture": "topk", "k": _k("activation", activation.k, n_latents), _RESCALES: False}
    save_arrays(folder / WEIGHTS, tensors, {_SAVED_WITH: _of_function(cfg)})
    save_json(folder / CFG, cfg, digits=None)


def load_sae(folder: Path) -> tuple[SAE, Activation]:
    """Returns the SAE of a folder of SAELens in float32, and the activation with which it computes the same.

    `apply_b_dec_to_input` is folded into b_enc, and `rescale_acts_by_decoder_norm` into the encoder and decoder. A
    gated SAE is read as the JumpReLU SAE that it equals (Rajamanoharan et al., arXiv 2404.16014).

    Raises: ValueError naming the file, the key or tensor that cannot be read, and the remedy.
    """
    cfg = _read_cfg(folder)
    found, metadata = load_arrays(folder / WEIGHTS)
    names = _TENSORS.get(cfg["architecture"], SAE._fields[:-1])
    if set(found) != set(names):
        got = quoted(", ".join(sorted(found)))
        raise ValueError(f"{folder / WEIGHTS}: expected tensors {', '.join(names)}, got {got}")
    if metadata.get(_SAVED_WITH, _of_function(cfg)) != _of_function(cfg):
        raise ValueError(f"{folder}: {CFG} is not the one that {WEIGHTS} was saved with: save the SAE again")
    tensors = {name: _as_float32(folder, name, found[name], cfg["dtype"]) for name in names}
    _check_weights(folder / WEIGHTS, tensors, cfg["d_in"], cfg["d_sae"])
    if cfg["apply_b_dec_to_input"]:
        moved = tensors["b_dec"].astype(np.float64) @ tensors["W_enc"].astype(np.float64)
        for name, scale in _biases(tensors).items():
            tensors[name] = (tensors[name] - moved * scale).astype(np.float32)
    if cfg["architecture"] == "gated":
        tensors = _from_gated(tensors)
    sae = SAE(**{name: jnp.asarray(tensor) for name, tensor in tensors.items()})
    return (sae, RELU) if cfg["architecture"] != "topk" else _as_topk(folder, sae, cfg)


def _biases(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray | float]:
    """The biases of pre-activations by name, and what x W_enc is multiplied by before each is added."""
    return {"b_enc": 1.0} if "b_enc" in tensors else {"b_gate": 1.0, "b_mag": np.exp(tensors["r_mag"].astype(float))}


def _from_gated(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(x W_enc + b_gate > 0) · ReLU(exp(r_mag) · x W_enc + b_mag) as ReLU(…) above a threshold."""
    scale = np.exp(tensors["r_mag"].astype(float))
    return {
        "W_enc": (tensors["W_enc"] * scale).astype(np.float32),
        "b_enc": tensors["b_mag"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
        "threshold": (tensors["b_mag"] - scale * tensors["b_gate"]).astype(np.float32),
    }


def _read_cfg(folder: Path) -> dict[str, Any]:
    """Returns the settings in `cfg.json`, with SAELens' defaults filled in."""
    path = folder / CFG
    cfg = load_object(path, "an SAE", most_bytes=_MOST_CFG)
    settings = _SETTINGS | (_OF_TOPK if cfg.get("architecture") == "topk" else {})
    known = {*settings, *_DESCRIBES, "d_in", "d_sae"} | ({"k"} if cfg.get("architecture") == "topk" else set())
    for key, setting in settings.items():
        _check_setting(path, cfg, key, setting)
    if unknown := sorted(cfg.keys() - known):
        raise ValueError(
            f"{path}: {quoted(unknown[0])} is {quoted(cfg[unknown[0]])}, which is not known for "
            f"{cfg['architecture']!r}: {_OLD}, or remove the key if no activation depends on it"
        )
    if "reshape_activations" not in cfg and any("hook_z" in str(cfg.get(key, "")) for key in _HOOKS):
        raise ValueError(f"{path}: reshape_activations is absent, which is 'hook_z' for this hook: {_OLD}")
    if not isinstance(cfg.get("metadata", {}), dict):
        raise ValueError(f"{path}: metadata: expected an object, got {quoted(cfg['metadata'])}")
    for key in ("d_in", "d_sae"):
        if type(cfg.get(key)) is not int or cfg[key] < 1:
            raise ValueError(f"{path}: {key}: expected a whole number of at least 1, got {quoted(cfg.get(key))}")
    return {key: setting.default for key, setting in settings.items()} | cfg


def _check_setting(path: Path, cfg: dict[str, Any], key: str, setting: _Setting) -> None:
    if key not in cfg and setting.default is not None:
        return
    value = cfg.get(key)
    if not any(type(value) is type(allowed) and value == allowed for allowed in setting.allowed):
        options = " or ".join(map(repr, setting.allowed))
        got = f"is {quoted(value)}" if key in cfg else "is missing"
        raise ValueError(f"{path}: {key} {got}, expected {options}: {setting.remedy}")


def _of_function(cfg: dict[str, Any]) -> str:
    """The part of a configuration on which activations depend, as text."""
    defaults = {key: setting.default for key, setting in _SETTINGS.items()}
    return json.dumps({key: value for key, value in (defaults | cfg).items() if key not in _DESCRIBES}, sort_keys=True)


def _as_float32(folder: Path, name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Convert via the type in cfg.json, as SAELens does."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"{folder / WEIGHTS}: {name} has {tensor.dtype} values, expected floating-point numbers")
    with np.errstate(over="ignore"):  # infinite numbers are refused later
        return tensor.astype(_DTYPES[dtype]).astype(np.float32)


def _check_weights(owner: Path | str, tensors: dict[str, np.ndarray], d_in: int, d_sae: int) -> None:
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    for name, tensor in tensors.items():
        expected = shapes.get(name, (d_sae,))
        if tensor.shape != expected:
            raise ValueError(
                f"{owner}: {name} has shape {tensor.shape}, expected {expected} by d_in = {d_in} and d_sae = {d_sae}"
            )
        if not np.isfinite(tensor).all():
            raise ValueError(f"{owner}: {name} has numbers that are not finite in float32: train or export it again")


def _k(owner: Path | str, k: Any, d_sae: int) -> int:
    if type(k) is not int or not 1 <= k <= d_sae:
        raise ValueError(f"{owner}: k: expected a whole number from 1 to d_sae = {d_sae}, got {quoted(k)}")
    return k


def _as_topk(folder: Path, sae: SAE, cfg: dict[str, Any]) -> tuple[SAE, Activation]:
    """Reconcile SAELens' TopK, which compares activations unless they are rescaled, with ours (see `TopK`)."""
    activation = TopK(_k(folder / CFG, cfg.get("k"), cfg["d_sae"]))
    if cfg[_RESCALES]:
        return fold_decoder_norm(sae), activation
    norms = np.asarray(decoder_norms(sae))
    if not np.allclose(norms, norms.mean(), rtol=1e-5, atol=0):
        raise ValueError(
            f"{folder / CFG}: 'topk' is read with equal decoder norms unless {_RESCALES} is true, got norms from "
            f"{norms.min():.4g} to {norms.max():.4g}: SAELens compares activations here, and not their sizes"
        )
    return sae, activation
