"""With the extra `peers`: SAELens' own numbers, for SAEs that it has trained, and for ours."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_evaluate import TREE, W_FEAT, an_sae, measured
from test_interop import DICTIONARIES, dictionary, write_dictionary
from test_io import TRAINED_AS, inference, random_sae

from toy.features.tree import held_out_key, sample_features
from toy.files.torch_file import read_torch_file
from toy.files.torch_save import save_torch_file
from toy.io import read_sae, write_sae
from toy.sae import Activation, MatchingPursuit, decode, encode
from toy.sae import fold_decoder_norm as unit_decoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch, sae_lens = pytest.importorskip("torch"), pytest.importorskip("sae_lens")
    evals = pytest.importorskip("sae_lens.synthetic.evals")
    trainer = pytest.importorskip("sae_lens.training.sae_trainer")
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
torch.set_num_threads(1)  # more would wait for each other
pytestmark = pytest.mark.filterwarnings("ignore")

D_IN, D_SAE = 16, 64
MORE: dict[str, dict[str, Any]] = {  # only what has no default for so small an SAE
    "Standard": {},
    "JumpReLU": {},
    "Gated": {},
    "TopK": {"k": 5},
    "BatchTopK": {"k": 5},
    "MatryoshkaBatchTopK": {"k": 5, "matryoshka_widths": [8, D_SAE]},
}


def rows(n: int, seed: int) -> Any:
    """Activations far from 0, so that it matters whether b_dec is subtracted, of features that are seldom on."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(n, 40, generator=generator) * (torch.rand(n, 40, generator=generator) < 0.1)
    return 3 * features @ torch.randn(40, D_IN, generator=torch.Generator().manual_seed(0)) + 2


class Trained(NamedTuple):
    sae: Any  # SAELens' training SAE
    exported: Path
    checkpoint: Path
    halfway: Path


def trained(kind: str, folder: Path, **settings: Any) -> Trained:
    """An SAE that SAELens has trained for 40 steps with its default settings, except for those given."""
    torch.manual_seed(0)
    cfg = getattr(sae_lens, f"{kind}TrainingSAEConfig")(d_in=D_IN, d_sae=D_SAE, **MORE.get(kind, {}), **settings)
    sae = getattr(sae_lens, f"{kind}TrainingSAE")(cfg)
    run = trainer.SAETrainerConfig(
        total_training_samples=40 * 256,
        train_batch_size_samples=256,
        lr=1e-2,
        lr_end=1e-2,
        n_checkpoints=1,
        checkpoint_path=str(folder),
        save_final_checkpoint=True,
        n_batches_for_norm_estimate=5,
    )
    trainer.SAETrainer(run, sae, (rows(256, seed) for seed in range(1, 1_000))).fit()
    sae.save_inference_model(folder / "exported")
    halfway, final = sorted(folder.glob("*/trainer_state.pt"), key=lambda file: "final" in str(file))
    return Trained(sae, folder / "exported", final.parent, halfway.parent)


def assert_equal(ours: Path, theirs: Path) -> None:
    """Ours in float32 against SAELens' in float64, in the norm of each row set."""
    x = rows(300, seed=0)
    sae, activation = read_sae(ours)
    acts = encode(sae, jnp.asarray(x.numpy()), activation)
    expected = sae_lens.SAE.load_from_disk(theirs, dtype="float64")
    with torch.no_grad():
        their_acts = expected.encode(x.double())
        their_recon = expected.decode(their_acts).numpy()
    their_acts = their_acts.to_dense().numpy()
    assert 0 < (their_acts > 0).mean() < 1
    for found, wanted in ((acts, their_acts), (decode(sae, acts), their_recon)):
        assert np.linalg.norm(found - wanted) <= 1e-6 * np.linalg.norm(wanted)


@pytest.mark.parametrize("kind", MORE)
def test_an_sae_that_saelens_trained_at_its_defaults_computes_the_same_here(kind: str, tmp_path: Path) -> None:
    made = trained(kind, tmp_path)
    assert made.sae.cfg.apply_b_dec_to_input
    assert made.sae.b_dec.norm() > 0.1
    assert_equal(made.exported, made.exported)
    assert_equal(made.checkpoint, made.exported)
    sae, activation = read_sae(made.exported)
    write_sae(tmp_path / "ours", sae, activation)
    assert_equal(tmp_path / "ours", tmp_path / "ours")


@pytest.mark.parametrize("kind", ["Standard", "Gated", "BatchTopK"])
@pytest.mark.parametrize("name", ["expected_average_only_in", "covariance_whitening"])
def test_a_linear_normalisation_is_folded_or_refused_by_name(name: str, kind: str, tmp_path: Path) -> None:
    made = trained(kind, tmp_path, normalize_activations=name)
    assert_equal(made.exported, made.exported)
    assert_equal(made.checkpoint, made.exported)
    if name == "covariance_whitening":
        with pytest.raises(ValueError, match=f"normalize_activations is {name}"):
            read_sae(made.halfway)
        return
    halfway = sae_lens.TrainingSAE.load_from_disk(made.halfway)
    scaler = pytest.importorskip("sae_lens.training.activation_scaler").ActivationScaler()
    scaler.load(made.halfway / "activation_scaler.json")
    assert not 0.9 < scaler.scaling_factor < 1.1
    halfway.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    halfway.save_inference_model(tmp_path / "folded")
    assert_equal(made.halfway, tmp_path / "folded")


@pytest.mark.parametrize("name", ["layer_norm", "constant_norm_rescale"])
def test_a_normalisation_of_each_row_is_refused_by_name(name: str, tmp_path: Path) -> None:
    made = trained("Standard", tmp_path, normalize_activations=name)
    for folder in (made.exported, made.checkpoint):
        with pytest.raises(ValueError, match=f"normalize_activations is {name}, .*give the SAE normalised rows"):
            read_sae(folder)


@pytest.mark.parametrize("activation", TRAINED_AS, ids=["standard", "topk", "jumprelu"])
def test_saelens_loads_what_is_saved_and_rebuilds_the_same(activation: Activation, tmp_path: Path) -> None:
    sae = random_sae(activation)
    write_sae(tmp_path, sae, activation)
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    expected = {"ReLU": "standard", "TopK": "topk", "BatchTopK": "jumprelu"}[type(activation).__name__]
    assert theirs.cfg.architecture() == expected
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    acts = encode(sae, jnp.asarray(x), inference(activation))
    with torch.no_grad():
        their_acts = theirs.encode(torch.tensor(x))
        recon = theirs.decode(their_acts).numpy()
    np.testing.assert_array_equal(their_acts.to_dense().numpy() > 0, acts > 0)
    assert 0 < (acts > 0).mean() < 1
    np.testing.assert_allclose(recon, decode(sae, acts), rtol=1e-5, atol=1e-5)


def test_saelens_pursues_as_we_do_where_only_the_rounds_end_it(tmp_path: Path) -> None:
    """SAELens compares the residual with a length, and not with a share of the input: ours is read without it."""
    sae = unit_decoder(random_sae())
    write_sae(tmp_path, sae, MatchingPursuit(2, tolerance=0.0))
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    with torch.no_grad():
        expected = sae_lens.SAE.load_from_disk(tmp_path).encode(torch.tensor(x)).numpy()
    assert 0 < (expected > 0).mean() < 1
    ours, how = read_sae(tmp_path)
    for acts in (encode(sae, jnp.asarray(x), MatchingPursuit(2, 0.0)), encode(ours, jnp.asarray(x), how)):
        np.testing.assert_allclose(acts, expected, rtol=1e-5, atol=1e-5)
    made = trained("MatchingPursuit", tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"residual_threshold is 0\.01, expected 0\.0"):
        read_sae(made.exported)


@pytest.mark.parametrize("name", sorted({*DICTIONARIES} - {"AutoEncoderNew"}))
def test_dictionaries_are_read_as_saelens_reads_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By reconstructions: SAELens leaves activations in units of the encoder, and reads no AutoEncoderNew."""
    tensors = dictionary(name)
    if name == "AutoEncoderTopK":  # as training leaves it
        tensors["decoder.weight"] /= np.linalg.norm(tensors["decoder.weight"], axis=0)
    write_dictionary(tmp_path, name, tensors, k=3, layer=0, activation_dim=5, dict_size=8)
    monkeypatch.setattr(loaders, "hf_hub_download", lambda filename, **_: str(tmp_path / Path(filename).name))
    cfg, state, _ = loaders.dictionary_learning_sae_huggingface_loader_1("repo", "folder")
    theirs = sae_lens.SAE.from_dict(loaders.handle_config_defaulting(cfg))
    theirs.load_state_dict(state)
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    sae, activation = read_sae(tmp_path)
    with torch.no_grad():
        recon = theirs(torch.tensor(x)).numpy()
    np.testing.assert_allclose(decode(sae, encode(sae, jnp.asarray(x), activation)), recon, rtol=1e-4, atol=1e-5)


def test_pytorch_reads_our_files_and_we_read_its(tmp_path: Path) -> None:
    tensors = {"turned": np.arange(6, dtype=np.float32).reshape(2, 3).T, "k": np.int32(3), "none": np.zeros((0, 2))}
    save_torch_file(tmp_path / "ours.pt", tensors)
    theirs = torch.load(tmp_path / "ours.pt", weights_only=True)
    torch.save(theirs, tmp_path / "theirs.pt")
    found = read_torch_file(tmp_path / "theirs.pt")
    assert isinstance(found, dict)
    assert theirs.keys() == found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        for one in (theirs[name].numpy(), found[name]):
            assert one.dtype == tensor.dtype
            np.testing.assert_array_equal(one, tensor)


def test_sae_lens_own_evaluation_says_the_same(tmp_path: Path) -> None:
    """MCC, uniqueness, L0, dead latents, shrinkage, explained variance and classification."""
    record = measured(tmp_path, {"bad": an_sae(0.3)})
    (ours,) = record["results"].values()
    features = torch.tensor(np.asarray(sample_features(held_out_key(jax.random.key(0)), TREE, 2_000)))

    class Rows:
        def sample(self, n: int) -> Any:
            return features[:n]

    class Dictionary:
        feature_vectors = torch.tensor(W_FEAT)

        def __call__(self, rows: Any) -> Any:
            return rows @ self.feature_vectors

    sae = sae_lens.SAE.load_from_disk(str(tmp_path / "bad"))
    with torch.no_grad():
        theirs = evals.eval_sae_on_synthetic_data(sae, Dictionary(), Rows(), num_samples=2_000)
    same = {"mcc": theirs.mcc, "uniqueness": theirs.uniqueness, "l0": theirs.sae_l0, "shrinkage": theirs.shrinkage}
    same |= {"dead_latents": theirs.dead_latents, "fvu": 1 - theirs.explained_variance}
    same |= {name: getattr(theirs.classification, name) for name in ("precision", "recall", "f1_score", "accuracy")}
    assert {name: ours[name] for name in same} == pytest.approx(same, abs=1e-4)
