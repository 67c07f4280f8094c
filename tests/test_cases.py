"""Every file of a collection of inputs that once showed a fault, where it lies beside the checkout: what it gives now.

Each fault also has a test with small files of its own making, beside the module that it was in.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import accepted, watched

from experiments import absorption, ground_truth
from experiments.common.cli import as_png, describe, load_record
from experiments.common.experiment import Work
from experiments.common.study import PairConfig
from experiments.common.tree_option import TreeOption
from experiments.sweep import read_sweep
from experiments.sweeps.record import load_sweep_record
from toy.data.activations import open_matrix
from toy.data.source import ArraySource
from toy.features.tree import build_tree, marginals, sample_features
from toy.files.torch_file import read_torch_file
from toy.io import plain, read_sae, read_tree
from toy.lm.text import read_stories
from toy.lm.tokens import load_tokenizer
from toy.prefixes import full
from toy.sae import decode, encode
from toy.training.checkpoint import FileCheckpoint
from toy.training.config import Hypers, TrainConfig
from toy.training.loop import Run
from toy.training.run import train

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
SAELENS = ("standard_default", "standard_nobdec", "jumprelu_default", "batchtopk_default")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CASES.exists(), reason="the collection does not lie beside this checkout"),
]


def named(pattern: str, *left_out: str) -> list[Any]:
    """The files or folders of a pattern, as parameters with their names."""
    found = [path for path in sorted(CASES.glob(pattern)) if path.name not in left_out]
    return [pytest.param(path, id=path.name) for path in found] or [pytest.param(CASES, id="none")]


def refused(read: Callable[..., Any], *arguments: Any, told: str) -> None:
    """In one line that says so, in little time and memory."""
    assert accepted(lambda: _is_refused(read, arguments, told))


def _is_refused(read: Callable[..., Any], arguments: tuple[Any, ...], told: str) -> bool:
    try:
        found = read(*arguments)
    except (ValueError, OSError) as error:
        assert re.search(told, str(error)), str(error)  # noqa: PT017
        accepted(_raise, error)
        return True
    pytest.fail(f"it is read: {found!r:.200}")


def _raise(error: Exception) -> None:
    raise error


# --- activations


def trained(name: str) -> Any:
    source, cfg = ArraySource(np.load(CASES / "arrays" / name)), TrainConfig(4, n_steps=20, batch_size=16)  # type: ignore[arg-type]
    return train(jax.random.key(0), source, Hypers(full(4), target_l0=1.0), cfg=cfg)


def test_half_precision_rows_of_norm_300_train_as_in_float32() -> None:
    state, history = trained("f16_norm300.npy")
    assert np.asarray(history.loss)[-1] > 0
    assert all(np.isfinite(leaf).all() for leaf in state.params if leaf is not None)
    x = np.load(CASES / "arrays/f16_norm300.npy").astype(np.float32)
    assert float(state.input_norm) / (1 - 0.99**20) == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=0.1)


def test_a_row_that_is_not_a_number_is_named() -> None:
    bad = np.flatnonzero(~np.isfinite(np.load(CASES / "arrays/one_nan.npy")).all(axis=1))[0]
    refused(trained, "one_nan.npy", told=f"row {bad} has numbers that are not finite")


# --- SAEs and synthetic models of SAELens


@pytest.mark.parametrize("name", SAELENS)
def test_a_folder_of_saelens_gives_saelens_own_activations(name: str) -> None:
    sae, activation = read_sae(CASES / "saelens" / name)
    expected = np.load(CASES / "saelens" / name / "expected.npz")
    acts = encode(sae, jnp.asarray(expected["x"]), activation)
    np.testing.assert_allclose(acts, expected["acts"], atol=1e-5)
    np.testing.assert_allclose(decode(sae, acts), expected["recon"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("saelens/layer_norm", "normalize_activations is layer_norm"),
        ("saes/layer_norm", "normalize_activations is layer_norm"),
        ("saes/old_topk", "architecture|activation_fn"),
        ("saes/transposed", "W_(enc|dec) has shape"),
        ("saes/d_sae_wrong", "has shape"),
        ("saes/nan", "not finite"),
    ],
)
def test_an_sae_that_cannot_be_expressed_is_refused_by_name(name: str, told: str) -> None:
    refused(read_sae, CASES / name, told=told)


# --- trees


@pytest.mark.parametrize("path", named("trees/*.json", "surrogate.json", "zero_magnitude.json"))
def test_a_tree_is_read_told_drawn_and_sampled_as_its_marginals_say(path: Path) -> None:
    root, notes = read_tree(path)
    assert all(note.isprintable() for note in notes)
    tree = build_tree(root)
    on = np.asarray(sample_features(jax.random.key(0), tree, 20_000)) > 0
    error = np.sqrt(marginals(tree) * (1 - marginals(tree)) / len(on))
    assert (np.abs(on.mean(axis=0) - marginals(tree)) <= 5 * error + 1e-9).all()
    cfg = ground_truth.Config(tree=TreeOption(str(path)), n_seeds=2, n_rows=200, d_in=512)
    with watched(30):  # a figure of 200 features takes 10 seconds on a slow machine
        assert as_png(ground_truth.plot(record_of(ground_truth, cfg)))


def record_of(module: Any, cfg: Any) -> dict[str, Any]:
    """Returns the record that an experiment writes."""
    results = module.run(cfg, Work())
    return plain({"config": describe(cfg), "seeds": cfg.seeds, "results": results})


def test_saelens_exclusive_siblings_are_on_as_saelens_keeps_them() -> None:
    root, notes = read_tree(CASES / "trees/saelens_exclusive.json")
    np.testing.assert_allclose(marginals(build_tree(root)), [0.3, 0.3 * 0.32, 0.3 * 0.32], rtol=1e-9)
    assert any("exclusive" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("trees/surrogate.json", "surrogate"),
        ("trees/zero_magnitude.json", "magnitude"),
        ("attack/tree_surrogate.json", "surrogate"),
        ("attack/tree_long_name.json", "100,000 characters"),
        ("attack/tree_duplicate_key_1e5.json", "stands twice"),
    ],
)
def test_a_tree_that_cannot_be_drawn_or_read_is_refused_by_name(name: str, told: str) -> None:
    refused(read_tree, CASES / name, told=told)


@pytest.mark.parametrize("name", ["tree_mathtext_bad.json", "tree_nul_newline.json"])
def test_names_are_drawn_as_they_are(name: str) -> None:
    cfg = ground_truth.Config(tree=TreeOption(str(CASES / "attack" / name)), n_seeds=1, n_rows=100, d_in=64)
    assert as_png(ground_truth.plot(record_of(ground_truth, cfg)))


@pytest.mark.parametrize(
    ("name", "n_topk_seeds"), [("rare_real", 0), ("rare", 1), ("one_feature", 0), ("always_on", 0), ("dollar_pair", 0)]
)
def test_a_tree_without_anything_to_measure_has_a_record_and_a_figure(name: str, n_topk_seeds: int) -> None:
    tree = TreeOption(str(CASES / f"trees/{name}.json"))
    cfg = absorption.Config(tree=tree, n_seeds=1, n_steps=10, n_eval_rows=200, n_topk_seeds=n_topk_seeds)
    absorption.check(cfg)
    record = record_of(absorption, cfg)
    assert absorption.summary(record)
    assert as_png(absorption.plot(record))


# --- sweeps


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sweeps/dup_axis.yaml", "twice"),
        ("sweeps/dup_fixed.yaml", "twice"),
        ("sweeps/dup_keys.json", "twice"),
        ("sweeps/octal.yaml", "010"),
        ("attack/sweep_duplicate_keys.json", "twice"),
        ("attack/sweep_duplicate_keys.yaml", "twice"),
        ("attack/sweep_huge_integer.json", "learning_rate"),
        ("attack/sweep_newline_tree.yaml", r"\\n"),
        ("attack/sweep_range_1e12.yaml", "values"),
        ("attack/sweep_range_1e9.yaml", "values"),
        ("attack/sweep_yaml_bomb_metrics.yaml", "anchor|alias"),
        ("attack/sweep_yaml_bomb_trees.yaml", "anchor|alias"),
    ],
)
def test_a_sweep_that_says_two_things_or_too_much_is_refused(name: str, told: str) -> None:
    refused(read_sweep, CASES / name, told=told)


def test_sweeps_that_say_one_thing_are_read() -> None:
    assert len(read_sweep(CASES / "sweeps/one_cell.yaml")) == 1
    dollars = read_sweep(CASES / "sweeps/dollar_tree_axis.yaml")
    assert {"p$^$.json", "_b.json"} <= {str(value) for value in dollars.axes["tree"]}


# --- texts, tokenizers and models


def test_a_french_text_loses_no_story_and_json_lines_are_told_to_lack_separators() -> None:
    stories = read_stories(str(CASES / "corpora/french.txt"))
    assert (len(stories.texts), stories.n_damaged) == (stories.n_read, 0)
    refused(read_stories, str(CASES / "corpora/jsonl.txt"), told="endoftext")
    with watched():
        assert read_stories(str(CASES / "attack/corpus_spaces_200k.txt"))


SAID = "Once upon a time there was a little girl named Lily."


@pytest.mark.parametrize("path", named("tokenizers/*"))
def test_a_tokenizer_gives_a_story_whole_and_its_words(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    story = " ".join([SAID] * 20)
    ids, short = tokenizer.encode([story, SAID])
    assert len(short) < len(ids)
    assert tokenizer.decode(ids).split() == story.split()
    assert max(map(max, (ids, short))) < tokenizer.vocab_size == len(tokenizer.pieces())


@pytest.mark.parametrize("path", named("attack/tokenizer_*"))
def test_a_tokenizer_that_is_to_do_harm_gives_stories_whole_or_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((path / "tokenizer.json" if path.is_dir() else path).read_bytes())
    tokenizer = accepted(load_tokenizer, tmp_path)
    if tokenizer is not None:
        ids, _ = tokenizer.encode([SAID * 20, SAID])
        assert max(ids) < tokenizer.vocab_size < 2**21


# --- files that are to do harm


@pytest.mark.parametrize("path", named("attack/torch_*.pt"))
def test_a_file_of_torch_that_is_to_do_harm_is_refused(path: Path) -> None:
    refused(read_torch_file, path, told=re.escape(path.name))


@pytest.mark.parametrize("path", named("attack/activations_*"))
def test_activations_that_cannot_be_read_are_refused(path: Path) -> None:
    refused(open_matrix, path, told=re.escape(path.name))


@pytest.mark.parametrize("path", named("attack/checkpoint_*"))
def test_a_checkpoint_that_cannot_be_read_is_refused(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    refused(FileCheckpoint(copy).load, Run({"a": np.zeros(3)}, {}, 0), {}, told=re.escape(path.name))


@pytest.mark.parametrize("path", named("attack/record_*.json"))
def test_a_record_that_writes_elsewhere_or_holds_a_command_is_refused(path: Path) -> None:
    refused(load_sweep_record, path, told=re.escape(path.name))


@pytest.mark.parametrize("name", ["empty", "other"])
def test_a_record_of_nothing_or_of_something_else_is_refused_by_its_file(name: str) -> None:
    refused(load_record, CASES / "records" / name / "absorption.json", "absorption", told=r"absorption\.json")


def test_options_that_wrap_are_refused() -> None:
    refused(lambda: PairConfig(seed=2**32), told="seed: must be at most 4,294,967,295")
