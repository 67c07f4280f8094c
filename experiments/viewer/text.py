"""Text in windows of tokens, and the activations of a language model on it, from a store or from the model itself."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.language.models import read_model, read_tokenizer
from toy.checks import quoted
from toy.data.activations import Activations
from toy.data.store import MANIFEST, Store, open_store
from toy.lm.corpus import make_stories
from toy.lm.export import export_activations
from toy.lm.model import LM, parse_site
from toy.lm.text import read_stories
from toy.lm.tokens import Rows, Tokenizer, load_tokenizer, make_rows
from toy.lm.weights import load_model, model_digest

WINDOW = 32  # tokens
CHUNK = 2_048  # rows of activations in memory at once
MOST_CONTEXT = 512  # tokens of a story that a model reads at once
N_TOKENS_A_STORY = 50  # at least, on average: how many stories are read for a number of tokens


class Text(NamedTuple):
    """Tokens of stories; place p is token p % WINDOW of window p // WINDOW."""

    tokens: Int[np.ndarray, "n_windows window"]  # −1 where the story has ended
    follows: Bool[np.ndarray, " n_windows"]  # the window before is of the same story
    pieces: list[str]  # the text of every id

    @property
    def n_tokens(self) -> int:
        return int((self.tokens >= 0).sum())


class Source(NamedTuple):
    """A text, the activations at one site on it, and the language model if it is known."""

    text: Text
    acts: Activations
    rows: Int[np.ndarray, " n_tokens"]  # of `acts`, in the order of the text
    places: Int[np.ndarray, " n_tokens"]  # where each is in the text
    site: str
    lm: LM | None

    def chunks(self) -> Iterator[tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "rows d_in"]]]:
        """Yields places of the text and the activations there."""
        for first in range(0, len(self.rows), CHUNK):
            part = slice(first, first + CHUNK)
            yield self.places[part], self.acts.take(self.rows[part])


class Given(NamedTuple):
    """The options that say which text is read."""

    acts: str  # the folder of a store, or a language model as `load_model` names it
    site: str | None
    n_tokens: int
    tokenizer: Path | None = None
    model: str | None = None
    n_heads: int | None = None
    corpus: str | None = None


@contextmanager
def open_source(given: Given) -> Iterator[Source]:
    """The text of a store's stories, or of a corpus that the model reads now, for the time of the block.

    Raises: ValueError naming what is missing, and the option that gives it.
    """
    if is_store(given.acts):
        yield of_store(open_store(Path(given.acts)), given)
        return
    if given.site is None:
        raise ValueError("site: give the place in the model that the SAEs are of, such as --site resid_pre.1")
    lm, tokenizer = read_model(given.acts, given.tokenizer, given.n_heads)
    site = parse_site(given.site, lm.cfg.n_layers)
    rows = _rows(given, tokenizer, min(lm.cfg.context, MOST_CONTEXT))
    with tempfile.TemporaryDirectory() as folder:
        store = export_activations(Path(folder) / "store", lm, rows, [site], facts={}, dtype="float32")
        yield source_of(store, str(site), given.n_tokens, tokenizer, lm)


def is_store(acts: str) -> bool:
    return (Path(acts) / MANIFEST).exists()


def _rows(given: Given, tokenizer: Tokenizer, context: int) -> Rows:
    n_stories = max(1, given.n_tokens // N_TOKENS_A_STORY)
    stories = make_stories(n_stories, 0) if given.corpus is None else read_stories(given.corpus, n_stories).texts
    rows = make_rows(stories, tokenizer, context)
    last = int(np.searchsorted(rows.length.cumsum(), given.n_tokens)) + 1
    return Rows(*(column[:last] for column in rows))


def of_store(store: Store, given: Given) -> Source:
    """The source of an opened store; its tokenizer and model are those of its cache where none is given."""
    site = given.site or next(iter(store.sites))
    if given.site is None and len(store.sites) > 1:
        raise ValueError(f"site: {store.folder} has {', '.join(store.sites)}: give one of them")
    tokenizer, lm = _tokenizer_of(store, given), _model_of(store, given)
    _check_same("tokenizer", store, store.facts.get("tokenizer_sha256"), tokenizer.digest())
    if lm is not None:
        _check_same("model", store, store.facts.get("model_sha256"), model_digest(lm))
    return source_of(store, site, given.n_tokens, tokenizer, lm)


def _check_same(name: str, store: Store, own: str | None, found: str) -> None:
    """Raises: ValueError if what is given is not what a store was made with; stores need not say."""
    if own not in (None, found):
        raise ValueError(f"{name}: {quoted(str(store.folder))} was made with another, whose SHA-256 is {quoted(own)}")


def _tokenizer_of(store: Store, given: Given) -> Tokenizer:
    """The tokenizer that is given, or that of the store's tokens in the chain's cache. Raises: ValueError."""
    if given.model is not None:
        return read_tokenizer(given.model, given.tokenizer)
    if given.tokenizer is not None:
        return load_tokenizer(given.tokenizer)
    found = (load_tokenizer(file.parent) for file in sorted(_cache(store).glob("tokens-*/tokenizer.json")))
    for one in found:
        if one.digest() == store.facts.get("tokenizer_sha256"):
            return one
    raise ValueError(
        f"tokenizer: {quoted(str(store.folder))} has none beside it: give its language model with --model, or the "
        "tokenizer with --tokenizer PATH"
    )


def _model_of(store: Store, given: Given) -> LM | None:
    """The model that is given, or the one in the chain's cache that the activations are of; None if it is not there."""
    if given.model is not None:
        return load_model(given.model, n_heads=given.n_heads)
    found = (load_model(file.parent) for file in sorted(_cache(store).glob("model-*/config.json")))
    return next((one for one in found if model_digest(one) == store.facts.get("model_sha256")), None)


def _cache(store: Store) -> Path:
    """The cache of the chain that has made a store."""
    return store.folder.absolute().parents[1]


def source_of(store: Store, site: str, n_tokens: int, tokenizer: Tokenizer, lm: LM | None) -> Source:
    """The first stories of a store that have `n_tokens` tokens together, each from its begin to its end."""
    acts = store.activations(site)
    of_story = np.bincount(store.document)
    n_stories = int(np.searchsorted(of_story.cumsum(), n_tokens)) + 1
    (rows,) = np.nonzero(store.document < n_stories)
    rows = rows[np.lexsort((store.position[rows], store.document[rows]))]
    ids = store.token[rows]
    pieces = named_pieces(tokenizer)
    if ids.max() >= len(pieces):
        raise ValueError(f"tokenizer: has {len(pieces)} ids, the text of {quoted(str(store.folder))} has {ids.max()}")
    tokens, follows, places = windows(ids, store.document[rows])
    return Source(Text(tokens, follows, pieces), acts, rows, places, site, lm)


def windows(
    ids: Int[np.ndarray, " n_tokens"], story: Int[np.ndarray, " n_tokens"]
) -> tuple[Int[np.ndarray, "n_windows window"], Bool[np.ndarray, " n_windows"], Int[np.ndarray, " n_tokens"]]:
    """Cuts stories, whose tokens stand together, into windows; returns them as in `Text`, and the place of each id."""
    starts = np.flatnonzero(np.diff(story, prepend=story[0] - 1))
    lengths = np.diff(starts, append=len(ids))
    n_windows = -(-lengths // WINDOW)
    first = np.cumsum(n_windows) - n_windows
    within = np.arange(len(ids)) - np.repeat(starts, lengths)
    places = np.repeat(first, lengths) * WINDOW + within
    tokens = np.full(int(n_windows.sum()) * WINDOW, -1)
    tokens[places] = ids
    follows = np.ones(len(tokens) // WINDOW, bool)
    follows[first] = False
    return tokens.reshape(-1, WINDOW), follows, places


def named_pieces(tokenizer: Tokenizer) -> list[str]:
    """The text of each id, and names of the special ones."""
    pieces = tokenizer.pieces()
    for name in ("pad", "unk", "begin", "end"):
        pieces[getattr(tokenizer, name)] = f"⟨{name}⟩"
    return pieces
