"""Llamas under the names of Transformers, to which those of other programs are converted."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from toy.checks import quoted
from toy.lm.model import LM
from toy.lm.state import config_from, model_from

_NAMES = {
    "blocks.": "model.layers.",
    "embed.embedding": "model.embed_tokens.weight",
    "ln_f.": "model.norm.",
    "ln_1.": "input_layernorm.",
    "ln_2.": "post_attention_layernorm.",
    **{f"attn.{letter}.": f"self_attn.{letter.lower()}_proj." for letter in "QKVO"},
    "mlp.gate.": "mlp.gate_proj.",
    "mlp.read_in.": "mlp.up_proj.",
    "mlp.write_out.": "mlp.down_proj.",
    ".scale": ".weight",
    ".kernel": ".weight",
}
_REQUIRED = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "d_mlp": "intermediate_size",
}
_TURNED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
_KNOWN = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}  # settings with a single known value


def llama_from(state: Mapping[str, np.ndarray], config: Mapping[str, Any], *, adjoining: bool = False) -> LM:
    """The model of Transformers' LlamaForCausalLM.

    `adjoining` says that the numbers of a head that turn as a pair adjoin in queries and keys, as llama2.c and
    llama.cpp have them. Raises: ValueError naming every setting or tensor that is wrong.
    """
    if missing := [theirs for theirs in _REQUIRED.values() if theirs not in config]:
        raise ValueError(f"config: {', '.join(missing)}: missing")
    for name, known in _KNOWN.items():
        if config.get(name, known) != known:
            raise ValueError(f"{name}: only {known!r} is known, got {quoted(repr(config[name]))}")
    values = {ours: config[theirs] for ours, theirs in _REQUIRED.items()} | {
        "family": "llama",
        "n_kv_heads": config.get("num_key_value_heads"),
        "d_head": config.get("head_dim"),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": _rope_theta(config),
        "tied": config.get("tie_word_embeddings", False),
    }
    cfg = config_from(values)
    weights = {name: values for name, values in state.items() if _is_weight(name, cfg.tied)}
    for name, values in weights.items():
        if adjoining and name.endswith(_TURNED) and values.ndim == 2 and len(values) % cfg.head_size == 0:
            weights[name] = _halves_first(values, cfg.head_size)
    return model_from(cfg, weights, _NAMES)


def _rope_theta(config: Mapping[str, Any]) -> Any:
    """The base of the rotary angles, from where old and new versions write it."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(f"rope_scaling: only unscaled rotary positions are known, got {quoted(rope)}")
    return rope.get("rope_theta", config.get("rope_theta", 1e4))


def _is_weight(name: str, tied: bool) -> bool:
    return not name.endswith("rotary_emb.inv_freq") and not (tied and name == "lm_head.weight")


def _halves_first(weight: Float[np.ndarray, "out d_in"], d_head: int) -> Float[np.ndarray, "out d_in"]:
    """Rows in the order of Transformers, where number i of a head turns with number i + d_head / 2."""
    return weight.reshape(-1, d_head // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
