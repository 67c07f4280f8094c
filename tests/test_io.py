"""Files are read back equal, whole or not at all; errors name the file."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PARAMETERS, as_sae, random_arrays
from safetensors import safe_open
from safetensors.numpy import save_file

from toy.io import load_json, read_sae, save_json, write_sae, writing
from toy.sae import RELU, SAE, Activation, BatchTopK, TopK, decode, decoder_norms, encode

X = jnp.asarray(random_arrays(1, 40, 5, 3)["x"], jnp.float32)
TRAINED_AS: list[Activation] = [RELU, TopK(2), BatchTopK(1.5)]


def random_sae(activation: Activation = RELU) -> SAE:
    arrays = {name: array.astype(np.float32) for name, array in random_arrays(0, 1, 5, 3).items()}
    threshold = jnp.array([0.5, 1.5, 2.5]) if isinstance(activation, BatchTopK) else None
    return as_sae(arrays)._replace(threshold=threshold)


def inference(activation: Activation) -> Activation:
    """How an SAE that was trained so is encoded with later: of BatchTopK by its threshold."""
    return RELU if isinstance(activation, BatchTopK) else activation


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


@pytest.mark.parametrize("activation", [RELU, BatchTopK(1.5)], ids=["relu", "jumprelu"])
def test_a_saved_sae_is_loaded_equal_and_computes_the_same(activation: Activation, tmp_path: Path) -> None:
    sae = random_sae(activation)
    write_sae(tmp_path / "sae", sae, activation)
    loaded, how = read_sae(tmp_path / "sae")
    assert how == RELU
    assert (loaded.threshold is None) == (sae.threshold is None)
    for name, leaf in sae._asdict().items():
        np.testing.assert_array_equal(getattr(loaded, name), leaf)
    acts = encode(sae, X)
    assert 0 < jnp.sum(acts > 0) < jnp.sum(encode(sae._replace(threshold=None), X) > 0) or sae.threshold is None
    np.testing.assert_array_equal(decode(loaded, encode(loaded, X)), decode(sae, acts))
    assert files(tmp_path / "sae") == ["cfg.json", "sae_weights.safetensors"]


def test_a_topk_sae_is_saved_with_unit_decoder_rows_and_keeps_the_same_latents_and_output(tmp_path: Path) -> None:
    sae, activation = random_sae(), TopK(2)
    write_sae(tmp_path, sae, activation)
    loaded, how = read_sae(tmp_path)
    assert how == activation
    np.testing.assert_allclose(decoder_norms(loaded), 1, rtol=1e-6)
    assert np.ptp(decoder_norms(sae)) > 0.1  # so that activations alone would choose others
    acts, of_loaded = encode(sae, X, activation), encode(loaded, X, how)
    np.testing.assert_allclose(of_loaded, acts * decoder_norms(sae), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(decode(loaded, of_loaded), decode(sae, acts), rtol=1e-5, atol=1e-5)
    folded, _ = read_sae(tmp_path)
    write_sae(tmp_path / "again", folded, how)
    again, _ = read_sae(tmp_path / "again")
    np.testing.assert_allclose(again.W_enc, loaded.W_enc, rtol=1e-5)


def test_a_batchtopk_sae_without_its_threshold_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sae: a BatchTopK SAE is saved with its threshold; trained_sae gives it"):
        write_sae(tmp_path / "sae", random_sae(), BatchTopK(1.5))
    assert files(tmp_path) == []


def test_arrays_that_are_not_contiguous_or_not_float32_are_written_right(tmp_path: Path) -> None:
    sae = random_sae()
    odd = SAE(
        np.ascontiguousarray(np.asarray(sae.W_enc).T).T,  # type: ignore[arg-type]
        np.repeat(np.asarray(sae.b_enc), 2)[::2],  # type: ignore[arg-type]
        np.asarray(sae.W_dec, np.float64)[:, ::-1][:, ::-1],  # type: ignore[arg-type]
        np.asarray(sae.b_dec, np.float64),  # type: ignore[arg-type]
    )
    assert not odd.W_enc.flags.c_contiguous  # type: ignore[union-attr]
    write_sae(tmp_path, odd)
    with safe_open(tmp_path / "sae_weights.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert tensors.keys() == set(PARAMETERS)
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, getattr(sae, name))


@pytest.mark.parametrize(
    ("activation", "fields"),
    [
        (RELU, {"architecture": "standard"}),
        (TopK(2), {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": False}),
        (BatchTopK(1.5), {"architecture": "jumprelu"}),
    ],
)
def test_the_config_is_that_of_such_an_sae_in_saelens(activation: Activation, fields: dict, tmp_path: Path) -> None:
    write_sae(tmp_path, random_sae(activation), activation, metadata={"seed": 3})
    assert (
        json.loads((tmp_path / "cfg.json").read_text())
        == {
            "d_in": 5,
            "d_sae": 3,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"sae_lens_version": "6.54.12", "seed": 3},
        }
        | fields
    )


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
        save_json(cfg, load_json(cfg) | {"architecture": "transcoder"})


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
    ],
)
def test_a_folder_that_is_no_sae_is_refused_by_name(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "my_sae"
    write_sae(folder, random_sae())
    spoil(folder, fault)
    with pytest.raises(ValueError, match="my_sae"):
        read_sae(folder)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_an_architecture_has_just_the_tensors_it_needs(architecture: str, tmp_path: Path) -> None:
    other: Activation = BatchTopK(1.5) if architecture == "standard" else RELU
    write_sae(tmp_path, random_sae(other), other)
    save_json(tmp_path / "cfg.json", load_json(tmp_path / "cfg.json") | {"architecture": architecture})
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors: expected tensors W_enc, b_enc, W_dec, b_dec"):
        read_sae(tmp_path)


def test_weights_with_other_tensors_are_refused_by_their_names(tmp_path: Path) -> None:
    write_sae(tmp_path, random_sae())
    save_file({"threshold": np.ones(3, np.float32)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors: expected tensors W_enc.*got .*threshold"):
        read_sae(tmp_path)
