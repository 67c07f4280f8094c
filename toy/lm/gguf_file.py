"""Llamas and byte-level tokenizers in GGUF files of llama.cpp, read by the package `gguf` (an extra)."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Bpe

from toy.checks import optional, quoted
from toy.lm.llama import llama_from
from toy.lm.model import LM
from toy.lm.tokenizer_json import naming

GGUF = ".gguf"  # how the files' names end
_CONFIG = {  # the settings of Transformers
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk": "model.layers",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{letter}": f"self_attn.{letter}_proj" for letter in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
_SPLITS = {  # before bytes are merged
    "gpt-2": _BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
}
_CONTROL = 3  # the type of tokens that are no text
_REMEDY = "copy it again, or convert the model to GGUF anew"


def read_gguf(path: Path) -> LM:
    """The model of a file. Raises: ValueError naming the file and what is wrong with it."""
    reader = _opened(path)
    facts = _facts(path, reader)
    if (kind := facts.get("general.architecture")) != "llama":
        raise ValueError(f"{path}: its architecture is {quoted(kind)}: only llama is read")
    if facts.get("llama.rope.scaling.type", "none") != "none":
        raise ValueError(f"{path}: rope.scaling: only unscaled rotary positions are known")
    state = {_renamed(tensor.name): _numbers(path, tensor) for tensor in reader.tensors}
    config = {theirs: facts[f"llama.{name}"] for theirs, name in _CONFIG.items() if f"llama.{name}" in facts}
    config |= {"tie_word_embeddings": "lm_head.weight" not in state}
    if "model.embed_tokens.weight" in state:
        config["vocab_size"] = len(state["model.embed_tokens.weight"])
    return llama_from(state, config, adjoining=True)


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    gguf = optional("gguf", "gguf", str(path))
    try:
        return _bounded(gguf.GGUFReader)(path)
    except Exception as error:  # of any type, where the file is cut off
        raise ValueError(f"{path}: broken, or no GGUF file: {quoted(str(error))}: {_REMEDY}") from None


def _bounded(reader: Any) -> Any:
    """The reader, made to stop at the end of the file: by itself it reads on over an array of any length."""

    def get(self: Any, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> np.ndarray:
        found = reader._get(self, offset, dtype, count, override_order)
        if len(found) < int(count):
            raise ValueError("it ends too early")
        return found

    return type("Bounded", (reader,), {"_get": get})


def _facts(path: Path, reader: Any) -> dict[str, Any]:
    try:
        return {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:
        raise ValueError(f"{path}: broken: {quoted(str(error))}: {_REMEDY}") from None


def _renamed(name: str) -> str:
    """The name in Transformers; parts that are not known stay, so that the name is refused as unknown."""
    return ".".join(_TENSORS.get(part, part) for part in name.split("."))


def _numbers(path: Path, tensor: Any) -> np.ndarray:
    """The tensor in float32, whatever it is packed as."""
    gguf = optional("gguf", "gguf", str(path))
    try:
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise ValueError(
            f"{path}: {quoted(tensor.name)} is packed as {kind}, which the package gguf does not unpack: "
            "take another file of the model, such as F16 or Q8_0"
        ) from None


def read_gguf_tokenizer(path: Path) -> Bpe:
    """The byte-level BPE in a file. Raises: ValueError naming the file and what is wrong with it."""
    facts = _facts(path, _opened(path))
    kind, split = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or split not in _SPLITS:
        known = " or ".join(_SPLITS)
        raise ValueError(
            f"{path}: a tokenizer of the kind {quoted(kind)}, {quoted(split)}: only gpt2 with {known} is read: give a "
            "folder with its tokenizer.json"
        )
    with naming(f"{path}: not a tokenizer"):
        return _byte_level(facts, split)


def _byte_level(facts: dict[str, Any], split: str) -> Bpe:
    tokens, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    bpe = Bpe(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    bpe.pre_tokenizer = _SPLITS[split]  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return bpe
