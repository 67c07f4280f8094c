"""Stories as text: reading a file of them, and the reference tokenizer's cleaning."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from unidecode import unidecode

from toy.lm.hub import fetch_stories, is_hub_name

END_OF_STORY = "<|endoftext|>"
_DAMAGE = ("â", "€", "»", "«")  # of an encoding read as another one; in TinyStories-train.txt, "â€™" for an apostrophe


class Corpus(NamedTuple):
    """Stories for training, and held-out ones."""

    train: list[str]
    valid: list[str]


def is_damaged(story: str) -> bool:
    """Whether the reference tokenizer drops this story for its encoding."""
    return any(mark in story for mark in _DAMAGE)


def clean(story: str) -> str:
    """ASCII, single spaces and newlines, none at line ends (`clean_text` of noanabeshima/tinymodel), none around."""
    text = unidecode(story).replace("\t", "  ")
    text = re.sub(r"[\s]+\n", "\n", text)
    return re.sub(r" +", " ", re.sub(r"\n\n+", "\n", text)).strip()


def clean_stories(stories: Iterator[str] | list[str]) -> list[str]:
    """Each story cleaned; damaged and empty ones dropped."""
    cleaned = (clean(story) for story in stories if not is_damaged(story))
    return [story for story in cleaned if story]


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


def read_stories(name: str) -> list[str]:
    """Cleaned stories of a text file, or of a dataset `hub:OWNER/NAME` or its file `hub:OWNER/NAME/FILE`.

    Raises: ValueError naming the file if it cannot be read or holds no story.
    """
    if is_hub_name(name):
        found = fetch_stories(name)
        stories = clean_stories(_of_file(found)) if isinstance(found, Path) else clean_stories(found)
    else:
        stories = clean_stories(_of_file(Path(name)))
    if not stories:
        raise ValueError(f"{name}: no story; expected text with a line {END_OF_STORY} after each story")
    return stories


def _of_file(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from split_stories(iter(file))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def held_out(stories: list[str], every: int = 20) -> Corpus:
    """Every `every`-th story is held out. Raises: ValueError if nothing is left for one of the two."""
    corpus = Corpus([story for i, story in enumerate(stories) if i % every], stories[::every])
    if not corpus.train:
        raise ValueError(f"corpus: {len(stories)} stories cannot be split into training and held-out ones")
    return corpus
