"""SAEs in the folders of SAELens, which consist of `cfg.json` and `sae_weights.safetensors`."""

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from toy.checks import quoted
from toy.files.arrays import load_arrays, save_arrays
from toy.files.json_files import load_object, save_json
from toy.interop.settings import TRUTHS, Setting, check_k, load_cfg, of_function, settled, whole
from toy.interop.weights import GATED, PLAIN, as_float32, as_sae, check_weights, comparing_activations, named, to_write
from toy.sae import RELU, SAE, Activation, MatchingPursuit, TopK, fold_decoder_norm

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_SCALER = "activation_scaler.json"  # stands in the folders of checkpoints
_VERSION = "6.54.12"  # of SAELens, whose format is written
SAVED_WITH = "toy.cfg"  # the entry of the weights' metadata that holds the configuration
_DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(jnp.bfloat16),
}
_DTYPES |= {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
_HOOKS = ("hook_name", "hook_point")
_DESCRIBES = {  # the SAE's origin, training and use; no activation depends on these keys
    *("metadata", "device", "sae_lens_version", "sae_lens_training_version", "neuronpedia_id", "model_name"),
    *("model_class_name", "model_from_pretrained_kwargs", "hook_layer", "hook_head_index", "hook_name_out"),
    *("hook_head_index_out", "hook_layer_out", "hf_hook_name", "hf_hook_name_out", "hook_point_layer"),
    *("hook_point_head_index", "context_size", "prepend_bos", "exclude_special_tokens", "seqpos_slice"),
    *("dataset_path", "dataset_trust_remote_code", "use_sparse_activations", *_HOOKS),
    *("decoder_init_norm", "l1_coefficient", "lp_norm", "l1_warm_up_steps", "l0_coefficient", "l0_warm_up_steps"),
    *("target_l0", "pre_act_loss_coefficient", "aux_loss_coefficient", "topk_threshold_lr", "matryoshka_widths"),
    *("use_matryoshka_aux_loss", "jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode"),
    *("jumprelu_tanh_scale", "jumprelu_ste_to_input"),
}
_OLD = "load it with SAELens 6 and save it again"
_UNKNOWN = f"{_OLD}, or remove the key if no activation depends on it"
_FOLD = "fold it into the weights with SAELens, and save it again"
_SCALED = "expected_average_only_in"
_BY_ROW = f"{_FOLD}; where it depends on each row, as in layer_norm, give the SAE normalised rows and set it to 'none'"
_OF_BATCH = ("batchtopk", "matryoshka_batchtopk")  # in training; JumpReLU afterwards
_PURSUIT, _TOLERANCE = "matching_pursuit", "tolerance"  # a key of ours, without which rounds end at k alone
_SETTINGS = {
    "architecture": Setting(
        ("standard", "jumprelu", "topk", "gated", *_OF_BATCH, _PURSUIT),
        "other architectures are not read, nor old folders",
    ),
    "dtype": Setting((*_DTYPES,), "save it in one of these types"),
    "apply_b_dec_to_input": Setting(TRUTHS, "it says whether b_dec is subtracted from the input", True),
    "normalize_activations": Setting(("none", _SCALED), _BY_ROW, "none"),
    "reshape_activations": Setting(("none",), "heads are not flattened here", "none"),
    "activation_fn_str": Setting(("relu",), _OLD, "relu"),
    "activation_fn": Setting(("relu",), _OLD, "relu"),
    "activation_fn_kwargs": Setting(({},), _OLD, {}),
    "finetuning_scaling_factor": Setting((False,), _FOLD, False),
}
_RESCALES = "rescale_acts_by_decoder_norm"
_OF_TOPK = {_RESCALES: Setting(TRUTHS, "it says by what activations are compared", False)}
_ROUNDS = "here pursuit stops only at the relative tolerance or after max_iterations"
_OF_PURSUIT = {
    "apply_b_dec_to_input": Setting((True,), "the residual starts here at x − b_dec", True),
    "normalize_activations": Setting(("none",), _FOLD, "none"),
    "residual_threshold": Setting((0.0,), _ROUNDS),
    "stop_on_duplicate_support": Setting((False,), _ROUNDS),
}
_TENSORS = {
    "jumprelu": SAE._fields,
    "gated": GATED,
    _PURSUIT: ("W_dec", "b_dec"),
    **dict.fromkeys(_OF_BATCH, (*PLAIN, "topk_threshold")),
}


def write(folder: Path, sae: SAE, activation: Activation, metadata: dict[str, Any]) -> None:
    """The architecture is `topk` for TopK, `jumprelu` for an SAE with a threshold (BatchTopK), else `standard`.

    SAELens always runs all k rounds of matching pursuit; here pursuit also stops at the tolerance, a key that only
    `read` understands.
    The weights' file also holds the configuration, so that a folder whose saving was killed between the two files is
    refused.
    """
    sae, tensors = to_write(sae, activation)
    d_in, n_latents = tensors["W_enc"].shape
    cfg: dict[str, Any] = {
        "architecture": "standard" if sae.threshold is None else "jumprelu",
        "d_in": d_in,
        "d_sae": n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": _VERSION, **metadata},
    }
    if isinstance(activation, TopK):
        cfg |= {"architecture": "topk", "k": check_k("activation", activation.k, n_latents), _RESCALES: False}
    if isinstance(activation, MatchingPursuit):
        tensors = {name: tensors[name] for name in _TENSORS[_PURSUIT]}
        cfg |= {"architecture": _PURSUIT, "apply_b_dec_to_input": True, "max_iterations": activation.k}
        cfg |= {"residual_threshold": 0.0, "stop_on_duplicate_support": False, _TOLERANCE: activation.tolerance}
    save_arrays(folder / WEIGHTS, tensors, {SAVED_WITH: of_function(cfg, _SETTINGS, _DESCRIBES)})
    save_json(folder / CFG, cfg, digits=None)


def read(folder: Path) -> tuple[SAE, Activation]:
    """Returns the SAE of the folder as SAELens computes with it; a checkpoint of training as once it is exported.

    BatchTopK SAEs use their threshold. The scale of `expected_average_only_in` is that of the checkpoint.
    """
    cfg = _read_cfg(folder)
    rescales = cfg.get(_RESCALES, False)
    tensors = _read_weights(folder, cfg)
    if cfg["normalize_activations"] == _SCALED:
        _unscale(tensors, _scale(folder), rescales)
    if cfg["architecture"] == _PURSUIT:
        return _pursuit(folder, tensors, cfg)
    threshold = tensors.pop("topk_threshold", None)
    sae = as_sae(tensors, centred=cfg["apply_b_dec_to_input"])
    sae = fold_decoder_norm(sae) if rescales else sae
    if threshold is not None:
        sae = sae._replace(threshold=jnp.full(cfg["d_sae"], threshold))
    if cfg["architecture"] != "topk":
        return sae, RELU
    k = check_k(folder / CFG, cfg.get("k"), cfg["d_sae"])
    return sae, TopK(k) if rescales else comparing_activations(sae, k)


def _pursuit(folder: Path, tensors: dict[str, np.ndarray], cfg: dict[str, Any]) -> tuple[SAE, Activation]:
    rows = tensors["W_dec"]
    if not np.allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5, atol=0):
        raise ValueError(f"{folder / WEIGHTS}: W_dec: expected rows of norm 1 for {_PURSUIT}: normalise them")
    sae = as_sae({"W_enc": rows.T, "b_enc": np.zeros(len(rows), np.float32)} | tensors, centred=True)
    try:
        return sae, MatchingPursuit(whole(folder / CFG, cfg, "max_iterations"), cfg.get(_TOLERANCE, 0.0))
    except ValueError as error:
        raise ValueError(f"{folder / CFG}: {error}") from None


def _read_cfg(folder: Path) -> dict[str, Any]:
    path = folder / CFG
    given = load_cfg(path)
    of_topk = given.get("architecture") in ("topk", *_OF_BATCH)
    of_pursuit = given.get("architecture") == _PURSUIT
    settings = _SETTINGS | (_OF_TOPK if of_topk else _OF_PURSUIT if of_pursuit else {})
    counts = ("k",) if of_topk else ("max_iterations", _TOLERANCE) if of_pursuit else ()
    cfg = settled(path, given, settings, {*_DESCRIBES, "d_in", "d_sae", *counts}, _UNKNOWN)
    if "reshape_activations" not in given and any("hook_z" in str(cfg.get(key, "")) for key in _HOOKS):
        raise ValueError(f"{path}: reshape_activations is absent, which is 'hook_z' for this hook: {_OLD}")
    if not isinstance(cfg.get("metadata", {}), dict):
        raise ValueError(f"{path}: metadata: expected an object, got {quoted(cfg['metadata'])}")
    return cfg | {key: whole(path, cfg, key) for key in ("d_in", "d_sae")}


def _read_weights(folder: Path, cfg: dict[str, Any]) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    found, metadata = load_arrays(path)
    found = named(path, found, _TENSORS.get(cfg["architecture"], PLAIN))
    expected = of_function(cfg, _SETTINGS, _DESCRIBES)
    if metadata.get(SAVED_WITH, expected) != expected:
        raise ValueError(f"{folder}: {CFG} is not the one that {WEIGHTS} was saved with: save the SAE again")
    tensors = {name: as_float32(path, name, tensor, _DTYPES[cfg["dtype"]]) for name, tensor in found.items()}
    check_weights(path, tensors, cfg["d_in"], cfg["d_sae"])
    return tensors


def _scale(folder: Path) -> float:
    """Returns the factor by which SAELens multiplied inputs in training, to the mean norm √d_in."""
    path = folder / _SCALER
    if not path.exists():
        raise ValueError(
            f"{folder / CFG}: normalize_activations is {_SCALED}, and there is no {_SCALER} with the scale: {_FOLD}"
        )
    scale = load_object(path, "a scale").get("scaling_factor")
    if type(scale) is not float or not 0 < scale < math.inf:
        raise ValueError(f"{path}: scaling_factor: expected a positive number, got {quoted(scale)}: {_FOLD}")
    return scale


def _unscale(tensors: dict[str, np.ndarray], scale: float, rescales: bool) -> None:
    """SAELens' `fold_activation_norm_scaling_factor`: from an SAE of scale · x to one of x."""
    tensors["W_enc"] = (tensors["W_enc"] * scale).astype(np.float32)
    for name in ("W_dec", "b_dec", *(("topk_threshold",) if rescales else ())):
        if name in tensors:
            tensors[name] = (tensors[name] / scale).astype(np.float32)
