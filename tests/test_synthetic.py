"""Synthetic features have SAELens' distribution: against its rule, drawn row by row for every feature."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments import train as train_command
from experiments.common.experiment import Work
from toy.data.source import SyntheticSource, synthsaebench
from toy.features.hierarchy import Drawn, synthetic
from toy.features.node import TreeError
from toy.features.synthetic import Synthetic
from toy.features.synthsaebench import SynthSAEBench, TorchNormal, drawn, hierarchy
from toy.io import load_synthetic, load_tree

N_ROWS = 60_000
SAMPLE = jax.jit(SyntheticSource.sample, static_argnums=2)
SMALL = SynthSAEBench(n_features=60, d_in=24, n_roots=4, n_branches=3, depth=2, rank=3, correlation=0.3, min_prob=0.02)


def nest(index: int | None = None, *children: dict, exclusive: bool = False, scale: bool = False) -> dict[str, Any]:
    return {
        "feature_index": index,
        "children": list(children),
        "mutually_exclusive_children": exclusive,
        "scale_children_by_parent": scale,
    }


REGULAR = [nest(0, nest(1, nest(3), nest(4), exclusive=True), nest(2), exclusive=True), nest(5)]
MIXED = [
    nest(0, nest(1), nest(2), nest(3, nest(4), nest(5), nest(6), exclusive=True), scale=True),
    nest(None, nest(7, nest(8), scale=True), nest(9), nest(10), exclusive=True),  # rivals that have no parent
    nest(11, nest(None, nest(12), nest(13), exclusive=True, scale=True), nest(14), exclusive=True),  # two groups
]


def draws(n_features: int, seed: int = 0) -> Drawn:
    rng = np.random.default_rng(seed)
    loading = rng.normal(size=(n_features, 2)) * 0.4
    std = np.abs(rng.normal(0.5, 0.5, n_features))  # some magnitudes are often below 0
    std[0] = 0.0
    prob, mean = rng.uniform(0.2, 0.8, n_features), rng.uniform(1, 2, n_features)
    prob[-1] = 1.0
    return Drawn(prob, mean, std, loading, 1 - np.sum(loading**2, axis=1))


def by_the_rule(roots: list[dict], given: Drawn, n_rows: int, seed: int = 0) -> np.ndarray:
    """SAELens' steps: every feature is drawn, then the hierarchy goes from parents to children."""
    rng, n = np.random.default_rng(seed), len(given.prob)
    normal = rng.normal(size=(n_rows, given.loading.shape[1])) @ given.loading.T
    normal += rng.normal(size=(n_rows, n)) * np.sqrt(given.variance)
    fires = normal > -np.sqrt(2) * np.vectorize(inverse_erf)(2 * given.prob - 1)
    values = fires * np.maximum(given.mean + given.std * rng.normal(size=(n_rows, n)), 0)

    def visit(node: dict, above: np.ndarray, relative: np.ndarray, scaled: bool) -> None:
        index = node["feature_index"]
        if index is not None:
            values[:, index] *= above * (relative if scaled else 1)
            above, relative = values[:, index] > 0, values[:, index] / given.mean[index]
        rivals = [child["feature_index"] for child in node["children"] if child["feature_index"] is not None]
        if node["mutually_exclusive_children"] and len(rivals) > 1:
            lots = rng.random((n_rows, len(rivals))) * (values[:, rivals] > 0)
            values[:, rivals] *= lots == lots.max(axis=1, keepdims=True)
        for child in node["children"]:
            visit(child, above, relative, node["scale_children_by_parent"])

    for root in roots:
        visit(root, np.ones(n_rows, bool), np.ones(n_rows), False)
    return values


def inverse_erf(y: float) -> float:
    return float(jax.scipy.special.erfinv(np.float64(y))) if abs(y) < 1 else np.inf * np.sign(y)


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    """How often features are on together, and their magnitudes and products of them: within 5 standard errors."""
    for a, b in ((ours > 0, theirs > 0), (ours, theirs)):
        a, b = np.column_stack([a, np.ones(len(a))]), np.column_stack([b, np.ones(len(b))])
        difference = a.T @ a / len(a) - b.T @ b / len(b)
        squares = (a**2).T @ a**2 / len(a) ** 2 + (b**2).T @ b**2 / len(b) ** 2
        assert np.all(np.abs(difference) <= 5 * np.sqrt(squares)), np.max(np.abs(difference) / np.sqrt(squares))


@pytest.mark.parametrize("roots", [REGULAR, MIXED, []], ids=["regular", "mixed", "none"])
@pytest.mark.parametrize("n_slots", [None, 1])
def test_features_are_as_often_together_and_as_large_as_the_rule_makes_them(roots: list, n_slots: int | None) -> None:
    given = draws(16)
    model = synthetic(roots, given)
    if n_slots is not None:  # so that passes have to follow each other
        model = model._replace(layout=replaced(model, n_slots))
    source = SyntheticSource(model, np.zeros((16, 1), np.float32), np.zeros(1, np.float32))  # type: ignore[arg-type]
    draw = jax.jit(SyntheticSource.sample_features, static_argnums=2)
    ours = np.asarray(draw(source, jax.random.key(0), N_ROWS))
    agree(ours, by_the_rule(roots, given, N_ROWS))


def replaced(model: Synthetic, n_slots: int) -> Any:
    return type(model.layout)(**{**vars(model.layout), "n_slots": (n_slots, n_slots)})


def test_a_hierarchy_that_cannot_be_drawn_is_refused_by_name() -> None:
    given = draws(16)
    for roots, fault in (
        ([nest(3), nest(3)], r"root\.roots\[1\]\.feature_index: 3 is repeated, or not below 16"),
        ([nest(16)], "feature_index: 16 is repeated, or not below 16"),
        ([nest(0, nest(1), scale=True)], "feature 0: children are scaled by its mean magnitude"),
    ):
        with pytest.raises(TreeError, match=fault):
            synthetic(roots, given._replace(mean=0 * given.mean))


def test_rows_are_the_features_times_their_directions_and_a_bias() -> None:
    source, key = synthsaebench(SMALL), jax.random.key(3)
    features = np.asarray(jax.jit(SyntheticSource.sample_features, static_argnums=2)(source, key, 500))
    assert 1 < (features > 0).sum(axis=1).mean() < 10
    rows = features @ np.asarray(source.W_feat) + np.asarray(source.bias)
    np.testing.assert_allclose(SAMPLE(source, key, 500), rows, atol=1e-5)


@pytest.mark.slow
def test_lanes_draw_what_they_draw_alone() -> None:
    source, keys = synthsaebench(SMALL), jax.random.split(jax.random.key(5), 3)
    together = jax.jit(jax.vmap(lambda key: source.sample(key, 500)))(keys)
    np.testing.assert_allclose(together, [SAMPLE(source, key, 500) for key in keys], atol=1e-5)


def test_numbers_are_those_of_pytorch() -> None:
    """From PyTorch 2: `torch.randn(18, generator=torch.Generator().manual_seed(43))`; the last 16 are drawn twice."""
    numbers = TorchNormal(43)(18)
    np.testing.assert_allclose(
        numbers[[0, 1, 2, 10, 17]], [-0.0166036, -0.4667949, -1.7672257, -0.7325564, -1.8290665], atol=1e-6
    )
    with pytest.raises(ValueError, match="at least 16"):
        TorchNormal(43)(15)


def test_the_benchmark_has_its_numbers() -> None:
    cfg = SynthSAEBench()
    given, roots = drawn(cfg), hierarchy(cfg)
    assert given.prob[0] == pytest.approx(0.4)
    assert given.prob[-1] == pytest.approx(5e-4)
    assert (len(roots), roots[127]["feature_index"], roots[0]["children"][0]["feature_index"]) == (128, 127, 128)
    layout = synthetic(roots, given).layout
    assert (layout.exclusive, layout.n_parents, layout.n_groups) == ((True,) * 3, 128, 1)


def saved(folder: Path, config: dict | None = None, **tensors: np.ndarray) -> Path:
    """SMALL as SAELens saves it."""
    source, given = synthsaebench(SMALL), drawn(SMALL)
    default = {
        "num_features": SMALL.n_features,
        "hidden_dim": SMALL.d_in,
        "firing_probability": {"generator_name": "zipfian"},
        "hierarchy": {},
        "correlation": {},
        "mean_firing_magnitudes": {"generator_name": "linear", "start": 5.0, "end": 4.0},
        "std_firing_magnitudes": {"generator_name": "folded_normal", "mean": 0.5, "std": 0.5, "min_value": None},
        "bias": 0.5,
        "seed": 42,
    }
    arrays = {
        "feature_vectors": np.asarray(source.W_feat),
        "bias": np.asarray(source.bias),
        "firing_probabilities": given.prob,
        "correlation_factor": given.loading,
        "correlation_diag": given.variance,
    }
    folder.mkdir()
    (folder / "synthetic_model_config.json").write_text(json.dumps(default | (config or {})))
    (folder / "hierarchy.json").write_text(json.dumps({"roots": hierarchy(SMALL)}))
    save_file(arrays | tensors, folder / "synthetic_model.safetensors")
    return folder


def test_a_folder_holds_the_same_source(tmp_path: Path) -> None:
    ours, theirs = synthsaebench(SMALL), load_synthetic(saved(tmp_path / "model"))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


@pytest.mark.parametrize(
    ("config", "tensors", "fault"),
    [
        ({"hidden_dim": 9}, {}, "feature_vectors: expected finite numbers of shape \\(60, 9\\)"),
        ({}, {"bias": np.full(24, np.nan, np.float32)}, "bias: expected finite numbers"),
        ({}, {"correlation_diag": np.ones(3, np.float32)}, "correlation_diag: expected finite numbers"),
        ({}, {"more": np.ones(3, np.float32)}, "more: a tensor that SAELens 6.54 does not save"),
        ({}, {"firing_probabilities": np.full(60, 1.5, np.float32)}, "firing_probabilities: expected numbers in"),
        ({}, {"correlation_diag": np.full(60, -1, np.float32)}, "correlation_diag: expected variances above 0"),
        ({"std_firing_magnitudes": -1.0}, {}, "std_firing_magnitudes: must not be negative"),
        ({"seed": None}, {}, "std_firing_magnitudes: the generator folded_normal is random"),
        ({"std_firing_magnitudes": {"generator_name": "other"}}, {}, "the generator other is not read"),
    ],
)
def test_a_folder_that_is_no_source_is_refused(tmp_path: Path, config: dict, tensors: dict, fault: str) -> None:
    with pytest.raises(TreeError, match=fault):
        load_synthetic(saved(tmp_path / "model", config, **tensors))


def test_a_folder_with_correlations_is_no_tree(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match=r"correlation: .* or read the model as a source"):
        load_tree(saved(tmp_path / "model"))


@pytest.mark.slow
def test_an_sae_is_trained_on_a_folder(tmp_path: Path) -> None:
    cfg = train_command.Config(
        method="batchtopk:k=3",
        data=saved(tmp_path / "model"),
        folder=tmp_path / "out",
        n_latents=12,
        target_l0=3,
        n_steps=20,
    )
    train_command.check(cfg)
    curves = train_command.run(cfg, Work())["curves"]
    assert np.isfinite(curves[0]["loss"]).all()
