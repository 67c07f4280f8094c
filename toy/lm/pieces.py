"""Words of a text from the pieces of its tokens, and a check that a foreign tokenizer allows this."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer as Bpe

from toy.checks import quoted

PROBED, PROBED_AS_ONE = 1_024, 64  # pieces that are checked singly and in pairs


def words(ids: Int[np.ndarray, " n_tokens"], pieces: list[str]) -> Iterator[tuple[int, str]]:
    """Yields the words of a row in lower case, each after the place of its last token."""
    word, last = "", -1
    for place, i in enumerate(ids):
        for character in pieces[i] or " ":  # an empty piece ends a word, too
            if character.isalpha():
                word, last = word + character, place
            elif word:
                yield last, word.lower()
                word = ""
    if word:
        yield last, word.lower()


def texts_of(bpe: Bpe, ids: list[int]) -> list[str]:
    """The text that each id adds to preceding text; at the beginning of a text, some decoders omit the space."""
    letters = (bpe.encode(letter, add_special_tokens=False).ids for letter in "abcdefghijklmnopqrstuvwxyz")
    before = next((found for found in letters if bpe.decode(found).strip().isalpha()), [])
    start = bpe.decode(before)

    def of(i: int) -> str:
        text = bpe.decode([*before, i])
        return text.removeprefix(start) if text.startswith(start) else bpe.decode([i])

    return [of(i) for i in ids]


def check_words(bpe: Bpe) -> None:
    """Check that words of the vocabulary, alone and two joined to one, are found again after encoding.

    Raises: ValueError with the first word that is not.
    """
    known = sorted(bpe.get_vocab().values())
    texts = texts_of(bpe, known[:: 1 + len(known) // PROBED])
    of_letters = [text for text in texts if text.isascii() and text.strip().isalpha()]
    probe = [text.strip() for text in of_letters if text[0] == " "] or [text.strip() for text in of_letters]
    if (found := _words_of(bpe, " ".join(probe))) != [word.lower() for word in probe]:
        pairs = zip(probe, [*found, ""], strict=False)
        raise _unfound(next((word for word, other in pairs if word.lower() != other), probe[0]))
    for compound in (a + b for a, b in pairwise(probe[:PROBED_AS_ONE])):
        found = _words_of(bpe, compound)
        if "".join(found) == compound.lower() and len(found) > 1:  # a tokenizer may lack some letters
            raise _unfound(compound)


def _words_of(bpe: Bpe, text: str) -> list[str]:
    ids = bpe.encode(f" {text}", add_special_tokens=False).ids
    return [word for _, word in words(np.arange(len(ids)), texts_of(bpe, ids))]


def _unfound(word: str) -> ValueError:
    return ValueError(
        f"the words of a text cannot be told from its pieces ({quoted(word, 40)!r} is not found); expected a "
        "byte-level tokenizer (GPT-2's), or one whose decoder gives back the spaces between words"
    )
