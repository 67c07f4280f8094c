"""SAEs of dictionary_learning, sparsify, tiny_model and the reference code, against those libraries' formulas."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from toy.files.torch_file import read_torch_file
from toy.files.torch_save import save_torch_file
from toy.io import read_sae, write_sae
from toy.sae import RELU, SAE, Activation, BatchTopK, MatchingPursuit, TopK, decode, encode

D_IN, N = 5, 8
X = np.random.default_rng(1).normal(size=(60, D_IN)).astype(np.float32)
Arrays = dict[str, np.ndarray]
LINEAR = {"encoder.weight": (N, D_IN), "decoder.weight": (D_IN, N)}
LAYERS = LINEAR | {"encoder.bias": (N,)}
PLAIN = {"W_enc": (D_IN, N), "b_enc": (N,), "W_dec": (N, D_IN), "b_dec": (D_IN,)}
DICTIONARIES: dict[str, dict[str, tuple[int, ...]]] = {
    "AutoEncoder": LAYERS | {"bias": (D_IN,)},
    "AutoEncoderNew": LAYERS | {"decoder.bias": (D_IN,)},
    "GatedAutoEncoder": LINEAR | {"decoder_bias": (D_IN,), "r_mag": (N,), "gate_bias": (N,), "mag_bias": (N,)},
    "JumpReluAutoEncoder": PLAIN | {"threshold": (N,)},
    "AutoEncoderTopK": LAYERS | {"b_dec": (D_IN,)},
    "BatchTopKSAE": LAYERS | {"b_dec": (D_IN,)},
    "MatryoshkaBatchTopKSAE": PLAIN,
}
SPARSIFY = {"encoder.weight": (N, D_IN), "encoder.bias": (N,), "W_dec": (N, D_IN), "b_dec": (D_IN,)}
SPARSIFY_CFG = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": N, "k": 3}
SPARSIFY_CFG |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D_IN}


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def dictionary(name: str) -> Arrays:
    """The tensors of a class of dictionary_learning, with those that it saves beside its parameters."""
    more: Arrays = {}
    if "TopK" in name:
        more = {"k": np.array(3, np.int32), "threshold": np.array(0.6, np.float32)}
    if name.startswith("Matryoshka"):
        more["group_sizes"] = np.array([2, 6])
    return random_tensors(DICTIONARIES[name]) | more


def write_dictionary(folder: Path, name: str, tensors: Arrays, **trainer: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_torch_file(folder / "ae.pt", tensors)
    config = {"trainer": {"dict_class": name, "lm_name": "gpt2", **trainer}, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def of_dictionary(name: str, w: Arrays, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dictionary.py and trainers/top_k.py, batch_top_k.py and matryoshka_batch_top_k.py in float64."""
    w = {key: np.asarray(value, float) for key, value in w.items()}
    W_enc = w["W_enc"] if "W_enc" in w else w["encoder.weight"].T
    W_dec = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    bias = next(w[key] for key in ("b_dec", "bias", "decoder.bias", "decoder_bias") if key in w)
    norms = np.linalg.norm(W_dec, axis=1) if name in ("GatedAutoEncoder", "JumpReluAutoEncoder") else np.ones(N)
    pre = (x if name in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - bias) @ W_enc
    if name == "GatedAutoEncoder":
        acts = (pre + w["gate_bias"] > 0) * np.maximum(np.exp(w["r_mag"]) * pre + w["mag_bias"], 0) * norms
    else:
        pre = pre + (w["b_enc"] if "b_enc" in w else w["encoder.bias"])
        acts = np.maximum(pre, 0) * norms
        if name == "AutoEncoderTopK":
            acts = np.where(acts >= np.sort(acts, axis=1)[:, [-3]], acts, 0)
        elif "threshold" in w:
            acts = acts * (pre > w["threshold"])
    return acts, acts / norms @ W_dec + bias


def assert_computes(path: Path, acts: np.ndarray, recon: np.ndarray) -> tuple[SAE, Activation]:
    sae, activation = read_sae(path)
    assert {leaf.dtype for leaf in sae if leaf is not None} == {jnp.dtype("float32")}
    ours = encode(sae, jnp.asarray(X), activation)
    np.testing.assert_allclose(ours, acts, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(decode(sae, ours), recon, rtol=1e-5, atol=1e-5)
    assert 0 < (acts > 0).mean() < 1
    return sae, activation


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_learning_gives_the_same_activations_and_reconstructions(name: str, tmp_path: Path) -> None:
    tensors = dictionary(name)
    folder = write_dictionary(tmp_path / "sae", name, tensors, **({"k": 3} if "TopK" in name else {}))
    assert_computes(folder, *of_dictionary(name, tensors, X))
    assert_computes(folder / "ae.pt", *of_dictionary(name, tensors, X))


def test_a_batchtopk_dictionary_without_a_threshold_is_plain_relu_as_there(tmp_path: Path) -> None:
    tensors = dictionary("BatchTopKSAE") | {"threshold": np.array(-1, np.float32)}
    acts, recon = of_dictionary("BatchTopKSAE", tensors, X)
    assert_computes(write_dictionary(tmp_path, "BatchTopKSAE", tensors), acts, recon)
    assert (acts > 0).mean() > 0.3


def sparsify(folder: Path, tensors: Arrays, **change: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "sae.safetensors")
    cfg = {key: value for key, value in (SPARSIFY_CFG | change).items() if value is not ...}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


@pytest.mark.parametrize("normalised", [True, False])
def test_sparsify_gives_the_same_activations_and_reconstructions(normalised: bool, tmp_path: Path) -> None:
    """sparse_coder.py and fused_encoder.py: W_dec is [n_latents d_in] there."""
    tensors = random_tensors(SPARSIFY)
    if normalised:
        tensors["W_dec"] /= np.linalg.norm(tensors["W_dec"], axis=1, keepdims=True)
    w = {name: values.astype(float) for name, values in tensors.items()}
    acts = np.maximum((X - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], 0)
    acts = np.where(acts >= np.sort(acts, axis=1)[:, [-3]], acts, 0)
    recon = acts @ w["W_dec"] + w["b_dec"]
    folder = sparsify(tmp_path / "layers.5", tensors, normalize_decoder=normalised)
    _, activation = assert_computes(folder, acts, recon)
    assert activation == TopK(3, by_size=normalised)
    assert_computes(sparsify(tmp_path / "old", tensors, num_latents=0, activation=...), acts, recon)


def test_a_sparse_mlp_of_tiny_model_gives_the_same(tmp_path: Path) -> None:
    tensors = random_tensors(LAYERS | {"decoder.bias": (D_IN,)})
    save_torch_file(tmp_path / "sae.pt", tensors)
    assert_computes(tmp_path / "sae.pt", *of_dictionary("AutoEncoderNew", tensors, X))  # which is the same


@pytest.mark.parametrize("norm", [None, 2.5])
def test_the_reference_code_gives_the_same(norm: float | None, tmp_path: Path) -> None:
    """`get_acts` of sae.py normalises inputs and gives activations times decoder norms, in the units of inputs."""
    w = random_tensors(PLAIN)
    more = {} if norm is None else {"normalizer.running_avg": np.array([norm], np.float32)}
    save_torch_file(tmp_path / "sae.pt", w | more | {"sq_act_running_avg": np.ones(N, np.float32)})
    scale = 1.0 if norm is None else np.sqrt(D_IN) / norm
    acts = np.maximum(scale * X @ w["W_enc"] + w["b_enc"], 0)
    recon = (acts @ w["W_dec"] + w["b_dec"]) / scale
    norms = np.ones(N) if norm is None else np.linalg.norm(w["W_dec"], axis=1)
    assert_computes(tmp_path / "sae.pt", acts * norms / scale, recon)


def refused(path: Path, message: str, named: str = "") -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_sae(path)
    assert (named or str(path)) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "groupmax"}, "activation is groupmax, expected 'topk'"),
        ({"transcode": True}, "transcode is True, expected False: such a model has another input or output"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"embed_skip": True}, "embed_skip is True"),
        ({"gram_lookup": True}, "gram_lookup is True"),
        ({"signed": True}, "signed is True, expected False"),
        ({"jump": 1}, "jump is 1, which is not known: remove the key if no activation depends on it"),
        ({"k": 9}, "k: expected a whole number from 1 to d_sae = 8, got 9"),
        ({"k": ...}, "k: expected a whole number from 1 to d_sae = 8, got 32"),
        ({"d_in": ...}, "d_in: expected a whole number of at least 1, got None"),
        ({"d_in": 6}, r"W_enc has shape \(5, 8\), expected \(6, 8\)"),
        ({"num_latents": 9}, r"W_enc has shape \(5, 8\), expected \(5, 9\)"),
    ],
)
def test_a_setting_of_sparsify_that_changes_the_function_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    refused(sparsify(tmp_path, random_tensors(SPARSIFY), **change), message)


@pytest.mark.parametrize(
    ("name", "tensors", "trainer", "message"),
    [
        ("CrossCoder", {}, {}, "trainer.dict_class is CrossCoder, expected AutoEncoder or"),
        (["AutoEncoder"], {}, {}, r"trainer.dict_class is \['AutoEncoder'\], expected"),
        ("AutoEncoderTopK", {}, {"k": 4}, "k is 4, and 3 in ae.pt"),
        ("AutoEncoderTopK", {"k": ...}, {}, "k: expected a whole number from 1 to d_sae = 8, got None"),
        ("AutoEncoder", {"bias": ...}, {}, "expected tensors encoder.weight, decoder.weight, .* got decoder.weight"),
        ("AutoEncoder", {"scale": np.ones(3)}, {}, "expected tensors .* got .*scale"),
        (
            "AutoEncoder",
            {"encoder.weight": np.ones(3)},
            {},
            r"W_enc: expected \(d_in, n_latents\) of one SAE, got \(3,\)",
        ),
        ("AutoEncoder", {"decoder.weight": np.ones((N, D_IN))}, {}, r"W_dec has shape \(5, 8\), expected \(8, 5\)"),
        ("AutoEncoder", {"bias": np.full(D_IN, np.nan)}, {}, "b_dec has numbers that are not finite"),
        ("AutoEncoder", {"bias": np.ones(D_IN, np.int64)}, {}, "b_dec has int64 values, expected floating-point"),
    ],
)
def test_a_dictionary_that_is_not_what_its_class_says_is_refused(
    name: Any, tensors: dict, trainer: dict, message: str, tmp_path: Path
) -> None:
    made = dictionary(name if isinstance(name, str) and name in DICTIONARIES else "AutoEncoder") | tensors
    made = {key: value for key, value in made.items() if value is not ...}
    refused(write_dictionary(tmp_path, name, made, **trainer), message)


def test_a_configuration_that_is_not_there_or_names_no_class_is_told(tmp_path: Path) -> None:
    write_dictionary(tmp_path, "AutoEncoder", dictionary("AutoEncoder"))
    (tmp_path / "config.json").write_text('{"trainer": []}')
    refused(tmp_path, "trainer.dict_class is None")
    (tmp_path / "config.json").unlink()
    refused(tmp_path, r"config\.json: cannot be read as an SAE: No such file")


def test_a_file_is_told_apart_by_its_tensors(tmp_path: Path) -> None:
    save_torch_file(tmp_path / "a.pt", dictionary("AutoEncoder"))
    refused(tmp_path / "a.pt", "expected tensors .*decoder.bias, got bias")
    save_torch_file(tmp_path / "b.pt", dictionary("JumpReluAutoEncoder"))
    refused(tmp_path / "b.pt", "expected tensors W_enc, b_enc, W_dec, b_dec, got .*threshold")
    untrained = random_tensors(PLAIN) | {"normalizer.running_avg": np.zeros(1, np.float32)}
    save_torch_file(tmp_path / "c.pt", untrained)
    refused(tmp_path / "c.pt", r"normalizer.running_avg is \[0.0\], expected one positive mean norm")
    (tmp_path / "d.pt").write_bytes(b"no zip")
    refused(tmp_path / "d.pt", "not a whole zip file of torch.save")


def test_a_place_without_one_sae_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "no SAE is there, expected a folder with sae_weights.safetensors or sae.safetensors or ae.pt")
    refused(tmp_path / "gone", "no SAE is there, expected a folder with")
    write_sae(tmp_path, read_sae(sparsify(tmp_path / "a", random_tensors(SPARSIFY)))[0])
    sparsify(tmp_path, random_tensors(SPARSIFY))
    refused(tmp_path / "cfg.json", "holds sae_weights.safetensors and sae.safetensors, expected", named=str(tmp_path))


def ours(activation: Activation) -> SAE:
    threshold = jnp.linspace(0.1, 0.9, N) if isinstance(activation, BatchTopK) else None
    return SAE(**{name: jnp.asarray(values) for name, values in random_tensors(PLAIN).items()}, threshold=threshold)


@pytest.mark.parametrize("to", ["saelens", "sparsify", "dictionary_learning"])
@pytest.mark.parametrize(
    "activation", [RELU, TopK(2), TopK(2, by_size=False), BatchTopK(2), MatchingPursuit(3, 0.2)], ids=str
)
def test_what_is_written_to_a_library_is_read_as_the_same_function(
    activation: Activation, to: str, tmp_path: Path
) -> None:
    sae = ours(activation)
    pursues = isinstance(activation, MatchingPursuit) and to != "saelens"
    if pursues or (to == "sparsify" and sae.threshold is not None):
        told = (
            f"to: {to} has no matching pursuit" if pursues else "sae: sparsify has no thresholds, and this SAE has one"
        )
        with pytest.raises(ValueError, match=told):
            write_sae(tmp_path, sae, activation, to=to)
        assert not [*tmp_path.iterdir()]
        return
    write_sae(tmp_path, sae, activation, to=to, metadata={"seed": 3})
    found, how = read_sae(tmp_path)
    acts = encode(sae, jnp.asarray(X), RELU if isinstance(activation, BatchTopK) else activation)
    of_found = encode(found, jnp.asarray(X), how)
    np.testing.assert_array_equal(of_found > 0, acts > 0)
    np.testing.assert_allclose(decode(found, of_found), decode(sae, acts), rtol=1e-5, atol=1e-5)
    assert '"seed": 3' in "".join(file.read_text() for file in tmp_path.glob("*.json"))


def test_a_library_that_is_not_known_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to: expected 'saelens' or 'sparsify' or 'dictionary_learning', got 'keras'"):
        write_sae(tmp_path, ours(RELU), to="keras")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"])
def test_a_torch_file_holds_the_tensors_that_were_saved(dtype: str, tmp_path: Path) -> None:
    whole = np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype))
    tensors = {"whole": whole, "turned": whole.T, "one": whole[1, 1], "none": whole[:0]}
    save_torch_file(tmp_path / "a.pt", tensors)
    found = read_torch_file(tmp_path / "a.pt")
    assert isinstance(found, dict)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
