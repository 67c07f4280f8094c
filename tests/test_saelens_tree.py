"""Trees of SAELens have SAELens' distribution: against its rule drawn row by row, and against its own samples."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from oracles import within_binomial_bounds
from safetensors.numpy import save_file

from toy.features.node import TreeError, features
from toy.features.saelens_tree import Firing, kept_one, tree_of_roots
from toy.features.tree import build_tree, coactivation, marginals, mean_magnitudes, sample_features
from toy.features.tree_json import parse_tree, tree_from_dict, tree_to_dict
from toy.io import load_tree, read_tree

N_ROWS = 200_000
MODEL = Path("../shared/cases/saelens/synthetic_model")


# --- the chance of being kept -------------------------------------------------------------------------------


def enumerated(probs: list[float]) -> np.ndarray:
    """Σ_{S ∋ i} P(S) / |S| over all sets of siblings that are on."""
    kept = np.zeros(len(probs))
    for on in product([False, True], repeat=len(probs)):
        chosen = np.array(on)
        if chosen.any():
            kept[chosen] += np.prod(np.where(chosen, probs, 1 - np.array(probs))) / chosen.sum()
    return kept


def test_a_sibling_is_kept_as_often_as_the_sum_over_all_sets_says() -> None:
    np.testing.assert_allclose(kept_one([0.3] * 3), [0.219] * 3, rtol=1e-12)
    np.testing.assert_allclose(kept_one([0.1, 0.3, 0.7]), [0.057, 0.187, 0.567], rtol=1e-12)
    rng = np.random.default_rng(0)
    for n in range(1, 11):
        probs = np.where(rng.random(n) < 0.2, rng.integers(0, 2, n), rng.random(n)).tolist()
        np.testing.assert_allclose(kept_one(probs), enumerated(probs), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 200, 20_000])
@pytest.mark.parametrize("p", [1e-9, 0.5, 1.0])
def test_of_many_equal_siblings_each_is_kept_as_often(n: int, p: float) -> None:
    some = -np.expm1(n * np.log1p(-p)) if p < 1 else 1.0  # P(one at least is on), shared alike
    np.testing.assert_allclose(kept_one([p] * n), some / n, rtol=1e-11)


def test_one_that_is_always_on_among_many_rare_ones() -> None:
    probs = [1.0, *[1e-3] * 199]  # E[1 / (1 + N)] of a binomial N is (1 − (1 − p)^(n + 1)) / ((n + 1) p)
    kept = kept_one(probs)
    assert kept[0] == pytest.approx((1 - (1 - 1e-3) ** 200) / (200 * 1e-3), rel=1e-12)
    assert kept.sum() == pytest.approx(1, rel=1e-12)


# --- the rule, drawn row by row -----------------------------------------------------------------------------


def drawn(roots: list[dict], firing: Firing, n_rows: int = N_ROWS) -> np.ndarray:
    """Activations by SAELens' rule, in words of its documentation: all features alone, then level by level gates and
    exclusion, with siblings that exclude each other before their children are gated."""
    rng = np.random.default_rng(1)
    prob, mean, std = (np.array(values, float) for values in firing)
    shape = (n_rows, len(prob))
    acts = (rng.random(shape) < prob) * np.maximum(mean + std * rng.standard_normal(shape), 0)
    level = [(root, None, False) for root in roots]
    while level:
        below = []
        for node, above, scaled in level:
            own = node.get("feature_index")
            if own is not None and above is not None:
                acts[:, own] *= acts[:, above] / mean[above] if scaled else acts[:, above] > 0
        for node, above, _ in level:
            own, children = node.get("feature_index"), node.get("children", [])
            rivals = [c["feature_index"] for c in children if c.get("feature_index") is not None]
            if node.get("mutually_exclusive_children") and len(rivals) > 1:
                on = acts[:, rivals] > 0
                winner = np.argmax(np.where(on, rng.random(on.shape), -1), axis=1)
                acts[:, rivals] *= np.arange(len(rivals)) == winner[:, None]
            nearest = above if own is None else own
            below += [(child, nearest, bool(node.get("scale_children_by_parent"))) for child in children]
        level = below
    return acts


def n(index: int | None = None, *children: dict, x: bool = False, s: bool = False) -> dict:
    return {
        "feature_index": index,
        "mutually_exclusive_children": x,
        "scale_children_by_parent": s,
        "children": list(children),
    }


FORESTS: dict[str, list[dict]] = {
    "exclusive": [n(0, n(1), n(2), n(3), x=True), n(4, n(5), n(6))],
    "exclusive at two levels": [n(0, n(1, n(2), n(3), x=True), n(4, n(5), n(6), x=True), x=True)],
    "an organisational child is not excluded": [n(0, n(1), n(None, n(2), n(3)), n(4), x=True)],
    "organisational children alone": [n(0, n(None, n(1)), n(None, n(2)), x=True)],
    "one feature among organisational ones": [n(0, n(1), n(None, n(2)), n(None, n(3)), x=True)],
    "an organisational root": [n(None, n(0, n(1)), n(2), n(3), x=True)],
    "organisational in organisational": [n(0, n(None, n(1), n(2), n(None, n(3), n(4), x=True), x=True), n(5), x=True)],
    "scaled": [n(0, n(1, n(2), s=True), n(3), x=True, s=True)],
    "scaled through": [n(0, n(1), n(None, n(2), n(3), s=True))],
    "scaled, but not through": [n(0, n(1), n(None, n(2), n(3)), s=True)],
    "scaled through an unscaled one": [n(0, n(None, n(1), n(None, n(2), s=True), n(3), x=True))],
    "scaled at an organisational root": [n(None, n(0, n(1), s=True), n(2), s=True)],
    "scaled and exclusive beside organisational": [n(0, n(1), n(2), n(None, n(3, n(4)), s=True), x=True)],
}


@pytest.mark.parametrize("name", FORESTS)
def test_a_converted_tree_has_the_distribution_of_saelens_rule(name: str) -> None:
    rng = np.random.default_rng(len(name))
    firing = Firing(rng.uniform(0.4, 0.95, 8).tolist(), rng.uniform(1, 3, 8).tolist(), [0.2] * 8)
    root, _ = tree_of_roots(FORESTS[name], firing)
    tree, rows = build_tree(root), drawn(FORESTS[name], firing)
    on = rows > 0
    both = on.T.astype(float) @ on
    assert within_binomial_bounds(both, N_ROWS, coactivation(tree)).all()
    own = np.asarray(sample_features(jax.random.key(0), tree, N_ROWS))
    for i in range(8):
        theirs, ours = rows[on[:, i], i], own[own[:, i] > 0, i]
        error = 4.5 * np.hypot(theirs.std() / np.sqrt(len(theirs)), ours.std() / np.sqrt(len(ours))) + 1e-5
        assert ours.mean() == pytest.approx(theirs.mean(), abs=error)
        assert ours.std() == pytest.approx(theirs.std(), rel=0.03, abs=1e-6)
        assert theirs.mean() == pytest.approx(mean_magnitudes(tree)[i], abs=error)
    pairs = [(i, j) for i in range(8) for j in range(i) if (on[:, i] & on[:, j]).sum() > 1000]
    for i, j in pairs:  # magnitudes depend on each other as SAELens' do
        theirs, ours = (np.corrcoef(x[(x[:, i] > 0) & (x[:, j] > 0)][:, [i, j]].T)[0, 1] for x in (rows, own))
        assert ours == pytest.approx(theirs, abs=0.05)


def test_the_merged_tree_in_json_is_converted_and_told() -> None:
    data = {"roots": [n(0, n(1), n(2), x=True)], "firing_probabilities": [0.3, 0.4, 0.4]}
    root = tree_from_dict(data)
    np.testing.assert_allclose(marginals(build_tree(root)), [0.3, 0.3 * 0.32, 0.3 * 0.32])
    over = {"roots": [n(0, n(1), n(2), x=True)], "firing_probabilities": [1.0, 1.0, 0.5]}  # a sum over 1 is valid
    np.testing.assert_allclose(marginals(build_tree(tree_from_dict(over))), [1, 0.75, 0.25])
    assert parse_tree(json.dumps(tree_to_dict(root))) == root


def test_what_was_converted_is_told(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text(json.dumps({"roots": [n(0, n(1), n(2), x=True)], "firing_probabilities": [0.3, 0.4, 0.4]}))
    _, [note] = read_tree(file)
    assert "SAELens keeps one of the mutually exclusive children" in note
    assert "root.roots[0]: 0.4, 0.4 become 0.32, 0.32" in note


# --- saved models -------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "num_features": 4,
    "hidden_dim": 3,
    "firing_probability": {"generator_name": "zipfian"},
    "hierarchy": {"total_root_nodes": 1},
    "orthogonalization": None,
    "correlation": None,
    "std_firing_magnitudes": 0.0,
    "mean_firing_magnitudes": 1.0,
    "bias": 1.0,
    "dtype": "float32",
    "seed": 0,
}


def save_model(
    folder: Path, *, nodes: Any = None, probs: Any = (0.5, 0.4, 0.4, 0.1), tensors: Any = (), **changes: Any
) -> Path:
    (folder / "synthetic_model_config.json").write_text(json.dumps(CONFIG | changes))
    if nodes != "no file":
        (folder / "hierarchy.json").write_text(json.dumps(nodes or {"roots": [n(0, n(1), n(2), x=True)]}))
    arrays = {"firing_probabilities": np.array(probs, np.float32), "bias": np.zeros(3, np.float32)}
    save_file(arrays | dict(tensors), folder / "synthetic_model.safetensors")
    return folder


def test_the_folder_of_a_model_is_read_as_one_tree(tmp_path: Path) -> None:
    root, notes = read_tree(save_model(tmp_path, mean_firing_magnitudes=2.0, std_firing_magnitudes=0.25))
    np.testing.assert_allclose(marginals(build_tree(root)), [0.5, 0.16, 0.16, 0.1], rtol=1e-6)
    assert {node.magnitude_mean for node in features(root)} == {2.0}
    assert {node.magnitude_std for node in features(root)} == {0.25}
    assert len(notes) == 2
    assert "directions" in notes[-1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"generator_name": "constant", "value": 3.0}, [3, 3, 3, 3]),
        ({"generator_name": "linear", "start": 1.0, "end": 4.0}, [1, 2, 3, 4]),
        ({"generator_name": "exponential", "start": 1.0, "end": 8.0}, [1, 2, 4, 8]),
    ],
)
def test_magnitudes_of_a_deterministic_generator_are_computed(given: dict, expected: list, tmp_path: Path) -> None:
    root = load_tree(save_model(tmp_path, mean_firing_magnitudes=given))
    np.testing.assert_allclose([node.magnitude_mean for node in features(root)], expected)


def test_a_model_without_hierarchy_is_of_lone_features(tmp_path: Path) -> None:
    tree = build_tree(load_tree(save_model(tmp_path, nodes="no file", hierarchy=None)))
    assert tree.n_features == 4


RANDOM = {"generator_name": "folded_normal", "mean": 1.0, "std": 0.1, "min_value": None, "max_value": None}
BAD_MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "correlated": ({"correlation": {"rank": 2}}, "correlation: features that are correlated"),
    "correlated by its tensors": (
        {"tensors": {"correlation_diag": np.ones(4, np.float32)}},
        "correlation: features that are correlated",
    ),
    "random magnitudes": ({"mean_firing_magnitudes": RANDOM}, "mean_firing_magnitudes: the generator folded_normal"),
    "random spreads": ({"std_firing_magnitudes": RANDOM}, "std_firing_magnitudes: the generator folded_normal"),
    "a magnitude in words": ({"mean_firing_magnitudes": "one"}, "mean_firing_magnitudes: expected a number, got one"),
    "clipped magnitudes": ({"std_firing_magnitudes": 0.5}, "feature 0: SAELens clips its magnitude, 1 ± 0.5, to 0"),
    "negative magnitudes": ({"mean_firing_magnitudes": -1.0}, r".*magnitude_mean: -1.0 is outside"),
    "a setting that is not known": ({"temporal": 1}, "the configuration: unknown key 'temporal'"),
    "fewer features": ({"num_features": 3}, "firing_probabilities: expected one for each of num_features = 3"),
    "a probability over 1": ({"probs": (0.5, 1.5, 0.4, 0.1)}, r"root\.firing_probabilities\[1\]: 1.5 is outside"),
    "a probability that is NaN": ({"probs": (np.nan, 1, 0.4, 0.1)}, r"root\.firing_probabilities\[0\]: nan is outside"),
    "an index twice": ({"nodes": {"roots": [n(0), n(0)]}}, r".*feature_index: 0 is missing, repeated"),
    "another hierarchy": ({"nodes": {"trees": []}}, "the hierarchy: expected an object with the list 'roots'"),
}


@pytest.mark.parametrize("fault", BAD_MODELS)
def test_a_model_that_is_no_tree_is_refused_by_name(fault: str, tmp_path: Path) -> None:
    changes, message = BAD_MODELS[fault]
    with pytest.raises(TreeError, match=f"^{tmp_path}: {message}") as error:
        load_tree(save_model(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_model_with_a_file_missing_or_broken_is_refused_by_name(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "hierarchy.json").unlink()
    with pytest.raises(TreeError, match=r"hierarchy: the configuration has one, and the folder no hierarchy\.json"):
        load_tree(tmp_path)
    save_model(tmp_path)
    (tmp_path / "hierarchy.json").write_text('{"roots": [')
    with pytest.raises(TreeError, match=r"hierarchy\.json: not JSON"):
        load_tree(tmp_path)
    save_model(tmp_path)
    (tmp_path / "synthetic_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(TreeError, match=r"synthetic_model\.safetensors: broken"):
        load_tree(tmp_path)
    (tmp_path / "synthetic_model.safetensors").unlink()
    with pytest.raises(TreeError, match=r"synthetic_model\.safetensors"):
        load_tree(tmp_path)


@pytest.mark.skipif(not MODEL.exists(), reason="the samples of SAELens are not here")
def test_saelens_own_samples_of_a_saved_model_lie_within_4_standard_errors() -> None:
    tree, expected = build_tree(load_tree(MODEL)), np.load(MODEL / "expected.npz")
    n_rows = int(expected["n_rows"])

    def errors(p: np.ndarray) -> np.ndarray:
        return 4 * np.sqrt(p * (1 - p) / n_rows)

    joint = coactivation(tree)
    assert (abs(expected["marginals"] - marginals(tree)) <= errors(marginals(tree))).all()
    assert (abs(expected["coactivation"] - joint) <= errors(joint) + 1e-12).all()
    np.testing.assert_allclose(expected["mean_magnitude_when_on"], mean_magnitudes(tree), rtol=1e-6)
