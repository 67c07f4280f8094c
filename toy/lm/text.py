"""Stories as text: they are read from a file, repaired where their encoding is damaged, and cleaned.

The reference tokenizer drops every story with â, €, » or «, also those of TinyStories-train.txt in which "’" became
"â€™". Here such stories are repaired, and properly encoded ones are kept.
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
_MARK = re.compile(f"â[€‚„][{_FOLLOWS}]")  # three bytes of punctuation; no language has these two characters in a row
_LETTERS = re.compile(f"(?:[ÂÃ][{_FOLLOWS}])+")  # two bytes each
_LAST_BYTE_LOST = re.compile(f"â€(?![{_FOLLOWS}])")  # "”" has a byte that cp1252 lacks
_DAMAGED = re.compile(r"â[€‚„]|ï¿½|[\u0080-\u009f\ufffd\ud800-\udfff]")
_MISREAD_TWICE = 2


class Corpus(NamedTuple):
    """Stories for training, and held-out ones."""

    train: list[str]
    valid: list[str]


class Stories(NamedTuple):
    """Cleaned stories, and how many were read, repaired, and dropped as damaged or empty."""

    texts: list[str]
    n_read: int
    n_mended: int
    n_damaged: int
    n_empty: int

    def notes(self) -> list[str]:
        """Lines for the user: how many stories were repaired, and how many were dropped, if any."""
        dropped = {"with damaged encoding": self.n_damaged, "without text": self.n_empty}
        why = ", ".join(f"{n:,} {what}" for what, n in dropped.items() if n)
        mended = f"mended {self.n_mended:,} of {self.n_read:,} stories: UTF-8 that had been read as cp1252"
        notes = [mended] if self.n_mended else []
        return [*notes, f"dropped {sum(dropped.values()):,} of {self.n_read:,} stories: {why}"] if why else notes


def mend(story: str) -> str:
    """Undo that UTF-8 was read as cp1252, once or twice over, where nothing else can be meant."""
    for _ in range(_MISREAD_TWICE):
        story = _MARK.sub(_as_utf8, _LETTERS.sub(_letters_as_utf8, story))
    return _LAST_BYTE_LOST.sub("”", story)


def _as_utf8(found: re.Match[str]) -> str:
    return bytes(_CP1252[character] for character in found[0]).decode()


def _letters_as_utf8(found: re.Match[str]) -> str:
    """Convert beside small letters only: elsewhere "Ã»" may be a capital letter and a closing quotation mark."""
    before, after = found.string[max(found.start() - 1, 0) : found.start()], found.string[found.end() : found.end() + 1]
    in_word = any(beside.isascii() and beside.islower() for beside in (before, after))
    is_blank = found[0] == "Â\u00a0" and not before.isupper()
    return _as_utf8(found) if in_word or is_blank else found[0]


def is_damaged(story: str) -> bool:
    """Returns whether a story has control or replacement characters, or misread ones that `mend` left."""
    return bool(_DAMAGED.search(story))


def clean(story: str) -> str:
    """ASCII text with single spaces and newlines, stripped (as `clean_text` of noanabeshima/tinymodel)."""
    text = unidecode(story).replace("\t", "  ")
    text = re.sub(r"\s+", _after_last_newline, text)
    return re.sub(r" +", " ", re.sub(r"\n\n+", "\n", text)).strip()


def _after_last_newline(blanks: re.Match[str]) -> str:
    """Replaces r"\\s+\\n" by "\\n" in a run of blanks, in linear time."""
    return blanks[0][max(blanks[0].rfind("\n"), 0) :]


def clean_stories(stories: Iterable[str], most: int | None = None) -> Stories:
    """Repair and clean up to `most` stories; damaged and empty ones are dropped and counted."""
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
    """Yields the stories of a text that are separated by lines `<|endoftext|>`."""
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
    """Up to `most` cleaned stories of a text file, a dataset `hub:OWNER/NAME` or its file `hub:OWNER/NAME/FILE`.

    Raises: ValueError naming the file if it cannot be read, has no separators, or holds no story.
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
            raise ValueError(f"{name}: its column of texts also holds {quoted(text)}")
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
    """Yields the lines. Raises: ValueError at the end of a text without separators."""
    is_marked, first = False, ""
    for line in lines:
        is_marked = is_marked or END_OF_STORY in line
        first = first or line.strip()
        yield line
    if first and not is_marked:
        is_json = "extract the text from JSON lines, and " if first[0] in "{[" else ""
        raise ValueError(f"{path}: has no separators of stories; {is_json}put a line {END_OF_STORY} after each story")


def held_out(stories: list[str], every: int = 20) -> Corpus:
    """Hold out every `every`-th story. Raises: ValueError if no story is left for training."""
    corpus = Corpus([story for i, story in enumerate(stories) if i % every], stories[::every])
    if not corpus.train:
        count = f"{len(stories)} stories" if len(stories) != 1 else "1 story"
        raise ValueError(f"{count} cannot be split into training and held-out ones; at least 2 are needed")
    return corpus
