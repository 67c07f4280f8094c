"""Synthetic models beside SAELens 6.54 itself: the same numbers, the same distribution, the same evaluation."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from toy.data.source import SyntheticSource, synthsaebench
from toy.eval.against_features import evaluate_features
from toy.features.synthsaebench import SynthSAEBench
from toy.features.tree import build_tree, coactivation
from toy.io import load_synthetic, read_tree, save_synthetic
from toy.sae import SAE

torch: Any = pytest.importorskip("torch")
sae_lens: Any = pytest.importorskip("sae_lens")
theirs: Any = pytest.importorskip("sae_lens.synthetic")
models: Any = pytest.importorskip("sae_lens.synthetic.synthetic_model")
peers: Any = pytest.importorskip("experiments.bench.peers")

CFG = SynthSAEBench(
    n_features=300, d_in=48, n_roots=6, n_branches=3, rank=5, correlation=0.2, min_prob=5e-3, n_orthogonal_steps=9
)


def within_4_errors(ours: np.ndarray, other: np.ndarray) -> None:
    """How often features are on, alone and in pairs, where that is often enough to have a normal distribution."""
    a, b = (on.T.astype(np.float32) @ on.astype(np.float32) for on in (ours > 0, other > 0))
    a, b = a / len(ours), b / len(other)
    p = (a * len(ours) + b * len(other)) / (len(ours) + len(other))
    error = np.sqrt(p * (1 - p) * (1 / len(ours) + 1 / len(other)))
    often = p * min(len(ours), len(other)) >= 20
    z = np.abs(a - b)[often] / np.maximum(error[often], 1e-12)
    assert z.size
    assert np.max(z) <= max(4, np.sqrt(2 * np.log(20 * z.size)))  # of thousands, some exceed 4


@pytest.mark.parametrize("scale_children", [False, True])
def test_the_benchmark_is_what_saelens_makes_and_saves(tmp_path: Path, scale_children: bool) -> None:
    cfg = SynthSAEBench(**{**vars(CFG), "scale_children": scale_children})
    model = peers.synthetic_model(cfg)
    model.save(tmp_path / "model")
    for ours in (synthsaebench(cfg), load_synthetic(tmp_path / "model")):
        generator, n = model.activation_generator, cfg.n_features
        np.testing.assert_allclose(ours.W_feat, model.feature_dict.feature_vectors.detach(), atol=1e-5)
        np.testing.assert_allclose(ours.bias, model.feature_dict.bias.detach(), atol=1e-6)
        np.testing.assert_allclose(ours.features.mean[:n], generator.mean_firing_magnitudes, rtol=1e-6)
        np.testing.assert_allclose(ours.features.std[:n], generator.std_firing_magnitudes, atol=1e-6)
        np.testing.assert_allclose(ours.features.threshold[:n], generator.correlation_thresholds, atol=1e-5)
        np.testing.assert_allclose(ours.features.loading[:n], generator.low_rank_correlation[0], atol=1e-6)
        np.testing.assert_allclose(ours.features.noise[:n], generator.low_rank_correlation[1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scale_children", [False, True])
def test_features_are_drawn_as_saelens_draws_them(scale_children: bool) -> None:
    cfg = SynthSAEBench(**{**vars(CFG), "scale_children": scale_children, "n_orthogonal_steps": 0})
    torch.manual_seed(0)
    other = peers.synthetic_model(cfg).activation_generator.sample(100_000).numpy()
    ours = np.asarray(
        jax.jit(SyntheticSource.sample_features, static_argnums=2)(synthsaebench(cfg), jax.random.key(0), 100_000)
    )
    within_4_errors(ours, other)
    for power in (1, 2):  # of the magnitudes, with what scaling adds to them
        a, b = ours**power, other**power
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
        assert np.max(np.abs(a.mean(axis=0) - b.mean(axis=0)) / np.maximum(error, 1e-9)) < 4.5


def test_an_sae_is_evaluated_as_saelens_evaluates_it() -> None:
    cfg, rng = SynthSAEBench(**{**vars(CFG), "n_orthogonal_steps": 0}), np.random.default_rng(0)
    model, n_latents = peers.synthetic_model(cfg), 80
    W_dec = model.feature_dict.feature_vectors.detach().numpy()[:n_latents] + 0.05 * rng.normal(
        size=(n_latents, cfg.d_in)
    )
    leaves = (W_dec.T, np.full(n_latents, -1.5), W_dec, model.feature_dict.bias.detach().numpy())
    sae = SAE(*(np.asarray(leaf, np.float32) for leaf in leaves))  # type: ignore[arg-type]
    saved = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=cfg.d_in, d_sae=n_latents, apply_b_dec_to_input=False))
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(saved, name).copy_(torch.tensor(np.asarray(getattr(sae, name))))
    chunks = [model.activation_generator.sample(500) for _ in range(8)]
    pairs = [(model.feature_dict(features).detach().numpy(), features.numpy()) for features in chunks]
    ours = evaluate_features(sae, model.feature_dict.feature_vectors.detach().numpy(), pairs)
    stored = iter(chunks)
    model.activation_generator.sample = lambda n: next(stored)
    evaluated = theirs.eval_sae_on_synthetic_data(saved, model.feature_dict, model.activation_generator, 4_000, 500)
    expected = evaluated.to_dict()
    classes = expected.pop("classification")
    assert 0.2 < classes["f1_score"] < 0.999
    assert ours.classification._asdict() == pytest.approx(classes, abs=1e-4)
    assert ours._replace(classification=None)._asdict() == pytest.approx(expected | {"classification": None}, abs=1e-4)  # type: ignore[arg-type]


def nodes_of(n_features: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Exclusive siblings of .1, .3 and .7 among parents, children, a node that is no feature, and more."""
    three = np.array([0.1, 0.3, 0.7])
    prob = np.resize(np.concatenate([[0.4], three, [0.2, 0.5, 0.3, 0.6, 0.5, 0.15, 0.25]]), n_features)
    block = [
        {
            "feature_index": 0,
            "mutually_exclusive_children": True,
            "children": [
                {"feature_index": 1},
                {"feature_index": 2, "children": [{"feature_index": 4}]},
                {"feature_index": 3},
            ],
        },
        {
            "feature_index": 5,
            "children": [{"children": [{"feature_index": 6}, {"feature_index": 7}]}, {"feature_index": 8}],
        },
    ]  # 9 and 10 stand alone
    return [shifted(node, 11 * i) for i in range(n_features // 11) for node in block], prob


def shifted(node: dict[str, Any], by: int) -> dict[str, Any]:
    moved = {"feature_index": node["feature_index"] + by} if "feature_index" in node else {}
    return {**node, **moved, "children": [shifted(child, by) for child in node.get("children", [])]}


@pytest.mark.parametrize(("n_features", "n_pairs"), [(11, 55), (41, 820)])
def test_a_model_becomes_a_tree_and_again_a_model(tmp_path: Path, n_features: int, n_pairs: int) -> None:
    roots, prob = nodes_of(n_features)
    cfg = models.SyntheticModelConfig(num_features=n_features, hidden_dim=64, bias=0.5, seed=1)
    model = models.SyntheticModel(cfg, hierarchy=theirs.Hierarchy.from_dict({"roots": roots}))
    model.activation_generator.firing_probabilities = torch.tensor(prob, dtype=torch.float32)
    model.save(tmp_path / "first")
    root, notes = read_tree(tmp_path / "first", dialect="saelens")
    assert any("0.1, 0.3, 0.7 become 0.057, 0.187, 0.567" in note for note in notes)
    directions, bias = (part.detach().numpy() for part in (model.feature_dict.feature_vectors, model.feature_dict.bias))
    notes = save_synthetic(tmp_path / "second", root, directions, bias)
    assert any("0.057, 0.187, 0.567 become 0.1, 0.3, 0.7" in note for note in notes)
    again = models.SyntheticModel.load_from_disk(tmp_path / "second")
    np.testing.assert_allclose(again.activation_generator.firing_probabilities, prob, atol=1e-6)
    np.testing.assert_array_equal(again.feature_dict.feature_vectors.detach(), directions)
    np.testing.assert_array_equal(again.feature_dict.bias.detach(), bias)
    exact, n = coactivation(build_tree(root)), 100_000
    assert len(exact) * (len(exact) - 1) // 2 == n_pairs
    torch.manual_seed(0)
    for drawn in (model, again):
        on = (drawn.activation_generator.sample(n) > 0).numpy().astype(np.float32)
        error = np.sqrt(exact * (1 - exact) / n)
        assert np.all(np.abs(on.T @ on / n - exact) <= 4 * error + 1e-9)
