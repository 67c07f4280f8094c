"""Foreign `tokenizer.json` files, checked before the library reads them, without the parts that change ids.

The library `tokenizers` is written in Rust: an absurd id makes it abort the process, and some of its faults are panics,
which Python does not see as `Exception`.
"""

import contextlib
import json
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Bpe

from toy.checks import quoted
from toy.files.json_files import parse_json

MOST_BYTES = 48 * 2**20  # the files of the largest vocabularies have about 35 MB
MOST_IDS = 2**20  # the largest vocabularies have about a million
MOST_PARTS = 64  # in a normalizer, pre-tokenizer or decoder
MOST_PREPENDED = 16  # characters
NOT_OF_STORIES = ("truncation", "padding", "post_processor")  # these cut, lengthen or frame a text


def read_tokenizer_json(path: Path, special: Iterable[str]) -> Bpe:
    """Returns the tokenizer of a file without truncation, padding, post-processor and dropout.

    Tokens named in `special` become special. Raises: ValueError naming the file and the fault.
    """
    data = _parsed(path)
    with naming(f"{path}: not a tokenizer"):
        added = _checked(data)
        for name in NOT_OF_STORIES:
            data[name] = None
        if data["model"].get("dropout") is not None:
            data["model"]["dropout"] = None
        for token in added:
            token["special"] = token.get("special") is True or token["content"] in set(special)
        bpe = Bpe.from_str(json.dumps(data))
    for token in added:  # the library renumbers added tokens whose ids leave a gap
        if (found := bpe.token_to_id(token["content"])) != token["id"]:
            raise ValueError(
                f"{path}: added_tokens: {quoted(token['content'])} has the id {token['id']}, which the library "
                f"{'does not read' if found is None else f'reads as {found}'}; number added tokens without a gap"
            )
    return bpe


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Turns errors of the library, also panics, into a ValueError of `what` and the error's first line."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{what}: {quoted(first)}") from None


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path}: not a file")
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    if len(text) > MOST_BYTES:
        raise ValueError(f"{path}: has more than {MOST_BYTES:,} bytes, more than any tokenizer's")
    with naming(f"{path}: not a tokenizer"):
        data = parse_json(text.decode())
        if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
            raise ValueError("expected an object with a model")
        return data


def _checked(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the added tokens. Raises: ValueError for bad ids, and for parts that lengthen a text without bound."""
    vocab, added = data["model"].get("vocab"), data.get("added_tokens") or []
    if not isinstance(vocab, dict | list) or not isinstance(added, list):
        raise ValueError("expected model.vocab and a list of added_tokens")
    if not all(isinstance(token, dict) and isinstance(token.get("content"), str) for token in added):
        raise ValueError("expected added_tokens with a content each")
    ids = (
        list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    )  # the ids of a list are its places
    for number in (*ids, *(token.get("id") for token in added)):
        if type(number) is not int or not 0 <= number < MOST_IDS:
            raise ValueError(f"an id is a whole number from 0 to {MOST_IDS - 1:,}, got {quoted(number)}")
    if len(set(ids)) < len(ids):
        raise ValueError("model.vocab: two pieces have the same id")
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        parts = list(_parts(data.get(name)))
        if len(parts) > MOST_PARTS:
            raise ValueError(f"{name}: has {len(parts)} parts, at most {MOST_PARTS} are read")
        for part in parts:
            _check_part(name, part)
    return added


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """Yields all nested objects that have a type."""
    if isinstance(node, dict):
        if "type" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from _parts(inner)


def _check_part(name: str, part: dict[str, Any]) -> None:
    """Raises: ValueError for replacements that lengthen a text, which can take all memory, or match nothing."""
    if part["type"] == "Replace":
        pattern, content = part.get("pattern"), part.get("content")
        given = pattern.get("String") if isinstance(pattern, dict) else None
        if not isinstance(given, str) or not isinstance(content, str) or not len(given) >= max(1, len(content)):
            raise ValueError(f"{name}: Replace is read only of a text by another that is no longer, not of a pattern")
    if part["type"] == "Prepend" and len(str(part.get("prepend", ""))) > MOST_PREPENDED:
        raise ValueError(f"{name}: Prepend has more than {MOST_PREPENDED} characters")
