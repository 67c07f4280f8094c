"""Three JSON dialects in, one out; every bad file is refused with the path of the node and the fault."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from oracles import nodes

from toy.features.named import reference_tree
from toy.features.node import MAX_DEPTH, Node, TreeError, feature_names
from toy.features.tree import build_tree, coactivation, marginals
from toy.features.tree_json import (
    check_dialect,
    format_tree,
    parse_tree,
    parse_with_notes,
    tree_from_dict,
    tree_to_dict,
)
from toy.io import load_tree, save_tree

REFERENCE = {
    "active_prob": 1,
    "is_read_out": False,
    "children": [
        {
            "active_prob": 0.5,
            "id": "A",
            "is_binary": True,
            "mutually_exclusive_children": True,
            "children": [{"active_prob": 0.25, "id": "A1"}, {"active_prob": 0.5, "id": None}],
        },
        {"active_prob": 0.125},
    ],
}
HEDGING = {"active_prob": 0.5, "magnitude_mean": 2, "magnitude_std": 0.5, "is_binary": False, "children": []}
SAELENS = {
    "roots": [
        {
            "feature_index": 2,
            "feature_id": "A",
            "mutually_exclusive_children": True,
            "scale_children_by_parent": True,
            "children": [{"feature_index": 0}, {"feature_index": 4, "id": "A2"}],
        },
        {"feature_index": None, "children": [{"feature_index": 1}]},
    ],
    "firing_probabilities": [0.25, 0.125, 0.5, 0.0625, 0.375],
}


def test_the_reference_dialect_is_read() -> None:
    family = Node(0.5, (Node(0.25, name="A1"), Node(0.5)), exclusive=True, name="A")
    assert tree_from_dict(REFERENCE) == Node(1.0, (family, Node(0.125)), is_feature=False)


def test_the_hedging_dialect_is_read() -> None:
    assert tree_from_dict(HEDGING) == Node(0.5, magnitude_mean=2.0, magnitude_std=0.5)


def test_the_saelens_dialect_is_read_with_lone_features_for_the_indices_that_no_node_has() -> None:
    root = tree_from_dict(SAELENS)
    tree = build_tree(root)
    assert feature_names(root) == ["0", "1", "A", "3", "A2"]
    np.testing.assert_allclose(marginals(tree), [0.1015625, 0.125, 0.5, 0.0625, 0.1640625])
    assert coactivation(tree)[0, 4] == 0
    assert coactivation(tree)[0, 2] == pytest.approx(0.1015625)
    assert root.children[0].scale_children_by_parent
    assert not root.children[1].is_feature


@given(root=nodes(with_magnitudes=True))
@settings(max_examples=100)
def test_a_tree_written_as_json_is_read_back_equal(root: Node) -> None:
    assert parse_tree(json.dumps(tree_to_dict(root))) == root


def test_only_keys_that_are_not_at_their_default_are_written() -> None:
    assert tree_to_dict(Node(0.5)) == {"active_prob": 0.5}
    noisy = Node(0.5, (Node(0.25, is_feature=False),), exclusive=True, name="A", magnitude_std=0.5)
    assert tree_to_dict(noisy) == {
        "active_prob": 0.5,
        "id": "A",
        "mutually_exclusive_children": True,
        "magnitude_std": 0.5,
        "is_binary": False,
        "exclusive_rest": "none",
        "children": [{"active_prob": 0.25, "is_read_out": False}],
    }


def test_the_printed_form_has_a_line_a_node_with_its_column_and_indentation() -> None:
    child = Node(0.25, name="A1", magnitude_mean=2.0, magnitude_std=0.5)
    root = Node(1.0, (Node(0.5, (child,), exclusive=True, name="A"), Node(0.125)), is_feature=False)
    assert format_tree(root).splitlines() == [
        "   ·  no feature  p 1",
        "   0      A  p 0.5  (one of its children at most)",
        "   1          A1  p 0.25  magnitude 2 ± 0.5",
        "   2      feature  p 0.125",
    ]
    assert len(format_tree(reference_tree()).splitlines()) == 21


# --- bad files ----------------------------------------------------------------------------------------------


def with_child(**keys: Any) -> str:
    """A tree whose second child has these keys."""
    return json.dumps({"active_prob": 1.0, "children": [{"active_prob": 0.5}, {"active_prob": 0.5, **keys}]})


def saelens(root: Any, probs: Any) -> str:
    return json.dumps({"roots": [root], "firing_probabilities": probs})


def nested(n_levels: int) -> str:
    return '{"active_prob": 0.5, "children": [' * n_levels + '{"active_prob": 0.5}' + "]}" * n_levels


CHILD = r"root\.children\[1\]"
BAD_TEXTS = {
    "probability above 1": (with_child(active_prob=1.5), rf"{CHILD}\.active_prob: 1\.5 is outside \[0, 1\]"),
    "probability below 0": (with_child(active_prob=-1), rf"{CHILD}\.active_prob: -1(\.0)? is outside \[0, 1\]"),
    "probability NaN": ('{"active_prob": NaN}', r"root\.active_prob: nan is outside"),
    "probability infinite": ('{"active_prob": 1e999}', r"root\.active_prob: inf is outside"),
    "probability a string": (with_child(active_prob="0.5"), rf"{CHILD}\.active_prob: expected a number, got a string"),
    "probability a bool": (with_child(active_prob=True), rf"{CHILD}\.active_prob: expected a number, got true or"),
    "probability null": (with_child(active_prob=None), rf"{CHILD}\.active_prob: expected a number, got null"),
    "probability of 400 digits": ('{"active_prob": 1' + "0" * 400 + "}", r"root\.active_prob: "),
    "probability of 5000 digits": ('{"active_prob": 1' + "0" * 5000 + "}", "not JSON: "),
    "missing active_prob": (
        '{"active_prob": 1, "children": [{"id": "A"}]}',
        r"root\.children\[0\]: the key 'active_prob' is missing",
    ),
    "unknown key": (with_child(prob=0.5), rf"{CHILD}: unknown key 'prob'; allowed are active_prob, "),
    "repeated key": ('{"active_prob": 0.5, "id": "A", "id": "B"}', r".*key id stands twice"),
    "exclusive sum over 1": (
        with_child(mutually_exclusive_children=True, children=[{"active_prob": 0.75}, {"active_prob": 0.75}]),
        rf"{CHILD}\.children: probabilities of mutually exclusive children sum to 1\.5 > 1",
    ),
    "name a number": (with_child(id=3), rf"{CHILD}\.id: expected a string, got a number"),
    "children an object": (with_child(children={}), rf"{CHILD}\.children: expected a list, got an object"),
    "child a number": (with_child(children=[0.5]), rf"{CHILD}\.children\[0\]: expected an object, got a number"),
    "flag a number": (with_child(is_read_out=1), rf"{CHILD}\.is_read_out: expected true or false, got a number"),
    "index a fraction": (with_child(feature_index=0.5), rf"{CHILD}\.feature_index: expected a whole number"),
    "index a bool": (with_child(feature_index=True), rf"{CHILD}\.feature_index: expected a whole number"),
    "index of some features only": (with_child(feature_index=0), r"root\.feature_index: None is missing"),
    "magnitude below 0": (with_child(magnitude_mean=-1.0), rf"{CHILD}\.magnitude_mean: -1\.0 is outside"),
    "no feature": ('{"active_prob": 1, "is_read_out": false}', "root: the tree has no feature"),
    "empty object": ("{}", "root: the key 'active_prob' is missing"),
    "a list": ("[]", "root: expected an object, got a list"),
    "a number": ("3", "root: expected an object, got a number"),
    "empty text": ("", "not JSON: "),
    "no JSON": ("active_prob: 1", "not JSON: .*line 1"),
    "cut short": (nested(3)[:-1], "not JSON: "),
    "nested too deep": (nested(MAX_DEPTH + 1), rf"root\.children\[0\].*: nests deeper than {MAX_DEPTH} levels"),
    "nested without end": (nested(100_000), "not JSON: it is nested too deeply"),
    "lists without end": ("[" * 100_000, "not JSON: it is nested too deeply"),
    "SAELens: unknown key": ('{"roots": [], "seed": 1}', "root: unknown key 'seed'"),
    "SAELens: unknown key of a node": (saelens({"p": 1}, [0.5]), r"root\.roots\[0\]: unknown key 'p'"),
    "SAELens: roots no list": ('{"roots": {}}', r"root\.roots: expected a list, got an object"),
    "SAELens: root no object": (saelens(1, [0.5]), r"root\.roots\[0\]: expected an object, got a number"),
    "SAELens: no probabilities": ('{"roots": []}', r"root\.firing_probabilities: .*needs this list"),
    "SAELens: no features": ('{"roots": [], "firing_probabilities": []}', "root: the tree has no feature"),
    "SAELens: probability a string": (
        saelens({}, [0.5, "x"]),
        r"root\.firing_probabilities\[1\]: expected a number, got a string",
    ),
    "SAELens: index without probability": (
        saelens({"children": [{"feature_index": 1}]}, [0.5]),
        r"root\.roots\[0\]\.children\[0\]\.feature_index: 1 has no entry among 1",
    ),
    "SAELens: negative index": (saelens({"feature_index": -1}, [0.5]), r"root\.roots\[0\]\.feature_index: -1 has no"),
}


@pytest.mark.parametrize("fault", BAD_TEXTS)
def test_a_bad_file_is_refused_with_its_name_the_path_and_the_fault(fault: str, tmp_path: Path) -> None:
    text, message = BAD_TEXTS[fault]
    with pytest.raises(TreeError, match=f"^{message}"):
        parse_tree(text)
    (file := tmp_path / "bad.json").write_text(text)
    with pytest.raises(TreeError, match=f"bad.json: {message}"):
        load_tree(file)


def test_a_file_that_is_missing_unreadable_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match=r"none\.json: No such file"):
        load_tree(tmp_path / "none.json")
    with pytest.raises(TreeError, match="Is a directory"):
        load_tree(tmp_path)
    (binary := tmp_path / "tree.json").write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(TreeError, match=r"tree\.json: not JSON: not UTF-8"):
        load_tree(binary)


def test_the_deepest_allowed_file_is_read(tmp_path: Path) -> None:
    (file := tmp_path / "deep.json").write_text(nested(MAX_DEPTH))
    assert build_tree(load_tree(file)).n_features == MAX_DEPTH + 1


def test_a_saved_tree_is_loaded_equal(tmp_path: Path) -> None:
    save_tree(tmp_path / "tree.json", reference_tree())
    assert load_tree(tmp_path / "tree.json") == reference_tree()


# --- named dialects -----------------------------------------------------------------------------------------

PAIR = {
    "active_prob": 0.5,
    "mutually_exclusive_children": True,
    "children": [{"active_prob": 0.1}, {"active_prob": 0.3}],
}


def test_exclusive_probabilities_mean_what_the_named_dialects_program_makes_of_them() -> None:
    text = json.dumps(PAIR)
    for dialect, expected in (("reference", [0.1, 0.3]), ("hedging", [0.25, 0.75]), (None, [0.1, 0.3])):
        root, _ = parse_with_notes(text, dialect)  # type: ignore[arg-type]
        assert [child.active_prob for child in root.children] == pytest.approx(expected)
    sized = json.dumps(PAIR | {"magnitude_mean": 2.0})  # without a name, either program may have written this
    assert parse_with_notes(sized, "hedging")[0].children[1].active_prob == pytest.approx(0.75)


def test_is_binary_means_nothing_in_the_hedging_dialect() -> None:
    noisy = json.dumps({"active_prob": 0.5, "is_binary": True, "magnitude_std": 0.5})
    assert parse_with_notes(noisy, "hedging")[0].magnitude_std == 0.5
    assert parse_with_notes(json.dumps({"active_prob": 0.5, "is_binary": False}), "hedging")[0].magnitude_std == 0


@pytest.mark.parametrize(
    ("data", "dialect", "fault"),
    [
        (PAIR, "saelens", "root: has no 'roots': this is not the dialect saelens"),
        ({"roots": [], "firing_probabilities": [0.5]}, "hedging", "root: has 'roots': this is not the dialect hedging"),
        ({"active_prob": 1, "magnitude_mean": 2}, "reference", "unknown key 'magnitude_mean'"),
        ({"active_prob": 1, "feature_index": 0}, "hedging", "unknown key 'feature_index'"),
        ({"active_prob": 1, "is_binary": False}, "reference", "false is a magnitude uniform on"),
        (PAIR | {"exclusive_rest": "none"}, "hedging", "'none' is not what the dialect hedging means"),
    ],
)
def test_a_file_of_another_dialect_is_refused(data: dict, dialect: Any, fault: str) -> None:
    with pytest.raises(TreeError, match=fault):
        parse_with_notes(json.dumps(data), dialect)


def test_a_name_of_no_dialect_is_refused() -> None:
    check_dialect(None)
    with pytest.raises(TreeError, match="dialect: expected reference, hedging, saelens or None, got other"):
        check_dialect("other")
