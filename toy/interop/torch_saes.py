"""SAEs in files of PyTorch: dictionary_learning's folders, and the state dicts of tiny_model and the reference code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from toy.checks import quoted
from toy.files.json_files import save_json
from toy.files.torch_file import read_torch_file
from toy.files.torch_save import save_torch_file
from toy.interop.settings import check_k, load_cfg
from toy.interop.weights import (
    LINEAR,
    PLAIN,
    Tensors,
    as_float32,
    as_layers,
    as_sae,
    check_weights,
    comparing_activations,
    named,
    sizes,
    to_write,
)
from toy.sae import RELU, SAE, Activation, TopK, fold_decoder_norm, fold_input_scale

AE, CONFIG = "ae.pt", "config.json"


class _Kind(NamedTuple):
    """A class of dictionary_learning: its tensors, and how it encodes."""

    tensors: tuple[str, ...]
    centred: bool  # subtracts the decoder's bias from the input
    in_units_of_x: bool = False  # multiplies activations by decoder norms
    ignored: tuple[str, ...] = ()


_LAYERS = (*LINEAR, "encoder.bias")
_COUNTS = ("k", "group_sizes")
_KINDS = {
    "AutoEncoder": _Kind((*_LAYERS, "bias"), centred=True),
    "AutoEncoderNew": _Kind((*_LAYERS, "decoder.bias"), centred=False),
    "GatedAutoEncoder": _Kind((*LINEAR, "decoder_bias", "gate_bias", "mag_bias", "r_mag"), True, in_units_of_x=True),
    "JumpReluAutoEncoder": _Kind((*PLAIN, "threshold"), centred=False, in_units_of_x=True),
    "AutoEncoderTopK": _Kind((*_LAYERS, "b_dec"), centred=True, ignored=("k", "threshold")),
    "BatchTopKSAE": _Kind((*_LAYERS, "b_dec", "threshold"), centred=True, ignored=_COUNTS),
    "MatryoshkaBatchTopKSAE": _Kind((*PLAIN, "threshold"), centred=True, ignored=_COUNTS),
}
_REFERENCE = ("sq_act_running_avg", "normalizer.running_avg")


def read_dictionary(folder: Path) -> tuple[SAE, Activation]:
    """Returns the SAE of `encode` and `decode` of the class in `config.json`; batches are cut by the threshold."""
    trainer = load_cfg(folder / CONFIG).get("trainer")
    trainer = trainer if isinstance(trainer, Mapping) else {}
    name = trainer.get("dict_class")
    if not isinstance(name, str) or name not in _KINDS:
        raise ValueError(
            f"{folder / CONFIG}: trainer.dict_class is {quoted(name)}, expected {' or '.join(_KINDS)}: "
            "other dictionaries are not read"
        )
    kind, path = _KINDS[name], folder / AE
    found = _tensors(path)
    sae = _sae(path, named(path, found, kind.tensors, kind.ignored), centred=kind.centred)
    if kind.in_units_of_x:
        sae = fold_decoder_norm(sae)
    if name != "AutoEncoderTopK":
        return sae, RELU
    of_file = found["k"].tolist() if "k" in found else None
    k = trainer.get("k", of_file)
    if of_file not in (None, k):
        raise ValueError(f"{folder / CONFIG}: k is {quoted(k)}, and {quoted(of_file)} in {AE}: save the SAE again")
    return sae, comparing_activations(sae, check_k(folder / CONFIG, k, len(sae.b_enc)))


def write_dictionary(folder: Path, sae: SAE, activation: Activation, metadata: dict[str, Any]) -> None:
    """An `AutoEncoderTopK` for TopK, a `JumpReluAutoEncoder` for an SAE with a threshold, else an `AutoEncoderNew`."""
    sae, tensors = to_write(sae, activation)
    d_in, n_latents = tensors["W_enc"].shape
    trainer: dict[str, Any] = {"activation_dim": d_in, "dict_size": n_latents, "metadata": metadata}
    if isinstance(activation, TopK):
        trainer |= {"dict_class": "AutoEncoderTopK", "k": check_k("activation", activation.k, n_latents)}
        never = np.float32(-1)  # the threshold of an SAE whose training has not set one
        theirs = as_layers(tensors) | {"b_dec": tensors["b_dec"], "k": np.int32(activation.k), "threshold": never}
        theirs["decoder.weight"] = tensors["W_dec"].T
    elif sae.threshold is not None:
        trainer["dict_class"], theirs = "JumpReluAutoEncoder", tensors
    else:
        trainer["dict_class"] = "AutoEncoderNew"
        theirs = {"encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"]}
        theirs |= {"decoder.weight": tensors["W_dec"].T, "decoder.bias": tensors["b_dec"]}
    save_torch_file(folder / AE, theirs)
    save_json(folder / CONFIG, {"trainer": trainer}, digits=None)


def read_state(path: Path) -> tuple[SAE, Activation]:
    """A ReLU SAE by the names of its tensors, which are those of tiny_model or of the reference code.

    The latter's running average of input norms is folded in, and its activations are in units of x (`get_acts`).
    """
    found = _tensors(path)
    if "encoder.weight" in found:
        return _sae(path, named(path, found, (*_LAYERS, "decoder.bias")), centred=False), RELU
    sae = _sae(path, named(path, found, PLAIN, _REFERENCE), centred=False)
    if "normalizer.running_avg" not in found:
        return sae, RELU
    norm = np.ravel(found["normalizer.running_avg"].astype(np.float32))
    if len(norm) != 1 or not 0 < norm[0] < np.inf:
        raise ValueError(
            f"{path}: normalizer.running_avg is {quoted(norm.tolist())}, expected one positive mean norm: train the SAE"
        )
    scale = jnp.float32(np.sqrt(len(sae.b_dec)) / norm[0])
    return fold_decoder_norm(fold_input_scale(sae, scale)), RELU


def _tensors(path: Path) -> dict[str, np.ndarray]:
    found = read_torch_file(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a single tensor, expected those of an SAE by name")
    return found


def _sae(path: Path, found: Tensors, *, centred: bool) -> SAE:
    tensors = {name: as_float32(path, name, tensor) for name, tensor in found.items()}
    d_in, n_latents = sizes(path, tensors)
    if "threshold" in tensors and not tensors["threshold"].ndim:  # one for all latents
        tensors["threshold"] = np.full(n_latents, tensors["threshold"])
    check_weights(path, tensors, d_in, n_latents)
    return as_sae(tensors, centred=centred)
