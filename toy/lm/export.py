"""From tokens to a store of activations: every site in one pass, in a random order of rows, a shard at a time."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from toy.lm.model import LM, Site, acts_at
from toy.lm.tokens import Rows
from toy.loop import Progress
from toy.store import Store, write_store

BATCH = 32  # rows in memory at once, beside one shard


def export_activations(
    folder: Path,
    lm: LM,
    rows: Rows,
    sites: Sequence[Site],
    *,
    facts: dict[str, Any],
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    seed: int = 0,
    shard_mb: int = 64,
    progress: Progress | None = None,
) -> Store:
    """Activations at every site of every token but a story's begin; with them its id, story and position in the story.

    Rows go to shards in a random order, tokens within a shard too. `facts` say what the activations are of (digests of
    model, tokenizer, text); dtype, seed and sites are added. Memory: one shard and BATCH rows of activations.
    """
    if not sites:
        raise ValueError("sites: none is given")
    n_bytes = {"float32": 4, "bfloat16": 2}[dtype] * lm.cfg.d_model * len(sites)
    rows_a_shard = max(1, shard_mb * 2**20 // (n_bytes * rows.ids.shape[1]))
    order = np.random.default_rng(seed).permutation(len(rows.ids))
    parts = np.split(order, np.arange(rows_a_shard, len(order), rows_a_shard))
    facts = facts | {"seed": seed, "dtype": dtype, "sites": [str(site) for site in sites], "shard_mb": shard_mb}
    graph, params = nnx.split(lm, nnx.Param)
    forward = partial(_acts, params, graph=graph, sites=tuple(sites))

    def make_shard(i: int) -> dict[str, np.ndarray]:
        return _shard(forward, Rows(*(column[parts[i]] for column in rows)), dtype, np.random.default_rng([seed, i]))

    return write_store(folder, facts, len(parts), make_shard, progress=progress)


@partial(jax.jit, static_argnames=("graph", "sites"))
def _acts(
    params: PyTree, ids: Int[Array, "batch context"], *, graph: Any, sites: tuple[Site, ...]
) -> dict[str, Float[Array, "batch context d_model"]]:
    return {str(site): acts for site, acts in acts_at(nnx.merge(graph, params), ids, sites).items()}


def _shard(forward: Any, rows: Rows, dtype: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    told = rows.real()
    told[:, 0] &= rows.start > 0  # a begin is the same in every story
    order = rng.permutation(int(told.sum()))
    found: dict[str, list[np.ndarray]] = {}
    for first in range(0, len(rows.ids), BATCH):
        ids, kept = rows.ids[first : first + BATCH], told[first : first + BATCH]
        acts = forward(np.pad(ids, ((0, BATCH - len(ids)), (0, 0))))  # one shape, so one program
        for name, values in acts.items():
            found.setdefault(name, []).append(np.asarray(values[: len(ids)])[kept].astype(jnp.dtype(dtype)))
    places = rows.start[:, None] + np.arange(rows.ids.shape[1])
    stories = np.broadcast_to(rows.document[:, None], places.shape)
    columns = {"token": rows.ids, "document": stories, "position": places}
    return {name: np.concatenate(parts)[order] for name, parts in found.items()} | {
        name: values[told].astype(np.int32)[order] for name, values in columns.items()
    }
