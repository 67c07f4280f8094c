"""BPE tokenizers, trained here or read from files, and stories as rows of token ids."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers, trainers

from toy.checks import Whole, check_numbers
from toy.files.atomic import writing
from toy.files.digest import digest_of
from toy.files.torch_file import read_torch_file
from toy.lm.gguf_file import GGUF, read_gguf_tokenizer
from toy.lm.hub import packaged
from toy.lm.llama2c import LLAMA2C, read_llama2c_tokenizer
from toy.lm.pieces import check_words, texts_of
from toy.lm.tokenizer_json import MOST_IDS, naming, read_tokenizer_json

SPECIAL = ("[BEGIN]", "[END]", "[PAD]", "[UNK]")
VOCAB_SIZE = Whole(len(SPECIAL) + 256, MOST_IDS)  # for training a tokenizer: every byte has an id
TINY_MODEL_SPECIAL = (9996, 9997, 9998, 9999)
ENCODED_AT_ONCE = 10_000  # stories
TABLES = ("neo_tok_ids_to_ts.pt", "ts_tok_ids_to_neo.pt")  # of the package tinymodel


class Tokenizer(NamedTuple):
    """A BPE, and its ids for the beginning and end of a story, for padding and for unknown tokens.

    Id tables translate between the ids of the BPE and those of a smaller vocabulary (tiny_model's 10,000).
    """

    bpe: Bpe
    begin: int
    end: int
    pad: int
    unk: int
    to_own: Int[np.ndarray, " n_bpe"] | None = None  # maps ids of the BPE; `unk` if the smaller vocabulary lacks one
    to_bpe: Int[np.ndarray, " n_own"] | None = None

    @property
    def vocab_size(self) -> int:
        """The largest id + 1, as a vocabulary may have gaps."""
        return max(self.bpe.get_vocab().values(), default=-1) + 1 if self.to_bpe is None else len(self.to_bpe)

    def encode(self, stories: list[str]) -> list[Int[np.ndarray, " n_tokens"]]:
        """Returns the ids of each story without begin and end. Raises: ValueError if the tokenizer fails."""
        with naming("tokenizer: fails on a story"):
            encoded = [
                np.array(found.ids, np.int32)
                for first in range(0, len(stories), ENCODED_AT_ONCE)  # the library's objects take 100 bytes per token
                for found in self.bpe.encode_batch(stories[first : first + ENCODED_AT_ONCE], add_special_tokens=False)
            ]
        return encoded if self.to_own is None else [self.to_own[ids].astype(np.int32) for ids in encoded]

    def decode(self, ids: Int[np.ndarray, " n_tokens"]) -> str:
        """The text of ids without begin, end and padding."""
        text = [i for i in ids.tolist() if i not in self._special()]
        return self.bpe.decode(text if self.to_bpe is None else self.to_bpe[text].tolist())

    def _special(self) -> set[int]:
        return {self.begin, self.end, self.pad, self.unk}

    def pieces(self) -> list[str]:
        """The text of each id with its leading space; empty for special ids and for gaps."""
        ids = np.arange(self.vocab_size) if self.to_bpe is None else self.to_bpe
        known = {*self.bpe.get_vocab().values()}
        with_text = [own for own, i in enumerate(ids.tolist()) if own not in self._special() and i in known]
        found = dict(zip(with_text, texts_of(self.bpe, ids[with_text].tolist()), strict=True))
        return [found.get(own, "") for own in range(len(ids))]

    def digest(self) -> str:
        """SHA-256 of everything that determines the ids of a text."""
        return digest_of([self.bpe.to_str(), self.begin, self.end, self.pad, self.unk, self.to_own])


def train_tokenizer(stories: list[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE, which can encode any text; frequent words with their leading space become one token."""
    check_numbers({"vocab_size": vocab_size}, {"vocab_size": VOCAB_SIZE})
    bpe = Bpe(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(stories, trainer)
    return _with_special(bpe)


def _with_special(bpe: Bpe) -> Tokenizer:
    """Adds the special tokens of this project, or GPT-2's single one; their names within a story are ordinary text."""
    bpe.encode_special_tokens = True
    for names in (SPECIAL, ("<|endoftext|>",) * len(SPECIAL)):
        begin, end, pad, unk = (bpe.token_to_id(name) for name in names)
        if begin is not None and end is not None and pad is not None and unk is not None:
            return Tokenizer(bpe, begin, end, pad, unk)
    raise ValueError(f"tokenizer: has neither the tokens {', '.join(SPECIAL)} nor <|endoftext|>")


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write `tokenizer.json` for the library `tokenizers`. Raises: ValueError for a tokenizer with id tables."""
    if tokenizer.to_own is not None:
        raise ValueError("tokenizer: one with id tables is kept as the files it was read from")
    with writing(folder / "tokenizer.json") as file:
        file.write(tokenizer.bpe.to_str().encode())


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a tokenizer: `tokenizer.json` of a folder, with tiny_model's id tables if it holds them, or a file.

    Such a file is a tokenizer of llama2.c (`.bin`), or the GGUF of a model, which may also be named `smollm2`. Stories
    of llama2.c end where the next begins. Raises: ValueError naming the file that is missing or wrong.
    """
    path = packaged(path)
    if path.suffix == LLAMA2C:
        return Tokenizer(read_llama2c_tokenizer(path), begin=1, end=1, pad=1, unk=0)
    folder, path = path, path if path.suffix == GGUF else path / "tokenizer.json"
    bpe = read_gguf_tokenizer(path) if path == folder else read_tokenizer_json(path, (*SPECIAL, "<|endoftext|>"))
    with naming(str(path)):
        check_words(bpe)
    present = [name for name in TABLES if (folder / name).exists()]
    if not present:
        with naming(str(path)):
            return _with_special(bpe)
    if len(present) < len(TABLES):
        raise ValueError(f"{folder}: has {present[0]} but not both id tables ({', '.join(TABLES)})")
    return _with_tables(bpe, folder)


def _with_tables(bpe: Bpe, folder: Path) -> Tokenizer:
    """The tokenizer with tiny_model's id tables and special tokens."""
    to_own, to_bpe = (_table(folder / name) for name in TABLES)
    begin, end, pad, unk = TINY_MODEL_SPECIAL
    if len(to_bpe) <= max(TINY_MODEL_SPECIAL):
        raise ValueError(
            f"{folder / TABLES[1]}: {len(to_bpe)} ids, but special ones go up to {max(TINY_MODEL_SPECIAL)}"
        )
    known = np.where(np.isin(np.arange(len(to_own)), to_bpe), to_own, unk)
    if known.max(initial=0) >= len(to_bpe):
        raise ValueError(f"{folder / TABLES[0]}: has the id {known.max()}, but {TABLES[1]} has {len(to_bpe)} ids")
    n_beyond = max(0, max(bpe.get_vocab().values(), default=-1) + 1 - len(to_own))  # ids that the table lacks
    return Tokenizer(bpe, begin, end, pad, unk, np.pad(known, (0, n_beyond), constant_values=unk), to_bpe)


def _table(path: Path) -> Int[np.ndarray, " n"]:
    table = read_torch_file(path)
    if isinstance(table, dict) or table.ndim != 1 or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"{path}: expected one vector of ids")
    if len(table) > MOST_IDS or not ((table >= 0) & (table < MOST_IDS)).all():
        raise ValueError(f"{path}: expected at most {MOST_IDS:,} ids, none negative and none of that many")
    return np.asarray(table)


class Rows(NamedTuple):
    """Stories as rows of equal length: begin, ids, end, padding. A long story continues in the next rows."""

    ids: Int[np.ndarray, "n_rows context"]
    length: Int[np.ndarray, " n_rows"]  # number of tokens before the padding
    document: Int[np.ndarray, " n_rows"]  # index of the story
    start: Int[np.ndarray, " n_rows"]  # position in the story, begin included, of the row's first id

    def real(self) -> Bool[np.ndarray, "n_rows context"]:
        """Returns whether each place holds a token and not padding."""
        return np.arange(self.ids.shape[1]) < self.length[:, None]

    def take(self, numbers: Int[np.ndarray, " n"]) -> "Rows":
        return Rows(*(column[numbers] for column in self))

    def digest(self) -> str:
        return digest_of(self._asdict())


def make_rows(stories: list[str], tokenizer: Tokenizer, context: int) -> Rows:
    """Rows of all tokens of all stories, in order. Raises: ValueError for a context below 3."""
    if context < 3:
        raise ValueError(f"context: must be at least 3, got {context}")
    ids, length, document, start = [], [], [], []
    for i, story in enumerate(tokenizer.encode(stories)):
        whole = np.concatenate([[tokenizer.begin], story, [tokenizer.end]])
        for first in range(0, len(whole), context):
            part = whole[first : first + context]
            ids.append(np.pad(part, (0, context - len(part)), constant_values=tokenizer.pad))
            length.append(len(part))
            document.append(i)
            start.append(first)
    return Rows(*(np.array(column, np.int32) for column in (ids, length, document, start)))
