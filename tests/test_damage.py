"""Every reader, given damaged files: what it loads is what was written, or it refuses the file in one line.

`READERS` pairs what writes a good file with what reads it; `damaged` spoils bytes. A reader may raise ValueError (or
a subclass) or OSError; its message is one printable line of at most `MOST_TOLD` characters beside the path.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_lm_llama import CONFIG as LLAMA
from test_lm_llama import FEW_PIECES, checkpoint, tokenizer_file, weights, write_gguf
from test_lm_model import a_model
from test_torch_file import GOOD, archive

from toy.data.activations import open_matrix
from toy.data.store import open_store, write_store
from toy.files.digest import signed
from toy.files.torch_file import read_torch_file
from toy.io import load_arrays, load_json, read_sae, save_arrays, save_json, write_sae
from toy.lm.tokens import load_tokenizer
from toy.lm.weights import load_model, save_model
from toy.sae import RELU, SAE, BatchTopK, TopK
from toy.training.checkpoint import FileCheckpoint
from toy.training.loop import Run

N_EACH, MOST_TOLD = 150, 1_200
X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)


def sae_of(activation: Any) -> SAE:
    rng = np.random.default_rng(1)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 6), (6,), (6, 4), (4,), (6,))]
    return SAE(*(arrays if isinstance(activation, BatchTopK) else arrays[:4]))


def sae_folder(activation: Any, to: str = "saelens") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_sae(folder / "sae", sae_of(activation), activation, to=to)
        return folder / "sae"

    return write


def write_folder(name: str, save: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        save(folder / name)
        return folder / name

    return write


def a_store(folder: Path) -> None:
    columns = {name: np.arange(12, dtype=np.int32) for name in ("token", "document", "position")}
    write_store(folder, {"model": "m"}, 2, lambda i: {"a": X + i, **columns})


STATE = Run({"w": jnp.arange(6.0), "key": jax.random.key(1)}, np.zeros(0, np.float32))


def read_checkpoint(path: Path) -> Any:
    kept = FileCheckpoint(path, {"model": "a"})
    try:
        run = kept.load(STATE, {})
        assert run is not None
        return run.n_done, run.history, run.state["w"], jax.random.key_data(run.state["key"])
    finally:
        kept.release()


def read_store(path: Path) -> Any:
    store = open_store(path)
    return store.facts, store.activations("a").take(np.arange(store.n_rows)), store.token, store.sites["a"].mean


def read_model(path: Path) -> Any:
    lm = load_model(path)
    return lm.cfg, lm(jnp.arange(8)[None])


READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "sae": (sae_folder(RELU), lambda path: read_sae(path)[0]),
    "topk sae": (sae_folder(TopK(2)), read_sae),
    "batchtopk sae": (sae_folder(BatchTopK(2)), read_sae),
    "sparsify sae": (sae_folder(TopK(2), "sparsify"), read_sae),
    "dictionary": (sae_folder(TopK(2), "dictionary_learning"), read_sae),
    "arrays": (
        write_folder("a.safetensors", lambda p: save_arrays(p, {"x": X}, {"who": "me"})),
        lambda p: load_arrays(p, signed=True),
    ),
    "checkpoint": (
        write_folder("run", lambda p: FileCheckpoint(p, {"model": "a"}).save(STATE._replace(n_done=3), {}, last=True)),
        read_checkpoint,
    ),
    "store": (write_folder("store", a_store), read_store),
    "json": (write_folder("a.json", lambda p: save_json(p, {"a": [1, 2, {"b": None}]})), load_json),
    "torch": (write_folder("a.pt", lambda p: archive(p, GOOD)), read_torch_file),
    "npy": (write_folder("a.npy", lambda p: np.save(p, X)), lambda p: open_matrix(p).take(np.arange(12))),
    "npz": (write_folder("a.npz", lambda p: np.savez(p, x=X)), lambda p: open_matrix(p).take(np.arange(12))),
    "packed npz": (
        write_folder("a.npz", lambda p: np.savez_compressed(p, x=X)),
        lambda p: open_matrix(p).take(np.arange(12)),
    ),
    "model": (write_folder("lm", lambda p: save_model(p, a_model("gpt_neo"))), read_model),
    "llama2c": (
        write_folder("a.bin", lambda p: p.write_bytes(checkpoint(LLAMA, weights(LLAMA)))),
        lambda p: load_model(p).cfg,
    ),
    "llama2c tokenizer": (
        write_folder("t.bin", lambda p: p.write_bytes(tokenizer_file(*FEW_PIECES))),
        lambda p: load_tokenizer(p).digest(),
    ),
    "gguf": (
        write_folder("a.gguf", lambda p: write_gguf(p, LLAMA, weights(LLAMA), "F16")),
        lambda p: load_model(p).cfg,
    ),
}
NO_DIGEST = {
    "json",
    "npy",
    "llama2c",
    "llama2c tokenizer",
    "gguf",
}  # values may differ without anyone knowing; the message and the kind of error are checked


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """With a flipped bit, a byte of another value, bytes cut off, put in, left out or repeated."""
    spoiled, place = bytearray(content), int(rng.integers(len(content)))
    kind = rng.choice(["flip", "flip", "set", "cut", "extend", "insert", "remove", "repeat"])
    if kind == "flip":
        spoiled[place] ^= 1 << int(rng.integers(8))
    elif kind == "set":
        spoiled[place] = int(rng.choice([0, 9, 10, 34, 45, 48, 57, 91, 123, 127, 255]))
    elif kind == "cut":
        del spoiled[place:]
    elif kind == "extend":
        spoiled += rng.bytes(int(rng.integers(1, 99)))
    elif kind == "insert":
        spoiled[place:place] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == "remove":
        del spoiled[place : place + int(rng.integers(1, 9))]
    else:
        spoiled[place:place] = spoiled[place : place + int(rng.integers(1, 99))]
    return bytes(spoiled)


def same(one: Any, other: Any) -> bool:
    leaves, others = (jax.tree.leaves(jax.tree.map(lambda leaf: leaf, value)) for value in (one, other))
    return len(leaves) == len(others) and all(
        np.array_equal(np.asarray(a), np.asarray(b)) if hasattr(a, "shape") else a == b
        for a, b in zip(leaves, others, strict=True)
    )


def check(read: Callable[[Path], Any], path: Path, expected: Any | None) -> bool:
    """Returns whether it was read; any error but the two kinds, or a message that is no short line, fails."""
    try:
        found = read(path)
    except (ValueError, OSError) as error:
        told = str(error)
        assert told.isprintable(), told
        assert len(told) < MOST_TOLD, told
        assert path.name in told, told
        return False
    assert expected is None or same(found, expected), (found, expected)
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of zipfile, about names
@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_loaded_as_it_was_written_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    write, read = READERS[kind]
    rng = np.random.default_rng([*kind.encode()])
    path = write(tmp_path)
    expected = read(path)
    files = [path] if path.is_file() else sorted(path.iterdir())
    refused = 0
    for _ in range(N_EACH):
        file = files[rng.integers(len(files))]
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, rng))
        refused += not check(read, path, None if kind in NO_DIGEST else expected)
        file.write_bytes(whole)
    assert refused > N_EACH / 4
    assert check(read, path, expected)


def values_of(data: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every place of a JSON value, as (where it is, under what)."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        found.append((data, key))
        values_of(value, found)
    return found


ODD = [None, True, False, 0, -1, 1.5, 1e308, 10**30, "", "x", "../x", "\ud800", "a\nb", [], [[]], {}, {"a": {}}, "nan"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("sae", "cfg.json"), ("topk sae", "cfg.json"), ("model", "config.json"), ("store", "manifest.json")],
)
def test_json_with_other_values_is_loaded_or_refused_in_one_line(kind: str, name: str, tmp_path: Path) -> None:
    """Also where it is signed anew, and where the weights hold no digest."""
    write, read = READERS[kind]
    path = write(tmp_path)
    whole = json.loads((path / name).read_text())
    rng = np.random.default_rng(0)
    for _ in range(2 * N_EACH):
        data = json.loads(json.dumps(whole))
        places = values_of(data, [])
        owner, key = places[rng.integers(len(places))]
        if rng.random() < 0.15:
            del owner[key]
        else:
            owner[key] = ODD[rng.integers(len(ODD))]
        data = signed(data) if name == "manifest.json" else data
        (path / name).write_text(json.dumps(data))
        check(read, path, None)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_pickle_in_a_whole_archive_is_refused_or_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(4 * N_EACH):
        data = GOOD
        for _ in range(rng.integers(1, 4)):
            data = damaged(data, rng) or GOOD
        check(read_torch_file, archive(tmp_path / "a.pt", data), None)
    with ZipFile(tmp_path / "a.pt") as file:
        assert file.testzip() is None


def test_a_damaged_header_in_a_whole_file_is_refused_or_read(tmp_path: Path) -> None:
    save_arrays(tmp_path / "a", {"x": X, "y": X[0]}, {"who": "me"}, sign=False)
    content = (tmp_path / "a").read_bytes()
    size = int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    for _ in range(4 * N_EACH):
        header = damaged(content[8 : 8 + size], rng)
        (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
        check(load_arrays, tmp_path / "a", None)
