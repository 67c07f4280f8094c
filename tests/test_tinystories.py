"""The chain from text to the language-model figures at tiny size, through its command line."""

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from commands import exit_code
from flax import nnx

from experiments import tinystories
from experiments.common import cli
from experiments.language import chain as language
from experiments.language import saes as language_saes
from experiments.language import stages
from experiments.language.found import find_saes, load_sae
from experiments.language.measure import Measure
from experiments.language.saes import KINDS
from toy.data import store
from toy.data.store import open_store
from toy.files.digest import digest_of, signed
from toy.lm import export, forward_stream
from toy.lm.corpus import make_stories
from toy.lm.model import LM, LMConfig
from toy.lm.text import END_OF_STORY
from toy.lm.weights import save_model
from toy.training import controllers as sparsity
from toy.training.grid import trained_saes
from toy.training.loop import Run

FIGURES = [measure.name for measure in tinystories.MEASURES.values()]
TINY = (
    *("--n-stories", "500", "--context", "48", "--vocab-size", "330", "--n-layers", "1", "--d-model", "16"),
    *("--lm-steps", "3", "--n-latents", "24", "--reference-widths", "8", "16", "--target-l0", "2", "4"),
    *("--n-steps", "6", "--batch-size", "32", "--n-seeds", "2", "--locations", "mlp_out"),
    *("--methods", "held_finish"),
)
pytestmark = pytest.mark.slow


def command(monkeypatch, *arguments: str) -> int:
    """Returns the exit status of `python -m experiments.tinystories ARGUMENTS`."""
    return exit_code(tinystories.main, monkeypatch, *arguments)


def figure_of(name: str) -> Measure:
    return tinystories.MEASURES[name.removeprefix("tinystories_")]


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
    for name in FIGURES:
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
    for kind in ("vanilla", "matryoshka", "held_finish"):
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
    assert len({str(mmc[kind]) for kind in (*KINDS, "held_finish")}) == 3
    assert {"person", "female", "female names"} <= set(absorption["concepts"])


def test_a_second_run_makes_nothing_again_checks_each_file_once_and_says_the_same(made, monkeypatch, tmp_path):
    for module, name in ((language, "train_lm"), (export, "shuffled_acts"), (language_saes, "train_grids")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("made twice"))
    monkeypatch.setattr(language, "train_tokenizer", lambda *_: pytest.fail("made twice"))
    read = []
    for module in (store, stages):
        monkeypatch.setattr(module, "digest_of", lambda value: read.append(value) or digest_of(value))
    assert command(monkeypatch, *TINY, "--cache", str(made[1]), "--out", str(tmp_path)) == 0
    files = [value for value in read if isinstance(value, Path)]
    assert len(files) == len(set(files)) > 10
    for name in FIGURES:
        assert results(tmp_path, name) == results(made[0], name)


def test_the_stage_at_work_is_told(made, monkeypatch, tmp_path):
    told: list[str] = []
    monkeypatch.setattr(tinystories.progress_bar, "tell", lambda _, text: told.append(text))
    given = (*TINY, "--own-models", "False", "--cache", str(made[1]), "--out", str(tmp_path), "--only", "mmc")
    assert command(monkeypatch, *given) == 0
    work = ["making tokens", "training the language model", "computing activations", "tuning", "training SAEs"]
    assert told == [*work, "measuring mlp_out.0"]


def test_the_figures_are_drawn_from_their_records_alone(made, monkeypatch, tmp_path):
    monkeypatch.setattr(tinystories, "read_given", lambda _: pytest.fail("redrawing must not read anything else"))
    for name in FIGURES[:2]:
        shutil.copy(made[0] / f"{name}.json", tmp_path)
    assert command(monkeypatch, "--redraw", "--only", "mmc", "fvu", "--out", str(tmp_path)) == 0
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == sorted(FIGURES[:2])
    for name in FIGURES[:2]:
        assert (tmp_path / f"{name}.png").read_bytes() == (made[0] / f"{name}.png").read_bytes()


@pytest.mark.parametrize("what", [("--n-steps", "7"), ("--seed", "5")])
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
    given = ("--corpus", str(text), "--model", str(model), "--tokenizer", str(tokens), "--only", "absorption")
    given = (*given, "--concepts", "girls=lily,sue,mia")
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
    assert list(tmp_path.glob("training-*.safetensors"))
    assert command(monkeypatch, *TINY, "--cache", str(tmp_path), "--stage", "saes") == 0
    assert not list(tmp_path.glob("training-*.safetensors"))
    for path in made[1].glob("saes-*/saes.safetensors"):
        twin = tmp_path / path.parent.name / path.name
        if twin.exists():
            assert twin.read_bytes() == path.read_bytes()
    assert len(list(tmp_path.glob("saes-*"))) == 16  # 8 of each of two models


@pytest.fixture(scope="module")
def sampled(made, tmp_path_factory) -> tuple[Path, Path, tuple[str, ...]]:
    """Folders of the figures and of the cache, and the options, of SAEs trained on what the model tells."""
    given = [next(path for path in made[1].iterdir() if path.name.startswith(part)) for part in ("model", "tokens")]
    folder = tmp_path_factory.mktemp("sampled")
    options = ("--model", str(given[0]), "--tokenizer", str(given[1]), "--sampled-stories", "30", "--stream")
    options = (*TINY[:4], *TINY[12:-4], "--locations", "mlp_out", "resid_mid", "--layers", "0", *options)
    options = (*options, "--methods", "batchtopk:weighting=all", "matryoshka:sparsity=log")
    options = (*options, "--learning-rate", "1e-3", "1e-2", "3e-1", "--tuning-steps", "5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "PART", 8)
        where = ("--cache", str(folder / "cache"), "--out", str(folder / "out"))
        assert command(patch, *options, *where, "--only", "mmc") == 0
    return folder / "out", folder / "cache", options


def test_saes_of_all_sites_are_trained_on_what_the_model_tells_in_one_forward_pass(sampled, monkeypatch, tmp_path):
    out, cache, options = sampled
    sites = results(out, "tinystories_mmc")["sites"]
    assert list(sites) == ["mlp_out.0", "resid_mid.0"]
    for site in sites.values():
        assert np.shape(site["batchtopk:weighting=all"]) == np.shape(site["vanilla"]) == (2, 2, 2)
        assert len({str(site[kind]) for kind in site}) == 4
    assert not list(cache.glob("activations-*/train"))
    assert not list(cache.glob("tokens-*/sampled_*"))
    tokens = results(out, "tinystories_mmc")["models"][0]["tokens"]
    assert tokens["stories"] == 500  # all of the corpus is held out
    pools: list[tuple] = []
    made = forward_stream.shuffled_acts
    monkeypatch.setattr(forward_stream, "shuffled_acts", lambda *given: pools.append(given) or made(*given))
    assert command(monkeypatch, *options, "--cache", str(tmp_path), "--stage", "saes") == 0
    assert len(pools) == 2  # the one of all stories, for tuning and for training
    for path in cache.glob("*/saes.safetensors"):
        assert (tmp_path / path.parent.name / path.name).read_bytes() == path.read_bytes()
    assert len(list(tmp_path.glob("saes-*"))) == 2 * (2 + 4 * 2)


def test_saes_whose_numbers_are_not_finite_are_told_and_not_kept(sampled, monkeypatch, tmp_path, capsys):
    _, _, options = sampled
    first: list = []

    def diverged(state):
        found = trained_saes(state)
        first.append(found)
        return found._replace(b_dec=found.b_dec.at[0].set(np.nan)) if len(first) == 1 else found

    where = ("--cache", str(tmp_path), "--stage", "saes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_saes, "trained_saes", diverged)
        assert command(patch, *options, *where) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite: the training of 1 of 20 families diverged, of this one within about" in error
    assert len(list(tmp_path.glob("saes-*/saes.safetensors"))) == 2 * (2 + 4 * 2) - 1
    assert command(monkeypatch, *options, *where) == 0
    assert len(list(tmp_path.glob("saes-*/saes.safetensors"))) == 2 * (2 + 4 * 2)


def test_a_training_diverged_by_the_end_of_the_first_chunk_without_a_finite_loss():
    """By hand: of four chunks of 10 steps each, the third is the first in which some lane's loss is not finite."""
    losses = np.array([[3.0, 2, 1, np.nan], [3, 2, np.inf, np.nan]])
    assert language_saes.first_not_finite(losses, 40) == 30
    assert language_saes.first_not_finite(np.ones((2, 4)), 40) == 40


class Losses(NamedTuple):
    loss: np.ndarray  # [lanes chunks]


def test_a_training_in_which_all_diverge_ends_at_once_and_keeps_the_finite_run(tmp_path):
    """An SAE that diverges alone does not end the others' training."""

    def after(n_done: int, *of_lanes: float) -> Run:
        losses = np.append(np.ones((2, n_done - 1)), np.array(of_lanes)[:, None], axis=1)
        return Run({"W": np.full(3, n_done)}, {"a": Losses(losses * np.nan), "b": Losses(losses)}, n_done)

    checkpoint = language_saes.FiniteCheckpoint(tmp_path / "run.safetensors", every_s=0)
    assert checkpoint.load(after(1, 1.0, 1.0), {}) is None
    checkpoint.save(after(2, np.nan, 1.0), {}, last=False)
    with pytest.raises(ValueError, match="after step 3 the loss of no SAE is finite: lower --learning-rate; if that"):
        checkpoint.save(after(3, np.nan, np.inf), {}, last=True)
    kept = checkpoint.load(after(2, 1.0, 1.0), {})
    checkpoint.release()
    assert kept is not None
    assert kept.n_done == 2
    np.testing.assert_array_equal(kept.state["W"], [2, 2, 2])


def test_saes_of_another_machine_are_measured_as_they_are_if_they_are_of_the_options(
    sampled, monkeypatch, tmp_path, capsys
):
    out, cache, options = sampled
    for path in cache.glob("*/stage.json"):  # other code and libraries made them there
        told = json.loads(path.read_text())
        told["facts"]["libraries"] = {"jax": "9.9"}
        if path.parent.name.startswith(("saes", "tuning")):
            there = tmp_path / "there" / path.parent.name
            shutil.copytree(path.parent, there)
            del told["sha256"]
            (there / path.name).write_text(json.dumps(signed(told)))
    monkeypatch.setattr(language_saes, "train_grids", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(language, "sample_stories", lambda *_, **__: pytest.fail("sampled"))
    where = ("--cache", str(tmp_path / "cache"), "--trained", str(tmp_path / "there"), "--only", "mmc")
    assert command(monkeypatch, *options, *where, "--out", str(tmp_path / "out")) == 0
    theirs, ours = (results(folder, "tinystories_mmc") for folder in (out, tmp_path / "out"))
    assert ours["sites"] == theirs["sites"]
    assert ours["off_target"] == theirs["off_target"]
    assert ours["models"][0]["saes_made_by"][0]["libraries"] == {"jax": "9.9"}
    assert {name: ours["models"][0][name] for name in ("tuning", "learning_rate")} == {
        name: theirs["models"][0][name] for name in ("tuning", "learning_rate")
    }
    capsys.readouterr()
    assert command(monkeypatch, *options, *where, "--n-steps", "7") == 2
    assert re.search(r"there: has no saes-mlp_out\.0-reference_8-8-l0_2 of these options", capsys.readouterr().err)


def test_whatever_has_made_saes_is_told_and_only_once():
    def made(code: str) -> stages.Stage:
        facts = {"code": code, "libraries": {"jax": "1"}, "activations": "a"}
        return stages.Stage(Path("saes"), True, {"facts": facts | {"family": code}})

    told = stages.makers([made("old"), made("new"), made("old")])
    assert told == [{"code": code, "libraries": {"jax": "1"}, "activations": "a"} for code in ("old", "new")]


def test_each_kind_is_tuned_to_the_rate_with_the_lowest_fvu(sampled):
    facts = results(sampled[0], "tinystories_mmc")["models"][0]
    assert set(facts["tuning"]) == {"vanilla", "matryoshka", "batchtopk:weighting=all", "matryoshka:sparsity=log"}
    rates = (1e-3, 1e-2, 3e-1)
    for kind, of_rates in facts["tuning"].items():
        assert len(of_rates["fvu"]) == len(of_rates["l0"]) == 3
        holds = [not sparsity.off_target(l0, 4) for l0 in of_rates["l0"]]
        fvu = [f if h or not any(holds) else np.inf for f, h in zip(of_rates["fvu"], holds, strict=True)]
        assert facts["learning_rate"][kind] == rates[int(np.argmin(fvu))]


def test_every_seed_has_a_model_of_its_own_or_all_have_one(made, monkeypatch, tmp_path):
    one = (*TINY, "--own-models", "False", "--only", "mmc", "--cache", str(made[1]), "--out", str(tmp_path))
    assert command(monkeypatch, *one) == 0
    own, shared = results(made[0], "tinystories_mmc"), results(tmp_path, "tinystories_mmc")
    assert own["models"][0]["model"]["loss"] != own["models"][1]["model"]["loss"]
    assert [model["model"] for model in shared["models"]] == [own["models"][0]["model"]]
    for kind in KINDS:
        seeds, of_own = shared["sites"]["mlp_out.0"][kind], own["sites"]["mlp_out.0"][kind]
        assert len(seeds) == len(of_own) == 2
        assert seeds[1] != of_own[1]


def test_a_concept_of_rare_words_has_no_numbers_and_is_told(made, monkeypatch, tmp_path, capsys):
    concepts = ("--concepts", "girls=she,lily", "nobody=zebra,quagga", "few=she,zebra")
    given = ("--only", "absorption", "--cache", str(made[1]), "--out", str(tmp_path))
    assert command(monkeypatch, *TINY, *concepts, *given) == 0
    found = results(tmp_path, "tinystories_absorption")
    rates = np.array(found["sites"]["mlp_out.0"]["vanilla"]["hole_rate"], float)
    assert np.isnan(rates[:, :, 1]).all()
    assert not np.isnan(rates[:, :, [0, 2]]).any()
    assert "not measured: quagga, zebra\n" in capsys.readouterr().out
    assert command(monkeypatch, *TINY, *concepts[:1], concepts[2], *given) == 2
    assert "none of the words quagga, zebra, ... is in the held-out text often enough" in capsys.readouterr().err


def test_what_was_mended_and_dropped_is_told_once_and_recorded(made, monkeypatch, tmp_path, capsys):
    text = tmp_path / "stories.txt"
    stories = [*make_stories(500, 0), "\ufffd", "Lily didnâ€™t see."]
    text.write_text("".join(f"{story}\n{END_OF_STORY}\n" for story in stories))
    given = ("--corpus", str(text), *TINY[2:], "--own-models", "True", "--only", "mmc")
    assert command(monkeypatch, *given, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")) == 0
    error = capsys.readouterr().err
    assert error.count("mended 1 of 502 stories: UTF-8 that had been read as cp1252\n") == 1
    assert error.count("dropped 1 of 502 stories: 1 with damaged encoding\n") == 1
    tokens = results(tmp_path / "out", "tinystories_mmc")["models"][1]["tokens"]
    counts = {"stories": 501, "n_read": 502, "n_mended": 1, "n_damaged": 1, "n_empty": 0}
    assert {name: tokens[name] for name in counts} == counts
    assert results(made[0], "tinystories_mmc")["models"][0]["tokens"]["n_read"] == 500


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


def test_saes_that_miss_their_target_are_recorded_told_and_shown(made):
    for name in FIGURES:
        record = json.loads((made[0] / f"{name}.json").read_text())
        missed = record["results"]["off_target"]
        assert {(one[0], one[2]) for one in missed} == {("mlp_out.0", 0), ("mlp_out.0", 1)}
        assert all(sparsity.off_target(l0, target) for _, _, _, target, l0 in missed)
        text = f"{len(missed)} of 16 SAEs end more than 10% off their target L0"
        drawn = figure_of(name)
        assert text in drawn.summary(record)[-1]
        assert f"{missed[0][1]}, seed 0, {missed[0][4]:.2f} for {missed[0][3]:g}" in drawn.summary(record)[-1]
        figure = drawn.plot(record)
        shown = " ".join(" ".join(t.get_text().split()) for t in figure.texts)
        assert text in (shown or " ".join(figure.get_supxlabel().split()))
        for others in ({"off_target": []}, {}):  # none, and a record from before
            old = record | {"results": {k: v for k, v in record["results"].items() if k != "off_target"} | others}
            assert not any("target L0" in line and "SAEs end" in line for line in drawn.summary(old))
            assert "SAEs end" not in " ".join(drawn.plot(old).get_supxlabel().split())


@pytest.mark.parametrize("name", FIGURES)
def test_a_record_in_which_nothing_could_be_measured_is_drawn_and_told(made, name):
    def unknown(value):
        if isinstance(value, list):
            return [unknown(item) for item in value]
        return None if isinstance(value, float) else value

    record = json.loads((made[0] / f"{name}.json").read_text())
    for site in record["results"]["sites"].values():
        if "matches" in site:
            site["matches"] = [dict.fromkeys(of_seed) for of_seed in site["matches"]]
            continue
        for kind in (*KINDS, "held_finish"):
            of = site[kind]
            site[kind] = {n: unknown(v) for n, v in of.items()} if isinstance(of, dict) else unknown(of)
        if "n_rows" in site:
            site["n_rows"] = [[[0] * len(words) for words in model] for model in site["n_rows"]]
    drawn = figure_of(name)
    assert cli.as_png(drawn.plot(record)).startswith(b"\x89PNG")
    assert all("\n" not in line for line in drawn.summary(record))
    texts = [text.get_text() for ax in drawn.plot(record).axes for text in ax.texts]
    why = {"mmc": "no reference latent is on", "fvu": "activations that do not vary"}
    assert any(why.get(name.removeprefix("tinystories_"), "frequent enough") in text for text in texts)


@pytest.mark.parametrize("name", FIGURES)
def test_names_of_users_are_drawn_as_they_are(made, name):
    record = json.loads((made[0] / f"{name}.json").read_text())
    record["config"] |= {"corpus": "my_$x_{$^2.txt", "model": "\x1b[2J" + "m" * 500}
    if name == "tinystories_absorption":
        words = list(record["results"]["concepts"].values())
        names = ["$x_{$", "a^b_c", "\u202ebidi", "n" * 300, *map(str, range(len(words) - 4))]
        record["results"]["concepts"] = dict(zip(names, words, strict=True))
    drawn = figure_of(name)
    figure = drawn.plot(record)
    caption = " ".join(figure.get_supxlabel().split())
    assert "corpus: my_$x_{$^2.txt;" in caption
    assert re.search(r"model: \\x1b\[2Jm+…;", caption)
    if name == "tinystories_absorption":
        shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert all(text in ["$x_{$", "a^b_c", r"\u202ebidi", "n" * 23 + "…"] or text.isdigit() for text in shown)
        assert shown
    assert cli.as_png(drawn.plot(record)).startswith(b"\x89PNG")


def test_the_saes_of_a_cache_are_listed_and_load_with_the_line_that_is_told(made, monkeypatch, capsys):
    assert command(monkeypatch, "--list", "--cache", str(made[1])) == 0
    *listed, empty, code, load = capsys.readouterr().out.splitlines()
    assert any(line.startswith("mlp_out.0    matryoshka         24 latents, L0 4, seeds 0: saes-") for line in listed)
    assert not empty
    found: dict = {}
    exec(f"{code}\nsae = {load}", found)
    assert found["sae"].W_enc.shape[0] == 16
    folder = next(one.folder for one in find_saes(made[1]) if (one.kind, one.seeds) == ("matryoshka", (0,)))
    assert folder.name.startswith("saes-mlp_out.0-matryoshka-24-")
    with pytest.raises(ValueError, match=r"has SAEs of seeds 0, not of seed 3"):
        load_sae(folder, 3)
