"""Activations that others wrote are read as they were written; what is no matrix of them is refused by its file."""

import importlib
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from toy.data.activations import Activations, open_matrix
from toy.data.store import write_store
from toy.data.stream import ShardSource

X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
ROWS = np.array([29, 0, 7, 7])


def write(path: Path, **arrays: np.ndarray) -> Path:
    if path.suffix == ".npy":
        (array,) = arrays.values()
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    else:
        save_file(arrays, path)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_a_file_of_one_array_is_read_as_it_is(suffix: str, dtype: Any, tmp_path: Path) -> None:
    acts = open_matrix(write(tmp_path / f"a.{suffix}", x=X.astype(dtype)))
    assert (acts.n_rows, acts.d_in, acts.dtype) == (30, 4, dtype)
    taken = acts.take(ROWS)
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, X.astype(dtype)[ROWS].astype(np.float32))
    np.testing.assert_array_equal(np.concatenate(list(acts.slices(7))), X.astype(dtype).astype(np.float32))
    assert ShardSource(acts, block=8).batches(0, 2, 5).x.dtype == jnp.float32


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_a_file_is_mapped_and_not_read(suffix: str, tmp_path: Path) -> None:
    (part,) = open_matrix(write(tmp_path / f"a.{suffix}", x=X)).parts
    assert not part.flags.owndata
    assert not part.flags.writeable
    base: Any = part
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert base is not None


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_one_of_several_arrays_is_taken_by_its_name(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{suffix}", x=X, y=2 * X)
    np.testing.assert_array_equal(open_matrix(path, "y").take(ROWS), 2 * X[ROWS])
    with pytest.raises(ValueError, match=rf"a\.{suffix}: expected one array of activations, it has 'x', 'y': give"):
        open_matrix(path)
    with pytest.raises(ValueError, match=rf"a\.{suffix}: has no array 'z'; it has 'x', 'y'"):
        open_matrix(path, "z")


def test_the_only_activations_beside_other_tensors_need_no_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", x=X.astype(jnp.bfloat16), token=np.arange(30, dtype=np.int32))
    acts = open_matrix(path)
    assert acts.dtype == jnp.bfloat16
    np.testing.assert_array_equal(acts.take(ROWS), X[ROWS].astype(jnp.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3, np.float32), r"expected \(rows, d_in\), got shape \(3,\): reshape it"),
        (np.ones((2, 3, 4), np.float32), r"expected \(rows, d_in\), got shape \(2, 3, 4\)"),
        (np.ones((2, 3), np.int64), "expected floating-point numbers, got int64: save it as float32"),
        (np.ones((2, 3), np.complex64), "expected floating-point numbers, got complex64"),
        (np.zeros((0, 3), np.float32), r"has no rows: its shape is \(0, 3\)"),
        (np.array([[None]]), "cannot be read as numbers"),
    ],
)
def test_an_array_that_is_no_activations_is_refused_by_its_file(
    array: np.ndarray, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"a\.npy: {message}"):
        open_matrix(write(tmp_path / "a.npy", x=array))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.safetensors", "a.csv"])
def test_a_file_that_cannot_be_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name}: no such file"):
        open_matrix(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match=rf"{name}: (cannot be read|broken|expected \.npy)"):
        open_matrix(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors"])
def test_transposed_and_unaligned_arrays_are_read_right_and_not_copied_whole(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, x=np.asfortranarray(X) if name == "a.npy" else X)
    (part,) = open_matrix(path).parts
    if name != "a.npy":
        raw = np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:]
        part = raw.view(np.float32).reshape(X.shape)
        assert not part.flags.aligned
    assert not (part.flags.c_contiguous and part.flags.aligned)
    np.testing.assert_array_equal(Activations("a", (part,)).take(ROWS), X[ROWS])


def test_a_store_is_opened_as_one(tmp_path: Path) -> None:
    columns = {name: np.zeros(30, np.int32) for name in ("token", "document", "position")}
    write_store(tmp_path / "s", {}, 1, lambda _: {"a": X, **columns})
    with pytest.raises(ValueError, match=r"s: is an activation store: open it with toy\.data\.store\.open_store"):
        open_matrix(tmp_path / "s")


def test_a_name_for_a_file_of_one_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.npy: holds one array, which has no name: leave 'x' out"):
        open_matrix(write(tmp_path / "a.npy", x=X), "x")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3, np.float32), r"expected \(rows, d_in\), got shape \(3,\): reshape it"),
        (np.ones((2, 3, 4), np.float32), r"expected \(rows, d_in\), got shape \(2, 3, 4\)"),
        (np.ones((2, 3), np.int64), "expected floating-point numbers, got int64: save it as float32"),
    ],
)
def test_the_only_array_of_a_safetensors_file_is_refused_for_what_it_is(
    array: np.ndarray, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"a\.safetensors/x: {message}"):
        open_matrix(write(tmp_path / "a.safetensors", x=array))


def test_parts_must_be_alike() -> None:
    for parts in ((), (X, X[:, :2]), (X, X.astype(np.float64))):
        with pytest.raises(ValueError, match=r"mine: expected parts \(rows, d_in\) of one shape and type"):
            Activations("mine", parts)


def npy(header: str | bytes, data: bytes = X.tobytes(), version: int = 1) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def told(shape: str = "(30, 4)", descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


BAD: list[tuple[bytes, str]] = [
    (npy(told("(29, 4)")), r"it has .* bytes.* \(29, 4\)"),
    (npy(told("(31, 4)")), "cannot be read as numbers"),
    (npy(told("(274877906944, 4)")), "cannot be read as numbers"),
    (npy(told(f"({10**40}, 4)")), "cannot be read as numbers"),
    (npy(told("(-30, -4)")), "cannot be read as numbers"),
    (npy(told(descr="'|O'")), "(Object arrays cannot be loaded|Python objects in dtype)"),
    (npy(told(descr="[('x', '<f4')]")), "expected floating-point numbers, got"),
    (npy(told(descr="'S4'")), "expected floating-point numbers, got"),
    (npy("(" * 9_000), "cannot be read as numbers"),
    (npy("{" + "[" * 90 + "\n\n"), "cannot be read as numbers"),
    (npy("{'descr': " + "'" * 3), "cannot be read as numbers"),
    (npy("x" * 60_000), "cannot be read as numbers"),
    (npy(b"\xff" * 100, version=2), "cannot be read as numbers"),
    (b"\x93NUMPY\x01", "cannot be read as numbers"),
    (b"", "cannot be read as numbers"),
]


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize(("content", "message"), BAD, ids=range(len(BAD)))
def test_a_header_that_is_broken_or_claims_another_size_is_refused(
    content: bytes, message: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        path.write_bytes(content)
    else:
        with ZipFile(path, "w", ZIP_DEFLATED) as file:
            file.writestr("x.npy", content)
    with pytest.raises(ValueError, match=rf"a\.{suffix}.*: .*{message}") as caught:
        open_matrix(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 700


def test_an_archive_is_read_where_it_is_compressed_within_reason_and_only_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=X, zeros=np.zeros((1_000, 64), np.float32), broken=X)
    np.testing.assert_array_equal(open_matrix(path, "x").take(ROWS), X[ROWS])
    assert open_matrix(path, "zeros").n_rows == 1_000
    content = bytearray(path.read_bytes())
    content[content.index(b"broken.npy") + 60] ^= 255
    path.write_bytes(content)
    np.testing.assert_array_equal(open_matrix(path, "x").take(ROWS), X[ROWS])
    with pytest.raises(ValueError, match=r"a\.npz: cannot be read as numbers"):
        open_matrix(path, "broken")
    np.savez_compressed(path, x=np.zeros((10**6, 8), np.float32))
    with pytest.raises(ValueError, match=r"x\.npy has .* bytes and claims to be 32,000,128: save it uncompressed"):
        open_matrix(path)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=X)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: cannot be read as numbers: x\.npy is encrypted: save it without"):
        open_matrix(path)


def test_very_many_names_are_not_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", **{f"x{i:04d}": X[:1] for i in range(2_000)})
    with pytest.raises(ValueError, match="expected one array of activations") as caught:
        open_matrix(path)
    assert len(str(caught.value)) < len(str(path)) + 700


# --- SAELens' cached activations ------------------------------------------------------------------------------


def save_cache(folder: Path, columns: dict[str, np.ndarray]) -> None:
    datasets = pytest.importorskip("datasets")
    features = {name: datasets.Array2D(array.shape[1:], str(array.dtype)) for name, array in columns.items()}
    features["token_ids"] = datasets.Sequence(datasets.Value("int32"))
    rows = {name: list(array) for name, array in columns.items()}
    rows["token_ids"] = [[1] * next(iter(columns.values())).shape[1]] * len(next(iter(columns.values())))
    datasets.Dataset.from_dict(rows, datasets.Features(features)).save_to_disk(str(folder), num_shards=2)


@pytest.mark.filterwarnings("ignore")  # of what datasets imports
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_saelens_cache_is_read_a_row_a_token(dtype: Any, tmp_path: Path) -> None:
    x = X.reshape(6, 5, 4).astype(dtype)
    save_cache(tmp_path / "c", {"blocks.0.hook_mlp_out": x})
    for name in (None, "blocks.0.hook_mlp_out"):
        acts = open_matrix(tmp_path / "c", name)
        assert (acts.n_rows, acts.d_in, acts.dtype) == (30, 4, dtype)
        assert len(acts.parts) == 2
        assert not any(part.flags.owndata for part in acts.parts)
        np.testing.assert_array_equal(acts.take(np.arange(30)), x.reshape(30, 4).astype(np.float32))


@pytest.mark.filterwarnings("ignore")
def test_one_of_several_columns_is_taken_by_its_name(tmp_path: Path) -> None:
    save_cache(tmp_path / "c", {"a": X.reshape(6, 5, 4), "b": -X.reshape(6, 5, 4)})
    np.testing.assert_array_equal(open_matrix(tmp_path / "c", "b").take(ROWS), -X[ROWS])
    with pytest.raises(ValueError, match="c: expected one column of activations, it has 'a', 'b': give the name"):
        open_matrix(tmp_path / "c")


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match="cannot be read as a folder of datasets"):
        open_matrix(tmp_path)


def test_without_datasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        ValueError, match=r"SAELens' cached activations: needs the package datasets; install the extra: pip install"
    ):
        open_matrix(tmp_path)
