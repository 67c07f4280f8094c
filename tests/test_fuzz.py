"""Inputs that are damaged, foreign or malicious: each is read rightly, or refused in one line.

No traceback, no wrong success, no hang over 10 seconds, no 2 GB. There are 500 inputs, with `--fuzz 1` as in `.ci/run`
10,000, with `--fuzz 10` ten times as many, and with `--fuzz-seed 1` others.
"""

import contextlib
import io
import itertools
import json
import math
import shutil
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from fuzzing import ODD, accepted, as_text, damaged, edited, fuzzed
from hypothesis import strategies as st
from killed import FACTS, N_SHARDS, make_shard
from safetensors.numpy import save

from experiments import absorption
from experiments.common.cli import Command
from experiments.common.options import parse
from experiments.sweep import read_sweep
from experiments.sweeps.program import program_of
from experiments.sweeps.spec import parse_sweep
from toy.data.activations import open_matrix
from toy.data.store import open_store, write_store
from toy.features.node import Node
from toy.features.tree import build_tree, marginals
from toy.features.tree_json import format_tree, tree_from_dict, tree_to_dict
from toy.files.digest import signed
from toy.files.torch_file import read_torch_file
from toy.io import load_arrays, load_tree, read_sae, save_arrays, write_sae
from toy.lm.tokens import load_tokenizer, save_tokenizer, train_tokenizer
from toy.sae import SAE, ReLU, TopK, encode
from toy.training.checkpoint import FileCheckpoint
from toy.training.loop import Run

# --- Trees

HEDGING = {
    "active_prob": 1,
    "is_read_out": False,
    "children": [
        {
            "active_prob": 0.4,
            "id": "a",
            "mutually_exclusive_children": True,
            "children": [{"active_prob": 0.2, "id": "a1"}, {"active_prob": 0.3, "children": [{"active_prob": 0.5}]}],
        },
        {"active_prob": 0.1, "is_binary": True},
    ],
}
SAELENS = {
    "roots": [
        {"feature_index": 0, "mutually_exclusive_children": True, "children": [{"feature_index": i} for i in (1, 2, 3)]}
    ],
    "firing_probabilities": [0.3, 0.1, 0.4, 0.7, 0.05],
}
TREE_KEYS = ("active_prob", "magnitude_mean", "magnitude_std", "is_binary", "feature_index", "roots", "children", "id")


def expected_l0(data: Any) -> float:
    """The mean number of features on, from JSON alone."""
    if "roots" in data:
        probs = data["firing_probabilities"]
        used: set[int] = set()
        return sum(_saelens_l0([root], probs, False, used) for root in data["roots"]) + sum(
            p for i, p in enumerate(probs) if i not in used
        )
    own = 1 if data.get("is_read_out", True) else 0
    return data["active_prob"] * (own + sum(map(expected_l0, data.get("children", ()))))


def _saelens_l0(siblings: list[Any], probs: list[float], exclusive: bool, used: set[int]) -> float:
    """Siblings are drawn one by one; of exclusive ones that are on, one is kept at random."""
    index = [node.get("feature_index") for node in siblings]
    used |= {i for i in index if i is not None}
    p = np.array([1.0 if i is None else probs[i] for i in index])
    own = np.array([i is not None for i in index], bool)  # a node that is no feature excludes none and is not excluded
    if exclusive:
        kept = np.where(own, 0, p)
        for on in itertools.product((False, True), repeat=int(own.sum())):
            if any(on):
                kept[own] += np.array(on) * np.prod(np.where(on, p[own], 1 - p[own])) / sum(on)
        p = kept
    return sum(
        float(k) * ((i is not None) + _saelens_l0(n.get("children", []), probs, bool(n.get(_EXCLUSIVE)), used))
        for k, i, n in zip(p, index, siblings, strict=True)
    )


_EXCLUSIVE = "mutually_exclusive_children"


def check_tree(root: Node, data: Any) -> None:
    tree = build_tree(root)
    on = marginals(tree)
    assert ((on >= 0) & (on <= 1)).all()
    if data is not None:
        assert math.isclose(on.sum(), expected_l0(data), rel_tol=1e-6, abs_tol=1e-9)
    assert len(format_tree(root).splitlines()) == len(format_tree(root).split("\n"))
    again = build_tree(tree_from_dict(json.loads(json.dumps(tree_to_dict(root)))))
    np.testing.assert_array_equal(marginals(again), on)


@fuzzed(2_500, st.one_of(edited(HEDGING, TREE_KEYS), edited(SAELENS, TREE_KEYS)))
def test_trees(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = folder(tmp_path_factory) / "tree.json"
    path.write_text(as_text(data))
    root = accepted(load_tree, path)
    if root is not None:
        check_tree(root, data)


@fuzzed(500, st.one_of(damaged(json.dumps(HEDGING).encode()), damaged(json.dumps(SAELENS).encode()), st.binary()))
def test_files_of_trees(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = folder(tmp_path_factory) / "tree.json"
    path.write_bytes(data)
    root = accepted(load_tree, path)
    if root is not None:
        check_tree(root, json.loads(data))


# --- Sweeps

SWEEP = {
    "axes": {"branching": [2, 3], "edge_prob": [0.1, 0.2], "weighting": ["vanilla", "expected_10"], "seed": [0, 1]},
    "fixed": {"n_steps": 10, "depth": 1},
    "combine": "product",
}
SWEEP_KEYS = ("tree", "n_steps", "latents_per_feature", "d_in", "max_cosine", "seed", "range", "metrics", "name", "b1")
SWEEP_VALUES = (*ODD, {"range": [0, 3]}, {"range": [0, 10**9]}, {"range": [0, 10**12]}, "reference", "random", 3_000)


def check_sweep(sweep: Any) -> None:
    assert 1 <= len(sweep) <= 10**8
    assert parse_sweep(sweep.as_data(), lambda name: pytest.fail(name)) == sweep
    for i in (0, len(sweep) - 1):
        cell = accepted(sweep.cell, i)
        if cell is not None:
            accepted(program_of, cell)


@fuzzed(1_000, edited(SWEEP, SWEEP_KEYS, SWEEP_VALUES))
def test_sweeps(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = folder(tmp_path_factory) / "sweep.json"
    path.write_text(as_text(data))
    sweep = accepted(read_sweep, path)
    if sweep is not None:
        check_sweep(sweep)


LINES = (
    *("axes:", "  branching: [2, 3]", "  seed: {range: [0, 2]}", "fixed:", "  n_steps: 10", "  depth: 1"),
    *("  seed: 010", "  n_steps: 10:00", "  n_steps: 1_0", "  edge_prob: 1e-1", "  b1: .inf", "  norm_std: yes"),
    *("a: &a [x, x]", "b: [*a, *a]", "<<: *a", "---", "- 1", "%YAML 1.1", "  seed: !!python/object:os.system x", "\t"),
)


@fuzzed(500, st.one_of(st.lists(st.sampled_from(LINES), max_size=8), damaged(yaml.safe_dump(SWEEP).encode())))
def test_files_of_sweeps(tmp_path_factory: pytest.TempPathFactory, data: list[str] | bytes) -> None:
    path = folder(tmp_path_factory) / "sweep.yaml"
    path.write_bytes(data if isinstance(data, bytes) else "\n".join(data).encode())
    sweep = accepted(read_sweep, path)
    if sweep is None:
        return
    check_sweep(sweep)
    if isinstance(data, list):
        names = [line.split(":")[0] for line in data if ":" in line]
        assert len(names) == len({*names}), "a key that stands twice is read"
        assert not {"  seed: 010", "  n_steps: 10:00", "  n_steps: 1_0"} & {*data}


# --- SAEs

CFG = {
    "architecture": "standard",
    "d_in": 4,
    "d_sae": 6,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.54.12"},
}
CFG_KEYS = ("k", "activation_fn_str", "activation_fn", "rescale_acts_by_decoder_norm", "hook_z", "unknown", "model")


@cache
def some_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,), "threshold": (6,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@st.composite
def sae_folders(draw: st.DrawFn) -> tuple[Any, dict[str, np.ndarray]]:
    architecture = draw(st.sampled_from(("standard", "jumprelu", "topk")))
    cfg = {**CFG, "architecture": architecture, "apply_b_dec_to_input": draw(st.booleans())}
    cfg |= {"k": 2, "rescale_acts_by_decoder_norm": True} if architecture == "topk" else {}
    tensors = dict(some_tensors())
    if architecture != "jumprelu":
        del tensors["threshold"]
    if draw(st.booleans()):
        cfg = draw(edited(cfg, CFG_KEYS))
    name = draw(st.sampled_from(sorted(tensors)))
    kind = draw(st.sampled_from(("good", "nan", "transposed", "short", "scalar", "missing", "double", "half", "more")))
    changed = {
        "nan": np.full_like(tensors[name], np.nan),
        "transposed": np.ascontiguousarray(tensors[name].T),
        "short": tensors[name][:-1],
        "scalar": np.array(1, np.float32),
        "double": tensors[name].astype(np.float64),
        "half": tensors[name].astype(np.float16),
    }
    if kind in changed:
        tensors[name] = changed[kind]
    elif kind == "missing":
        del tensors[name]
    elif kind == "more":
        tensors["scaling_factor"] = np.ones(6, np.float32)
    return cfg, tensors


def expected_acts(cfg: dict[str, Any], tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Returns what SAELens gives for folders that it reads without any transformation of activations."""
    W_enc, b_enc, W_dec, b_dec = (tensors[name].astype(float) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    pre_acts = (x - b_dec if cfg.get("apply_b_dec_to_input", True) else x) @ W_enc + b_enc
    acts = np.maximum(pre_acts, 0)
    if cfg.get("architecture", "standard") == "jumprelu":
        return np.where(pre_acts > tensors["threshold"], acts, 0)
    if cfg.get("architecture") == "topk":
        acts = acts * np.linalg.norm(W_dec, axis=1) if cfg.get("rescale_acts_by_decoder_norm", False) else acts
        return np.where(acts >= np.sort(acts, axis=1)[:, -cfg["k"]][:, None], acts, 0)
    return acts


@fuzzed(1_200, sae_folders())
def test_saes(tmp_path_factory: pytest.TempPathFactory, data: tuple[Any, dict[str, np.ndarray]]) -> None:
    (cfg, tensors), place = data, folder(tmp_path_factory)
    (place / "cfg.json").write_text(as_text(cfg))
    (place / "sae_weights.safetensors").write_bytes(save(tensors))
    found = accepted(read_sae, place)
    if found is None:
        return
    sae, activation = found
    x = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    acts = np.asarray(encode(sae, jnp.asarray(x), activation))
    np.testing.assert_allclose(acts, expected_acts(cfg, tensors, x), atol=1e-4)
    np.testing.assert_array_equal(sae.b_dec, tensors["b_dec"])
    strange = {"normalize_activations", "reshape_activations", "activation_fn_str", "activation_fn", "unknown"} & {*cfg}
    assert all(cfg[name] in ("none", "relu") for name in strange)


@fuzzed(500, st.data())
def test_files_of_saes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = folder(tmp_path_factory)
    sae = SAE(**{name: jnp.asarray(a) for name, a in some_tensors().items() if name != "threshold"})
    write_sae(place, sae, TopK(2) if data.draw(st.booleans()) else ReLU())
    good, _ = read_sae(place)
    file = data.draw(st.sampled_from(sorted(place.iterdir())))
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    found = accepted(read_sae, place)
    if found is not None:
        for ours, theirs in zip(found[0], good, strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


# --- Arrays, stores and checkpoints


@fuzzed(500, st.data())
def test_arrays(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = folder(tmp_path_factory) / "a.safetensors"
    save_arrays(path, some_tensors(), {})
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = accepted(load_arrays, path)
    if found is not None:
        assert all((found[0][name] == a).all() for name, a in some_tensors().items())


@fuzzed(700, st.data())
def test_matrices(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = folder(tmp_path_factory)
    kind = data.draw(st.sampled_from((".npy", ".npz", ".safetensors")))
    path = place / f"a{kind}"
    if kind == ".npy":
        np.save(path, some_tensors()["W_enc"])
    elif kind == ".npz":
        (np.savez if data.draw(st.booleans()) else np.savez_compressed)(path, a=some_tensors()["W_enc"])
    else:
        path.write_bytes(save({"a": some_tensors()["W_enc"]}))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    acts = accepted(open_matrix, path)
    if acts is not None:
        assert acts.n_rows * acts.d_in * acts.dtype.itemsize <= 1_000
        accepted(acts.take, np.arange(acts.n_rows))


@cache
def good_store(folder: Path) -> Path:
    write_store(folder / "store", FACTS, N_SHARDS, make_shard)
    return folder / "store"


@fuzzed(700, st.data())
def test_stores(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = good_store(tmp_path_factory.getbasetemp())
    place = folder(tmp_path_factory) / "store"
    shutil.copytree(good, place)
    file = data.draw(st.sampled_from(sorted(place.iterdir())))
    if file.name == "manifest.json" and data.draw(st.booleans()):
        manifest = json.loads(file.read_text())
        changed = data.draw(edited(manifest, ("name", "rows", "bytes", "sha256", "x")))
        file.write_text(as_text(signed(changed) if isinstance(changed, dict) and _plain(changed) else changed))
    else:
        file.write_bytes(data.draw(damaged(file.read_bytes())))
    store = accepted(open_store, place)
    if store is not None:
        for i, site in itertools.product(range(N_SHARDS), store.sites):
            assert site in make_shard(i)
        rows = np.concatenate([make_shard(i)["token"] for i in range(N_SHARDS)])
        np.testing.assert_array_equal(store.token, rows)


def _plain(data: Any) -> bool:
    with contextlib.suppress(ValueError, OverflowError):
        return bool(json.dumps(data).encode())
    return False


@fuzzed(700, st.data())
def test_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = folder(tmp_path_factory) / "run.safetensors"
    run = Run(some_tensors(), {"loss": np.arange(3.0)}, 3)
    FileCheckpoint(path).save(run, {"n_steps": 5}, last=True)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = accepted(FileCheckpoint(path).load, run, {"n_steps": 5})
    if found is not None:
        assert found.n_done == 3
        assert all((found.state[name] == a).all() for name, a in run.state.items())


# --- Files of PyTorch


def _text(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


@cache
def torch_members() -> dict[str, bytes]:
    """A state dict of one float tensor (2, 3), as torch.save lays it out."""
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x06tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89"
    tensor += b"ccollections\nOrderedDict\n)RtR"
    pickled = b"\x80\x02}(" + _text("weight") + tensor + b"u."
    return {"a/data.pkl": pickled, "a/byteorder": b"little", "a/data/0": np.arange(6, dtype=np.float32).tobytes()}


@fuzzed(800, st.data())
def test_files_of_torch(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path, members = folder(tmp_path_factory) / "a.pt", dict(torch_members())
    whole = data.draw(st.booleans())
    if not whole:
        members["a/data.pkl"] = data.draw(damaged(members["a/data.pkl"]))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    if whole:
        np.testing.assert_array_equal(read_torch_file(path)["weight"], np.arange(6).reshape(2, 3))
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = accepted(read_torch_file, path)
    if found is not None:
        tensors = [found] if isinstance(found, np.ndarray) else list(found.values())
        assert all(tensor.nbytes <= path.stat().st_size for tensor in tensors)


# --- Tokenizers


@cache
def good_tokenizer(folder: Path) -> Any:
    save_tokenizer(folder, train_tokenizer(["Once upon a time Lily saw a big red ball."] * 5, 300))
    return json.loads((folder / "tokenizer.json").read_text())


TOKENIZER_KEYS = ("truncation", "padding", "dropout", "vocab", "merges", "type", "pre_tokenizer", "normalizer")
SAID = "Lily saw a ball."


@fuzzed(800, st.data())
def test_tokenizers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = good_tokenizer(tmp_path_factory.getbasetemp())
    path = folder(tmp_path_factory) / "tokenizer.json"
    if data.draw(st.integers(0, 3)):
        small = {**good, "model": {**good["model"], "merges": good["model"]["merges"][:3]}}
        path.write_text(as_text(data.draw(edited(small, TOKENIZER_KEYS))))
    else:
        path.write_bytes(data.draw(damaged(json.dumps(good).encode())))
    tokenizer = accepted(load_tokenizer, path.parent)
    if tokenizer is not None:
        (ids,) = tokenizer.encode([SAID])
        pieces = tokenizer.pieces()
        assert len(pieces) == tokenizer.vocab_size > max(ids, default=0)
        assert "".join(pieces[i] for i in ids).strip() == SAID


# --- Options

NUMBERS = ("n_seeds", "n_steps", "batch_size", "n_latents", "d_in", "seed", "n_eval_rows", "n_prefixes")
REALS = ("learning_rate", "target_l0", "sparsity_coef", "control_rate", "reinit_below", "norm_std", "max_cosine")
VALUES = (
    *("1", "0", "-1", "2", "1.5", "1e3", "nan", "inf", "-inf", "1e-300", "1e300", "x", "", "True", "None", "0x10"),
    *("10", "1000000000", "1000000000000", "4294967295", "4294967296", "9223372036854775808", "1_000", "٣", "1e999"),
)


def parsed(module: Any, arguments: list[str]) -> Any:
    """The configuration. Raises: ValueError if the command line is refused."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            return parse(Command[module.Config], args=arguments).config
    except SystemExit as stop:
        raise (ValueError("refused") if stop.code == 2 and "Traceback" not in told.getvalue() else stop) from None


GIVEN = st.dictionaries(st.sampled_from((*NUMBERS, *REALS, "tree")), st.sampled_from(VALUES), min_size=1, max_size=3)


@fuzzed(600, GIVEN)
def test_options(data: dict[str, str]) -> None:
    arguments = [word for name, value in data.items() for word in (f"--{name.replace('_', '-')}", value)]
    config = accepted(parsed, absorption, arguments)
    if config is None:
        return
    for name in data.keys() & {*NUMBERS, *REALS}:
        value = getattr(config, name)
        assert value is None or math.isfinite(value)
        assert value is None or value == float(data[name]) >= 0
    assert config.seed + config.n_seeds <= 2**32
    accepted(absorption.check, config)


folders = itertools.count()


def folder(factory: pytest.TempPathFactory) -> Path:
    """A new one; nothing of an earlier input is in it."""
    path = factory.getbasetemp() / f"fuzz{next(folders)}"
    path.mkdir()
    return path
