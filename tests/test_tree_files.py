"""Files of trees from elsewhere: read as their own program means them, told, or refused in one short line."""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from oracles import nodes

from toy.features import node as node_module
from toy.features.named import (
    RandomTree,
    RegularTree,
    forest,
    random_tree,
    reference_tree,
    regular_tree,
    scale_children,
)
from toy.features.node import MAX_DEPTH, MAX_NAME, Node, TreeError, feature_names, walk
from toy.features.tree import build_tree, marginals
from toy.features.tree_json import format_tree, parse_tree, parse_with_notes, tree_from_dict, tree_to_dict
from toy.io import load_tree, read_tree, save_json, save_tree


def exclusive(*probs: float, **root: Any) -> dict[str, Any]:
    """A parent of exclusive children below a root that is no feature."""
    parent = {"active_prob": 0.5, "mutually_exclusive_children": True, "children": [{"active_prob": p} for p in probs]}
    return {"active_prob": 1, "is_read_out": False, **root, "children": [parent]}


def sized(*probs: float, **root: Any) -> dict[str, Any]:
    """The same with a magnitude, which the hedging paper's files have."""
    data = exclusive(*probs, **root)
    data["children"][0]["magnitude_mean"] = 2.0
    return data


def probabilities(data: dict[str, Any]) -> list[float]:
    return [child.active_prob for child in tree_from_dict(data).children[0].children]


# --- mutually exclusive children ----------------------------------------------------------------------------


def test_what_exclusive_children_leave_is_none_in_the_reference_dialect_and_told() -> None:
    assert probabilities(exclusive(0.3, 0.3)) == [0.3, 0.3]
    _, [note] = parse_with_notes(json.dumps(exclusive(0.3, 0.3)))
    assert note == (
        "the probabilities of mutually exclusive children of root.children[0] (0.6) sum to less than 1: none of them "
        "is on with what is left"
    )
    assert parse_with_notes(json.dumps(exclusive(0.3, 0.3, exclusive_rest="none")))[1] == ()
    assert parse_with_notes(json.dumps(exclusive(0.25, 0.75)))[1] == ()


@pytest.mark.parametrize("probs", [(0.3, 0.3), (0.8, 0.8), (0.0, 0.0)])
def test_where_the_hedging_papers_program_would_scale_and_ours_would_not_a_file_must_say(probs: tuple) -> None:
    with pytest.raises(
        TreeError, match=r"^root\.children\[0\]\.children: .* sum to .*\"exclusive_rest\": \"scaled\" or"
    ):
        tree_from_dict(sized(*probs))
    with_std = exclusive(*probs)
    with_std["children"][0]["children"][0] |= {"magnitude_std": 0.1, "is_binary": False}
    with pytest.raises(TreeError, match="exclusive_rest"):
        tree_from_dict(with_std)


def test_a_file_that_says_so_is_scaled_as_the_hedging_papers_program_does_and_told() -> None:
    for given_ in (sized(0.2, 0.2, 0.2, exclusive_rest="scaled"), exclusive(0.9, 0.9, 0.9, exclusive_rest="scaled")):
        np.testing.assert_allclose(probabilities(given_), [1 / 3] * 3, rtol=1e-12)
        [note] = parse_with_notes(json.dumps(given_))[1]
        assert "are divided by their sum" in note
    np.testing.assert_allclose(marginals(build_tree(tree_from_dict(sized(0.1, 0.3, exclusive_rest="scaled")))), [
        0.5, 0.125, 0.375,
    ])  # fmt: skip
    assert probabilities(sized(0.2, 0.3, exclusive_rest="none")) == [0.2, 0.3]


def test_where_the_dialects_agree_nothing_is_asked() -> None:
    assert probabilities(sized(0.25, 0.75)) == [0.25, 0.75]
    none = sized(0.2, 0.2)
    none["children"][0]["children"].append({"active_prob": 0.6, "is_read_out": False})
    assert build_tree(tree_from_dict(none)).n_features == 3
    assert probabilities(sized(0.333333, 0.333333, 0.333333)) == [0.333333] * 3  # thirds, rounded


def test_exclusive_probabilities_that_rounding_lifted_over_1_are_read(tmp_path: Path) -> None:
    root = forest(Node(0.5, (Node(2 / 3), Node(1 / 6), Node(1 / 6)), exclusive=True))
    save_json(tmp_path / "record.json", tree_to_dict(root))  # a record, with 6 digits
    again = load_tree(tmp_path / "record.json")
    assert sum(child.active_prob for child in again.children[0].children) <= 1 + 1e-9
    np.testing.assert_allclose(marginals(build_tree(again)), marginals(build_tree(root)), rtol=1e-5)


def test_another_word_than_none_or_scaled_is_refused() -> None:
    for word in ("normalise", 1, True, None, "x" * 10**6):
        data = exclusive(0.3, exclusive_rest=word)
        if word is None:
            assert probabilities(data) == [0.3]
            continue
        with pytest.raises(TreeError, match=r"^root\.exclusive_rest: expected 'none' or 'scaled', got"):
            tree_from_dict(data)
    inner = exclusive(0.3)
    inner["children"][0]["exclusive_rest"] = "none"
    with pytest.raises(TreeError, match="unknown key 'exclusive_rest'"):
        tree_from_dict(inner)


@given(root=nodes(with_magnitudes=True))
@settings(max_examples=100, deadline=None)
def test_a_file_that_we_write_is_read_back_equal(root: Node) -> None:
    again, notes = parse_with_notes(json.dumps(tree_to_dict(root)))
    assert again == root
    if "exclusive_rest" in tree_to_dict(root):
        assert not any("mutually exclusive" in note for note in notes)


def test_a_tree_without_magnitudes_is_written_as_ever() -> None:
    assert "exclusive_rest" not in tree_to_dict(reference_tree())
    assert tree_to_dict(scale_children(reference_tree(), 2.0))["exclusive_rest"] == "none"


def test_all_digits_of_a_saved_tree_are_kept(tmp_path: Path) -> None:
    root = forest(Node(1 / 3, (Node(1 / 7),), magnitude_mean=1 / 9))
    save_tree(tmp_path / "tree.json", root)
    assert load_tree(tmp_path / "tree.json") == root


# --- is_binary ----------------------------------------------------------------------------------------------


def test_a_uniform_magnitude_is_refused_and_one_that_is_given_is_read() -> None:
    with pytest.raises(TreeError, match=r"^root\.is_binary: false is a magnitude uniform on \(0, 1\)"):
        tree_from_dict({"active_prob": 0.5, "is_binary": False})
    with pytest.raises(TreeError, match=r"^root\.is_binary: false is"):
        tree_from_dict({"active_prob": 0.5, "is_binary": False, "magnitude_mean": 2.0})
    with pytest.raises(TreeError, match=r"^root\.is_binary: true contradicts magnitude_std"):
        tree_from_dict({"active_prob": 0.5, "is_binary": True, "magnitude_std": 0.5})
    given_ = {"active_prob": 0.5, "is_binary": False, "magnitude_mean": 2.0, "magnitude_std": 0.5}
    assert tree_from_dict(given_) == Node(0.5, magnitude_mean=2.0, magnitude_std=0.5)
    unread = {"active_prob": 0.5, "is_binary": False, "is_read_out": False, "children": [{"active_prob": 0.5}]}
    assert build_tree(tree_from_dict(unread)).n_features == 1


# --- names --------------------------------------------------------------------------------------------------


def named(*names: Any) -> str:
    return json.dumps({"active_prob": 1, "children": [{"active_prob": 0.5, "id": name} for name in names]})


@pytest.mark.parametrize("name", ["\ud83d", "a\udc00b", "\ud800\ud800"])
def test_half_a_surrogate_pair_is_refused(name: str) -> None:
    with pytest.raises(TreeError, match=r"^root\.children\[0\]: the name .* has half of a surrogate pair") as error:
        parse_tree(named(name))
    assert str(error.value).isascii()
    with pytest.raises(TreeError, match="half of a surrogate pair"):
        build_tree(Node(0.5, name=name))


def test_a_name_far_too_long_is_refused_and_a_long_one_cut_where_it_is_shown() -> None:
    with pytest.raises(TreeError, match=r"^root\.children\[0\]: the name nn.* has 100,000 characters") as error:
        parse_tree(named("n" * 100_000))
    assert len(str(error.value)) < 300
    root = parse_tree(named("n" * MAX_NAME))
    assert feature_names(root)[1] == "n" * MAX_NAME
    assert max(map(len, format_tree(root).splitlines())) < 100


def test_names_are_kept_and_their_control_and_bidirectional_characters_shown_escaped() -> None:
    names = ["a\x00b", "one\ntwo", "\x1b[31mred", "\u2028x", "\u202eabc", "動物", "$x_{$", "", "same", "same"]
    root, notes = parse_with_notes(named(*names))
    assert feature_names(root)[1:7] == names[:6]
    lines = format_tree(root).splitlines()
    assert len(lines) == len(names) + 1
    assert all(line.isprintable() for line in lines)
    assert "one\\ntwo" in lines[2]
    assert "動物" in lines[6]
    assert notes == ("5 names have control or invisible characters, such as a\\x00b",)


def test_a_name_in_python_must_be_text() -> None:
    node = Node(0.5)
    object.__setattr__(node, "name", 3)
    with pytest.raises(TreeError, match=r"^root\.name: expected text, got int 3"):
        walk(node)


# --- bombs --------------------------------------------------------------------------------------------------


def repeated(n: int) -> str:
    keys = ",".join(f'"k{i}":1' for i in range(n))
    return "{" + keys + ',"k0":1}'


LONG_KEY = f'"{"k" * 10**6}": 1'
BOMBS: dict[str, tuple[Callable[[], str], str]] = {
    "a repeated key among very many": (lambda: repeated(200_000), "not JSON: the key k0 stands twice"),
    "a key of a million characters": (lambda: '{"active_prob": 1, "%s": 1}' % ("k" * 10**6), "root: unknown key 'kkk"),
    "one of surrogates": (lambda: '{"active_prob": 1, "\\ud800\\n": 1}', r"root: unknown key '\\ud800\\n'"),
    "a million characters twice": (lambda: "{" + LONG_KEY + ", " + LONG_KEY + "}", "not JSON: the key kk"),
    "a number out of range": (lambda: '{"active_prob": 1e400}', r"root\.active_prob: inf is outside"),
    "one below it": (lambda: '{"active_prob": -1e400}', r"root\.active_prob: -inf is outside"),
    "NaN": (lambda: '{"active_prob": 0.5, "magnitude_std": NaN}', r"root\.magnitude_std: nan is outside"),
    "Infinity": (lambda: '{"active_prob": 0.5, "magnitude_mean": Infinity}', r"root\.magnitude_mean: inf is outside"),
    "an integer of 4,000 digits": (lambda: '{"active_prob": 1%s}' % ("0" * 4000), r"root\.active_prob: a number of"),
    "an integer of 100,000 digits": (lambda: '{"active_prob": 1%s}' % ("0" * 10**5), "not JSON: "),
    "a huge index": (lambda: '{"active_prob": 1, "feature_index": 1%s}' % ("0" * 4000), r"root\.feature_index: a num"),
    "far too many nodes": (
        lambda: '{"active_prob": 1, "children": [' + ",".join(['{"active_prob": 0}'] * 150_000) + "]}",
        "the tree has at least 150,001 nodes",
    ),
    "far too many probabilities": (
        lambda: '{"roots": [], "firing_probabilities": [' + ",".join(["0.5"] * 150_000) + "]}",
        "the tree has at least 150,00. nodes",
    ),
    "a text, not closed": (lambda: '{"active_prob": "' + "x" * 10**6, "not JSON: Unterminated string"),
    "a wrong escape": (lambda: '{"active_prob": "\\q"}', "not JSON: "),
    "nested too deep in SAELens' dialect": (
        lambda: '{"firing_probabilities": [0.5], "roots": [' + '{"children": [' * 300 + "]}" * 300 + "]}",
        f"root.*: nests deeper than {MAX_DEPTH} levels",
    ),
    "a fault very deep": (
        lambda: '{"active_prob": 1, "children": [' * 250 + '{"active_prob": 2}' + "]}" * 250,
        r"root\.children\[0\].*….*\.active_prob: 2 is outside",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_absurd_files_are_refused_in_one_short_line(name: str, tmp_path: Path) -> None:
    make, message = BOMBS[name]
    (file := tmp_path / "bomb.json").write_text(make())
    with pytest.raises(TreeError, match=f"bomb.json: {message}") as error:
        load_tree(file)
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_a_file_far_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open(file := tmp_path / "large.json", "wb") as sparse:
        sparse.truncate(10**11)
    with pytest.raises(TreeError, match=r"large\.json: holds more than 33,554,432 bytes"):
        load_tree(file)


def in_pipe(tmp_path: Path, write: Callable[[Any], None]) -> Path:
    os.mkfifo(path := tmp_path / "pipe")

    def fill() -> None:
        try:
            with open(path, "wb") as pipe:
                write(pipe)
        except BrokenPipeError:
            pass

    threading.Thread(target=fill, daemon=True).start()
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_once_and_to_a_limit(tmp_path: Path) -> None:
    text = json.dumps(tree_to_dict(reference_tree())).encode()
    assert read_tree(in_pipe(tmp_path, lambda pipe: pipe.write(text)))[0] == reference_tree()
    (tmp_path / "pipe").unlink()
    written: list[int] = []

    def endless(pipe: Any) -> None:
        for i in range(200):
            pipe.write(b" " * 2**20)
            written.append(i)

    with pytest.raises(TreeError, match="pipe: holds more than"):
        read_tree(in_pipe(tmp_path, endless))
    assert len(written) < 40  # of 1 MiB each


def test_a_byte_order_mark_is_no_fault_and_a_path_with_nul_is_one(tmp_path: Path) -> None:
    (file := tmp_path / "tree.json").write_text('{"active_prob": 0.5}', encoding="utf-8-sig")
    assert load_tree(file) == Node(0.5)
    with pytest.raises(TreeError, match="cannot be read: embedded null byte"):
        load_tree(Path("a\x00b"))


# --- depth --------------------------------------------------------------------------------------------------


def with_little_stack(call: Callable[[], Any]) -> Any:
    """The result of a call with 120 frames left, where recursion over 256 levels would fail."""
    frame, used = sys._getframe(), 0
    while frame is not None:
        frame, used = frame.f_back, used + 1
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(used + 120)
    try:
        return call()
    finally:
        sys.setrecursionlimit(limit)


def chain(n_levels: int) -> Node:
    node = Node(0.99)
    for _ in range(n_levels):
        node = Node(0.99, (node,))
    return node


DEEPEST = {
    "walk": lambda: len(walk(chain(MAX_DEPTH))),
    "build_tree": lambda: build_tree(chain(MAX_DEPTH)).n_features,
    "tree_to_dict and back": lambda: len(walk(tree_from_dict(tree_to_dict(chain(MAX_DEPTH))))),
    "format_tree": lambda: len(format_tree(chain(MAX_DEPTH)).splitlines()),
    "scale_children": lambda: len(walk(scale_children(chain(MAX_DEPTH), 1.01))),
    "regular_tree": lambda: len(walk(regular_tree(RegularTree(1, branching=1, depth=MAX_DEPTH - 1, n_lone=0)))),
    "random_tree": lambda: len(walk(random_tree(RandomTree(1, branching=(1, 1), depth=MAX_DEPTH)))),
}


@pytest.mark.parametrize("name", DEEPEST)
def test_the_deepest_tree_needs_no_stack(name: str) -> None:
    assert with_little_stack(DEEPEST[name]) == MAX_DEPTH + 1


def test_the_deepest_tree_is_saved_and_loaded(tmp_path: Path) -> None:
    save_tree(tmp_path / "deep.json", chain(MAX_DEPTH))
    assert len(walk(load_tree(tmp_path / "deep.json"))) == MAX_DEPTH + 1


def test_a_tree_of_too_many_nodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "MAX_NODES", 20)
    assert len(walk(forest(*(Node(0.1) for _ in range(19))))) == 20
    with pytest.raises(TreeError, match="the tree has at least 21 nodes, and at most 20"):
        walk(forest(*(Node(0.1) for _ in range(20))))
