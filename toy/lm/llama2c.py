"""Files of llama2.c (https://github.com/karpathy/llama2.c): its checkpoints of version 0, and its tokenizers."""

import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, normalizers

from toy.checks import quoted
from toy.lm.llama import llama_from
from toy.lm.model import LM
from toy.lm.tokenizer_json import MOST_BYTES, naming

LLAMA2C = ".bin"  # how its files' names end
SPECIAL = ("<unk>", "<s>", "</s>")
_VERSIONED = int.from_bytes(b"24ka", "little")  # the first number of later versions
_BYTES = [f"<0x{i:02X}>" for i in range(256)]
_REMEDY = "expected a checkpoint that export.py of llama2.c writes with --version 0; copy it again if it is one"


class _Header(NamedTuple):
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int  # negative if the head is not the embedding
    seq_len: int


_HEADER = struct.Struct(f"<{len(_Header._fields)}i")


def read_llama2c(path: Path) -> LM:
    """The model of a checkpoint. Raises: ValueError naming the file and what is wrong with it."""
    try:
        with path.open("rb") as file:
            header = _checked(path, file.read(_HEADER.size))
            numbers = np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    shapes = _shapes(header)
    ends = np.cumsum([0, *(4 * math.prod(shape) for shape in shapes.values())], dtype=object)
    if len(numbers) != ends[-1]:
        has = f"has {len(numbers):,} bytes after its header, which implies {ends[-1]:,}"
        raise ValueError(f"{path}: {has}: {_REMEDY}")
    parts = zip(shapes.items(), ends[:-1], ends[1:], strict=True)
    tensors = {name: numbers[first:end].view("<f4").reshape(shape) for (name, shape), first, end in parts}
    return llama_from(_named(tensors), _config(header), adjoining=True)


def _checked(path: Path, start: bytes) -> _Header:
    if len(start) < _HEADER.size:
        raise ValueError(f"{path}: has only {len(start)} bytes: {_REMEDY}")
    header = _Header(*_HEADER.unpack(start))
    if header.dim == _VERSIONED:
        raise ValueError(f"{path}: a checkpoint of version {header.hidden_dim}: {_REMEDY}")
    sizes = header._replace(vocab_size=abs(header.vocab_size))
    if min(sizes) < 1 or sizes.dim % sizes.n_heads:
        raise ValueError(f"{path}: not of llama2.c: its header says {quoted(header._asdict())}: {_REMEDY}")
    return header


def _shapes(header: _Header) -> dict[str, tuple[int, ...]]:
    """The tensors in the order of the file, by their names in Transformers; those of layers lead with the layer."""
    n, d, hidden, d_head = header.n_layers, header.dim, header.hidden_dim, header.dim // header.n_heads
    d_kv, vocab, angles = header.n_kv_heads * d_head, abs(header.vocab_size), (header.seq_len, d_head // 2)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (vocab, d),
        "input_layernorm": (n, d),
        "self_attn.q_proj": (n, d, d),
        "self_attn.k_proj": (n, d_kv, d),
        "self_attn.v_proj": (n, d_kv, d),
        "self_attn.o_proj": (n, d, d),
        "post_attention_layernorm": (n, d),
        "mlp.gate_proj": (n, hidden, d),
        "mlp.down_proj": (n, d, hidden),
        "mlp.up_proj": (n, hidden, d),
        "model.norm": (d,),
        "cosines": angles,  # both follow from the positions
        "sines": angles,
    }
    return shapes if header.vocab_size > 0 else shapes | {"lm_head": (vocab, d)}


def _named(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under the names of Transformers, those of each layer by themselves; angles are left out."""
    state: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        if name.startswith(("model.", "lm_head")):
            state[f"{name}.weight"] = values
        elif name not in ("cosines", "sines"):
            state |= {f"model.layers.{i}.{name}.weight": of_layer for i, of_layer in enumerate(values)}
    return state


def _config(header: _Header) -> dict[str, int | float | bool]:
    """The settings under the names of Transformers."""
    return {
        "vocab_size": abs(header.vocab_size),
        "max_position_embeddings": header.seq_len,
        "num_hidden_layers": header.n_layers,
        "hidden_size": header.dim,
        "num_attention_heads": header.n_heads,
        "num_key_value_heads": header.n_kv_heads,
        "intermediate_size": header.hidden_dim,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": header.vocab_size > 0,
    }


def read_llama2c_tokenizer(path: Path) -> Bpe:
    """The BPE of a tokenizer file. Raises: ValueError naming the file.

    llama2.c puts a space before a text and then joins the neighbours whose joint piece has the best score. That is a
    BPE whose merges are ordered by score. Characters without a piece become their bytes.
    """
    pieces = _pieces(path)
    names = [*SPECIAL, *_BYTES, *(piece for piece, _ in pieces[len(SPECIAL) + 256 :])]
    scores = {piece: score for piece, score in pieces[len(SPECIAL) + 256 :]}
    with naming(f"{path}: not a tokenizer"):
        model = models.BPE(
            {name: i for i, name in enumerate(names)}, _merges(scores), unk_token=SPECIAL[0], byte_fallback=True
        )
        bpe = Bpe(model)
    bpe.normalizer = normalizers.Prepend(" ")  # type: ignore[assignment]
    parts = [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(parts)  # type: ignore[assignment]
    bpe.add_special_tokens(list(SPECIAL))
    bpe.encode_special_tokens = True  # their names within a story are ordinary text
    return bpe


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the best score first."""
    best_first = sorted(scores, key=lambda piece: -scores[piece])
    halves = ((piece[:i], piece[i:]) for piece in best_first for i in range(1, len(piece)))
    return [(left, right) for left, right in halves if left in scores and right in scores]


def _pieces(path: Path) -> list[tuple[str, float]]:
    """The text and the score of each id."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    remedy = "expected a tokenizer that tokenizer.py of llama2.c writes; copy it again if it is one"
    try:
        pieces = _parsed(content)
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path}: not a tokenizer: {quoted(str(error))}: {remedy}") from None
    if [piece for piece, _ in pieces[len(SPECIAL) : len(SPECIAL) + 256]] != _BYTES:
        raise ValueError(f"{path}: not a tokenizer: its ids 3 to 258 are not the bytes: {remedy}")
    if len({piece for piece, _ in pieces}) < len(pieces):
        raise ValueError(f"{path}: not a tokenizer: two of its pieces are the same: {remedy}")
    return pieces


def _parsed(content: bytes) -> list[tuple[str, float]]:
    if len(content) > MOST_BYTES:
        raise ValueError(f"has more than {MOST_BYTES:,} bytes")
    pieces, place = [], 4  # after the length of the longest piece
    while place < len(content):
        score, n_bytes = struct.unpack_from("<fi", content, place)
        place += 8
        if not 0 < n_bytes <= len(content) - place or not math.isfinite(score):
            raise ValueError(f"id {len(pieces)} has {n_bytes} bytes and the score {score}")
        pieces.append((content[place : place + n_bytes].decode(), score))
        place += n_bytes
    return pieces
