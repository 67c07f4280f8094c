"""What is written is read back equal, whole or not at all; errors name the file."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import random_arrays
from safetensors import safe_open
from safetensors.numpy import save_file

from toy.io import load_json, load_sae, save_json, save_sae, writing
from toy.sae import SAE, decode, encode


def random_sae() -> SAE:
    arrays = random_arrays(0, 1, 5, 3)
    return SAE(*(jnp.asarray(arrays[name], jnp.float32) for name in SAE._fields))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "a.bin"
    with writing(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert files(path.parent) == ["a.bin"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode  # the usual rights, not those of a temporary


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(error: type[BaseException], tmp_path: Path) -> None:
    (path := tmp_path / "a.json").write_text("old")

    def interrupted() -> None:
        with writing(path) as file:
            file.write(b"new, but not all of i")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert files(tmp_path) == ["a.json"]


def test_data_that_is_no_json_leaves_the_old_record(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        save_json(tmp_path / "a.json", {"new": object()})
    assert load_json(tmp_path / "a.json") == {"old": 1}
    assert files(tmp_path) == ["a.json"]


def test_json_holds_numpy_values_as_numbers_and_lists_and_nan_as_null(tmp_path: Path) -> None:
    data = {
        "array": np.arange(6).reshape(2, 3),
        "float32": np.float32(0.1),
        "digits": 1 / 3,
        "nan": float("nan"),
        "infinite": np.array([np.inf, 1.0]),
        "bool": np.bool_(True),
        "path": Path("a") / "b",
        "nested": [{"x": [1, 2]}, {"x": []}, [], [[1], [2, [3]]], ["[", "a]", "{"]],
        3: None,
        "text": "fünf [\n]",
    }
    save_json(tmp_path / "a.json", data)
    assert load_json(tmp_path / "a.json") == {
        "array": [[0, 1, 2], [3, 4, 5]],
        "float32": 0.1,
        "digits": 0.333333,
        "nan": None,
        "infinite": [None, 1.0],
        "bool": True,
        "path": str(Path("a") / "b"),
        "nested": [{"x": [1, 2]}, {"x": []}, [], [[1], [2, [3]]], ["[", "a]", "{"]],
        "3": None,
        "text": "fünf [\n]",
    }


def test_a_list_of_numbers_stands_on_one_line(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", {"rows": [[1, 2.5], [3, 4]], "b": 1})
    text = (tmp_path / "a.json").read_text()
    assert "[1, 2.5]," in text
    assert text.count("\n") == 7


def test_a_saved_sae_is_loaded_equal_and_computes_the_same(tmp_path: Path) -> None:
    sae, x = random_sae(), jnp.ones((2, 5))
    save_sae(tmp_path / "sae", sae)
    loaded = load_sae(tmp_path / "sae")
    for name in SAE._fields:
        assert (getattr(loaded, name) == getattr(sae, name)).all()
    np.testing.assert_allclose(decode(loaded, encode(loaded, x)), decode(sae, encode(sae, x)))
    assert files(tmp_path / "sae") == ["cfg.json", "sae_weights.safetensors"]


def test_arrays_that_are_not_contiguous_or_not_float32_are_written_right(tmp_path: Path) -> None:
    sae = random_sae()
    odd = SAE(
        np.ascontiguousarray(np.asarray(sae.W_enc).T).T,  # type: ignore[arg-type]
        np.repeat(np.asarray(sae.b_enc), 2)[::2],  # type: ignore[arg-type]
        np.asarray(sae.W_dec, np.float64)[:, ::-1][:, ::-1],  # type: ignore[arg-type]
        np.asarray(sae.b_dec, np.float64),  # type: ignore[arg-type]
    )
    assert not odd.W_enc.flags.c_contiguous  # type: ignore[union-attr]
    save_sae(tmp_path, odd)
    with safe_open(tmp_path / "sae_weights.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert tensors.keys() == set(SAE._fields)
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, getattr(sae, name))


def test_the_config_is_that_of_a_standard_sae_in_saelens(tmp_path: Path) -> None:
    save_sae(tmp_path, random_sae(), metadata={"seed": 3})
    assert json.loads((tmp_path / "cfg.json").read_text()) == {
        "architecture": "standard",
        "d_in": 5,
        "d_sae": 3,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "seed": 3},
    }


def spoil(folder: Path, fault: str) -> None:
    cfg, weights = folder / "cfg.json", folder / "sae_weights.safetensors"
    if fault == "no folder":
        cfg.unlink()
        weights.unlink()
        folder.rmdir()
    elif fault == "no weights":
        weights.unlink()
    elif fault == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:20])
    elif fault == "config no JSON":
        cfg.write_text("{")
    elif fault == "config no text":
        cfg.write_bytes(b"\xff")
    elif fault == "config a list":
        cfg.write_text("[]")
    elif fault == "another architecture":
        save_json(cfg, load_json(cfg) | {"architecture": "topk"})
    elif fault == "bias on the input":
        save_json(cfg, {key: value for key, value in load_json(cfg).items() if key != "apply_b_dec_to_input"})


@pytest.mark.parametrize(
    "fault",
    [
        "no folder",
        "no weights",
        "weights cut short",
        "config no JSON",
        "config no text",
        "config a list",
        "another architecture",
        "bias on the input",
    ],
)
def test_a_folder_that_is_no_sae_is_refused_by_name(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "my_sae"
    save_sae(folder, random_sae())
    spoil(folder, fault)
    with pytest.raises(ValueError, match="my_sae"):
        load_sae(folder)


def test_weights_with_other_tensors_are_refused_by_their_names(tmp_path: Path) -> None:
    save_sae(tmp_path, random_sae())
    save_file({"threshold": np.ones(3, np.float32)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors: expected tensors W_enc.*got .*threshold"):
        load_sae(tmp_path)
