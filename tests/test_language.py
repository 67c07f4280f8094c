"""The options of the language-model chain, and its small pieces, without a model or SAEs."""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from commands import exit_code

from experiments import tinystories
from experiments.common import memory
from experiments.language import absorption, concepts, plots, saes, stages
from experiments.language import chain as language
from experiments.language.config import LanguageConfig
from experiments.language.found import find_saes, load_sae, told
from experiments.language.memory import check_memory
from experiments.language.saes import families, large_families
from toy.io import save_arrays, save_json
from toy.lm.model import Site
from toy.lm.text import END_OF_STORY, clean
from toy.sae import SAE


def command(monkeypatch, *arguments: str) -> int:
    """Returns the exit status of `python -m experiments.tinystories ARGUMENTS`."""
    return exit_code(tinystories.main, monkeypatch, *arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 10**9}, "vocab_size: must be at most 1,048,576"),
        ({"d_model": 10**9}, "d_model: must be at most"),
        ({"n_latents": 10**9}, "n_latents: must be at most"),
        ({"n_stories": 10**12}, "n_stories: must be at most"),
        ({"context": 10**9}, "context: must be at most"),
        ({"context": 2}, "context: must be at least 3"),
        ({"vocab_size": 259}, "vocab_size: must be at least 260"),
        ({"n_seeds": 10**9}, "n_seeds: must be at most"),
        ({"lm_steps": 10**12}, "lm_steps: must be at most"),
        ({"batch_size": 10**12}, "batch_size: must be at most"),
        ({"n_steps": 2**70}, "n_steps: 1180591620717411303424 is far too large"),
        ({"seed": 2**32}, "seed: must be at most 4,294,967,295"),
        ({"seed": 2**32 - 1, "n_seeds": 2}, "seed and n_seeds: the last seed, 4294967296, is more"),
        ({"seed": -1}, "seed: must not be negative"),
        ({"n_latents": 50.0}, "n_latents: must be a whole number"),
        ({"n_prefixes": True}, "n_prefixes: must be a whole number"),
        ({"n_heads": 0}, "n_heads: must be at least 1"),
        ({"reference_widths": (8, 3)}, "reference_widths: must be at least 4, got 3"),
        ({"reference_widths": (8, 8)}, "reference_widths: 8 is given twice"),
        ({"reference_widths": ()}, "reference_widths: need at least one"),
        ({"locations": ("mlp_out", "mlp_out")}, "locations: mlp_out is given twice"),
        ({"target_l0": (2.0, float("nan"))}, "target_l0: must be finite"),
        ({"target_l0": (2.0, 500.5)}, "target_l0: must be at most n_latents = 500, got 500.5"),
        ({"target_l0": (0.0,)}, "target_l0: must be above 0"),
        ({"learning_rate": (-1.0,)}, "learning_rate: must be above 0"),
        ({"learning_rate": (float("inf"),)}, "learning_rate: must be finite"),
        ({"learning_rate": ()}, "learning_rate: need at least one"),
        ({"layers": (1, 1)}, "layers: 1 is given twice"),
        ({"sampled_stories": 5}, "sampled_stories: applies to a given model only; add --model"),
        ({"control_rate": 1.0}, "control_rate: must be below 1"),
        ({"sparsity_coef": float("nan")}, "sparsity_coef: must be finite"),
        ({"n_heads": 4}, "n_heads: applies to a given model only; add --model"),
        ({"tokenizer": Path("a")}, "tokenizer: applies to a given model only; add --model"),
        ({"sparsity": "l2"}, "sparsity: expected log or l1, got l2"),
    ],
)
def test_an_option_out_of_range_is_refused_when_it_is_given(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        LanguageConfig(**options)
    assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"d_model": 2**20}, "d_model"),
        ({"vocab_size": 2**20, "d_model": 2**15}, "vocab_size"),
        ({"context": 2**16}, "context"),
        ({"n_latents": 2**20, "d_model": 2**14}, "n_latents"),
        ({"reference_widths": (2**20,), "batch_size": 2**20}, "reference_widths"),
        ({"n_stories": 10**8}, "n_stories"),
    ],
)
def test_options_that_need_more_memory_than_there_is_are_refused_before_any_work(options, named, monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: 8 * 2**30)
    monkeypatch.setattr(language, "make_stories", lambda *_: pytest.fail("worked"))
    with pytest.raises(ValueError, match=r"need at least [\d,]+ GiB of memory, .* this machine has 8 GiB") as told:
        language.read_given(LanguageConfig(**options))
    assert named in str(told.value).partition(":")[0]


def test_memory_is_estimated_from_below(monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: 2**30)
    several: list[dict[str, Any]] = [{}, {"corpus": "a.txt", "n_stories": 10**8}, {"own_models": False}]
    for options in several:
        check_memory(LanguageConfig(**options))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a=Café,naïve", ("cafe", "naive")),
        ("a=cafe\u0301,straße", ("cafe", "strasse")),
        ("a = Lily , sue,LILY", ("lily", "sue")),
    ],
)
def test_words_of_a_concept_are_cleaned_as_the_text_is(given, words):
    assert LanguageConfig(concepts=(given,)).concept_words == {"a": words}
    assert [*dict.fromkeys(clean(word).lower() for word in given.partition("=")[2].split(","))] == [*words]


@pytest.mark.parametrize(
    "given", ["a=café,cafe", "a=日本,b", "a=x\udc80,b", "a=,b", "a\x1b[2J=x,y", "a=it's,b", "a=1,b"]
)
def test_words_that_cannot_stand_in_the_text_are_refused(given):
    with pytest.raises(ValueError, match=r"^concepts: ") as told:
        LanguageConfig(concepts=(given,))
    assert str(told.value).isprintable()


def test_the_cache_is_found_when_the_options_are_made_and_not_when_they_are_imported(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert LanguageConfig().cache == tmp_path / "matryoshka-toy"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert LanguageConfig().cache == tmp_path / "matryoshka-toy"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert LanguageConfig().cache.name == "matryoshka-toy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--corpus", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--model", "nowhere.pt"), "nowhere.pt does not exist"),
        (("--locations", "mlp_in"), "mlp_in"),
        (("--concepts", "girls"), "concepts"),
        (("--concepts", "girls=lily, lily"), "two words"),
        (("--concepts", "girls=lily,ice-cream"), "letters alone, got 'ice-cream'"),
        (("--concepts", "girls=lily,sue", "girls=she,her"), "girls is given twice"),
        (("--n-latents", "0"), "n_latents"),
        (("--lm-steps", "0"), "lm_steps"),
        (("--model", ".", "--own-models", "True"), "own_models"),
        (("--d-model", "65"), "d_model"),
        (("--corpus", "hub:stories"), "hub:OWNER/NAME"),
    ],
)
def test_a_bad_option_is_one_line_before_any_work(arguments, message, monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, *arguments, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_help_shows_the_stages_and_a_misspelt_option_its_spelling(monkeypatch, capsys):
    assert command(monkeypatch, "--help") == 0
    assert "--reference-widths" in capsys.readouterr().out
    assert command(monkeypatch, "--stages", "model") == 2
    assert "--stage" in capsys.readouterr().err


def test_a_corpus_of_one_story_is_refused_before_any_work(monkeypatch, tmp_path, capsys):
    text = tmp_path / "stories.txt"
    text.write_text(f"One.\n{END_OF_STORY}\n\ufffd\n{END_OF_STORY}\n")
    arguments = ("--corpus", str(text), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"))
    assert command(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert "stories.txt: 1 story cannot be split into training and held-out ones; at least 2 are needed" in error
    assert "dropped 1 of 2 stories" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [text]


def test_an_interrupt_says_that_stages_are_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tinystories, "make_tokens", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command(monkeypatch, "--cache", str(tmp_path), "--stage", "tokens") == 130
    assert "finished stages and checkpoints are kept in the cache; the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("pursuit",), "methods: pursuit: the figures compare SAEs that are trained to a target L0"),
        (("topk:k=2",), "methods: topk:k=2: the figures compare SAEs"),
        (("held",), "method: expected vanilla, "),
        (("held_finish", "held_finish"), "methods: held_finish is given twice"),
    ],
)
def test_methods_that_cannot_stand_beside_the_two_are_refused(methods, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        LanguageConfig(methods=methods)


def test_further_methods_are_kinds_of_large_saes_with_places_and_colours_of_their_own():
    cfg = LanguageConfig(methods=("held_finish", "tied"), sparsity="log", n_prefixes=5)
    assert cfg.kinds["matryoshka"] == "matryoshka:sparsity=log,weighting=sampled_5"
    large = [(one.name, one.method) for one in saes.families(cfg, Site(0, "mlp_out")) if one.n_latents == 500]
    assert large == [kind for kind in cfg.kinds.items() for _ in cfg.sizes.target_l0]
    told = {"methods": list(cfg.methods)}
    assert plots.kinds(told) == list(cfg.kinds)
    assert plots.kinds({}) == list(saes.KINDS)  # of a record that is older than the option
    assert len({plots.colour(told, kind) for kind in plots.kinds(told)}) == 4
    assert plots.beside({}, 0.3).tolist() == [-0.15, 0.15]
    assert np.allclose(np.diff(plots.beside(told, 0.3)), 0.15)


def test_an_sae_is_that_of_its_seed(tmp_path):
    folder = tmp_path / "saes-mlp_out.0-vanilla-3-l0_2-0"
    family = ["mlp_out.0", "vanilla", 3, "vanilla:sparsity=l1", 2.0]
    save_json(folder / stages.DONE, {"facts": {"activations": "a", "family": family, "seeds": [5, 7]}}, digits=None)
    lanes = np.arange(2.0, dtype=np.float32)
    sizes = {"W_enc": (2, 2, 3), "b_enc": (2, 3), "W_dec": (2, 3, 2), "b_dec": (2, 2)}
    arrays = {name: np.resize(lanes, shape[::-1]).T.copy() for name, shape in sizes.items()}
    save_arrays(folder / "saes.safetensors", arrays, {})
    assert {seed: load_sae(folder, seed).b_dec[0] for seed in find_saes(tmp_path)[0].seeds} == {5: 0, 7: 1}
    with pytest.raises(ValueError, match=r"has SAEs of seeds 5, 7, not of seed 6$"):
        load_sae(folder, 6)


def test_a_cache_without_saes_is_listed_as_empty(tmp_path):
    assert told(tmp_path) == [f"{tmp_path}: holds no trained SAE yet"]


def test_which_saes_miss_their_target():
    cfg = LanguageConfig(target_l0=(2.0, 4.0), seed=7, n_seeds=2)
    *_, of_two, of_four = saes.families(cfg, Site(1, "mlp_out"))
    assert saes.missing(cfg, of_four, [4.5, 4.39]) == [("mlp_out.1", "matryoshka", 7, 4.0, 4.5)]
    assert saes.missing(cfg, of_two, [2.0, None]) == [("mlp_out.1", "matryoshka", 8, 2.0, None)]


def test_the_l0_of_training_is_the_mean_over_its_last_steps():
    assert saes.l0_at_end(np.arange(400.0).reshape(4, 100)).tolist() == [97, 197, 297, 397]
    assert saes.l0_at_end(np.arange(6.0).reshape(2, 3)).tolist() == [2, 5]


def test_holes_are_compared_where_both_kinds_have_the_concept_and_where_they_are_as_precise():
    def site(**of_kind):
        names = ("hole_rate", "correlation", "precision")
        return {kind: {name: [[row]] for name, row in zip(names, rows, strict=True)} for kind, rows in of_kind.items()}

    sites = {  # concepts: both have it, one has it, both have it and as precise, neither measured
        "mlp_out.0": site(
            vanilla=([0.5, 0.9, 0.3, None], [0.6, 0.4, 0.9, None], [0.9, 0.5, 0.80, None]),
            matryoshka=([0.1, 0.1, 0.4, None], [0.6, 0.9, 0.9, None], [0.5, 0.5, 0.84, None]),
        )
    }
    record = {"results": {"sites": sites}}
    assert absorption.represented(record, 0) == (2, pytest.approx(0.25), pytest.approx(0.4))
    assert absorption.matched(record, 0) == (2, 1, 1)


def test_a_concept_without_rows_on_one_half_has_no_numbers_and_no_traceback():
    sae = SAE(*(jnp.ones(shape) for shape in ((4, 3), (3,), (3, 4), (4,))))
    x = np.ones((50, 4), np.float32)
    (found,) = concepts.measure({"nobody": 2}, sae, x, {}, {})
    assert np.isnan(found["hole_rate"])
    assert np.isnan(found["hole_rates"]).tolist() == [True, True]
    assert np.isnan(found["correlation"])


def test_there_is_a_family_for_each_kind_and_l0_and_batchtopk_has_its_k_where_its_program_needs_it():
    cfg = LanguageConfig(n_latents=1_100, target_l0=(2.0, 4.5), methods=("batchtopk:aux_k=8,weighting=all",))
    found = [(one.name, one.method, one.target_l0) for one in large_families(cfg, Site(0, "mlp_out"))]
    assert found == [
        ("vanilla", "vanilla:sparsity=l1", 2.0),
        ("vanilla", "vanilla:sparsity=l1", 4.5),
        ("matryoshka", "matryoshka:sparsity=l1,weighting=sampled_10", 2.0),
        ("matryoshka", "matryoshka:sparsity=l1,weighting=sampled_10", 4.5),
        (cfg.methods[0], "batchtopk:k=2,aux_k=8,weighting=all", 2.0),
        (cfg.methods[0], "batchtopk:k=4.5,aux_k=8,weighting=all", 4.5),
    ]
    small = LanguageConfig(n_latents=100, target_l0=(2.0, 4.5), methods=cfg.methods)
    assert [one.method for one in large_families(small, Site(0, "mlp_out"))[-2:]] == [*cfg.methods, *cfg.methods]
    label = {one.label for one in families(cfg, Site(0, "mlp_out"))}
    assert len(label) == len(families(cfg, Site(0, "mlp_out")))


def test_figures_without_a_record_are_left_out_of_a_redrawing_and_told_of(monkeypatch, tmp_path, capsys):
    redrawn: list[str] = []
    monkeypatch.setattr(tinystories, "redraw", lambda measure, *_: redrawn.append(measure.name))
    (tmp_path / "tinystories_fvu.json").touch()
    tinystories.redraw_kept(list(tinystories.MEASURES.values()), tmp_path, None)
    assert redrawn == ["tinystories_fvu"]
    told = capsys.readouterr().err
    assert told.count("there is no such record") == len(tinystories.MEASURES) - 1
    assert "tinystories_fvu" not in told
    tinystories.redraw_kept([tinystories.MMC], tmp_path, None)  # which is told of by its name
    assert redrawn == ["tinystories_fvu", "tinystories_mmc"]
