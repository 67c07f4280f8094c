"""Stories that a language model tells by itself, many at a time, with the keys and values of earlier tokens kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from toy.checks import NOT_NEGATIVE, Whole, check_numbers
from toy.compiled import compiled
from toy.keys import unrolled
from toy.lm.layers import Attention, Heads
from toy.lm.model import LM
from toy.lm.tokens import Rows, Tokenizer

BATCH = 64  # stories at a time …
WIDE_BATCH = 4_096  # … of a GPU, which takes as long for 64
SEGMENT = 128  # places between two growths of the kept keys and values, as attention to all the context takes long

Kept = Float[Array, "batch n_kv d_head room"]  # keys or values of a layer; XLA's CPU backend sums fastest in this order


class _Telling(NamedTuple):
    """Stories that are being told."""

    ids: Int[Array, "batch context"]
    length: Int[Array, " batch"]  # of those that have ended; of others the context
    keys: list[Kept]  # of every layer
    values: list[Kept]


def sample_stories(
    key: Key[Array, ""],
    lm: LM,
    tokenizer: Tokenizer,
    n_stories: int,
    *,
    first: int = 0,
    prompt: str = "",
    temperature: float = 1.0,
    context: int | None = None,
) -> Rows:
    """Stories `first`, first + 1, … up to their end, or to `context` tokens (default: the model's), begin included.

    Story i is a function of the key and i; temperature 0 takes the likeliest tokens. Raises: ValueError naming the
    argument.
    """
    context = lm.cfg.context if context is None else context
    bounds = {"n_stories": Whole(), "first": Whole(0), "temperature": NOT_NEGATIVE, "context": Whole(2, lm.cfg.context)}
    given = {"n_stories": n_stories, "first": first, "temperature": temperature, "context": context}
    check_numbers(given, bounds)
    start = np.array([tokenizer.begin, *tokenizer.encode([prompt])[0]], np.int32)
    if len(start) >= context:
        raise ValueError(f"prompt: {len(start)} tokens leave no room in a context of {context}")
    at_a_time = min(n_stories, BATCH if jax.default_backend() == "cpu" else WIDE_BATCH)
    blank = np.full((at_a_time, context), tokenizer.pad, np.int32)
    blank[:, : len(start)] = start
    told = [
        _told(key, lm, blank, first + done, len(start), temperature, tokenizer.end)
        for done in range(0, n_stories, at_a_time)
    ]
    ids, length = (np.concatenate(part)[:n_stories] for part in zip(*told, strict=True))
    return Rows(ids, length, first + np.arange(n_stories, dtype=np.int32), np.zeros(n_stories, np.int32))


def tell(
    key: Key[Array, ""], lm: LM, tokenizer: Tokenizer, prompt: str, *, n_tokens: int = 80, temperature: float = 0.7
) -> str:
    """One story as text that begins with `prompt`, up to its end or to `n_tokens` more. Raises: as `sample_stories`."""
    n_given = 1 + len(tokenizer.encode([prompt])[0])
    context = min(n_given + n_tokens, lm.cfg.context)
    told = sample_stories(key, lm, tokenizer, 1, prompt=prompt, temperature=temperature, context=context)
    ids = told.ids[0, 1 : told.length[0]]
    return tokenizer.decode(ids[:-1] if ids[-1] == tokenizer.end else ids)


def _told(
    key: Key[Array, ""], lm: LM, blank: np.ndarray, first: int, n_given: int, temperature: float, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ids and lengths of one batch."""
    graph, params = nnx.split(lm, nnx.Param)
    n, context = blank.shape
    nothing = [jnp.zeros((n, lm.cfg.n_kv, lm.cfg.head_size, 0)) for _ in range(lm.cfg.n_layers)]
    telling = _Telling(jnp.asarray(blank), jnp.full(n, context, jnp.int32), nothing, list(nothing))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(unrolled(key), first + jnp.arange(n))
    for place in range(0, context - 1, SEGMENT):
        last = min(place + SEGMENT, context - 1)
        telling = _grown(telling, last - place)
        telling = _continued(keys, params, telling, place, n_given, float(temperature), end, graph=graph)
        if (telling.length <= last).all():
            break
    return np.asarray(telling.ids), np.asarray(telling.length)


def _grown(telling: _Telling, n_more: int) -> _Telling:
    """With room for the keys and values of more tokens."""
    more = ((0, 0), (0, 0), (0, 0), (0, n_more))
    keys, values = ([jnp.pad(kept, more) for kept in all_kept] for all_kept in (telling.keys, telling.values))
    return telling._replace(keys=keys, values=values)


@compiled(static_argnames="graph")
def _continued(
    keys: Key[Array, " batch"],
    params: PyTree,
    telling: _Telling,
    place: Int[Array, ""] | int,
    n_given: Int[Array, ""] | int,
    temperature: Float[Array, ""] | float,
    end: Int[Array, ""] | int,
    *,
    graph: Any,
) -> _Telling:
    """Read the tokens from `place` on, as far as there is room for keys and values, and write after each the next."""
    lm = nnx.merge(graph, params)

    def one(place: Int[Array, ""], telling: _Telling) -> _Telling:
        logits, telling = _logits(lm, telling, place)
        noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, place), logits.shape[1:]))(keys)
        drawn = jnp.argmax(logits + temperature * noise, axis=1).astype(jnp.int32)  # softmax(logits / temperature)
        here = place + 1
        writes = (here >= n_given) & (here < telling.length)
        ids = telling.ids.at[:, here].set(jnp.where(writes, drawn, telling.ids[:, here]))
        return telling._replace(ids=ids, length=jnp.where(writes & (drawn == end), here + 1, telling.length))

    return jax.lax.fori_loop(place, telling.keys[0].shape[-1], one, telling)


def _logits(lm: LM, telling: _Telling, place: Int[Array, ""]) -> tuple[Float[Array, "batch vocab"], _Telling]:
    """The logits of what follows the tokens at `place`, whose keys and values are now kept."""
    positions = place[None]
    resid = lm.embedded(telling.ids[:, positions], positions)
    all_keys, all_values = [], []
    for block, keys, values in zip(lm.blocks, telling.keys, telling.values, strict=True):
        q, k, v = block.attn.heads(block.ln_1(resid), positions)
        keys, values = (kept.at[..., place].set(new[:, 0]) for kept, new in ((keys, k), (values, v)))
        resid = resid + block.attn.written(_seen(block.attn, q, keys, values, place), resid.dtype)
        resid = resid + block.mlp(block.ln_2(resid))
        all_keys.append(keys)
        all_values.append(values)
    logits = lm.logits_from(resid, lm.cfg.n_layers)[:, 0]
    return logits, telling._replace(keys=all_keys, values=all_values)


def _seen(attn: Attention, q: Heads, keys: Kept, values: Kept, place: Int[Array, ""]) -> Heads:
    """Returns what the heads of queries at `place` gather from the places that they see."""
    past = place - jnp.arange(keys.shape[-1])
    visible = (past >= 0) & (past < (keys.shape[-1] if attn.window is None else attn.window))
    grouped = q[:, 0].reshape(len(q), keys.shape[1], -1, q.shape[-1])  # of each head of keys
    scores = jnp.einsum("bkgd,bkdp->bkgp", grouped, keys) * attn.scale
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf))
    return jnp.einsum("bkgp,bkdp->bkgd", weights, values).reshape(q.shape)
