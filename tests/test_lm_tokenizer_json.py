"""`tokenizer.json` of others: what cuts, pads or moves ids is switched off, and what cannot be read is refused."""

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import toy.lm.tokenizer_json
from toy.lm.corpus import make_stories
from toy.lm.pieces import words
from toy.lm.tokens import Tokenizer, load_tokenizer, make_rows, train_tokenizer

STORIES = make_stories(60, seed=4)
OWN = train_tokenizer(STORIES, 400)
END = "<|endoftext|>"
CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


def written(folder: Path, data: dict[str, Any] | str | bytes) -> Path:
    text = json.dumps(data) if isinstance(data, dict) else data
    (folder / "tokenizer.json").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def changed(**parts: Any) -> dict[str, Any]:
    """The project's own tokenizer as JSON with other parts; `vocab` and `dropout` are the model's."""
    data = json.loads(OWN.bpe.to_str())
    data["model"] |= {name: parts.pop(name) for name in ("vocab", "dropout") if name in parts}
    return data | parts


def vocab_with(**ids: Any) -> dict[str, Any]:
    """The vocabulary in which the pieces "Ġa" and so on have these ids instead."""
    vocab = json.loads(OWN.bpe.to_str())["model"]["vocab"]
    return vocab | {f"Ġ{piece}": number for piece, number in ids.items()}


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=r".") as told:
        load_tokenizer(folder)
    message = str(told.value)
    assert message.startswith(str(folder / "tokenizer.json"))
    assert "\n" not in message
    assert len(message) < len(str(folder)) + 450
    return message.removeprefix(f"{folder / 'tokenizer.json'}: ")


FRAMED = processors.TemplateProcessing(single="$A $A", pair="$A $B", special_tokens=[])


@pytest.mark.parametrize(
    "parts",
    [
        {"truncation": {"direction": "Right", "max_length": 20, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {
                "strategy": {"Fixed": 300},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 2,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            }
        },
        {"dropout": 0.9},
        {"post_processor": json.loads(FRAMED.__getstate__())},
        {"added_tokens": [t | {"special": False} for t in json.loads(OWN.bpe.to_str())["added_tokens"]]},
    ],
    ids=lambda parts: next(iter(parts)),
)
def test_what_cuts_pads_or_doubles_a_story_is_switched_off(tmp_path: Path, parts: dict[str, Any]) -> None:
    stories = [*STORIES[:8], "Then [PAD] came."]
    tokenizer = load_tokenizer(written(tmp_path, changed(**parts)))
    assert [ids.tolist() for ids in tokenizer.encode(stories)] == [ids.tolist() for ids in OWN.encode(stories)]
    assert tokenizer.digest() == OWN.digest()


def test_a_vocabulary_with_a_gap_has_as_many_ids_as_its_largest_says(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, changed(vocab=vocab_with(a=900, little=5_000))))
    pieces = tokenizer.pieces()
    assert tokenizer.vocab_size == len(pieces) == 5_001
    assert (pieces[900], pieces[5_000], pieces[4_000], pieces[OWN.pieces().index(" a")]) == (" a", " little", "", "")
    rows = make_rows(STORIES, tokenizer, 64)
    assert rows.ids.max() == 5_000
    for story, ids in zip(STORIES, tokenizer.encode(STORIES), strict=True):
        assert tokenizer.decode(ids) == story
        assert [word for _, word in words(ids, pieces)] == re.findall("[a-z]+", story.lower())


def test_an_added_token_whose_id_the_library_does_not_keep_is_refused(tmp_path: Path) -> None:
    added = json.loads(OWN.bpe.to_str())["added_tokens"]
    extra = added[0] | {"content": "zebra", "id": 700}
    message = "added_tokens: zebra has the id 700, which the library reads as 400; number added tokens without a gap"
    assert refusal(written(tmp_path, changed(added_tokens=[*added, extra]))) == message
    tokenizer = load_tokenizer(written(tmp_path, changed(added_tokens=[*added, extra | {"id": 400, "special": False}])))
    assert 400 in tokenizer.encode(["a zebra"])[0]
    assert tokenizer.vocab_size == 401


# --- marks of words -----------------------------------------------------------------------------------------


def trained(model: Any, trainer: Any, before: Any = None, decoder: Any = None, normalizer: Any = None) -> Bpe:
    made = Bpe(model)
    made.pre_tokenizer, made.decoder, made.normalizer = before, decoder, normalizer
    made.train_from_iterator(STORIES, trainer)
    return made


def bpe(**parts: Any) -> Bpe:
    suffix = {"end_of_word_suffix": parts.pop("suffix")} if "suffix" in parts else {}
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END, "<unk>"], show_progress=False, **suffix)
    return trained(models.BPE(unk_token="<unk>", **suffix), trainer, **parts)


def word_piece(**parts: Any) -> Bpe:
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=[END, "[UNK]"], show_progress=False)
    return trained(models.WordPiece(unk_token="[UNK]"), trainer, **parts)  # type: ignore[call-arg]


def unigram(**parts: Any) -> Bpe:
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=[END, "<unk>"], unk_token="<unk>", show_progress=False
    )
    return trained(models.Unigram(), trainer, **parts)


def word_level(**parts: Any) -> Bpe:
    trainer = trainers.WordLevelTrainer(special_tokens=[END, "<unk>"], show_progress=False)
    return trained(models.WordLevel(unk_token="<unk>"), trainer, **parts)  # type: ignore[call-arg]


def metaspace(scheme: Any) -> dict[str, Any]:
    return {
        "before": pre_tokenizers.Metaspace(prepend_scheme=scheme),
        "decoder": decoders.Metaspace(prepend_scheme=scheme),
    }


def llama() -> Bpe:
    marks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    unmarked: list[Any] = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return bpe(normalizer=marks, decoder=decoders.Sequence(unmarked))


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
TOLD: dict[str, Callable[[], Bpe]] = {
    "byte level": lambda: bpe(before=BYTES, decoder=decoders.ByteLevel()),
    "byte level, lower case": lambda: bpe(
        before=BYTES, decoder=decoders.ByteLevel(), normalizer=normalizers.Lowercase()
    ),
    "metaspace, always": lambda: bpe(**metaspace("always")),
    "metaspace, first": lambda: bpe(**metaspace("first")),
    "metaspace, never": lambda: unigram(**metaspace("never")),
    "Llama's": llama,
    "WordPiece": lambda: word_piece(
        before=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
        normalizer=normalizers.BertNormalizer(lowercase=True),
    ),
    "words, joined by spaces": lambda: word_level(before=pre_tokenizers.Whitespace()),
    "letters": lambda: bpe(before=pre_tokenizers.Split("", "isolated"), decoder=decoders.Fuse()),
}
NOT_TOLD: dict[str, Callable[[], Bpe]] = {
    "byte level without its decoder": lambda: bpe(before=BYTES),
    "spaces lost before": lambda: bpe(before=pre_tokenizers.Whitespace(), decoder=decoders.Fuse()),
    "words run into each other": lambda: word_level(before=pre_tokenizers.Whitespace(), decoder=decoders.Fuse()),
    "pieces of words apart": lambda: word_piece(before=pre_tokenizers.BertPreTokenizer()),
    "ends of words marked, no decoder": lambda: bpe(before=pre_tokenizers.Whitespace(), suffix="</w>"),
}


@pytest.mark.parametrize("name", TOLD)
def test_words_are_found_whatever_marks_their_borders(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(written(tmp_path, TOLD[name]().to_str()))
    pieces = tokenizer.pieces()
    for story, ids in zip(STORIES[:20], tokenizer.encode(STORIES[:20]), strict=True):
        assert [word for _, word in words(ids, pieces)] == re.findall("[a-z]+", story.lower())
        assert re.sub(r"\s", "", tokenizer.decode(ids)).lower() == re.sub(r"\s", "", story).lower()


@pytest.mark.parametrize("name", NOT_TOLD)
def test_a_tokenizer_whose_words_cannot_be_told_is_refused(tmp_path: Path, name: str) -> None:
    message = refusal(written(tmp_path, NOT_TOLD[name]().to_str()))
    assert "the words of a text cannot be told from its pieces" in message
    assert "expected a byte-level tokenizer" in message


# --- files that are meant to do harm ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2**31, 2**32, 2**63, -1, 1.5, True, None, "7", [1]])
def test_an_id_that_is_none_is_refused_before_the_library_reads_it(
    tmp_path: Path, number: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy.lm.tokenizer_json, "Bpe", None)
    assert "an id is a whole number from 0 to 1,048,575" in refusal(
        written(tmp_path, changed(vocab=vocab_with(a=number)))
    )
    added = [t | {"id": number} for t in json.loads(OWN.bpe.to_str())["added_tokens"]]
    assert "an id is a whole number" in refusal(written(tmp_path, changed(added_tokens=added)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[" * 100_000, "not a tokenizer: it is nested too deeply"),
        ("[1]", "expected an object with a model"),
        ('{"model": 3}', "expected an object with a model"),
        ('{"model": {"vocab": 3}}', "expected model.vocab"),
        ('{"model": {"vocab": {}}, "added_tokens": [3]}', "expected added_tokens with a content"),
        ('{"model": {"vocab": {"a": 1, "a": 2}}}', "a stands twice"),
        ('{"model": {"vocab": {"a": 1, "b": 1}}}', "two pieces have the same id"),
        ('{"model": {"vocab": {"a": 1' + "0" * 5_000 + "}}}", "not a tokenizer"),
        ('{"model": {"vocab": {"a": "' + "\\n" * 5_000 + '"}}}', "an id is a whole number"),
        (b"\xff", "not a tokenizer"),
        ("", "not a tokenizer"),
        (changed(normalizer={"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y"}), "Replace is read only"),
        (changed(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": ""}), "Replace is read only"),
        (
            changed(
                normalizer={
                    "type": "Sequence",
                    "normalizers": 40 * [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}],
                }
            ),
            "Replace is read only",
        ),
        (changed(normalizer={"type": "Prepend", "prepend": "a" * 10**6}), "Prepend has more than 16"),
        (changed(normalizer={"type": "Sequence", "normalizers": 100 * [{"type": "NFC"}]}), "at most 64 are read"),
        (changed(decoder={"type": "ByteLevel", "nothing": {"type": []}}), "not a tokenizer"),
        (changed(pre_tokenizer={"type": "\nnone such"}), "not a tokenizer"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, data: Any, message: str) -> None:
    assert message in refusal(written(tmp_path, data))


def test_a_panic_of_the_library_is_one_line(tmp_path: Path) -> None:
    evil = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    both = {"type": "Sequence", "pretokenizers": [evil, json.loads(OWN.bpe.to_str())["pre_tokenizer"]]}
    tokenizer = load_tokenizer(written(tmp_path, changed(pre_tokenizer=both)))
    with pytest.raises(ValueError, match=r"^tokenizer: fails on a story: Onig: Regex search error"):
        tokenizer.encode(["a" * 60 + "b"])


def test_a_file_of_absurd_size_and_what_is_no_file_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    assert refusal(tmp_path) == "has more than 50,331,648 bytes, more than any tokenizer's"
    monkeypatch.setattr(stat, "S_ISREG", lambda _: False)
    assert refusal(tmp_path) == "not a file"


bits = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "vocab", "a"]), inner),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.sampled_from(sorted(changed())), bits), max_size=2), bits, st.data())
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, Any]], model: Any, data: st.DataObject
) -> None:
    found = changed(**dict(parts))
    if data.draw(st.booleans()) and isinstance(found["model"], dict):
        found["model"][data.draw(st.sampled_from(["type", "vocab", "merges", "unk_token"]))] = model
    folder = written(tmp_path_factory.mktemp("t"), found)
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError:
        refusal(folder)
        return
    ids = tokenizer.encode(STORIES[:1])[0]
    assert ids.max() < tokenizer.vocab_size == len(tokenizer.pieces())


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")
def test_the_shared_cases_of_tokenizers() -> None:
    story = "Once upon a time, Lily saw a ball."

    def told(tokenizer: Tokenizer) -> list[str]:
        (ids,) = tokenizer.encode([story])
        return [word for _, word in words(np.asarray(ids), tokenizer.pieces())]

    for name in ("tokenizers/trunc", "tokenizers/gap", "tokenizers/metaspace", "attack/tokenizer_padding"):
        assert told(load_tokenizer(CASES / name)) == re.findall("[a-z]+", story.lower())
    assert load_tokenizer(CASES / "attack" / "tokenizer_hole").vocab_size == 1_000_001
    assert "Replace" in refusal(CASES / "attack" / "tokenizer_panic")
