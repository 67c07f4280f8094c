"""SAEs in the folders of EleutherAI's sparsify, which consist of `cfg.json` and `sae.safetensors`."""

from pathlib import Path
from typing import Any

from toy.files.arrays import load_arrays, save_arrays
from toy.files.json_files import save_json
from toy.interop.saelens import CFG, SAVED_WITH
from toy.interop.settings import TRUTHS, Setting, check_k, load_cfg, of_function, settled, whole
from toy.interop.weights import (
    as_float32,
    as_layers,
    as_sae,
    check_weights,
    comparing_activations,
    named,
    sizes,
    to_write,
)
from toy.sae import SAE, Activation, ReLU

WEIGHTS = "sae.safetensors"
_TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")  # W_dec is [n_latents d_in], unlike a layer of PyTorch
_DESCRIBES = {  # no activation depends on these keys
    *("metadata", "expansion_factor", "num_latents", "lookup_max_order", "gram_table_hash"),
}
_NO_SAE = "such a model has another input or output than the activations, and is not read"
_SETTINGS = {
    "activation": Setting(("topk",), "other activations are not read", "topk"),
    "normalize_decoder": Setting(TRUTHS, "it says whether the decoder was normalised in training", True),
    "multi_topk": Setting(TRUTHS, "it says by which loss the SAE was trained", False),
    "signed": Setting((False,), "activations below 0 do not exist here", False),
    **{key: Setting((False,), _NO_SAE, False) for key in ("transcode", "skip_connection", "embed_skip", "gram_lookup")},
}


def read(folder: Path) -> tuple[SAE, Activation]:
    """The SAE of `SparseCoder.encode` and `decode`: TopK of ReLU(encoder(x − b_dec)), whatever the decoder norms."""
    given = load_cfg(folder / CFG)
    settled(folder / CFG, given, _SETTINGS, {*_DESCRIBES, "k", "d_in"}, "remove the key if no activation depends on it")
    path = folder / WEIGHTS
    found, metadata = load_arrays(path)
    found = named(path, found, _TENSORS)
    expected = of_function(given, _SETTINGS, _DESCRIBES)
    if metadata.get(SAVED_WITH, expected) != expected:
        raise ValueError(f"{folder}: {CFG} is not the one that {WEIGHTS} was saved with: save the SAE again")
    tensors = {name: as_float32(path, name, tensor) for name, tensor in found.items()}
    n_latents = sizes(path, tensors)[1]
    check_weights(path, tensors, whole(folder / CFG, given, "d_in"), given.get("num_latents") or n_latents)
    sae = as_sae(tensors, centred=True)
    return sae, comparing_activations(sae, check_k(folder / CFG, given.get("k", 32), n_latents))


def write(folder: Path, sae: SAE, activation: Activation, metadata: dict[str, Any]) -> None:
    """A ReLU SAE is written as TopK of all its latents, which is the same. One with a threshold cannot be written."""
    sae, tensors = to_write(sae, activation)
    if sae.threshold is not None:
        raise ValueError("sae: sparsify has no thresholds, and this SAE has one: write it to saelens")
    d_in, n_latents = tensors["W_enc"].shape
    k = n_latents if isinstance(activation, ReLU) else check_k("activation", activation.k, n_latents)
    cfg = {key: setting.default for key, setting in _SETTINGS.items()}
    cfg |= {"k": k, "d_in": d_in, "num_latents": n_latents, "normalize_decoder": False, "metadata": metadata}
    theirs = as_layers(tensors) | {name: tensors[name] for name in ("W_dec", "b_dec")}
    save_arrays(folder / WEIGHTS, theirs, {SAVED_WITH: of_function(cfg, _SETTINGS, _DESCRIBES)})
    save_json(folder / CFG, cfg, digits=None)
