"""Stories and their tokens: read, cleaned, made, fetched by name, and cut into rows from which nothing is missing."""

import importlib
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers

import toy.lm.text
import toy.lm.tokens
from toy.lm import hub
from toy.lm.corpus import ANIMALS, BOY, CONCEPTS, DEEDS, EMOTIONS, GIRL, Concept, Sex, make_stories
from toy.lm.pieces import words
from toy.lm.text import clean, clean_stories, held_out, mend, read_stories, split_stories
from toy.lm.tokens import (
    SPECIAL,
    TABLES,
    TINY_MODEL_SPECIAL,
    Rows,
    Tokenizer,
    load_tokenizer,
    make_rows,
    save_tokenizer,
    train_tokenizer,
)

REAL = Path(__file__).resolve().parents[2] / "shared" / "tinystories"
STORIES = make_stories(400, seed=1)
TOKENIZER = train_tokenizer(STORIES[:50], 400)
ascii_text = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.just("\n"), max_size=60)


# --- the built-in corpus ------------------------------------------------------------------------------------


def test_the_same_seed_tells_the_same_stories_and_the_first_ones_whatever_their_number() -> None:
    assert make_stories(30, seed=1) == STORIES[:30]
    assert len(set(STORIES)) == len(STORIES)
    assert not set(make_stories(30, seed=2)) & set(STORIES)
    assert 60 < np.mean([len(story.split()) for story in STORIES]) < 140
    assert clean_stories(STORIES) == (STORIES, len(STORIES), 0, 0, 0)
    with pytest.raises(ValueError, match="n_stories: must be at least 1, got 0"):
        make_stories(0, seed=1)


def found(pattern: str) -> list[tuple[str, ...]]:
    matches = [match.groups() for story in STORIES for match in re.finditer(pattern, story)]
    assert len(matches) > 50
    return matches


def sex_of(name: str) -> Sex:
    return GIRL if name in GIRL.names else BOY


def test_words_agree_with_what_decides_them() -> None:
    for child, name in found(r"a little (\w+) named (\w+)\."):
        assert name in {"girl": GIRL, "boy": BOY}[child].names
    for name, emotion, cause, he, deed in found(r"(\w+) was (\w+) because ([\w ]+)\. (He|She) (\w+)\."):
        assert he.lower() == sex_of(name).he
        assert (emotion, cause) in EMOTIONS[deed]
    for friend, he in found(r'!" said (\w+)\. (He|She) had'):
        assert he.lower() == sex_of(friend).he
    for name, his in found(r"(\w+) liked to play with (his|her) "):
        assert his == sex_of(name).his
    for relative, he in found(r"(?:His|Her) (\w+) gave [^.]*\. (He|She) told"):
        assert relative in {"he": BOY, "she": GIRL}[he.lower()].relatives
    for animal, sound, deed in found(r"The (\w+) (\w+) and ([\w ]+)\."):
        (home,) = (home for home, kept in ANIMALS.items() if (animal, sound) in kept)
        assert deed == DEEDS[home]
    for animal, home in found(r"saw a (\w+) in the (\w+)\."):
        assert animal in dict(ANIMALS[home])


def test_a_name_has_a_favourite_toy_and_the_first_of_a_list_is_the_most_frequent() -> None:
    toys: dict[str, Counter[str]] = {}
    for name, liked in found(r"(\w+) liked to play with \w+ \w+ (\w+)\."):
        toys.setdefault(name, Counter())[liked] += 1
    (lily, n_lily), (tom, n_tom) = (toys[name].most_common(1)[0] for name in ("Lily", "Tom"))
    assert lily != tom
    assert n_lily > toys["Lily"].total() / 2
    assert n_tom > toys["Tom"].total() / 2
    names = Counter(name for (name,) in found(r"named (\w+)\."))
    for sex in (GIRL, BOY):
        assert names[sex.names[0]] == max(names[name] for name in sex.names) > 2 * names[sex.names[-1]] > 0


def test_every_word_of_a_concept_occurs_and_stands_in_one_place_of_the_tree() -> None:
    told = set(re.findall("[a-z]+", " ".join(STORIES).lower()))
    everything = [word for root in CONCEPTS for word in root.all_words()]
    assert set(everything) <= told
    assert len(set(everything)) == len(everything) > 40
    names = [concept.name for root in CONCEPTS for concept in root.walk()]
    assert len(set(names)) == len(names)
    words_of = {concept.name: set(concept.all_words()) for root in CONCEPTS for concept in root.walk()}
    assert {"lily", "she", "her", "girl", "mom"} <= words_of["female"] < words_of["person"]
    assert words_of["person"] == words_of["female"] | words_of["male"]


def test_a_tree_of_concepts_is_walked_from_broad_to_narrow() -> None:
    inner = Concept("b", ("2",), (Concept("c", ("3",)),))
    tree = Concept("a", ("1",), (inner, Concept("d", ("4", "5"))))
    assert [concept.name for concept in tree.walk()] == ["a", "b", "c", "d"]
    assert tree.all_words() == ("1", "2", "3", "4", "5")
    assert inner.all_words() == ("2", "3")


# --- text ---------------------------------------------------------------------------------------------------


def test_stories_end_at_their_mark_wherever_it_stands_and_the_last_may_lack_it() -> None:
    def split(text: str) -> list[str]:
        return list(split_stories(iter(text.splitlines(keepends=True))))

    assert split("a\nb\n<|endoftext|>\nc\n<|endoftext|>\n") == ["a\nb\n", "\nc\n"]
    assert split("a\n<|endoftext|>\nc") == ["a\n", "\nc"]
    assert split("a<|endoftext|>b<|endoftext|>c<|endoftext|>\n") == ["a", "b", "c"]
    assert split("a\n<|endoftext|>\n \n\n") == ["a\n"]
    assert split("") == []


@given(st.lists(st.text("ab \n", min_size=1).filter(str.strip), min_size=1))
def test_splitting_undoes_joining(stories: list[str]) -> None:
    text = "\n<|endoftext|>\n".join(stories)
    assert clean_stories(split_stories(iter(text.splitlines(keepends=True)))).texts == [clean(s) for s in stories]


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("“Hi…”, it’s a café", '"Hi...", it\'s a cafe'),  # to ASCII
        ("a\tb", "a b"),  # a tab is two spaces, which are one
        ("a\t\nb", "a\nb"),  # and none at the end of a line
        ("a  \n b", "a\n b"),
        ("a\n\n\nb", "a\nb"),
        ("a\n \n\t\n b", "a\n b"),
        ("a    b  c", "a b c"),
        ("\n  a b \n", "a b"),
        ("a\r\nb", "a\nb"),
        ("a\u00a0\u00a0b", "a b"),  # spaces that become ASCII ones do so first
        ("a\u2003\nb", "a\nb"),
    ],
)
def test_text_is_cleaned_as_the_reference_does(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


@given(st.text(st.sampled_from("ab.\t \n\r\u00a0é’"), max_size=30))
def test_clean_text_is_ascii_has_no_double_blanks_and_stays_as_it_is(raw: str) -> None:
    text = clean(raw)
    assert text.isascii()
    assert not re.search(r"\t|  | \n|\n\n|^\s|\s$", text)
    assert clean(text) == text


@given(st.text(st.sampled_from("ab \n\t\r\x0b\x1c"), max_size=40))
def test_text_is_cleaned_as_by_the_regular_expressions_of_the_reference(raw: str) -> None:
    text = re.sub(r"[\s]+\n", "\n", raw.replace("\t", "  "))
    assert clean(raw) == re.sub(r" +", " ", re.sub(r"\n\n+", "\n", text)).strip()


@pytest.mark.parametrize("raw", [" " * 200_000 + "a", "\n \t" * 100_000, "Ã©" * 100_000 + "X", "â€" * 100_000])
def test_long_runs_are_cleaned_in_no_time(raw: str) -> None:
    start = time.monotonic()
    clean_stories([raw])
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("raw", "mended"),
    [
        ("â€œIt doesnâ€™t â€“ Iâ€™m â€”â€¦â€\x9d, he said", "“It doesn’t – I’m —…”, he said"),
        ("â€œHi!â€ said Tom, â€œwell.â€\n", "“Hi!” said Tom, “well.”\n"),  # whose last byte is lost
        ("a cafÃ© was crÃ©Ã©e, Ã©tait", "a café was créée, était"),
        ("donÃ¢â‚¬â„¢t", "don’t"),  # misread twice
        ("for 5â‚¬.Â\u00a0And", "for 5â‚¬.\u00a0And"),
        ("naÃ¯ve â„¢ â‚¬5", "naïve â„¢ â‚¬5"),
    ],
)
def test_the_known_damage_of_stories_is_mended(raw: str, mended: str) -> None:
    assert mend(raw) == mended.replace("â„¢", "™").replace("â‚¬", "€")
    assert clean_stories([raw, "one"])[1:] == (2, 1, 0, 0)


@pytest.mark.parametrize(
    "text", ["Les châteaux à 5 €", "«\u00a0Tombé\u00a0»…", "MAÇÃ» de «Ã»", "„Gâ“", "“Hi”, it’s a café", "Âne, â, Ã"]
)
def test_what_is_properly_encoded_is_no_damage(text: str) -> None:
    assert mend(text) == text
    assert clean_stories([text]).texts == [clean(text)]


@given(st.text(st.characters(min_codepoint=0xA0, max_codepoint=0x17F) | st.sampled_from("ab ’“”…—€"), max_size=20))
def test_text_of_european_letters_is_left_as_it_is_unless_it_looks_misread(text: str) -> None:
    if not re.search("[ÂÃ][^\x00-\x7f]|â€", text):
        assert mend(text) == text


def test_damaged_and_empty_stories_are_dropped_and_counted() -> None:
    damaged = ["a â‚x", "ï¿½", "lost \ufffd", "it\x92s", "\ud800"]
    stories = clean_stories(["one", *damaged, " \n", "twö", "itâ€™s"])
    assert stories == (["one", "two", "it's"], 9, 1, 5, 1)
    assert stories.notes() == [
        "mended 1 of 9 stories: UTF-8 that had been read as cp1252",
        "dropped 6 of 9 stories: 5 with damaged encoding, 1 without text",
    ]
    assert clean_stories(["one", "two", "three"], most=2) == (["one", "two"], 2, 0, 0, 0)
    assert clean_stories(["one"]).notes() == []


def test_a_file_that_gives_no_story_is_named(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    with pytest.raises(ValueError, match=r"stories\.txt: No such file"):
        read_stories(str(path))
    with pytest.raises(ValueError, match=f"{tmp_path.name}: Is a directory"):
        read_stories(str(tmp_path))
    path.write_bytes("café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"stories\.txt: not UTF-8 text; save it as UTF-8"):
        read_stories(str(path))
    path.write_text("\n<|endoftext|>\n\n")
    with pytest.raises(ValueError, match=r"stories\.txt: no story; expected text with a line <\|endoftext\|>"):
        read_stories(str(path))
    path.write_text("\ufffd\n<|endoftext|>\n\n")
    with pytest.raises(
        ValueError, match=r"no story: dropped 1 of 1 stories: 1 with damaged encoding; save it as UTF-8"
    ):
        read_stories(str(path))
    path.write_text("One.\n\nTwo.\n<|endoftext|>\nThree.")
    assert read_stories(str(path)).texts == ["One.\nTwo.", "Three."]


def test_a_text_without_separators_is_told_how_to_get_them(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(f'{{"text": "{story}"}}\n' for story in ("one", "two")))
    with pytest.raises(
        ValueError, match=r"stories\.jsonl: has no separators of stories; extract the text from JSON lines"
    ):
        read_stories(str(path))
    path.write_text("\nOne.\nTwo.\n")
    with pytest.raises(ValueError, match=r"separators of stories; put a line <\|endoftext\|> after each story"):
        read_stories(str(path))


def test_stories_of_the_hub_are_cleaned_be_they_a_file_or_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One  story.\n<|endoftext|>\nTwo.\n<|endoftext|>\n")
    kept = {"hub:o/n/a.txt": path, "hub:o/n": ["One  story.", "\ufffd", None, "Two."], "hub:o/none": []}
    kept["hub:o/numbers"] = ["One.", 2]
    monkeypatch.setattr(toy.lm.text, "fetch_stories", kept.__getitem__)
    assert read_stories("hub:o/n/a.txt").texts == read_stories("hub:o/n").texts == ["One story.", "Two."]
    with pytest.raises(ValueError, match="hub:o/none: no story"):
        read_stories("hub:o/none")
    with pytest.raises(ValueError, match="hub:o/numbers: its column of texts also holds 2"):
        read_stories("hub:o/numbers")


def test_a_device_is_no_corpus() -> None:
    with pytest.raises(ValueError, match=r"^/dev/zero: not a file$"):
        read_stories("/dev/zero")


@given(st.integers(2, 70), st.integers(2, 9))
def test_held_out_stories_are_every_so_manieth_and_no_story_is_in_both(n: int, every: int) -> None:
    stories = [str(i) for i in range(n)]
    corpus = held_out(stories, every)
    assert corpus.valid == stories[::every]
    assert sorted(corpus.train + corpus.valid) == sorted(stories)
    assert corpus.train == sorted(corpus.train, key=int)


def test_stories_that_cannot_be_split_are_refused() -> None:
    for stories, every, told in ([["a"], 20, "1 story"], [[], 20, "0 stories"], [["a", "b"], 1, "2 stories"]):
        with pytest.raises(ValueError, match=f"^{told} cannot be split into training and held-out ones"):
            held_out(stories, every)


@pytest.mark.skipif(not (REAL / "train.txt").exists(), reason="the stories are not here")
def test_real_stories_are_read() -> None:
    with (REAL / "train.txt").open(encoding="utf-8") as file:
        raw = list(split_stories(file))
    assert len(raw) == 950
    found = read_stories(str(REAL / "train.txt"))
    assert found[1:] == (950, 87, 0, 5)
    stories = found.texts
    assert len(stories) == 945
    undamaged = [story for story in raw if not re.search("[â€»«]", story)]
    assert len(undamaged) == 950 - 87
    assert [clean(story) for story in raw if story.strip() and story in set(undamaged)] == [
        text for text, story in zip(stories, (s for s in raw if s.strip()), strict=True) if story in set(undamaged)
    ]
    assert stories[0].startswith("One day, a little girl named Lily found a needle in her room.")
    assert not any('"a' in story or "EUR" in story for story in stories)
    assert all(story.isascii() and not re.search(r"  |\n\n| \n", story) for story in stories)
    tokenizer = train_tokenizer(stories, 512)
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(stories[:20])] == stories[:20]


# --- the hub, without a network -----------------------------------------------------------------------------


def test_a_name_of_the_hub_has_an_owner_a_name_and_at_most_one_file() -> None:
    assert hub.is_hub_name("hub:a/b")
    assert not hub.is_hub_name("a/hub:b")
    assert hub.split_name("hub:a/b") == ("a/b", None)
    assert hub.split_name("hub:a/b/c/d.txt") == ("a/b", "c/d.txt")
    for name in ("hub:", "hub:a", "hub:a/", "hub:/b", "hub:a/b/", "hub:a//c"):
        with pytest.raises(ValueError, match=f"^{name}: expected hub:OWNER/NAME or hub:OWNER/NAME/FILE$"):
            hub.split_name(name)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The packages that can be imported by name."""
    there: dict[str, Any] = {}

    def import_module(name: str) -> Any:
        if name not in there:
            raise ImportError(f"No module named {name!r}\nand more")
        return there[name]

    monkeypatch.setattr(importlib, "import_module", import_module)
    return there


def module(**functions: Any) -> ModuleType:
    made = ModuleType("made_up")
    vars(made).update(functions)
    return made


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_a_file_of_the_hub_is_fetched_of_the_right_kind(packages: dict[str, Any]) -> None:
    asked = []

    def hf_hub_download(name: str, file: str, *, repo_type: str) -> str:
        asked.append((name, file, repo_type))
        return f"/cache/{file}"

    packages["huggingface_hub"] = module(hf_hub_download=hf_hub_download)
    assert hub.fetch("a/b", "config.json") == Path("/cache/config.json")
    assert hub.fetch_stories("hub:a/b/c/d.txt") == Path("/cache/c/d.txt")
    assert asked == [("a/b", "config.json", "model"), ("a/b", "c/d.txt", "dataset")]


def test_a_dataset_of_the_hub_gives_its_column_of_texts(packages: dict[str, Any]) -> None:
    def load_dataset(name: str, *, split: str) -> Any:
        return {"text": iter([name, split])}

    packages["datasets"] = module(load_dataset=load_dataset)
    assert hub.fetch_stories("hub:a/b") == ["a/b", "train"]


def test_what_cannot_be_fetched_is_told_in_one_line(packages: dict[str, Any]) -> None:
    def refusal(call: Callable[[], Any]) -> str:
        with pytest.raises(ValueError, match=r".") as told:
            call()
        assert told.value.__cause__ is None
        assert "\n" not in str(told.value)
        return str(told.value)

    for name, package in (("hub:a/b/c", "huggingface_hub"), ("hub:a/b", "datasets")):
        message = refusal(lambda name=name: hub.fetch_stories(name))
        assert message.startswith("hub:a/b")
        assert f"needs the package {package}; install the extra: pip install -e '.[hub]'" in message
    for error, why in ((OSError("no network\nat all"), "no network"), (RuntimeError(), "RuntimeError")):
        packages["huggingface_hub"] = module(hf_hub_download=failing(error))
        packages["datasets"] = module(load_dataset=failing(error))
        assert refusal(lambda: hub.fetch("a/b", "c")) == f"hub:a/b/c: cannot be fetched: {why}"
        assert refusal(lambda: hub.fetch_stories("hub:a/b")) == f"hub:a/b: cannot be fetched: {why}"
    packages["datasets"] = module(load_dataset=lambda *_, **__: {})
    assert "hub:a/b: cannot be fetched: 'text'" in refusal(lambda: hub.fetch_stories("hub:a/b"))


# --- tokens -------------------------------------------------------------------------------------------------


@given(ascii_text)
def test_decoding_undoes_encoding(text: str) -> None:
    (ids,) = TOKENIZER.encode([text])
    assert ids.dtype == np.int32
    assert TOKENIZER.decode(ids) == text
    assert not {*ids} & {TOKENIZER.begin, TOKENIZER.end, TOKENIZER.pad, TOKENIZER.unk}


def test_a_frequent_word_is_one_token_and_special_ones_have_no_text() -> None:
    pieces = TOKENIZER.pieces()
    assert len(pieces) == TOKENIZER.vocab_size == 400
    assert len(TOKENIZER.encode([" Lily"])[0]) == 1
    special = (TOKENIZER.begin, TOKENIZER.end, TOKENIZER.pad, TOKENIZER.unk)
    assert len(set(special)) == 4
    assert [pieces[i] for i in special] == [""] * 4
    (ids,) = TOKENIZER.encode(["One day"])
    whole = np.array([TOKENIZER.begin, *ids, TOKENIZER.end, TOKENIZER.pad])
    assert TOKENIZER.decode(whole) == "One day"


def test_every_byte_needs_an_id() -> None:
    assert train_tokenizer(["a"], len(SPECIAL) + 256).vocab_size == 260
    with pytest.raises(ValueError, match="vocab_size: must be at least 260"):
        train_tokenizer(["a"], 259)
    with pytest.raises(ValueError, match="vocab_size: must be at most 1,048,576, got 1000000000"):
        train_tokenizer(["a"], 10**9)  # for which the library asks for the memory at once


@given(st.lists(ascii_text, min_size=1, max_size=6), st.integers(3, 12))
def test_rows_hold_every_token_once_in_order_between_begin_and_end(stories: list[str], context: int) -> None:
    rows, told = make_rows(stories, TOKENIZER, context), TOKENIZER.encode(stories)
    assert rows.ids.shape[1] == context
    assert {column.dtype for column in rows} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(rows.real().sum(axis=1), rows.length)
    assert (rows.ids[~rows.real()] == TOKENIZER.pad).all()
    assert (rows.length >= 1).all()
    assert sorted(set(rows.document.tolist())) == list(range(len(stories)))
    for i, ids in enumerate(told):
        of_story = rows.document == i
        whole = [TOKENIZER.begin, *ids, TOKENIZER.end]
        assert rows.start[of_story].tolist() == list(range(0, len(whole), context))
        assert rows.ids[of_story][rows.real()[of_story]].tolist() == whole


def test_a_row_needs_room() -> None:
    with pytest.raises(ValueError, match="context: must be at least 3, got 2"):
        make_rows(["a"], TOKENIZER, 2)


def same(one: Tokenizer, other: Tokenizer) -> bool:
    return one.encode(STORIES[:5])[4].tolist() == other.encode(STORIES[:5])[4].tolist()


def test_a_tokenizer_is_saved_and_loaded_and_its_digest_tells_it_from_another(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "a", TOKENIZER)
    loaded = load_tokenizer(tmp_path / "a")
    assert same(loaded, TOKENIZER)
    assert loaded[1:5] == TOKENIZER[1:5]
    assert loaded.digest() == TOKENIZER.digest()
    other = train_tokenizer(STORIES[:50], 399)
    assert len({TOKENIZER.digest(), other.digest(), TOKENIZER._replace(begin=5).digest()}) == 3


def gpt2_like() -> Bpe:
    """With an id for each letter, " and" and "and", and GPT-2's one special token."""
    letters = [*"abcdn", "Ġ", "an", "Ġa", "and", "Ġan", "Ġand", "<|endoftext|>"]
    merges = [("a", "n"), ("an", "d"), ("Ġ", "and")]
    bpe = Bpe(models.BPE({token: i for i, token in enumerate(letters)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    bpe.add_special_tokens(["<|endoftext|>"])
    return bpe


def test_one_special_token_stands_for_all_where_there_is_but_one(tmp_path: Path) -> None:
    bpe = gpt2_like()
    (tmp_path / "tokenizer.json").write_text(bpe.to_str())
    loaded = load_tokenizer(tmp_path)
    assert loaded[1:5] == (11, 11, 11, 11)
    assert make_rows(["band", "c"], loaded, 5).ids.tolist() == [[11, 1, 8, 11, 11], [11, 2, 11, 11, 11]]
    assert make_rows(["band", "c"], loaded, 5).length.tolist() == [4, 3]
    (tmp_path / "tokenizer.json").write_text(bpe.to_str().replace("<|endoftext|>", "<|other|>"))
    with pytest.raises(ValueError, match=r"neither the tokens \[BEGIN\], .* nor <\|endoftext\|>"):
        load_tokenizer(tmp_path)


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arrays of the id tables in `tmp_path`, beside a tokenizer of 12 ids."""
    (tmp_path / "tokenizer.json").write_text(gpt2_like().to_str())
    for name in TABLES:
        (tmp_path / name).touch()
    to_bpe = np.full(10_000, 77)
    to_bpe[:5] = [8, 0, 10, 1, 2]
    to_own = np.array([1, 3, 4, 9_999, 0, 9_999, 2, 2, 0, 9_999, 2])  # of those that are lacking: anything
    arrays: dict[str, Any] = {TABLES[0]: to_own, TABLES[1]: to_bpe}
    monkeypatch.setattr(toy.lm.tokens, "read_torch_file", lambda path: arrays[path.name])
    return arrays


def test_ids_are_translated_to_a_smaller_vocabulary_and_those_it_lacks_are_unknown(
    tmp_path: Path, tables: dict[str, Any]
) -> None:
    tokenizer = load_tokenizer(tmp_path)
    begin, end, pad, unk = TINY_MODEL_SPECIAL
    assert tokenizer[1:5] == (begin, end, pad, unk)
    assert tokenizer.vocab_size == 10_000
    assert [ids.tolist() for ids in tokenizer.encode(["band and", "cdn an", ""])] == [[3, 0, 2], [4, *[unk] * 4], []]
    assert tokenizer.encode(["<|endoftext|>"])[0].tolist() == [unk]  # beyond the table
    assert tokenizer.decode(np.array([begin, 3, 0, 2, unk, end, pad])) == "band and"
    with pytest.raises(ValueError, match="one with id tables is kept as the files"):
        save_tokenizer(tmp_path / "b", tokenizer)
    digest = tokenizer.digest()
    tables[TABLES[0]] = tables[TABLES[0]].copy()
    tables[TABLES[0]][0] = 2
    assert load_tokenizer(tmp_path).digest() != digest


def test_wrong_files_of_a_tokenizer_are_named(tmp_path: Path, tables: dict[str, Any]) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path)

    whole = dict(tables)
    for wrong in ({"a": np.arange(3)}, np.zeros((2, 2), int), np.zeros(3)):
        tables[TABLES[0]] = wrong
        refused(rf"{TABLES[0]}: expected one vector of ids")
    tables.update(whole)
    tables[TABLES[1]] = whole[TABLES[1]][:9_999]
    refused(rf"{TABLES[1]}: 9999 ids, but special ones go up to 9999")
    (tmp_path / TABLES[1]).unlink()
    refused(f"has {TABLES[0]} but not both id tables")
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(r"tokenizer\.json: not a tokenizer: ")
    (tmp_path / "tokenizer.json").unlink()
    refused(r"tokenizer\.json: No such file")


# --- words --------------------------------------------------------------------------------------------------


def found_words(*pieces: str) -> list[tuple[int, str]]:
    return list(words(np.arange(len(pieces)), list(pieces)))


def test_a_word_ends_at_its_last_token_whatever_follows() -> None:
    assert found_words("", " Li", "ly", " ran", ".") == [(2, "lily"), (3, "ran")]
    assert found_words(" cat", ",\n", "dog") == [(0, "cat"), (2, "dog")]
    assert found_words("a b", "c d") == [(0, "a"), (1, "bc"), (1, "d")]
    assert found_words("did", "n't") == [(1, "didn"), (1, "t")]
    assert found_words(" big", "", "ger") == [(0, "big"), (2, "ger")]
    assert found_words("", ".", " 12", "") == []


@given(st.text("aB .\n", max_size=25), st.data())
def test_words_do_not_depend_on_how_the_text_is_cut(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if text[a:b]]
    ends = np.cumsum([len(piece) for piece in pieces])
    expected = [
        (int(np.searchsorted(ends, match.end())), match.group().lower()) for match in re.finditer("[a-zA-Z]+", text)
    ]
    assert found_words(*pieces) == expected


def test_the_words_of_the_corpus_are_those_of_its_text() -> None:
    rows: Rows = make_rows(STORIES[:5], TOKENIZER, 500)
    pieces = TOKENIZER.pieces()
    for story, ids in zip(STORIES, rows.ids, strict=False):
        assert [word for _, word in words(ids, pieces)] == re.findall("[a-z]+", story.lower())
