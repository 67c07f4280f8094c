"""Stories as text: reading a file of them, mending what is known of its damage, and the reference tokenizer's cleaning.

The reference drops every story with â, €, » or «, and so those of TinyStories-train.txt whose "’" is "â€™". Here these
are mended, and what is properly encoded is no damage.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from unidecode import unidecode

from toy.checks import quoted
from toy.lm.hub import fetch_stories, is_hub_name

END_OF_STORY = "<|endoftext|>"
_CP1252 = {bytes([i]).decode("cp1252", "ignore") or chr(i): i for i in range(0x80, 0x100)}  # character → byte
_FOLLOWS = "".join(re.escape(character) for character, i in _CP1252.items() if i < 0xC0)
_MARK = re.compile(f"â[€‚„][{_FOLLOWS}]")  # three bytes of punctuation; these two characters follow in no language
_LETTERS = re.compile(f"(?:[ÂÃ][{_FOLLOWS}])+")  # two bytes each
_LAST_BYTE_LOST = re.compile(f"â€(?![{_FOLLOWS}])")  # "”" has a byte that cp1252 has not
_DAMAGED = re.compile(r"â[€‚„]|ï¿½|[\u0080-\u009f\ufffd\ud800-\udfff]")
_MISREAD_TWICE = 2


class Corpus(NamedTuple):
    """Stories for training, and held-out ones."""

    train: list[str]
    valid: list[str]


class Stories(NamedTuple):
    """Cleaned stories, and how many were read, mended, and dropped as damaged or as empty."""

    texts: list[str]
    n_read: int
    n_mended: int
    n_damaged: int
    n_empty: int

    def notes(self) -> list[str]:
        """A line on what was mended and one on what was dropped, where anything was."""
        dropped = {"with damaged encoding": self.n_damaged, "without text": self.n_empty}
        why = ", ".join(f"{n:,} {what}" for what, n in dropped.items() if n)
        mended = f"mended {self.n_mended:,} of {self.n_read:,} stories: UTF-8 that had been read as cp1252"
        told = [mended] if self.n_mended else []
        return [*told, f"dropped {sum(dropped.values()):,} of {self.n_read:,} stories: {why}"] if why else told


def mend(story: str) -> str:
    """UTF-8 that was read as cp1252, once or twice over, read as UTF-8 again, where nothing else can be meant."""
    for _ in range(_MISREAD_TWICE):
        story = _MARK.sub(_as_utf8, _LETTERS.sub(_letters_as_utf8, story))
    return _LAST_BYTE_LOST.sub("”", story)


def _as_utf8(found: re.Match[str]) -> str:
    return bytes(_CP1252[character] for character in found[0]).decode()


def _letters_as_utf8(found: re.Match[str]) -> str:
    """Only beside a small letter: elsewhere "Ã»" may be a capital letter and the end of a quotation."""
    before, after = found.string[max(found.start() - 1, 0) : found.start()], found.string[found.end() : found.end() + 1]
    in_word = any(beside.isascii() and beside.islower() for beside in (before, after))
    is_blank = found[0] == "Â\u00a0" and not before.isupper()
    return _as_utf8(found) if in_word or is_blank else found[0]


def is_damaged(story: str) -> bool:
    """Whether it has what no text has: misread characters that `mend` left, control characters, marks of lost ones."""
    return bool(_DAMAGED.search(story))


def clean(story: str) -> str:
    """ASCII, single spaces and newlines, none at line ends (`clean_text` of noanabeshima/tinymodel), none around."""
    text = unidecode(story).replace("\t", "  ")
    text = re.sub(r"\s+", _after_last_newline, text)
    return re.sub(r" +", " ", re.sub(r"\n\n+", "\n", text)).strip()


def _after_last_newline(blanks: re.Match[str]) -> str:
    """What r"\\s+\\n" → "\\n" makes of a run of blanks, in linear time."""
    return blanks[0][max(blanks[0].rfind("\n"), 0) :]


def clean_stories(stories: Iterable[str], most: int | None = None) -> Stories:
    """Each story mended and cleaned, up to `most`; damaged and empty ones are dropped, and counted."""
    texts: list[str] = []
    n_read = n_mended = n_damaged = n_empty = 0
    for story in stories:
        if most is not None and len(texts) >= most:
            break
        n_read += 1
        mended = mend(story)
        damaged = is_damaged(mended)
        text = "" if damaged else clean(mended)
        n_damaged, n_empty = n_damaged + damaged, n_empty + (not damaged and not text)
        if text:
            n_mended += mended != story
            texts.append(text)
    return Stories(texts, n_read, n_mended, n_damaged, n_empty)


def split_stories(lines: Iterator[str]) -> Iterator[str]:
    """Stories of a text in which a line `<|endoftext|>` follows each; the last may lack it."""
    story: list[str] = []
    for line in lines:
        head, *tails = line.split(END_OF_STORY)
        story.append(head)
        for tail in tails:
            yield "".join(story)
            story = [tail]
    if "".join(story).strip():
        yield "".join(story)


def read_stories(name: str, most: int | None = None) -> Stories:
    """Cleaned stories, up to `most`, of a text file, a dataset `hub:OWNER/NAME` or its file `hub:OWNER/NAME/FILE`.

    Raises: ValueError naming the file if it cannot be read, does not mark where stories end, or holds none.
    """
    found = fetch_stories(name) if is_hub_name(name) else Path(name)
    stories = clean_stories(_of_file(found) if isinstance(found, Path) else _of_column(name, found), most)
    if not stories.texts:
        why = f": {', '.join(stories.notes())}" if stories.n_damaged else ""
        remedy = "save it as UTF-8" if why else f"expected text with a line {END_OF_STORY} after each story"
        raise ValueError(f"{name}: no story{why}; {remedy}")
    return stories


def _of_column(name: str, column: Iterable[object]) -> Iterator[str]:
    for text in column:
        if not isinstance(text, str | None):
            raise ValueError(f"{name}: its column of texts has something else in it: {quoted(text)}")
        yield text or ""


def _of_file(path: Path) -> Iterator[str]:
    try:
        if path.is_char_device() or path.is_block_device():
            raise ValueError(f"{path}: not a file")
        with path.open(encoding="utf-8") as file:
            yield from split_stories(_marked(path, iter(file)))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def _marked(path: Path, lines: Iterator[str]) -> Iterator[str]:
    """The lines. Raises: ValueError at the end of a text without marks of where a story ends."""
    is_marked, first = False, ""
    for line in lines:
        is_marked = is_marked or END_OF_STORY in line
        first = first or line.strip()
        yield line
    if first and not is_marked:
        is_json = "of JSON lines write the text of each, and " if first[0] in "{[" else ""
        raise ValueError(f"{path}: has no separators of stories; {is_json}put a line {END_OF_STORY} after each story")


def held_out(stories: list[str], every: int = 20) -> Corpus:
    """Every `every`-th story is held out. Raises: ValueError if nothing is left for one of the two."""
    corpus = Corpus([story for i, story in enumerate(stories) if i % every], stories[::every])
    if not corpus.train:
        told = f"{len(stories)} stories" if len(stories) != 1 else "1 story"
        raise ValueError(f"{told} cannot be split into training and held-out ones; at least 2 are needed")
    return corpus
