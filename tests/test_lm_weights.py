"""Weights on disk: what is written is read bit for bit, what is wrong is named, and what is malicious does nothing."""

import json
import os
import pickle
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from zipfile import ZipFile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from oracles import tiny_model_state
from safetensors.numpy import load_file, save_file
from test_lm_model import CONFIG, Family, a_model, each_family, gpt_neo_state, some_tokens

import toy.lm.weights
from toy.files.torch_file import read_torch_file
from toy.lm.model import LM
from toy.lm.weights import gpt_neo_from, load_model, model_digest, save_model, tiny_model_from

KINDS = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Storage(NamedTuple):
    values: np.ndarray
    key: str
    n_values: Any


class Tensor:
    """A value that the test's pickler writes as a tensor of PyTorch; parts that are not given are those of `values`."""

    def __init__(self, values: np.ndarray, key: str = "0", *, n_values: Any = None, **parts: Any) -> None:
        self.storage = Storage(values, key, values.size if n_values is None else n_values)
        strides = tuple(step // values.itemsize for step in values.strides)
        self.parts = {"offset": 0, "shape": values.shape, "strides": strides} | parts
        self.is_parameter = False


@pytest.fixture
def torch_save(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a file as torch.save does, PyTorch's names being those of empty modules."""
    names = {"torch": [*KINDS, "device"], "torch._utils": ["_rebuild_tensor_v2", "_rebuild_parameter"]}
    made: dict[str, Any] = {}
    for module_name, members in names.items():
        module = ModuleType(module_name)
        for name in members:
            made[name] = type(name, (), {"__module__": module_name})
            setattr(module, name, made[name])
        monkeypatch.setitem(sys.modules, module_name, module)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, Storage):
                return None
            kind = next(name for name, dtype in KINDS.items() if obj.values.dtype == dtype)
            return ("storage", made[kind], obj.key, "cpu", obj.n_values)

        def reducer_override(self, obj: Any) -> Any:
            if not isinstance(obj, Tensor):
                return NotImplemented
            rebuilt = (made["_rebuild_tensor_v2"], (obj.storage, *obj.parts.values(), False, OrderedDict()))
            if not obj.is_parameter:
                return rebuilt
            plain = Tensor(obj.storage.values, obj.storage.key)
            return (made["_rebuild_parameter"], (plain, True, OrderedDict()))

    def write(data: Any, storages: Mapping[str, np.ndarray], name: str = "a.pt", byteorder: bytes = b"little") -> Path:
        buffer = BytesIO()
        Pickler(buffer, protocol=2).dump(data)
        with ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", buffer.getvalue())
            archive.writestr("archive/byteorder", byteorder)
            for key, values in storages.items():
                archive.writestr(f"archive/data/{key}", values.tobytes())
            archive.writestr("archive/version", b"3\n")
        return tmp_path / name

    return write


def save_state(torch_save: Callable[..., Path], state: Mapping[str, np.ndarray], name: str = "a.pt") -> Path:
    tensors = OrderedDict((k, Tensor(v, str(i))) for i, (k, v) in enumerate(state.items()))
    return torch_save(tensors, {str(i): v for i, v in enumerate(state.values())}, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_torch_file_is_read_in_every_type(kind: str, torch_save: Callable[..., Path]) -> None:
    values = np.array([[0, 1, 2], [3, 4, 5]]).astype(KINDS[kind])
    found = read_torch_file(torch_save(Tensor(values), {"0": values}))
    assert isinstance(found, np.ndarray)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_a_torch_file_may_share_storages_and_have_strides_offsets_parameters_and_metadata(
    torch_save: Callable[..., Path],
) -> None:
    values = np.arange(12, dtype=np.float32)
    parameter = Tensor(values)
    parameter.is_parameter = True
    state = OrderedDict(
        transposed=Tensor(values, shape=(4, 3), strides=(1, 4)),
        row=Tensor(values, offset=8, shape=(4,), strides=(1,)),
        expanded=Tensor(values, offset=2, shape=(5, 2), strides=(0, 1)),
        scalar=Tensor(values, offset=11, shape=(), strides=()),
        empty=Tensor(values, offset=99, shape=(0, 7), strides=(7, 1)),
        parameter=parameter,
    )
    state._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]  # as modules leave it
    found = read_torch_file(torch_save(state, {"0": values}))
    assert isinstance(found, dict)
    square = values.reshape(3, 4)
    expected = {
        "transposed": square.T,
        "row": square[2],
        "expanded": [[2, 3]] * 5,
        "scalar": 11,
        "empty": np.zeros((0, 7)),
        "parameter": values,
    }
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=isinstance(array, np.ndarray) and name != "empty")


class Malicious:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def test_a_torch_file_that_would_run_something_is_refused_and_runs_nothing(
    torch_save: Callable[..., Path], tmp_path: Path
) -> None:
    bait = tmp_path / "ran"
    for evil, name in (
        (Malicious(os.system, f"touch {bait}"), f"{os.name}.system"),
        (Malicious(eval, f"open({str(bait)!r}, 'w')"), "__builtin__.eval"),
        (Malicious(Path.touch, bait), "__builtin__.getattr"),
        (sys.modules["torch"].device, "torch.device"),
    ):
        path = torch_save(OrderedDict(a=evil), {})
        with pytest.raises(ValueError, match=rf"a\.pt: cannot be read as tensors: {name} is not allowed"):
            read_torch_file(path)
    assert not bait.exists()
    pickle.loads(pickle.dumps(Malicious(Path.touch, bait)))
    assert bait.exists()  # it would have run


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"offset": 1}, "reaches value 6 of a storage of 6"),
        ({"offset": -1}, "-1 is not a size"),
        ({"strides": (4, 1)}, "reaches value 6 of"),
        ({"strides": (-3, 1)}, "-3 is not a size"),
        ({"strides": (1,)}, "with strides"),
        ({"shape": (3, 3)}, "reaches value 8 of"),
        ({"shape": (2, -3)}, "-3 is not a size"),
        ({"shape": (2.0, 3)}, "not a number"),
        ({"shape": (2**70, 3)}, "reaches value"),
        ({"n_values": 7}, "should hold 7 values of float32, and has 24 bytes"),
        ({"n_values": 5}, "should hold 5 values of float32, and has 24 bytes"),
        ({"n_values": -1}, "not a size"),
        ({"key": "1"}, "archive/data/1"),
        ({"key": "../data.pkl"}, "archive"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(
    tensor: dict[str, Any], message: str, torch_save: Callable[..., Path]
) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = torch_save({"a": Tensor(values, **tensor)}, {"0": values})
    with pytest.raises(ValueError, match=message) as caught:
        read_torch_file(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_one_of_torch_save_is_refused_by_name(
    torch_save: Callable[..., Path], tmp_path: Path
) -> None:
    values = np.arange(600, dtype=np.float32)
    whole = torch_save({"a": Tensor(values)}, {"0": values}, "whole.pt").read_bytes()
    (tmp_path / "text.pt").write_text("no archive")
    (tmp_path / "empty.pt").touch()
    with ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a/b.txt", "")
    flipped = whole.replace(values.tobytes(), values[::-1].tobytes())
    assert flipped != whole
    (tmp_path / "flipped.pt").write_bytes(flipped)
    files = {
        tmp_path / "none.pt": "No such file",
        tmp_path: "Is a directory",
        tmp_path / "text.pt": "not a whole zip file",
        tmp_path / "empty.pt": "not a whole zip file",
        tmp_path / "other.pt": "which has a single data.pkl",
        tmp_path / "flipped.pt": "Bad CRC",
        torch_save({"a": Tensor(values)}, {"0": values}, "big.pt", b"big"): "not little-endian",
        torch_save({"a": 1}, {}, "number.pt"): "neither a tensor nor a dictionary of tensors",
        torch_save({1: Tensor(values)}, {"0": values}, "keys.pt"): "neither a tensor",
        torch_save([Tensor(values)], {"0": values}, "list.pt"): "neither a tensor",
    }
    for path, message in files.items():
        with pytest.raises(ValueError, match=message) as caught:
            read_torch_file(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    for n_bytes in range(0, len(whole), 37):
        (tmp_path / "cut.pt").write_bytes(whole[:n_bytes])
        with pytest.raises(ValueError, match=r"cut\.pt: not a whole zip file"):
            read_torch_file(tmp_path / "cut.pt")


def test_a_broken_pickle_is_refused_by_name(torch_save: Callable[..., Path], tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    with ZipFile(torch_save({"a": Tensor(values)}, {"0": values})) as archive:
        data = archive.read("archive/data.pkl")
    for n_bytes in range(len(data)):
        with ZipFile(tmp_path / "cut.pt", "w") as archive:
            archive.writestr("archive/data.pkl", data[:n_bytes])
            archive.writestr("archive/data/0", values.tobytes())
        with pytest.raises(ValueError, match=r"cut\.pt: cannot be read as tensors: "):
            read_torch_file(tmp_path / "cut.pt")


def assert_same(one: LM, other: LM) -> None:
    assert one.cfg.facts() == other.cfg.facts()
    leaves, others = (dict(nnx.to_flat_state(nnx.state(lm))) for lm in (one, other))
    assert leaves.keys() == others.keys()
    for path, leaf in leaves.items():
        assert others[path][...].dtype == jnp.float32
        np.testing.assert_array_equal(leaf[...], others[path][...])


@pytest.mark.slow
@each_family
def test_a_model_is_saved_and_loaded_bit_for_bit(family: Family, tmp_path: Path) -> None:
    lm = a_model(family)
    save_model(tmp_path / "lm", lm)
    assert sorted(path.name for path in (tmp_path / "lm").iterdir()) == ["config.json", "model.safetensors"]
    assert "blocks.2.attn.Q.kernel" in load_file(tmp_path / "lm" / "model.safetensors")
    loaded = load_model(str(tmp_path / "lm"))
    assert_same(lm, loaded)
    np.testing.assert_array_equal(lm(some_tokens()), loaded(some_tokens()))
    assert model_digest(loaded) == model_digest(lm)


def test_the_digest_tells_models_apart_and_not_ways_of_saying_the_same(tmp_path: Path) -> None:
    lm = a_model("gpt_neo")
    same = a_model("gpt_neo", d_mlp=32, attention=("global", "local", "global"))
    assert model_digest(same) == model_digest(lm)
    others = [a_model("gpt_neo", window=5), a_model("gpt_neo", n_heads=4), a_model("gpt_neo", norm_eps=1e-4)]
    nudged = a_model("gpt_neo")
    embedding = nudged.embed.embedding
    embedding[...] = embedding[...].at[0].add(1e-6)
    assert len({model_digest(model) for model in (lm, *others, nudged)}) == 5
    assert len(model_digest(lm)) == 64


def test_a_tiny_model_is_read_from_its_state_dict(torch_save: Callable[..., Path]) -> None:
    state = tiny_model_state(np.random.default_rng(0), 2, 12, vocab=13, context=12)
    halved = {name: values.astype(ml_dtypes.bfloat16) for name, values in state.items()}
    lm = load_model(save_state(torch_save, halved), n_heads=3)
    assert_same(lm, tiny_model_from({name: values.astype(np.float32) for name, values in halved.items()}, 3))
    assert (lm.cfg.n_layers, lm.cfg.d_model, lm.cfg.n_heads, lm.cfg.n_hidden) == (2, 12, 3, 36)
    assert (lm.cfg.vocab_size, lm.cfg.context) == (13, 12)


def test_a_tiny_model_of_768_has_16_heads_and_another_says_how_many_it_needs(torch_save: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    assert tiny_model_from(tiny_model_state(rng, 1, 768, vocab=2, context=2)).cfg.n_heads == 16
    path = save_state(torch_save, tiny_model_state(rng, 1, 12, vocab=2, context=2))
    with pytest.raises(
        ValueError, match=r"a\.pt: the file does not give the number of heads: pass n_heads \(d_model is 12\)"
    ):
        load_model(path)
    for n_heads in (0, 5):
        with pytest.raises(ValueError, match=f"n_heads: must .* got {n_heads}"):
            load_model(path, n_heads=n_heads)


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors"])
def test_a_gpt_neo_folder_of_transformers_is_read(
    weights: str, torch_save: Callable[..., Path], tmp_path: Path
) -> None:
    state = gpt_neo_state(np.random.default_rng(0), CONFIG)
    buffers = {
        "transformer.h.0.attn.attention.bias": np.ones((1, 1, 12, 12), np.bool_),
        "transformer.h.0.attn.attention.masked_bias": np.array(-1e9, np.float32),
        "lm_head.weight": state["transformer.wte.weight"],
    }
    if weights.endswith(".bin"):
        save_state(torch_save, state | buffers, weights)
    else:
        save_file(state | buffers, tmp_path / weights)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "gpt_neo"}))
    lm = load_model(tmp_path)
    assert_same(lm, gpt_neo_from(state, CONFIG))
    assert lm.cfg.windows == (None, 3, 3)
    assert (lm.cfg.n_hidden, lm.cfg.context, lm.cfg.norm_eps) == (20, 12, 1e-3)


def test_the_layers_of_a_gpt_neo_may_be_listed_one_by_one() -> None:
    state = gpt_neo_state(np.random.default_rng(0), CONFIG)
    config = CONFIG | {"attention_layers": ["local", "local", "global"]}
    assert gpt_neo_from(state, config).cfg.windows == (3, 3, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "relu"}, "activation_function: only gelu_new is known, got 'relu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"attention_types": None}, "attention_types is missing"),
        ({"num_heads": "2"}, "n_heads: must be int, got 2"),
        ({"num_layers": 2}, "attention: must be global or local for each of 2 layers"),
        ({"vocab_size": 14}, r"transformer\.wte\.weight has shape \(13, 8\), not \(14, 8\)"),
    ],
)
def test_a_gpt_neo_configuration_that_is_not_its_models_is_refused(changes: dict[str, Any], message: str) -> None:
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        gpt_neo_from(gpt_neo_state(np.random.default_rng(0), CONFIG), config)


@pytest.mark.parametrize("family", ["tiny_model", "gpt_neo", "own"])
def test_every_tensor_that_is_wrong_is_named(family: str, tmp_path: Path) -> None:
    def of_folder(state: Mapping[str, np.ndarray]) -> LM:
        save_file(dict(state), tmp_path / "model.safetensors")
        return load_model(tmp_path)

    load: Callable[[Mapping[str, np.ndarray]], LM] = of_folder
    if family == "tiny_model":
        state, load = (
            tiny_model_state(np.random.default_rng(0), 2, 12, vocab=13, context=12),
            partial(tiny_model_from, n_heads=3),
        )
        names = ("embed.weight", "torso.1.attn.K.weight", "torso.0.mlp.read_in.bias", "lm_head.bias")
    elif family == "gpt_neo":
        state, load = gpt_neo_state(np.random.default_rng(0), CONFIG), partial(gpt_neo_from, config=CONFIG)
        names = ("transformer.wpe.weight", "transformer.h.1.attn.attention.q_proj.weight", "transformer.ln_f.bias")
        names += ("transformer.h.2.mlp.c_fc.weight",)
    else:
        save_model(tmp_path, a_model("gpt_neo"))
        state = load_file(tmp_path / "model.safetensors")
        names = ("pos_embed", "blocks.0.ln_1.scale", "blocks.1.attn.O.bias", "blocks.2.mlp.read_in.kernel")
    missing = {name: values for name, values in state.items() if name not in names[:2]}
    extra = {"foreign.weight": np.ones(3, np.float32), "torso.7.attn.Q.weight": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match="tensors: missing") as caught:
        load(missing | extra)
    assert all(name in str(caught.value) for name in (*names[:2], *extra))
    with pytest.raises(ValueError, match="has shape") as caught:
        load(dict(state) | {name: np.ascontiguousarray(state[name][:-1]) for name in names[2:]})
    assert all(f"{name} has shape" in str(caught.value) for name in names[2:])
    with pytest.raises(ValueError, match=f"{names[3]} has int32 values"):
        load(dict(state) | {names[3]: state[names[3]].astype(np.int32)})
    load(state)


def test_a_folder_that_holds_no_model_is_refused_by_name(tmp_path: Path, torch_save: Callable[..., Path]) -> None:
    def refused(message: str, path: Path = tmp_path) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load_model(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    config = tmp_path / "config.json"
    refused("No such file", tmp_path / "none.pt")
    refused("config.json: cannot be read as a model")
    config.write_text("{")
    refused("config.json: broken: no JSON")
    config.write_text("[]")
    refused("config.json: broken: expected an object")
    config.write_text("{}")
    refused("pytorch_model.bin: No such file")
    (tmp_path / "model.safetensors").write_text("no tensors")
    refused("model.safetensors: broken, or no safetensors file")
    save_model(tmp_path, a_model("tiny_model"))
    written = json.loads(config.read_text())
    for changed, message in (
        ({"model_type": "mistral"}, "expected just the keys .*family.*, got model_type"),
        (written | {"more": 1}, "expected just the keys"),
        (written | {"n_heads": 3}, "n_heads: must divide"),
        (written | {"n_layers": "3"}, "n_layers: must be int, got 3"),
        (written | {"n_layers": 2}, "unknown blocks.2"),
    ):
        config.write_text(json.dumps(changed))
        refused(message)
    config.write_text(json.dumps(written))
    load_model(tmp_path)
    values = np.ones(3, np.float32)
    refused("a single tensor", torch_save(Tensor(values), {"0": values}))


def test_a_model_of_the_hub_is_fetched_by_name(
    tmp_path: Path, torch_save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(torch_save, gpt_neo_state(np.random.default_rng(0), CONFIG), "pytorch_model.bin")
    save_state(torch_save, tiny_model_state(np.random.default_rng(0), 1, 12, vocab=13, context=12), "tiny.pt")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "gpt_neo"}))
    asked = []

    def fetch(repository: str, file: str) -> Path:
        asked.append((repository, file))
        if not (tmp_path / file).exists():
            raise ValueError(f"hub:{repository}/{file}: cannot be fetched: there is none")
        return tmp_path / file

    monkeypatch.setattr(toy.lm.weights, "fetch", fetch)
    assert load_model("hub:someone/a-model").cfg.family == "gpt_neo"
    assert load_model("hub:someone/a-model/tiny.pt", n_heads=2).cfg.family == "tiny_model"
    assert {repository for repository, _ in asked} == {"someone/a-model"}
    assert [file for _, file in asked] == ["config.json", "model.safetensors", "pytorch_model.bin", "tiny.pt"]
    with pytest.raises(ValueError, match=r"hub:someone/a-model/none\.pt: cannot be fetched"):
        load_model("hub:someone/a-model/none.pt")
    with pytest.raises(ValueError, match="expected hub:OWNER/NAME"):
        load_model("hub:someone")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 10**9}, "vocab_size: must be at most 16,777,216, got 1000000000"),
        ({"vocab_size": 10**400}, "vocab_size: .*a number of .* bits"),
        ({"max_position_embeddings": 0}, "context: must be at least 1, got 0"),
        ({"num_layers": 10**9, "attention_layers": ["global"]}, "n_layers: must be at most 512"),
        ({"num_layers": True}, "n_layers: must be int, got True|attention: must be global or local"),
        ({"attention_types": [[["global"], 10**9]]}, "attention: must be global or local for each of 3 layers"),
        ({"attention_types": [["global", 3]]}, "attention_types: expected lists of kinds with a number each"),
        ({"attention_types": "global"}, "attention_types: expected lists"),
        ({"attention_layers": [["global"]] * 3}, "attention: must be a list of global and local"),
        ({"hidden_size": [8]}, r"d_model: must be int, got \[8\]"),
        ({"hidden_size": 8.0}, "d_model: must be int, got 8.0"),
        ({"layer_norm_epsilon": "1e-5"}, "norm_eps: must be float, got 1e-5"),
        ({"layer_norm_epsilon": float("nan")}, "norm_eps: must be finite"),
        ({"window_size": -1}, "window: must be at least 1"),
        ({"activation_function": "x" * 10**6}, "activation_function: only gelu_new is known"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: only true is known"),
    ],
)
def test_a_configuration_of_absurd_numbers_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        gpt_neo_from(gpt_neo_state(np.random.default_rng(0), CONFIG), CONFIG | changes)
    assert time.monotonic() - began < 5
    assert len(str(caught.value)) < 600


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    state = gpt_neo_state(np.random.default_rng(0), CONFIG)
    name = "transformer.h.1.ln_1.bias"
    for value in (np.nan, np.inf, 1e300):
        wrong = dict(state) | {name: np.full(state[name].shape, value, np.float64)}
        with pytest.raises(ValueError, match=r"tensors: not finite in float32: transformer\.h\.1\.ln_1\.bias"):
            gpt_neo_from(wrong, CONFIG)
    lm = a_model("gpt_neo")
    embedding = lm.embed.embedding
    embedding[...] = embedding[...].at[0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"tensors: not finite in float32: embed\.embedding"):
        save_model(tmp_path / "lm", lm)
    assert not (tmp_path / "lm").exists()


def test_a_saved_model_that_was_changed_or_half_written_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, a_model("gpt_neo"))
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, told = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(ValueError, match=r"model\.safetensors: broken: its SHA-256 is not that of its content"):
        load_model(tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps(told | {"window": 2}))
    with pytest.raises(ValueError, match=r"config\.json is not the one that model\.safetensors was saved with"):
        load_model(tmp_path)
    save_file(load_file(weights), weights)  # without a digest, as others write it
    assert load_model(tmp_path).cfg.window == 2
    config.write_text('{"a":' * 10**5)
    with pytest.raises(ValueError, match=r"config\.json: broken: no JSON: it is nested too deeply"):
        load_model(tmp_path)


def test_a_model_keeps_every_digit_of_its_configuration(tmp_path: Path) -> None:
    save_model(tmp_path, a_model("gpt_neo", norm_eps=1.23456789e-5))
    assert load_model(tmp_path).cfg.norm_eps == 1.23456789e-5


def test_tensors_of_absurdly_many_layers_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="n_layers: must be at most 512, got 3000"):
        tiny_model_from({f"torso.{i}.x": np.ones(1, np.float32) for i in range(3_000)}, 1)
