"""SAEs of SAELens: its own activations and reconstructions come out, or the setting that prevents it is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from toy.io import read_sae, write_sae
from toy.sae import RELU, SAE, Activation, BatchTopK, TopK, decode, encode

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
D_IN, D_SAE = 5, 8
X = np.random.default_rng(1).normal(size=(40, D_IN)).astype(np.float32)
CFG = {
    "architecture": "standard",
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.0.hook_z", "l0": 3.5},
}


def tensors(*, threshold: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"W_dec": (D_SAE, D_IN), "W_enc": (D_IN, D_SAE), "b_dec": (D_IN,), "b_enc": (D_SAE,)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | ({"threshold": rng.uniform(0.1, 1.5, D_SAE).astype(np.float32)} if threshold else {})


def write(folder: Path, cfg: dict[str, Any], weights: dict[str, np.ndarray] | None = None) -> Path:
    """Writes it as SAELens does: other bytes than ours, and no digest."""
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file(tensors() if weights is None else weights, folder / "sae_weights.safetensors")
    return folder


def theirs(cfg: dict[str, Any], w: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SAELens' formulas in float64: sae.py (process_sae_in), standard_sae.py, jumprelu_sae.py, topk_sae.py."""
    w = {name: values.astype(np.float64) for name, values in w.items()}
    norms = np.linalg.norm(w["W_dec"], axis=1) if cfg.get("rescale_acts_by_decoder_norm") else np.ones(D_SAE)
    pre = (x - w["b_dec"] * cfg["apply_b_dec_to_input"]) @ w["W_enc"] + w["b_enc"]
    pre = pre * norms
    acts = np.maximum(pre, 0)
    if "threshold" in w:
        acts = acts * (pre > w["threshold"])
    if "k" in cfg:
        acts = np.where(pre >= np.sort(pre, axis=1)[:, [-cfg["k"]]], acts, 0)
    return acts, acts / norms @ w["W_dec"] + w["b_dec"]


def assert_theirs(folder: Path, acts: np.ndarray, recon: np.ndarray, x: np.ndarray) -> None:
    sae, activation = read_sae(folder)
    assert {leaf.dtype for leaf in sae if leaf is not None} == {jnp.dtype("float32")}
    ours = encode(sae, jnp.asarray(x), activation)
    np.testing.assert_allclose(ours, acts, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(decode(sae, ours), recon, rtol=1e-5, atol=1e-5)
    assert 0 < (acts > 0).mean() < 1


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"architecture": "jumprelu"},
        {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True},
        {"architecture": "topk", "k": D_SAE, "rescale_acts_by_decoder_norm": True},
    ],
    ids=["standard", "jumprelu", "topk", "topk of all"],
)
def test_activations_and_reconstructions_are_those_of_saelens(more: dict, applied: bool, tmp_path: Path) -> None:
    cfg, weights = CFG | more | {"apply_b_dec_to_input": applied}, tensors(threshold="jumprelu" in more.values())
    assert_theirs(write(tmp_path, cfg, weights), *theirs(cfg, weights, X), X)


@pytest.mark.parametrize("applied", [True, False])
def test_a_gated_sae_gives_saelens_numbers(applied: bool, tmp_path: Path) -> None:
    """SAELens' formulas in float64: gated_sae.py."""
    rng, weights = np.random.default_rng(2), tensors()
    del weights["b_enc"]
    weights |= {name: rng.normal(size=D_SAE).astype(np.float32) for name in ("b_gate", "b_mag", "r_mag")}
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    products = (X - w["b_dec"] * applied) @ w["W_enc"]
    acts = (products + w["b_gate"] > 0) * np.maximum(products * np.exp(w["r_mag"]) + w["b_mag"], 0)
    folder = write(tmp_path, CFG | {"architecture": "gated", "apply_b_dec_to_input": applied}, weights)
    assert_theirs(folder, acts, acts @ w["W_dec"] + w["b_dec"], X)


def test_b_dec_is_applied_to_the_input_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    cfg = {key: value for key, value in CFG.items() if key != "apply_b_dec_to_input"}
    assert_theirs(write(tmp_path, cfg), *theirs(CFG, tensors(), X), X)


@pytest.mark.parametrize("equal", [False, True])
def test_a_topk_sae_may_compare_activations_whatever_the_decoder_norms(equal: bool, tmp_path: Path) -> None:
    cfg = CFG | {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": False}
    weights = tensors()
    if equal:
        weights["W_dec"] *= 2 / np.linalg.norm(weights["W_dec"], axis=1, keepdims=True)
    assert_theirs(write(tmp_path / "theirs", cfg, weights), *theirs(cfg, weights, X), X)
    sae, activation = read_sae(tmp_path / "theirs")
    assert activation == TopK(2, by_size=equal)
    if not equal:  # otherwise norms are folded
        write_sae(tmp_path / "ours", sae, activation)
        assert_theirs(tmp_path / "ours", *theirs(cfg, weights, X), X)


OF_TRAINING: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 1.0, "lp_norm": 1.0, "l1_warm_up_steps": 0},
    "jumprelu": {"jumprelu_bandwidth": 0.05, "l0_coefficient": 1.0, "target_l0": None},
    "topk": {"k": 2, "aux_loss_coefficient": 1.0, "rescale_acts_by_decoder_norm": True},
    "batchtopk": {"k": 1.5, "topk_threshold_lr": 0.01, "rescale_acts_by_decoder_norm": True},
    "matryoshka_batchtopk": {"k": 1.5, "matryoshka_widths": [2, 8], "rescale_acts_by_decoder_norm": False},
}


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("architecture", OF_TRAINING)
def test_a_checkpoint_of_training_is_read_as_saelens_would_export_it(
    architecture: str, scale: float, tmp_path: Path
) -> None:
    """With a scale, SAELens' `fold_activation_norm_scaling_factor` comes first."""
    cfg = CFG | {"architecture": architecture, "decoder_init_norm": 0.1, **OF_TRAINING[architecture]}
    weights, batch = tensors(threshold=architecture == "jumprelu"), "batchtopk" in architecture
    normalised = cfg if scale == 1 else cfg | {"normalize_activations": "expected_average_only_in"}
    folder = write(tmp_path, normalised, weights | ({"topk_threshold": np.array(0.7)} if batch else {}))
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale, "has_whitening": False}))
    weights |= {"W_enc": weights["W_enc"] * scale} | {name: weights[name] / scale for name in ("W_dec", "b_dec")}
    if batch:
        weights["threshold"] = np.full(D_SAE, 0.7 / (scale if cfg["rescale_acts_by_decoder_norm"] else 1.0))
        del cfg["k"]
    assert_theirs(folder, *theirs(cfg, weights, X), X)


@pytest.mark.parametrize("content", ["{}", '{"scaling_factor": null}', '{"scaling_factor": -1.0}'])
def test_a_scale_that_is_no_number_is_refused(content: str, tmp_path: Path) -> None:
    write(tmp_path, CFG | {"normalize_activations": "expected_average_only_in"})
    (tmp_path / "activation_scaler.json").write_text(content)
    refused(tmp_path, r"activation_scaler\.json: scaling_factor: expected a positive number, got")


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "torch.bfloat16"])
def test_weights_of_other_types_are_taken_in_the_type_that_the_file_names(dtype: str, tmp_path: Path) -> None:
    kind = jnp.dtype(dtype.removeprefix("torch."))
    rounded = {name: values.astype(kind) for name, values in tensors().items()}
    cfg = CFG | {"dtype": dtype, "apply_b_dec_to_input": False}
    weights = tensors() if dtype != "float64" else rounded  # SAELens rounds them when it loads them
    assert_theirs(write(tmp_path, cfg, weights), *theirs(cfg, rounded, X), X)


@pytest.mark.parametrize("name", ["standard_default", "standard_nobdec", "jumprelu_default", "batchtopk_default"])
def test_what_saelens_trained_and_saved_gives_its_own_numbers(name: str) -> None:
    folder = CASES / "saelens" / name
    if not folder.exists():
        pytest.skip("the folders that SAELens saved are not here")
    with np.load(folder / "expected.npz") as expected:
        assert_theirs(folder, expected["acts"], expected["recon"], expected["x"])


PURSUIT: dict[str, Any] = {
    **{"architecture": "matching_pursuit", "max_iterations": 3},
    **{"residual_threshold": 0.0, "stop_on_duplicate_support": False},
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        ({"normalize_activations": name}, f"normalize_activations is {name}, expected 'none' or .*fold.*depends on")
        for name in ("layer_norm", "constant_norm_rescale", "covariance_whitening")
    ),
    (
        {"normalize_activations": "expected_average_only_in"},
        "normalize_activations is expected_average_only_in, and there is no activation_scaler.json .*: fold",
    ),
    ({"normalize_activations": None}, "normalize_activations is None"),
    ({"reshape_activations": "hook_z"}, "reshape_activations is hook_z, expected 'none'"),
    ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}, "activation_fn_str is topk, expected 'relu'"),
    ({"activation_fn": "tanh-relu"}, "activation_fn is tanh-relu"),
    ({"activation_fn_kwargs": {"k": 2}}, "activation_fn_kwargs is {'k': 2}, expected {}"),
    ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is True, expected False"),
    ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1, expected False or True"),
    ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input is None"),
    ({"architecture": "transcoder"}, "architecture is transcoder, expected 'standard' or 'jumprelu' or 'topk'"),
    ({"architecture": ["topk"]}, r"architecture is \['topk'\]"),
    ({"architecture": ...}, "architecture is missing"),
    ({"dtype": "int8"}, "dtype is int8, expected"),
    ({"dtype": ...}, "dtype is missing"),
    ({"k": 2}, "k is 2, which is not known for 'standard'"),
    ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is True, which is not known for 'standard'"),
    ({"temperature": 1.0}, "temperature is 1.0, which is not known for 'standard'"),
    *(
        ({"architecture": name}, f"architecture is {name}, expected .*: other architectures are not read")
        for name in ("temporal", "abstopk", "skip_transcoder", "jumprelu_transcoder")
    ),
    (PURSUIT | {"residual_threshold": 0.01}, "residual_threshold is 0.01, expected 0.0: here pursuit stops only"),
    (PURSUIT | {"stop_on_duplicate_support": True}, "stop_on_duplicate_support is True, expected False"),
    (PURSUIT | {"apply_b_dec_to_input": False}, "apply_b_dec_to_input is False, expected True: the residual starts"),
    (PURSUIT, "expected tensors W_dec, b_dec, got W_dec, W_enc, b_dec, b_enc"),
    ({"d_in": D_IN + 1}, r"W_enc has shape \(5, 8\), expected \(6, 8\) by d_in = 6 and d_sae = 8"),
    ({"d_sae": 99}, r"W_enc has shape \(5, 8\), expected \(5, 99\)"),
    ({"d_in": 5.0}, "d_in: expected a whole number of at least 1, got 5.0"),
    ({"d_sae": 10**700}, "d_sae: must be at most 2,147,483,648, got a number of 2,326 bits"),
    ({"d_sae": True}, "d_sae: expected a whole number"),
    ({"d_sae": ...}, "d_sae: expected a whole number"),
    ({"metadata": []}, r"metadata: expected an object, got \[\]"),
    ({"reshape_activations": ..., "hook_name": "blocks.0.attn.hook_z"}, "reshape_activations is absent, .*'hook_z'"),
    ({"architecture": "topk"}, "k: expected a whole number from 1 to d_sae = 8, got None"),
    *(
        ({"architecture": "topk", "k": k}, "k: expected a whole number from 1 to d_sae = 8, got ")
        for k in (0, -1, 9, 1.5, True, "2")
    ),
    ({"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": "yes"}, "rescale_acts_by_decoder_norm is yes"),
    ({"x" * 10**5: "y" * 10**5}, "x{200}.* is y{200}.*, which is not known"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_setting_that_changes_the_function_is_refused_by_its_name_and_value(
    change: dict, message: str, tmp_path: Path
) -> None:
    cfg = {key: value for key, value in (CFG | change).items() if value is not ...}
    refused(write(tmp_path, cfg), message)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_sae(folder)
    assert str(folder) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"sae_weights\.safetensors: W_dec: expected rows of norm 1 for matching_pursuit"),
        ({"max_iterations": None}, "max_iterations: expected a whole number of at least 1, got None"),
        ({"tolerance": 2.0}, "tolerance: must be at most 1, got 2.0"),
    ],
)
def test_a_pursuit_that_is_none_of_ours_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    weights = {name: tensors()[name] for name in ("W_dec", "b_dec")}
    if change:
        weights["W_dec"] /= np.linalg.norm(weights["W_dec"], axis=1, keepdims=True)
    refused(write(tmp_path, CFG | PURSUIT | change, weights), message)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    return (made := tensors(threshold=True)) | {name: np.ascontiguousarray(change(made[name]))}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (changed("W_enc", np.transpose), r"W_enc has shape \(8, 5\), expected \(5, 8\)"),
        (changed("W_dec", np.transpose), r"W_dec has shape \(5, 8\), expected \(8, 5\)"),
        (changed("b_enc", lambda b: b[:, None]), r"b_enc has shape \(8, 1\), expected \(8,\)"),
        (changed("threshold", lambda t: t[:1]), r"threshold has shape \(1,\), expected \(8,\)"),
        ({**tensors(threshold=True), "threshold": np.ones((), np.float32)}, r"threshold has shape \(\), expected"),
        (changed("b_dec", lambda b: b * np.nan), "b_dec has numbers that are not finite"),
        (changed("threshold", lambda t: t + np.inf), "threshold has numbers that are not finite"),
        (changed("W_dec", lambda w: w.astype(np.float64) * 1e300), "W_dec has numbers that are not finite in float32"),
        (changed("b_enc", lambda b: b.astype(np.int32)), "b_enc has int32 values, expected floating-point"),
        (tensors(), "expected tensors W_enc, b_enc, W_dec, b_dec, threshold, got W_dec, W_enc, b_dec, b_enc"),
        ({**tensors(threshold=True), "scaling_factor": np.ones(8)}, "expected tensors .*, got .*scaling_factor"),
    ],
)
def test_weights_that_are_not_those_of_the_file_are_refused_by_name(
    weights: dict, message: str, tmp_path: Path
) -> None:
    dtype = "float64" if weights["W_dec"].dtype == np.float64 else "float32"
    folder = write(tmp_path, CFG | {"architecture": "jumprelu", "dtype": dtype}, weights)
    refused(folder, rf"sae_weights\.safetensors: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "the key a stands twice in one object"),
        (b" " * (2**20 + 1), "has more than 1,048,576 bytes"),
        (b'{"a\\nb": 1}', r"architecture is missing"),
        (b"\xff", "not UTF-8 text"),
        (b'{"k": ' + b"9" * 5_000 + b"}", "no JSON: Exceeds the limit"),
    ],
)
def test_a_configuration_that_is_no_good_json_is_refused_in_one_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (write(tmp_path, CFG) / "cfg.json").write_bytes(content)
    refused(tmp_path, message)


def ours(activation: Activation = RELU, **change: Any) -> SAE:
    arrays = tensors(threshold=isinstance(activation, BatchTopK)) | change
    return SAE(**{name: jnp.asarray(array) for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("sae", "activation", "message"),
    [
        (ours(b_dec=np.full(D_IN, np.nan, np.float32)), RELU, "sae: b_dec has numbers that are not finite"),
        (ours(W_enc=np.full((D_IN, D_SAE), np.inf, np.float32)), TopK(2), "sae: W_enc has numbers that are not finite"),
        (ours(), TopK(9), "activation: k: expected a whole number from 1 to d_sae = 8, got 9"),
        (SAE(*(jnp.asarray(a)[None] for a in ours() if a is not None)), RELU, "W_enc: expected .* of one SAE"),
    ],
)
def test_an_sae_that_could_not_be_loaded_is_not_saved(
    sae: SAE, activation: Activation, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_sae(tmp_path, sae, activation)
    assert not [*tmp_path.iterdir()]


def test_a_flipped_bit_in_saved_weights_is_told(tmp_path: Path) -> None:
    write_sae(tmp_path, ours())
    path = tmp_path / "sae_weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(tmp_path, r"sae_weights\.safetensors: broken: its SHA-256 is not that of its content")


def test_a_save_that_was_killed_between_its_two_files_is_not_loaded(tmp_path: Path) -> None:
    write_sae(tmp_path, ours(), TopK(2))
    old = (tmp_path / "cfg.json").read_bytes()
    write_sae(tmp_path, ours(), TopK(3))
    (tmp_path / "cfg.json").write_bytes(old)
    refused(tmp_path, r"cfg\.json is not the one that sae_weights\.safetensors was saved with")


def test_notes_that_were_added_to_a_saved_sae_do_not_matter(tmp_path: Path) -> None:
    write_sae(tmp_path, ours(), metadata={"share": 1 / 3})
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["metadata"]["share"] == 1 / 3
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"hook_name": "blocks.0", "device": "cuda"}))
    np.testing.assert_array_equal(read_sae(tmp_path)[0].W_enc, tensors()["W_enc"])
