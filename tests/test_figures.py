"""Figures of trees that users bring: odd names, features that are never or always on, and what is said in words."""

import json
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments import absorption, all_prefixes, cosines, ground_truth, ordering
from experiments.common import cli, fonts, given, measured, plots
from experiments.common import study as st
from toy import prefixes
from toy.eval.against_tree import inference_gap
from toy.features.named import forest
from toy.features.node import Node
from toy.io import plain, save_tree
from toy.sae import SAE, BatchTopK, TopK

SMALL: dict[str, Any] = {"n_seeds": 2, "n_steps": 5, "n_eval_rows": 60, "batch_size": 20, "n_latents": 3}
ODD_NAMES = ["$x^$", "a_b^{c", "$", "100%\\frac{", "two\nlines", "tab\there", "_hidden", "x" * 1000]


def named(names: list[str]) -> Node:
    return forest(Node(0.5, tuple(Node(0.1, name=name) for name in names[1:]), name=names[0]))


def record_of(module, root: Node, **options) -> dict:
    """The record of an experiment on a tree, as a file has it."""
    cfg = module.Config(tree=given.GivenTree("tree", root), **options)
    module.check(cfg)
    results = module.run(cfg, lambda _: None)
    return plain({"name": "x", "config": cli.describe(cfg), "seeds": cfg.seeds, "results": results})


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


RARE = forest(Node(1e-7, (Node(1e-7, name="c"),), name="p"), Node(1e-7))
ONE = Node(0.5, name="only")
ALWAYS = forest(Node(1.0, (Node(1.0, name="c"),), name="p"))
LONE = forest(Node(0.4, name="a"), Node(0.4, name="b"))
HALF_NEVER = forest(Node(0.4, (Node(0.0, name="c"),), name="p"))


@pytest.mark.parametrize("root", [RARE, ONE, ALWAYS, LONE, HALF_NEVER], ids=["rare", "one", "always", "lone", "never"])
@pytest.mark.parametrize("module", [ground_truth, absorption, cosines, all_prefixes])
def test_trees_with_features_never_or_always_on_or_unrelated_are_drawn(module, root):
    sizes = {"n_seeds": 2, "n_rows": 60} if module is ground_truth else dict(SMALL)
    if module is absorption:
        sizes["n_topk_seeds"] = 0
    if module is all_prefixes:
        sizes |= {"n_prefixes": (2,), "n_expected": 2}
    record = record_of(module, root, **sizes)
    assert cli.as_png(module.plot(record)).startswith(b"\x89PNG")
    assert "nan" not in "\n".join(module.summary(record))


def test_ordering_draws_a_child_that_is_never_on():
    record = record_of(ordering, HALF_NEVER, n_seeds=2, n_steps=5, n_eval_rows=60, batch_size=20, ratios=(1.0, 2.0))
    assert record["results"]["hole_rate"] == [[None, None]] * 2
    assert cli.as_png(ordering.plot(record))
    assert "cross at ratio –" in ordering.summary(record)[0]


def test_panels_with_nothing_in_them_say_so():
    record = record_of(absorption, RARE, **SMALL, n_topk_seeds=0)
    text = words(absorption.plot(record))
    assert text.count("no row has a feature on") == 3
    assert "no child is on in the held-out rows" in text
    lone = record_of(cosines, LONE, **SMALL)
    assert words(cosines.plot(lone)).count("no feature has a parent feature") == 2
    assert "–" in cosines.summary(lone)[0]


def test_a_gap_without_any_feature_on_is_null_and_left_out_of_the_summary():
    record = record_of(absorption, ONE, **{**SMALL, "n_seeds": 1}, n_topk_seeds=0)
    for values in ([None], [None, 0.02]):
        record["results"]["batchtopk_2_vanilla"] = {**record["results"]["vanilla"], "inference_gap": {"fvu": values}}
        record["results"]["batchtopk_2_matryoshka"] = record["results"]["matryoshka"]
        lines = [line for line in absorption.summary(record) if "threshold" in line]
        assert len(lines) == sum(value is not None for value in values)


def test_the_gap_of_an_sae_that_is_never_on_is_unknown():
    zeros = (jnp.zeros((2, 3)), jnp.zeros(3), jnp.ones((3, 2)), jnp.zeros(2), jnp.zeros(3))
    gap = inference_gap(SAE(*zeros), np.zeros((4, 2), "f4"), BatchTopK(1.0), 2)
    assert np.isnan(gap.l0)
    assert np.isnan(gap.fvu)


def test_a_tree_on_which_nothing_is_ever_on_is_refused():
    with pytest.raises(ValueError, match="is ever on, so nothing can be learnt"):
        record_of(cosines, forest(Node(0.0)), **SMALL)


def test_null_cells_are_blank_and_a_heatmap_without_cells_says_so():
    with plots.styled(2) as figure:
        left, right = figure.subplots(1, 2)
        image = plots.heatmap(left, [[None, 1.0], [0.5, None]], low=0, high=1, colours="Greys")
        plots.heatmap(right, [], low=0, high=1, colours="Greys", empty="no row")
    assert np.isnan(image.get_array().filled(np.nan)).tolist() == [[True, False], [False, True]]
    assert "no row" in words(figure)
    assert cli.as_png(figure)


@pytest.mark.parametrize("module", [ground_truth, cosines])
def test_names_are_drawn_as_they_are_on_one_line_and_cut(module):
    sizes = {"n_seeds": 1, "n_rows": 60} if module is ground_truth else {**SMALL, "n_latents": None}
    figure = module.plot(record_of(module, named(ODD_NAMES), **sizes))
    texts = words(figure).split("\n")
    for shown in ("$x^$", "a_b^{c", "100%\\frac{", "two\\nlines", "tab\\there", "_hidden", "x" * 23 + "…"):
        assert shown in texts
    assert cli.as_png(figure)


def test_a_users_matplotlibrc_has_no_say(tmp_path):
    record = record_of(ground_truth, named(["$p", "c"]), n_seeds=1, n_rows=60)
    plain_image = cli.as_png(ground_truth.plot(record))
    theirs: Any = {"text.usetex": True, "savefig.transparent": True, "axes.grid": True, "font.family": "serif"}
    with mpl.rc_context({**theirs, "savefig.bbox": "tight", "lines.linewidth": 9}):
        assert cli.as_png(ground_truth.plot(record)) == plain_image
        assert mpl.rcParams["axes.grid"]


def test_characters_without_a_font_are_told_once_and_drawn_as_boxes(monkeypatch, capsys):
    monkeypatch.setattr(fonts, "_told", set())
    monkeypatch.setattr(fonts, "_families", lambda characters: ())
    record = record_of(ground_truth, named(["犬", "é", "ω"]), n_seeds=1, n_rows=60)
    for _ in range(2):
        assert cli.as_png(ground_truth.plot(record))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no installed font has all characters of 犬" in error
    assert "é" not in error


def test_another_installed_font_is_taken_for_what_the_usual_one_lacks(monkeypatch, capsys):
    monkeypatch.setattr(fonts, "_told", set())
    monkeypatch.setattr(fonts, "_regular_files", lambda: {fonts.BASE: "base", "Nowhere": "nothing", "Other": "other"})
    characters = {fonts.BASE: {ord("a")}, "Nowhere": {ord("b")}, "Other": {ord("犬")}}
    monkeypatch.setattr(fonts, "_characters", lambda family: frozenset(characters[family]))
    fonts._families.cache_clear()
    with plots.styled(1) as figure:
        text = figure.text(0, 0, "a犬")
    fonts._families.cache_clear()
    assert text.get_fontfamily() == [fonts.BASE, "Other"]
    assert not capsys.readouterr().err


OFF = {"n_seeds": 3, "l0": [0.86, 0.9, 1.12], "target_l0": 1.12, "off_target_seeds": 2}
ON = {"n_seeds": 3, "l0": [1.1, 1.12, 1.2], "target_l0": 1.12, "off_target_seeds": 0}


def test_l0_off_its_target_is_told_in_summary_and_caption():
    results = {"vanilla": OFF, "matryoshka": ON, "features": [[1]], "old": {"n_seeds": 1, "l0": [0.1]}}
    assert measured.missed_targets(results) == [
        "vanilla: L0 0.86 to 0.9 misses the target 1.12 by more than 10% in 2/3 seeds"
    ]
    assert (
        measured.missed_clause(results) == "; L0 misses its target by more than 10%: vanilla 0.86 to 0.9 for 1.12 (2/3)"
    )
    assert measured.missed_clause({"matryoshka": ON}) == ""


def test_seeds_off_target_are_counted_where_there_is_a_target():
    assert measured.against_target([0.86, 1.05, 1.24], 1.12) == {"target_l0": 1.12, "off_target_seeds": 2}
    assert measured.against_target([0.86], None) == {}
    tree = st.build_tree(LONE)
    assert st.aimed_l0(st.StudyConfig(target_l0=0.5), tree) == 0.5
    assert st.aimed_l0(st.StudyConfig(control_rate=0.0), tree) is None
    assert st.aimed_l0(st.StudyConfig(), tree) == pytest.approx(0.8)
    hypers = st.make_hypers(st.StudyConfig(), tree, prefixes.named("all", 2), TopK(1))
    assert hypers.target_l0 is None


def test_records_hold_the_target_and_the_figure_names_who_misses_it():
    record = record_of(cosines, LONE, **{**SMALL, "target_l0": 50.0})
    vanilla = record["results"]["vanilla"]
    assert (vanilla["target_l0"], vanilla["off_target_seeds"]) == (50.0, 2)
    assert any(line.startswith("vanilla: L0") and "misses the target 50" in line for line in cosines.summary(record))
    assert "L0 misses its target" in words(cosines.plot(record)).replace("\n", " ")
    for result in record["results"].values():  # a record from before there were targets in it
        del result["target_l0"], result["off_target_seeds"]
    assert "misses" not in words(cosines.plot(record)) + "".join(cosines.summary(record))


def test_a_tree_is_read_once_and_the_record_holds_what_was_trained(tmp_path):
    path = tmp_path / "tree.json"
    save_tree(path, HALF_NEVER)
    cfg = st.with_tree(cosines.Config(tree=path, **SMALL))
    path.unlink()
    assert st.with_tree(cfg) is cfg
    cosines.check(cfg)
    assert st.load_root(cfg) == HALF_NEVER
    assert cli.describe(cfg)["tree"]["children"][0]["id"] == "p"
    other = object()
    assert st.with_tree(other) is other
    assert st.with_tree(st.TreeConfig()).tree is None
    assert st.load_root(st.with_tree(st.TreeConfig(tree=Path("ordering")))).children[0].name == "parent"


def test_saes_of_an_edited_file_are_trained_anew(tmp_path, monkeypatch):
    path, trained = tmp_path / "tree.json", []
    train_grid = st.train_grid
    monkeypatch.setattr(st, "train_grid", lambda *args, **options: trained.append(1) or train_grid(*args, **options))
    monkeypatch.setattr(st, "_trained", {})
    for root, runs in ((LONE, 1), (LONE, 1), (HALF_NEVER, 2)):
        save_tree(path, root)
        cfg = cosines.Config(tree=path, **SMALL)
        st.train_seeds(cfg, st.make_study(cfg), "vanilla", lambda _: None)
        assert len(trained) == runs


def test_given_trees_are_equal_by_content_however_deep(tmp_path):
    data: dict = {"active_prob": 0.5}
    for _ in range(250):
        data = {"active_prob": 1, "children": [data]}
    (tmp_path / "tree.json").write_text(json.dumps(data))
    one, other = (given.read_given(tmp_path / "tree.json") for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != given.GivenTree("", LONE)
    assert cli.describe(st.with_tree(cosines.Config(tree=cast(Path, one), d_in=300)))["n_seeds"] == 32


def test_many_leaves_and_levels_are_drawn():
    root = forest(*(Node(0.01, name=f"f{i}") for i in range(200)))
    assert cli.as_png(ground_truth.plot(record_of(ground_truth, root, n_seeds=1, n_rows=50, d_in=200)))


def test_drawing_needs_no_pyplot():
    with plots.styled(1) as figure:
        figure.text(0, 0, "x")
    assert cli.as_png(figure)
    assert "plt" not in vars(plots)
