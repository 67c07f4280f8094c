"""First-letter absorption from a model's folder to its figure, at a size that proves no claim."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from experiments.common import cli
from experiments.common.experiment import Work
from experiments.language import first_letter, letter_saes
from experiments.language.letter_config import LetterConfig
from experiments.language.letter_record import paired_lines, pairs
from experiments.language.letter_saes import families, texts_of
from toy.lm import first_letter as task
from toy.lm.corpus import make_stories
from toy.lm.model import LM, LMConfig, Site
from toy.lm.tokens import Rows, Tokenizer, make_rows, save_tokenizer, train_tokenizer
from toy.lm.weights import save_model
from toy.sae import BatchTopK

SITE = "resid_pre.1"
FIGURES = Path(__file__).parents[1] / "figures"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, stories = tmp_path_factory.mktemp("model"), make_stories(60, 0)
    tokenizer = train_tokenizer(stories, 640)
    cfg = LMConfig(vocab_size=tokenizer.vocab_size, context=64, n_layers=2, d_model=8, n_heads=2)
    save_model(folder, LM(cfg, rngs=nnx.Rngs(0)))
    save_tokenizer(folder, tokenizer)
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    return folder


@pytest.fixture
def cfg(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LetterConfig:
    monkeypatch.setattr(task, "MIN_WORDS", 2)
    words: dict[str, Any] = {"n_words": 100, "n_examples": 2, "min_f1": 0.0}
    sizes: dict[str, Any] = {"n_latents": 16, "n_steps": 3, "batch_size": 64, "target_l0": (2.0, 4.0)}
    texts: dict[str, Any] = {"corpus": str(files / "stories.txt"), "n_sampled": 3, "context": 40}
    kept = {"cache": tmp_path / "cache", "methods": ("vanilla", "batchtopk:k=l0"), "n_seeds": 2}
    return LetterConfig(model=str(files), sites=(SITE,), **words, **sizes, **texts, **kept)


@pytest.mark.slow
def test_the_record_tells_of_every_method_and_what_was_made_is_taken_again(
    cfg: LetterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(key: object, lm: LM, tokenizer: Tokenizer, n: int, *, context: int) -> Rows:
        assert (n, context) == (3, 39)  # a model that is not trained writes bytes that are no text
        return make_rows(make_stories(3, 1), tokenizer, 200)

    monkeypatch.setattr(letter_saes, "sample_stories", written)
    first_letter.check(cfg)
    steps: list[int] = []
    results = first_letter.run(cfg, Work(steps.append))
    record: dict[str, Any] = {"config": cli.describe(cfg), "seeds": cfg.seeds, "results": cli.plain(results)}
    assert sum(steps) == first_letter.n_steps(cfg) == 4 * cfg.n_steps
    assert record["config"]["corpus"] == "stories.txt"
    assert set(results["tokens"]["text"]) == {"real", "sampled"}
    found = results["sites"][SITE]["methods"]
    assert {name: {l0: [sae["seed"] for sae in saes] for l0, saes in of.items()} for name, of in found.items()} == {
        name: {"2": [0, 1], "4": [0, 1]} for name in cfg.methods
    }
    assert all(len(sae["letters"]["full"]) == len(cfg.task.letters) for sae in found["vanilla"]["2"])
    assert len(first_letter.summary(record)) == 1 + 2 * 2
    assert "48 tokens, of" not in first_letter.caption(record)
    assert f"{3 * 64} tokens" in first_letter.caption(record)
    assert cli.as_png(first_letter.plot(record))
    folders = sorted(cfg.cache.iterdir())
    again = first_letter.run(replace(cfg), Work())
    assert cli.plain(again) == record["results"]
    assert sorted(cfg.cache.iterdir()) == folders


def test_there_is_a_family_for_each_method_and_l0(cfg: LetterConfig) -> None:
    of_two, of_four, *batchtopk = families(cfg, Site(1, "resid_pre"))
    assert [family.target_l0 for family in (of_two, of_four, *batchtopk)] == [2, 4, 2, 4]
    assert of_two.method == of_four.method
    assert [family.method.activation for family in batchtopk] == [BatchTopK(2.0), BatchTopK(4.0)]


def test_texts_that_were_written_before_are_taken_in_place_of_new_ones(cfg: LetterConfig, files: Path) -> None:
    given = replace(cfg, corpus=None, sampled=files / "stories.txt")
    assert list(texts_of(given, *cfg.given)) == ["sampled"]
    assert not cfg.cache.exists()
    assert cli.describe(given)["sampled"] == "stories.txt"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": None, "n_sampled": 0}, "there is no text"),
        ({"corpus": "nowhere.txt"}, r"corpus: nowhere\.txt does not exist"),
        ({"sampled": Path("nowhere.txt")}, r"sampled: nowhere\.txt does not exist"),
        ({"methods": ("topk:k=2",)}, "only SAEs that are used with ReLU can be compared"),
        ({"sites": ()}, "sites: need at least one"),
        ({"target_l0": (2.0, 2.0)}, "target_l0: 2.0 is given twice"),
    ],
)
def test_options_that_cannot_be_are_told_of(cfg: LetterConfig, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(cfg, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sites": ("resid_pre.2",)}, "site: 'resid_pre.2' is not one of"),
        ({"context": 65}, "context: the model's context is 64, of 65 tokens needed"),
        ({"n_examples": 20}, "n_examples: the model's context is 64"),
        ({"n_words": 5_000}, "fewer than 5,000"),
        ({"methods": ("batchtopk:k=99",)}, "k = 99 is more than"),
    ],
)
def test_options_that_do_not_fit_the_model_are_told_of(cfg: LetterConfig, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        first_letter.check(replace(cfg, **fields))


def record_of(**methods: list[dict[str, list[float | None]]]) -> dict[str, Any]:
    """A record of four letters, of which the probe does not read the last, with an SAE for each seed."""
    of_methods = {name: {"2": [{"letters": letters} for letters in seeds]} for name, seeds in methods.items()}
    site = {"probe": {"f1": [0.9, 0.6, 0.7, 0.5]}, "methods": of_methods}
    words = {"letters": ["a", "b", "c", "d"]}
    return {"config": {"min_f1": 0.6}, "seeds": [0, 1], "results": {"words": words, "sites": {SITE: site}}}


def letters_of(full: list[float | None], f1: list[float]) -> dict[str, list[float | None]]:
    return {"full": full, "fraction": [None] * 4, "f1_main": [*f1]}


def test_letters_are_paired_by_seed_where_both_saes_have_a_word_that_the_probe_reads() -> None:
    f1 = [0.5, 0.5, 0.5, 0.5]
    ours = [letters_of([0.1, 0.2, None, 0.0], f1), letters_of([0.3, 0.2, 0.0, 0.0], f1)]
    others = [letters_of([0.4, 0.2, None, 1.0], [0.54, *f1[1:]]), letters_of([0.2, 0.6, 1.0, 1.0], [0.56, *f1[1:]])]
    record = record_of(matryoshka=ours, vanilla=others)
    found = pairs(record, SITE, "2", "matryoshka", "vanilla", "full")
    assert found is not None
    assert found[:4] == (2, 1, 2, 0)  # a: .3 less, then .1 more, which an F1 lower by .06 excludes; b: equal, .4 less
    np.testing.assert_allclose(found.difference, (-0.15, -0.2, -0.1))  # of a and b −.1 and −.2; c is not known
    assert pairs(record, SITE, "2", "matryoshka", "vanilla", "fraction") is None
    (line,) = paired_lines(record, SITE)
    assert line == (
        f"{SITE}, L0 2: matryoshka absorbs less : more, of 6 letters and seeds, "
        "than vanilla: fraction unknown, full 2 : 1 (2 : 0 at equal F1), -0.150 [-0.200, -0.100]"
    )
    assert not paired_lines(record_of(vanilla=others), SITE)
    record["config"]["min_f1"] = 1.0
    assert not paired_lines(record, SITE)


def test_the_summary_of_the_committed_record_is_what_its_letters_say() -> None:
    record = json.loads((FIGURES / "first_letter.json").read_text())
    lines = first_letter.summary(record)
    assert first_letter.caption(record) == record["caption"]
    assert len(lines) == 2 * (1 + 4 * 2 + 2)
    for site, found in record["results"]["sites"].items():
        is_read = np.array(found["probe"]["f1"]) >= 0.6
        for method, by_l0 in found["methods"].items():
            for l0, saes in by_l0.items():
                (line,) = [line for line in lines if line.startswith(f"{site}, {method}, L0 {l0}: ")]
                for name in ("full", "fraction", "f1_main", "n_main"):
                    letters = np.array([sae["letters"][name] for sae in saes])[:, is_read]
                    assert f", {name} {letters.mean():.3g}, " in line
    assert "than vanilla: fraction 40 : 6 (13 : 2 at equal F1), -0.144 [-0.229, -0.049]" in "\n".join(lines)


def test_methods_that_share_a_name_are_told_apart() -> None:
    methods = ["vanilla", "batchtopk:k=l0", "batchtopk:k=2", "mine.py:A", "mine.py:B"]
    shown = [first_letter._label(methods, i) for i in range(len(methods))]
    assert len(set(shown)) == len(methods)
    assert len({first_letter._colour(methods, i) for i in range(len(methods))}) == len(methods)
    assert first_letter._label(["batchtopk:k=l0,aux_k=256"], 0) == "BatchTopK"
