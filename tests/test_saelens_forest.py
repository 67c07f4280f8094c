"""Trees written as SAELens hierarchies are the same trees when they are read again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toy.features.named import forest, reference_tree, three_level_tree
from toy.features.node import Node, TreeError
from toy.features.saelens_forest import drawn_for, forest_of_tree
from toy.features.saelens_tree import kept_one, tree_of_roots
from toy.features.tree import build_tree, coactivation, mean_magnitudes
from toy.io import load_synthetic, load_tree, read_tree, save_synthetic

NESTED = Node(  # its root is a feature; a node that is no feature hands a scale on
    0.5,
    (
        Node(1.0, (Node(0.2), Node(0.3)), exclusive=True, is_feature=False, scale_children_by_parent=True),
        Node(0.4, (Node(0.6),), exclusive=True),
    ),
    magnitude_mean=2.0,
    magnitude_std=0.2,
    scale_children_by_parent=True,
)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.sampled_from([1.0, 1 - 1e-9, 0.99, 0.5]))
@settings(max_examples=50)
def test_what_is_solved_for_is_kept_as_often_as_it_should(weights: list[float], total: float) -> None:
    kept = total * np.array(weights) / max(sum(weights), 1e-3)
    drawn = drawn_for(kept.tolist())
    assert np.all((drawn >= 0) & (drawn <= 1))
    np.testing.assert_allclose(kept_one(drawn), kept, atol=1e-9)


def test_probabilities_that_cannot_be_kept_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"exclusive probabilities 0\.8, 0\.8; the nearest found are 0\.5, 0\.5"):
        drawn_for([0.8, 0.8])


@pytest.mark.parametrize(
    "root",
    [
        reference_tree(),
        three_level_tree(),
        NESTED,
        forest(Node(0.0), Node(1.0)),
        Node(1.0, (Node(0.3), Node(0.7)), True, is_feature=False),
    ],
    ids=["reference", "three_level", "nested", "lone", "rivals"],
)
def test_a_tree_is_read_back_with_the_same_statistics(root: Node) -> None:
    roots, firing, _ = forest_of_tree(root)
    ours, again = build_tree(root), build_tree(tree_of_roots(roots, firing)[0])
    np.testing.assert_allclose(coactivation(again), coactivation(ours), atol=1e-9)
    np.testing.assert_allclose(mean_magnitudes(again), mean_magnitudes(ours))


def test_a_node_that_is_no_feature_hands_on_the_scale_that_reaches_it() -> None:
    [above] = forest_of_tree(NESTED).roots
    assert [above, *above["children"]] == [
        data | {"scale_children_by_parent": scales}
        for data, scales in zip([above, *above["children"]], (True, True, False), strict=True)
    ]
    through = forest_of_tree(replace(NESTED, scale_children_by_parent=False)).roots[0]["children"][0]
    assert not through["scale_children_by_parent"]


def test_a_folder_has_the_tree_its_directions_and_bias(tmp_path: Path) -> None:
    W_feat, bias = np.random.default_rng(0).normal(size=(20, 24)), np.linspace(-1, 1, 24)
    notes = save_synthetic(tmp_path, reference_tree(), W_feat, bias)
    assert len(notes) == 1
    assert "0.2, 0.2, 0.2 become 0.2632, 0.2632, 0.2632 (and 2 more groups)" in notes[0]
    np.testing.assert_allclose(
        coactivation(build_tree(load_tree(tmp_path))), coactivation(build_tree(reference_tree())), atol=1e-7
    )
    source = load_synthetic(tmp_path)
    np.testing.assert_allclose(source.W_feat, W_feat, rtol=1e-6)
    np.testing.assert_allclose(source.bias, bias, rtol=1e-6)


def test_magnitudes_that_differ_are_multiplied_into_the_directions(tmp_path: Path) -> None:
    root = forest(Node(0.5, magnitude_mean=2.0, magnitude_std=0.2), Node(0.5, magnitude_mean=3.0, magnitude_std=0.3))
    notes = save_synthetic(tmp_path, root, np.eye(2))
    assert notes == ("the magnitudes of features differ: directions are multiplied by them, and magnitudes are 1",)
    source = load_synthetic(tmp_path)
    np.testing.assert_allclose(source.W_feat, np.diag([2.0, 3.0]))
    np.testing.assert_allclose(source.features.std[:2], 0.1)
    assert read_tree(tmp_path)[0].children[1].magnitude_mean == 1


def test_the_files_of_two_models_never_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_synthetic(tmp_path, reference_tree(), np.eye(20))
    with monkeypatch.context() as patched:
        patched.setattr("toy.io.save_json", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_synthetic(tmp_path, reference_tree(), -np.eye(20))
    with pytest.raises(TreeError, match=r"not of a SAELens model, which has a synthetic_model_config\.json"):
        load_synthetic(tmp_path)


REFUSED = {
    "a node that may be off": (
        forest(Node(0.5, (Node(0.5),), is_feature=False)),
        r"root\.children\[0\]: in SAELens a node",
    ),
    "rivals that are no features": (
        forest(Node(0.5, (Node(0.5), Node(0.0, (Node(0.5),), is_feature=False)), exclusive=True)),
        r"root\.children\[0\]\.children: in SAELens only features exclude",
    ),
    "clipped magnitudes": (forest(Node(0.5, magnitude_std=0.5)), r"magnitude_std: SAELens clips magnitudes"),
    "spreads that differ": (
        forest(Node(0.5, magnitude_std=0.1), Node(0.5, magnitude_mean=2.0)),
        "magnitude_std: SAELens keeps no magnitudes feature by feature",
    ),
    "directions of other features": (forest(Node(0.5)), r"directions: expected 1 rows"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_saelens_cannot_express_is_refused_by_name(fault: str, tmp_path: Path) -> None:
    root, message = REFUSED[fault]
    n_rows = 2 if fault in ("spreads that differ", "directions of other features") else 1
    with pytest.raises(TreeError, match=message):
        save_synthetic(tmp_path / "model", root, np.ones((n_rows, 3)))
    assert not (tmp_path / "model").exists()
