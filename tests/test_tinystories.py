"""The chain from text to the language-model figures at tiny size, through its command line."""

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from commands import exit_code, experiment
from flax import nnx

from experiments import LANGUAGE_SET, tinystories, tinystories_absorption
from experiments.common import cli, memory
from experiments.language import chain as language
from experiments.language import concepts as language_concepts
from experiments.language import memory as language_memory
from experiments.language import saes as language_saes
from experiments.language import stages
from experiments.language.config import LanguageConfig
from toy.data.store import open_store
from toy.lm import export
from toy.lm.corpus import make_stories
from toy.lm.model import LM, LMConfig, Site
from toy.lm.text import END_OF_STORY, clean
from toy.lm.weights import save_model
from toy.sae import SAE
from toy.training import controllers as sparsity

TINY = (
    *("--n-stories", "500", "--context", "48", "--vocab-size", "330", "--n-layers", "1", "--d-model", "16"),
    *("--lm-steps", "3", "--n-latents", "24", "--reference-widths", "8", "16", "--target-l0", "2", "4"),
    *("--n-steps", "6", "--batch-size", "32", "--n-seeds", "2", "--locations", "mlp_out"),
)
pytestmark = pytest.mark.slow


def command(monkeypatch, *arguments: str) -> int:
    """What `python -m experiments.tinystories ARGUMENTS` exits with."""
    return exit_code(tinystories.main, monkeypatch, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of the figures and of the cache."""
    out, cache = tmp_path_factory.mktemp("figures"), tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *TINY, "--cache", str(cache), "--out", str(out)) == 0
    return out, cache


def results(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())["results"]


def test_the_chain_makes_three_records_and_figures(made):
    for name in LANGUAGE_SET:
        record = json.loads((made[0] / f"{name}.json").read_text())
        assert list(record) == ["name", "config", "seeds", "versions", "seconds", "results"]
        assert record["seeds"] == [0, 1]
        assert list(record["results"]["sites"]) == ["mlp_out.0"]
        assert [facts["model"]["loss"] > 0 for facts in record["results"]["models"]] == [True, True]
        assert (made[0] / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_records_have_an_entry_a_seed_an_l0_and_a_width_or_concept(made):
    mmc = results(made[0], "tinystories_mmc")["sites"]["mlp_out.0"]
    fvu = results(made[0], "tinystories_fvu")["sites"]["mlp_out.0"]
    absorption = results(made[0], "tinystories_absorption")
    for kind in ("vanilla", "matryoshka"):
        assert np.shape(mmc[kind]) == (2, 2, 2)
        assert np.all(np.array(mmc[kind], float) <= 1 + 1e-6)
        assert np.shape(fvu[kind]["fvu"]) == np.shape(fvu[kind]["loss_recovered"]) == (2, 2)
        rates = np.array(absorption["sites"]["mlp_out.0"][kind]["hole_rate"], float)
        assert rates.shape == (2, 2, len(absorption["concepts"]))
        known = ~np.isnan(rates)
        assert known.any(axis=(0, 1)).sum() > 5  # concepts; the others' words are too rare in so short a text
        assert np.all((rates[known] >= 0) & (rates[known] <= 1))
    rows = np.concatenate(absorption["sites"]["mlp_out.0"]["n_rows"][0])
    assert 0 < (rows >= absorption["min_rows"]).sum() < len(rows)
    assert mmc["vanilla"] != mmc["matryoshka"]
    assert {"person", "female", "female names"} <= set(absorption["concepts"])


def test_a_second_run_makes_nothing_again_and_says_the_same(made, monkeypatch, tmp_path):
    for module, name in ((language, "train_lm"), (export, "_shard"), (language_saes, "train_grid")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("made twice"))
    monkeypatch.setattr(language, "train_tokenizer", lambda *_: pytest.fail("made twice"))
    assert command(monkeypatch, *TINY, "--cache", str(made[1]), "--out", str(tmp_path)) == 0
    for name in LANGUAGE_SET:
        assert results(tmp_path, name) == results(made[0], name)


def test_the_figures_are_drawn_from_their_records_alone(made):
    for name in LANGUAGE_SET:
        record = json.loads((made[0] / f"{name}.json").read_text())
        assert cli.as_png(experiment(name).plot(record)) == (made[0] / f"{name}.png").read_bytes()


@pytest.mark.parametrize("what", [("--n-steps", "7"), ("--sparsity", "log"), ("--seed", "5")])
def test_what_determines_a_stage_names_it_and_no_other(what, made, monkeypatch):
    before = {path.name for path in made[1].iterdir()}
    assert command(monkeypatch, *TINY, *what, "--cache", str(made[1]), "--stage", "saes") == 0
    new = {path.name.partition("-")[0] for path in made[1].iterdir() if path.name not in before}
    assert new == ({"saes"} if what[0] != "--seed" else {"tokens", "model", "activations", "saes"})


def test_a_stage_is_made_anew_once_its_code_has_changed(made, monkeypatch):
    before = {path.name for path in made[1].iterdir()}
    monkeypatch.setattr(stages, "code_digest", lambda *modules: f"another of {modules}")
    assert command(monkeypatch, *TINY, "--cache", str(made[1]), "--stage", "tokens") == 0
    assert [path.name.partition("-")[0] for path in made[1].iterdir() if path.name not in before] == 2 * ["tokens"]


@pytest.mark.parametrize("what", ["library_versions", "file_digest"])
def test_a_stage_is_named_by_the_libraries_and_the_module_that_make_it(what, monkeypatch, tmp_path):
    def make(folder):
        told.append(folder.name)

    told = []
    make.__module__ = "experiments.language.chain"
    for _ in range(2):
        stages.stage(tmp_path, "s", {}, ["toy.lm.text"], make)
    monkeypatch.setattr(stages, what, lambda *_: "another")
    stages.stage(tmp_path, "s", {}, ["toy.lm.text"], make)
    assert len(told) == len(set(told)) == 2


def test_two_runs_at_once_make_a_stage_once(tmp_path):
    told = []

    def make(folder):
        told.append(folder)
        time.sleep(0.3)
        return {"made": len(told)}

    make.__module__ = "experiments.language.chain"
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(stages.stage, tmp_path, "s", {}, ["toy.lm.text"], make) for _ in range(4)]
        folders = {run.result() for run in runs}
    assert len(folders) == len(told) == 1
    assert stages.notes(folders.pop())["made"] == 1


def test_a_store_that_was_deleted_is_made_again(made, monkeypatch, tmp_path):
    folder = made[1] / results(made[0], "tinystories_mmc")["models"][0]["stages"]["activations"] / "valid"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    assert command(monkeypatch, *TINY, "--cache", str(made[1]), "--stage", "saes") == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_stage_is_made_alone_with_those_before_it(monkeypatch, tmp_path, capsys):
    cache = tmp_path / "cache"
    assert command(monkeypatch, *TINY, "--cache", str(cache), "--stage", "tokens") == 0
    assert {path.name.partition("-")[0] for path in cache.iterdir()} == {"tokens"}
    assert command(monkeypatch, *TINY, "--cache", str(cache), "--stage", "model") == 0
    assert {path.name.partition("-")[0] for path in cache.iterdir()} == {"tokens", "model"}
    said = capsys.readouterr().out
    assert "Once upon a time" in said
    assert "unigram entropy" in said


def test_a_text_of_ones_own_a_model_of_ones_own_and_concepts_of_ones_own(made, monkeypatch, tmp_path):
    text = tmp_path / "stories.txt"
    text.write_text("".join(f"{story}\n{END_OF_STORY}\n" for story in make_stories(1_000, 3)))
    model = next(path for path in made[1].iterdir() if path.name.startswith("model"))
    tokens = next(path for path in made[1].iterdir() if path.name.startswith("tokens"))
    given = (
        "--corpus",
        str(text),
        "--model",
        str(model),
        "--tokenizer",
        str(tokens),
        "--concepts",
        "girls=lily,sue,mia",
    )
    out = tmp_path / "out"
    arguments = (*TINY[2:], *given, "--n-stories", "900", "--cache", str(tmp_path / "cache"), "--out", str(out))
    assert command(monkeypatch, *arguments) == 0
    found = results(out, "tinystories_absorption")
    assert found["concepts"] == {"girls": ["lily", "sue", "mia"]}
    assert [facts["tokens"]["stories"] for facts in found["models"]] == [900]
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith("model")]


def test_a_stopped_training_goes_on_to_the_same_saes(made, monkeypatch, tmp_path):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(language_saes, "trained_saes", stopped)  # after the last checkpoint, before the stage is done
        assert command(patch, *TINY, "--cache", str(tmp_path), "--stage", "saes") == 130
    assert list(tmp_path.glob("saes-*/checkpoint.safetensors"))
    assert command(monkeypatch, *TINY, "--cache", str(tmp_path), "--stage", "saes") == 0
    assert not list(tmp_path.glob("saes-*/checkpoint.safetensors"))
    for path in made[1].glob("saes-*/saes.safetensors"):
        twin = tmp_path / path.parent.name / path.name
        if twin.exists():
            assert twin.read_bytes() == path.read_bytes()
    assert len(list(tmp_path.glob("saes-*"))) == 8  # 4 of each of two models


def test_every_seed_has_a_model_of_its_own_or_all_have_one(made, monkeypatch, tmp_path):
    models = results(made[0], "tinystories_mmc")["models"]
    assert models[0]["model"]["loss"] != models[1]["model"]["loss"]
    one = (*TINY, "--own-models", "False", "--cache", str(made[1]), "--out", str(tmp_path))
    assert command(monkeypatch, *one) == 0
    for name in LANGUAGE_SET:
        own, shared = results(made[0], name), results(tmp_path, name)
        assert shared["models"][0]["model"] == own["models"][0]["model"]
        assert len(shared["models"]) == 1
        for kind in ("vanilla", "matryoshka"):
            whole, parts = shared["sites"]["mlp_out.0"][kind], own["sites"]["mlp_out.0"][kind]
            if name == "tinystories_mmc":
                assert len(whole) == len(parts) == 2
                assert whole[1] != parts[1]


def test_a_concept_of_rare_words_has_no_numbers_and_is_told(made, monkeypatch, tmp_path, capsys):
    concepts = ("--concepts", "girls=she,lily", "nobody=zebra,quagga", "few=she,zebra")
    assert command(monkeypatch, *TINY, *concepts, "--cache", str(made[1]), "--out", str(tmp_path)) == 0
    found = results(tmp_path, "tinystories_absorption")
    rates = np.array(found["sites"]["mlp_out.0"]["vanilla"]["hole_rate"], float)
    assert np.isnan(rates[:, :, 1]).all()
    assert not np.isnan(rates[:, :, [0, 2]]).any()
    assert "not measured: quagga, zebra\n" in capsys.readouterr().out
    assert command(monkeypatch, *TINY, *concepts[:1], concepts[2], "--cache", str(made[1]), "--out", str(tmp_path)) == 2
    assert "none of the words quagga, zebra, ... is in the held-out text often enough" in capsys.readouterr().err


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
    assert tinystories_absorption.represented(record, 0) == (2, pytest.approx(0.25), pytest.approx(0.4))
    assert tinystories_absorption.matched(record, 0) == (2, 1, 1)


def test_an_interrupt_says_that_stages_are_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tinystories, "tokens_stage", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command(monkeypatch, *TINY, "--cache", str(tmp_path), "--stage", "tokens") == 130
    assert "finished stages and checkpoints are kept in the cache; the same command goes on" in capsys.readouterr().err


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


# --- what a user may give -----------------------------------------------------------------------------------


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
        ({"seed": 2**32 - 1, "n_seeds": 2}, "seed: must be at most 4,294,967,295, got 4294967296"),
        ({"seed": -1}, "seed: must not be negative"),
        ({"n_latents": 50.0}, "n_latents: must be a whole number"),
        ({"n_prefixes": True}, "n_prefixes: must be a whole number"),
        ({"n_heads": 0}, "n_heads: must be at least 1"),
        ({"reference_widths": (8, 3)}, "reference_widths: must be at least 4, got 3"),
        ({"reference_widths": (8, 8)}, "reference_widths: 8 is given twice"),
        ({"reference_widths": ()}, "reference_widths: must have at least one entry"),
        ({"locations": ("mlp_out", "mlp_out")}, "locations: mlp_out is given twice"),
        ({"target_l0": (2.0, float("nan"))}, "target_l0: must be finite"),
        ({"target_l0": (2.0, 500.5)}, "target_l0: must be at most n_latents = 500, got 500.5"),
        ({"target_l0": (0.0,)}, "target_l0: must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate: must be above 0"),
        ({"learning_rate": float("inf")}, "learning_rate: must be finite"),
        ({"control_rate": 1.0}, "control_rate: must be below 1"),
        ({"sparsity_coef": float("nan")}, "sparsity_coef: must be finite"),
        ({"n_heads": 4}, "n_heads: is of a trained model; give it with --model"),
        ({"tokenizer": Path("a")}, "tokenizer: is of a trained model; give it with --model"),
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
    with pytest.raises(
        ValueError, match=r"need at least [\d,]+ GiB of memory, of which this machine has 8 GiB"
    ) as told:
        language.check(LanguageConfig(**options))
    assert named in str(told.value).partition(":")[0]


def test_memory_is_estimated_from_below(monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: 2**30)
    several: list[dict[str, Any]] = [{}, {"corpus": "a.txt", "n_stories": 10**8}, {"own_models": False}]
    for options in several:
        language_memory.check_memory(LanguageConfig(**options))


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


def test_what_was_mended_and_dropped_is_told_once_and_recorded(made, monkeypatch, tmp_path, capsys):
    text = tmp_path / "stories.txt"
    stories = [*make_stories(500, 0), "\ufffd", "Lily didnâ€™t see."]
    text.write_text("".join(f"{story}\n{END_OF_STORY}\n" for story in stories))
    given = ("--corpus", str(text), *TINY[2:], "--own-models", "True")
    assert command(monkeypatch, *given, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")) == 0
    error = capsys.readouterr().err
    assert error.count("mended 1 of 502 stories: UTF-8 that had been read as cp1252\n") == 1
    assert error.count("dropped 1 of 502 stories: 1 with damaged encoding\n") == 1
    tokens = results(tmp_path / "out", "tinystories_mmc")["models"][1]["tokens"]
    counts = {"stories": 501, "n_read": 502, "n_mended": 1, "n_damaged": 1, "n_empty": 0}
    assert {name: tokens[name] for name in counts} == counts
    assert results(made[0], "tinystories_mmc")["models"][0]["tokens"]["n_read"] == 500


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


def with_gap(folder: Path, largest: int) -> Path:
    """Another folder with this tokenizer, one of whose pieces has the id `largest` instead."""
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"]["Ġto"] = largest
    other = folder.parent / f"gap-{largest}"
    other.mkdir(exist_ok=True)
    (other / "tokenizer.json").write_text(json.dumps(data))
    return other


def test_a_tokenizer_whose_ids_have_a_gap_works_if_the_model_has_them_all(made, monkeypatch, tmp_path, capsys):
    tokens = next(path for path in made[1].iterdir() if path.name.startswith("tokens"))
    shutil.copytree(tokens, tmp_path / "tokens")
    save_model(
        tmp_path / "wide", LM(LMConfig(vocab_size=400, context=48, n_layers=1, d_model=16, n_heads=1), rngs=nnx.Rngs(0))
    )
    options = (*("--model", str(tmp_path / "wide")), *TINY[:4], *TINY[12:], "--stage", "saes")
    options = (*options, "--cache", str(tmp_path / "cache"))
    folder = with_gap(tmp_path / "tokens", 400)
    assert command(monkeypatch, *options, "--tokenizer", str(folder)) == 2
    assert "has 400 ids, but ids of its tokenizer go up to 400" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
    assert command(monkeypatch, *options, "--tokenizer", str(with_gap(tmp_path / "tokens", 399))) == 0
    store = open_store(next(path for path in (tmp_path / "cache").glob("activations-*/valid")))
    assert (store.token == 399).sum() > 100
    assert command(monkeypatch, *options, "--context", "49", "--tokenizer", str(tokens)) == 2
    assert "context: the model's is 48, got 49; give --context 48" in capsys.readouterr().err


# --- SAEs off target, and panels with nothing in them ------------------------------------------------------


def test_saes_that_miss_their_target_are_recorded_told_and_shown(made):
    for name in LANGUAGE_SET:
        record = json.loads((made[0] / f"{name}.json").read_text())
        missed = record["results"]["off_target"]
        assert {(one[0], one[2]) for one in missed} == {("mlp_out.0", 0), ("mlp_out.0", 1)}
        assert all(sparsity.off_target(l0, target) for _, _, _, target, l0 in missed)
        text = f"{len(missed)} of 12 SAEs end more than 10% off their target L0"
        module = experiment(name)
        assert text in module.summary(record)[-1]
        assert f"{missed[0][1]}, seed 0, {missed[0][4]:.2f} for {missed[0][3]:g}" in module.summary(record)[-1]
        figure = module.plot(record)
        shown = " ".join(" ".join(t.get_text().split()) for t in figure.texts)
        assert text in (shown or " ".join(figure.get_supxlabel().split()))
        for others in ({"off_target": []}, {}):  # none, and a record from before
            old = record | {"results": {k: v for k, v in record["results"].items() if k != "off_target"} | others}
            assert not any("target L0" in line and "SAEs end" in line for line in module.summary(old))
            assert "SAEs end" not in " ".join(module.plot(old).get_supxlabel().split())


def test_which_saes_miss_their_target():
    cfg = LanguageConfig(target_l0=(2.0, 4.0), seed=7, n_seeds=2)
    group = language_saes.groups(cfg, Site(1, "mlp_out"))[-1]
    missed = language_saes.missing(cfg, group, [2.0, 4.5, None, 4.39])
    assert [tuple(one) for one in missed] == [
        ("mlp_out.1", "matryoshka", 7, 4.0, 4.5),
        ("mlp_out.1", "matryoshka", 8, 2.0, None),
    ]


def test_the_l0_of_training_is_the_mean_over_its_last_steps(monkeypatch):
    history = SimpleNamespace(l0=np.arange(400.0).reshape(4, 100))
    monkeypatch.setattr(language_saes, "train_grid", lambda *_, **__: ("state", history))
    monkeypatch.setattr(language_saes, "trained_saes", lambda state: state)
    monkeypatch.setattr(language_saes, "ShardSource", lambda *_, **__: None)
    acts: Any = SimpleNamespace(train=SimpleNamespace(activations=lambda _: None))
    cfg = LanguageConfig(n_steps=100, n_seeds=2, target_l0=(2.0, 4.0))
    group = language_saes.groups(cfg, Site(0, "mlp_out"))[-1]
    nothing: Any = None
    _, l0 = language_saes._train(cfg, acts, group, language_saes.train_config(cfg, group), nothing, nothing)
    assert l0.tolist() == [97, 197, 297, 397]


@pytest.mark.parametrize("name", LANGUAGE_SET)
def test_a_record_in_which_nothing_could_be_measured_is_drawn_and_told(made, name):
    def unknown(value):
        if isinstance(value, list):
            return [unknown(item) for item in value]
        return None if isinstance(value, float) else value

    record = json.loads((made[0] / f"{name}.json").read_text())
    for site in record["results"]["sites"].values():
        for kind in ("vanilla", "matryoshka"):
            of = site[kind]
            site[kind] = {n: unknown(v) for n, v in of.items()} if isinstance(of, dict) else unknown(of)
        if "n_rows" in site:
            site["n_rows"] = [[[0] * len(words) for words in model] for model in site["n_rows"]]
    module = experiment(name)
    assert cli.as_png(module.plot(record)).startswith(b"\x89PNG")
    assert all("\n" not in line for line in module.summary(record))
    texts = [text.get_text() for ax in module.plot(record).axes for text in ax.texts]
    why = {"mmc": "no reference latent is on", "fvu": "activations that do not vary", "absorption": "frequent enough"}
    assert any(why[name.removeprefix("tinystories_")] in text for text in texts)


def test_a_concept_without_rows_on_one_half_has_no_numbers_and_no_traceback():
    sae = SAE(*(jnp.ones(shape) for shape in ((4, 3), (3,), (3, 4), (4,))))
    x = np.ones((50, 4), np.float32)
    (found,) = language_concepts.measure({"nobody": 2}, sae, x, {}, {})
    assert np.isnan(found["hole_rate"])
    assert np.isnan(found["hole_rates"]).tolist() == [True, True]
    assert np.isnan(found["correlation"])


@pytest.mark.parametrize("name", LANGUAGE_SET)
def test_names_of_users_are_drawn_as_they_are(made, name):
    record = json.loads((made[0] / f"{name}.json").read_text())
    record["config"] |= {"corpus": "my_$x_{$^2.txt", "model": "\x1b[2J" + "m" * 500}
    if name == "tinystories_absorption":
        words = list(record["results"]["concepts"].values())
        names = ["$x_{$", "a^b_c", "\u202ebidi", "n" * 300, *map(str, range(len(words) - 4))]
        record["results"]["concepts"] = dict(zip(names, words, strict=True))
    module = experiment(name)
    figure = module.plot(record)
    caption = " ".join(figure.get_supxlabel().split())
    assert "corpus: my_$x_{$^2.txt;" in caption
    assert re.search(r"model: \\x1b\[2Jm+…;", caption)
    if name == "tinystories_absorption":
        shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert all(text in ["$x_{$", "a^b_c", r"\u202ebidi", "n" * 23 + "…"] or text.isdigit() for text in shown)
        assert shown
    assert cli.as_png(module.plot(record)).startswith(b"\x89PNG")


def test_the_cache_is_found_when_the_options_are_made_and_not_when_they_are_imported(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert LanguageConfig().cache == tmp_path / "matryoshka-toy"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert LanguageConfig().cache == tmp_path / "matryoshka-toy"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert LanguageConfig().cache.name == "matryoshka-toy"
