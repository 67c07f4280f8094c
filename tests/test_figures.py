"""Figures of trees that users bring: odd names, features that are never or always on, and what is said in words."""

import json
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments import absorption, all_prefixes, cosines, defaults, ground_truth, ordering, pareto
from experiments.common import cli, fonts, measured, plots
from experiments.common import study as st
from experiments.common.experiment import Work
from experiments.common.tree_option import TreeOption
from toy import prefixes
from toy.eval.against_tree import inference_gap
from toy.features.named import forest
from toy.features.node import Node
from toy.io import plain, save_tree
from toy.methods import TopKFamily
from toy.sae import SAE, BatchTopK, TopK
from toy.training import grid
from toy.training.state import INPUT_NORM_DECAY

SMALL: dict[str, Any] = {"n_seeds": 2, "n_steps": 5, "n_eval_rows": 60, "batch_size": 20, "n_latents": 3}
ODD_NAMES = ["$x^$", "a_b^{c", "$", "100%\\frac{", "two\nlines", "tab\there", "_hidden", "x" * 1000]


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAEs before their first step stand for trained ones: compiling a training for every odd tree takes minutes.

    `test_cases.py` trains on such trees.
    """

    def first_states(keys, source, hypers, *, cfg, in_axes, **_):
        placed = grid._placed(grid.Grid(keys, source, hypers, cfg, in_axes).checked())
        state = placed.first_state()
        norm = jnp.full_like(state.input_norm, 1 - INPUT_NORM_DECAY)  # a mean of 1, had there been a step
        return placed.gathered(state._replace(step=state.step + 1, input_norm=norm), grid.no_metrics(state))

    monkeypatch.setattr(st, "train_grid", first_states)


def named(names: list[str]) -> Node:
    return forest(Node(0.5, tuple(Node(0.1, name=name) for name in names[1:]), name=names[0]))


def record_of(module, root: Node, **options) -> dict:
    """The record of an experiment on a tree, as a file has it."""
    cfg = module.Config(tree=TreeOption("tree", root), **options)
    module.EXPERIMENT.check(cfg)
    results = module.run(cfg, Work())
    return plain({"name": "x", "config": cli.describe(cfg), "seeds": cfg.seeds, "results": results})


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


RARE = forest(Node(1e-7, (Node(1e-7, name="c"),), name="p"), Node(1e-7))
ONE = Node(0.5, name="only")
ALWAYS = forest(Node(1.0, (Node(1.0, name="c"),), name="p"))
LONE = forest(Node(0.4, name="a"), Node(0.4, name="b"))
HALF_NEVER = forest(Node(0.4, (Node(0.0, name="c"),), name="p"))


@pytest.mark.slow
@pytest.mark.parametrize("root", [RARE, ONE, ALWAYS, LONE, HALF_NEVER], ids=["rare", "one", "always", "lone", "never"])
@pytest.mark.parametrize("module", [ground_truth, absorption, cosines, all_prefixes, pareto])
def test_trees_with_features_never_or_always_on_or_unrelated_are_drawn(module, root):
    sizes: dict[str, Any] = {"n_seeds": 2, "n_rows": 60} if module is ground_truth else dict(SMALL)
    if module is absorption:
        sizes["n_topk_seeds"] = 0
    if module is pareto:
        sizes["coefs"] = (0.1, 1.0)
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
    assert words(cosines.plot(lone)).count("no feature has a parent feature") == 3
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


@pytest.mark.slow
@pytest.mark.parametrize("module", [ground_truth, cosines])
def test_names_are_drawn_as_they_are_on_one_line_and_cut(module):
    sizes = {"n_seeds": 1, "n_rows": 60} if module is ground_truth else {**SMALL, "n_latents": None}
    figure = module.plot(record_of(module, named(ODD_NAMES), **sizes))
    texts = words(figure).split("\n")
    for shown in ("$x^$", "a_b^{c", "100%\\frac{", "two\\nlines", "tab\\there", "_hidden", "x" * 13 + "…"):
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
    files = fonts._regular_files()
    monkeypatch.setattr(fonts, "_regular_files", lambda: {fonts.BASE: files[fonts.BASE]})
    record = record_of(ground_truth, named(["犬", "é", "ω"]), n_seeds=1, n_rows=60)
    for _ in range(2):
        assert cli.as_png(ground_truth.plot(record))
    assert capsys.readouterr().err == "figure: no installed font has 犬: boxes stand for them\n"


def test_another_installed_font_is_taken_for_what_the_usual_one_lacks(monkeypatch, capsys):
    characters = {fonts.BASE: "a", "Nowhere": "b", "Other": "犬"}
    monkeypatch.setattr(fonts, "_told", set())
    monkeypatch.setattr(fonts, "_regular_files", lambda: characters)
    monkeypatch.setattr(fonts, "_characters", lambda family: frozenset(characters[family]))
    with plots.styled(1) as figure:
        text = figure.text(0, 0, "a犬")
    assert text.get_fontfamily() == [fonts.BASE, "Other"]
    assert not capsys.readouterr().err


OFF = {"n_seeds": 3, "l0": [0.86, 0.9, 1.12], "target_l0": 1.12, "off_target_seeds": 2}
ON = {"n_seeds": 3, "l0": [1.1, 1.12, 1.2], "target_l0": 1.12, "off_target_seeds": 0}


def test_l0_off_its_target_is_told_in_summary_and_caption():
    results = {"vanilla": OFF, "matryoshka": ON, "features": [[1]], "old": {"n_seeds": 1, "l0": [0.1]}}
    assert measured.missed_targets(results) == [
        "vanilla: L0 0.86 to 0.9 misses the target 1.12 by more than 10% in 2/3 SAEs"
    ]
    told = measured.caption_text({"config": {"d_in": 3}, "seeds": [4]}, "Dots: seeds", results)
    assert told == f"Dots: seeds; {measured.missed_targets(results)[0]}; seed 4; d_in 3."


def test_seeds_off_target_are_counted_where_there_is_a_target():
    assert measured.against_target([0.86, 1.05, 1.24], 1.12) == {"target_l0": 1.12, "off_target_seeds": 2}
    assert measured.against_target([0.86], None) == {}
    tree = st.build_tree(LONE)
    assert st.aimed_l0(st.StudyConfig(target_l0=0.5), tree) == 0.5
    assert st.aimed_l0(st.StudyConfig(control_rate=0.0), tree) is None
    assert st.aimed_l0(st.StudyConfig(), tree) == pytest.approx(0.8)
    hypers = st.make_hypers(st.StudyConfig(), tree, prefixes.named("all", 2), TopKFamily(TopK(1)))
    assert hypers.target_l0 is None


def test_records_hold_the_target_and_the_figure_names_who_misses_it():
    record = record_of(cosines, LONE, **{**SMALL, "target_l0": 50.0})
    vanilla = record["results"]["vanilla"]
    assert (vanilla["target_l0"], vanilla["off_target_seeds"]) == (50.0, 2)
    assert any(line.startswith("vanilla: L0") and "misses the target 50" in line for line in cosines.summary(record))
    assert "misses the target 50" in cosines.caption(record)
    for result in record["results"].values():  # a record from before there were targets in it
        del result["target_l0"], result["off_target_seeds"]
    assert cosines.plot(record)
    assert "misses" not in cosines.caption(record) + "".join(cosines.summary(record))


def test_a_tree_is_read_once_and_the_record_holds_what_was_trained(tmp_path):
    path = tmp_path / "tree.json"
    save_tree(path, HALF_NEVER)
    cfg = cosines.Config(tree=TreeOption(str(path)), **SMALL)
    assert cfg.tree.root == HALF_NEVER
    path.unlink()
    cosines.EXPERIMENT.check(cfg)
    assert cli.describe(cfg)["tree"]["children"][0]["id"] == "p"
    assert TreeOption("ordering").root.children[0].name == "parent"


def test_what_several_experiments_show_is_trained_once(monkeypatch):
    trained, work, train_grid = [], Work(), st.train_grid
    monkeypatch.setattr(st, "train_grid", lambda *args, **options: trained.append(1) or train_grid(*args, **options))
    tree = TreeOption("tree", LONE)
    for config, n_trained in (
        (cosines.Config(tree=tree, **SMALL), 1),
        (absorption.Config(tree=tree, n_topk_seeds=0, **SMALL), 1),
        (cosines.Config(tree=tree, **{**SMALL, "n_steps": 6}), 2),
        (cosines.Config(tree=TreeOption("tree", HALF_NEVER), **SMALL), 3),
    ):
        st.train_seeds(config, config.study, "vanilla", work)
        assert len(trained) == n_trained


def test_a_deep_tree_is_described(tmp_path):
    data: dict = {"active_prob": 0.5}
    for _ in range(250):
        data = {"active_prob": 1, "children": [data]}
    (tmp_path / "tree.json").write_text(json.dumps(data))
    tree = TreeOption(str(tmp_path / "tree.json"))
    assert cli.describe(cosines.Config(tree=tree, d_in=300))["n_seeds"] == 32


@pytest.mark.slow
def test_many_leaves_and_levels_are_drawn():
    root = forest(*(Node(0.01, name=f"f{i}") for i in range(200)))
    assert cli.as_png(ground_truth.plot(record_of(ground_truth, root, n_seeds=1, n_rows=50, d_in=200)))


def test_names_of_many_features_do_not_overlap():
    with plots.styled(3) as figure:
        ax, _ = figure.subplots(1, 2)
        plots.heatmap(ax, np.eye(100), low=0, high=1, colours="Greys")
        plots.label_columns(ax, [f"feature {i}" for i in range(100)])
        plots.label_rows(ax, [f"feature {i}" for i in range(100)])
    assert cli.as_png(figure)
    points = figure.dpi / 72
    for labels, axis in ((ax.get_xticklabels(), "x0"), (ax.get_yticklabels(), "y0")):
        assert len(labels) > 10
        starts = sorted(getattr(label.get_window_extent(), axis) for label in labels)
        assert np.diff(starts).min() >= labels[0].get_fontsize() * points


@pytest.mark.slow
@pytest.mark.parametrize(("n_children", "is_heatmap"), [(20, False), (21, True)])
def test_hole_rates_of_many_edges_are_a_heatmap(n_children, is_heatmap):
    root = Node(0.5, tuple(Node(0.3, name=f"c{i}") for i in range(n_children)), name="p")
    record = record_of(absorption, root, **{**SMALL, "n_latents": None}, n_topk_seeds=0)
    (panel,) = [ax for ax in absorption.plot(record).findobj(Axes) if ax.get_title(loc="left").startswith("d  ")]
    assert bool(panel.images) == is_heatmap


@pytest.mark.slow
def test_every_prefix_is_drawn_once_and_mixing_without_recovery_says_why():
    record = record_of(all_prefixes, HALF_NEVER, **{**SMALL, "n_latents": 2}, n_prefixes=(1, 2, 5), n_expected=2)
    figure = all_prefixes.plot(record)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["vanilla", "1", "2 exp.", "all"]
    assert words(figure).count("no seed recovered") == 3


def test_intervals_are_those_of_the_policy_and_stay_inside_the_range():
    assert plots.wilson(32, 32) == pytest.approx((1, 0.893, 1), abs=1e-3)
    assert plots.wilson(0, 8) == pytest.approx((0, 0, 0.324), abs=1e-3)
    mean, low, high = plots.bootstrap([0.0, 0.0, 0.0, 1.0])
    assert 0 <= low < mean == 0.25 < high <= 1
    assert plots.bootstrap([0.3]) == (0.3, 0.3, 0.3)


@pytest.mark.slow
def test_recovery_stands_beside_its_price():
    record = record_of(absorption, HALF_NEVER, **SMALL, n_topk_seeds=1)
    for text in (words(absorption.plot(record)), "".join(absorption.summary(record))):
        assert all(price in text for price in ("FVU", "L0", "hrinkage"))


def test_pareto_draws_every_coefficient_and_finds_the_nearest_sae():
    record = record_of(pareto, HALF_NEVER, **SMALL, coefs=(0.1, 1.0))
    assert [len(record["results"][kind]) for kind in ("coefs", "vanilla", "matryoshka")] == [2, 2, 2]
    assert cli.as_png(pareto.plot(record))
    assert len(pareto.summary(record)) == 3

    def entry(recovered: int, l0: float, fvu: float) -> dict:
        return {"recovered": recovered, "l0": [l0, l0], "fvu": [fvu, None]}

    best, at_l0, at_fvu = entry(2, 1.1, 0.02), entry(0, 1.0, 0.0), entry(0, 0.8, 0.03)
    found = pareto.matched({"vanilla": [at_l0, at_fvu], "matryoshka": [entry(1, 2.0, 0.0), entry(2, 1.2, 0.3), best]})
    assert list(found.values()) == [best, at_l0, at_fvu]


def test_pareto_needs_a_coefficient():
    with pytest.raises(ValueError, match="coefs: need at least one"):
        pareto.Config(coefs=())


def test_drawing_needs_no_pyplot():
    with plots.styled(1) as figure:
        figure.text(0, 0, "x")
    assert cli.as_png(figure)
    assert "plt" not in vars(plots)


def test_the_pair_is_of_two_methods() -> None:
    with pytest.raises(ValueError, match=r"^method: vanilla is the other SAE of the pair"):
        absorption.check(absorption.Config(method="vanilla"))


def test_a_users_method_called_vanilla_is_no_kind_of_topk() -> None:
    results = dict.fromkeys(("vanilla", "mine.py:my_vanilla", "features"))
    assert absorption.topk_kinds({"results": results}) == []
    assert absorption.topk_kinds({"results": results | {"topk_2_vanilla": None}}) == ["topk_2_"]


def test_pareto_compares_coefficients_that_stay() -> None:
    with pytest.raises(ValueError, match=r"^control_rate: must be 0, since"):
        pareto.Config(control_rate=3e-4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": ()}, "steps: need at least one"),
        ({"restarts": ()}, "restarts: need at least one"),
        ({"grid_restarts": float("nan")}, "grid_restarts: must be finite"),
        ({"steps": (2_000, 10**11)}, "steps: must be at most"),
        ({"seed": 2**32 - 100}, "seed and n_seeds: the last seed"),
        ({"control_rate": 0.1}, "control_rate: the study has a rate of its own"),
        ({"tree": TreeOption("three_level")}, "tree: the study has trees of its own"),
    ],
)
def test_the_study_of_defaults_refuses_what_it_cannot_run(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        defaults.Config(**given)
