"""The first letters of words as concepts of a language model (Chanin et al., arXiv 2409.14507).

Words are single tokens. A prompt shows others with their first letters and ends in the word, at whose token activations
are read: " has the first letter:" would come after it, where a causal model cannot see it.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from toy.checks import SEED, Whole, check_numbers
from toy.lm.absorption import fit_logistic
from toy.lm.export import BATCH, Forward
from toy.lm.tokens import Rows, Tokenizer, make_rows

QUESTION = " has the first letter:"
TEST_SHARE = 0.2  # of the words, on which probes and SAEs are measured
MIN_WORDS = 10  # of a letter among those, or the letter is not measured
NO_LETTER = -1

OfLetters = Float[np.ndarray, " n_letters"]


class Task(NamedTuple):
    """Words, and the prompts that end in them."""

    words: tuple[str, ...]
    letters: tuple[str, ...]  # that enough words begin with
    letter: Int[np.ndarray, " n_words"]  # its index in `letters`, or NO_LETTER
    is_test: Bool[np.ndarray, " n_words"]
    prompts: Rows

    def present(self) -> Bool[np.ndarray, "n_words n_letters"]:
        """Returns whether each word begins with each letter."""
        return self.letter[:, None] == np.arange(len(self.letters))


def known_words(tokenizer: Tokenizer) -> list[str]:
    """The tokens that are a space and two or more letters of the alphabet."""
    found = [piece for piece in tokenizer.pieces() if piece[:1] == " " and piece[2:].isalpha() and piece[1:].isascii()]
    return [
        word for word, ids in zip(found, tokenizer.encode(found), strict=True) if word[1:].isalpha() and len(ids) == 1
    ]


def make_task(tokenizer: Tokenizer, n_words: int, n_examples: int = 10, seed: int = 0) -> Task:
    """A random choice of words, each after `n_examples` others with their letters. Raises: ValueError."""
    check_numbers(
        {"n_words": n_words, "n_examples": n_examples, "seed": seed},
        {"n_words": Whole(), "n_examples": Whole(0), "seed": SEED},
    )
    known = known_words(tokenizer)
    if n_words > len(known):
        raise ValueError(f"n_words: the tokenizer has {len(known):,} words of one token, fewer than {n_words:,}")
    rng = np.random.default_rng(seed)
    words = [known[i] for i in rng.permutation(len(known))[:n_words]]
    others = (np.arange(n_words)[:, None] + rng.integers(1, max(2, n_words), (n_words, n_examples))) % n_words
    asked = [f"\n{word}{QUESTION} {word[1].upper()}" for word in words]
    texts = ["".join(asked[i] for i in examples) + f"\n{word}" for word, examples in zip(words, others, strict=True)]
    context = 2 + max(len(ids) for ids in tokenizer.encode(texts))  # with begin and end
    is_test = np.arange(n_words) < TEST_SHARE * n_words  # they are in a random order
    firsts = [word[1].lower() for word in words]
    n_tested = Counter(firsts[: is_test.sum()])
    letters = [c for c in sorted({*firsts[is_test.sum() :]}) if n_tested[c] >= MIN_WORDS]
    if not letters:
        raise ValueError(f"n_words: no letter begins {MIN_WORDS} of the test words; take more words")
    letter = np.array([letters.index(c) if c in letters else NO_LETTER for c in firsts])
    return Task(tuple(words), tuple(letters), letter, is_test, make_rows(texts, tokenizer, context))


def acts_at_words(forward: Forward, prompts: Rows) -> dict[str, Float[np.ndarray, "n_words d_model"]]:
    """The activations at the last token of every prompt, by site."""
    parts: list[dict[str, np.ndarray]] = []
    for first in range(0, len(prompts.ids), BATCH):
        ids, length = (column[first : first + BATCH] for column in (prompts.ids, prompts.length))
        acts = forward(np.pad(ids, ((0, BATCH - len(ids)), (0, 0))))  # one shape, so one program
        last = length - 2  # the end of the text comes after it
        parts.append({site: np.asarray(values)[np.arange(len(ids)), last] for site, values in acts.items()})
    return {site: np.concatenate([part[site] for part in parts]) for site in parts[0]}


class LetterProbes(NamedTuple):
    """Logistic regressions of each letter against all others, and their accuracy on the test words."""

    directions: Float[np.ndarray, "d_in n_letters"]  # of norm 1
    logits: Float[np.ndarray, "n_test n_letters"]
    f1: OfLetters
    accuracy: float  # share of test words of these letters whose own letter has the largest logit

    def correct(self, letter: Int[np.ndarray, " n_test"]) -> Bool[np.ndarray, " n_test"]:
        """Returns whether each word's own letter has a positive logit."""
        return (letter >= 0) & (np.take_along_axis(self.logits, letter[:, None], axis=1)[:, 0] > 0)


def fit_letter_probes(x: Float[np.ndarray, "n_words d_in"], task: Task) -> LetterProbes:
    present, test = task.present(), task.is_test
    weights, biases = fit_logistic(x[~test], present[~test])
    logits = x[test] @ weights + biases
    asked = task.letter[test] >= 0
    accuracy = (logits[asked].argmax(axis=1) == task.letter[test][asked]).mean()
    directions = weights / np.linalg.norm(weights, axis=0)
    return LetterProbes(directions, logits, f1_scores(present[test], logits > 0), float(accuracy))


def f1_scores(present: Bool[np.ndarray, "rows n"], found: Bool[np.ndarray, "rows n"]) -> Float[np.ndarray, " n"]:
    """2 · hits / (present + found) of each column; 0 without a hit."""
    hits = (present & found).sum(axis=0)
    return 2 * hits / np.maximum(present.sum(axis=0) + found.sum(axis=0), 1)
