"""From tokens to a store of activations at several sites, in a random order of rows."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from toy.checks import check_option
from toy.compiled import compiled
from toy.data.shards import DTYPES
from toy.data.store import Store, write_store
from toy.lm.model import LM, Site, acts_at
from toy.lm.tokens import Rows
from toy.lm.weights import model_digest
from toy.training.loop import Progress

BATCH = 32  # rows per forward pass …
WIDE_BATCH = 512  # … of a GPU


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
    """Store the activations of all tokens except begins of stories, with their ids, stories and positions.

    Rows go to shards in a random order, and so do tokens within a shard. `facts` are the caller's (such as the digest
    of the tokenizer); digests of model and rows, dtype, seed and sites are added. Memory: three shards and BATCH rows
    of activations. Raises: ValueError if there is nothing to export.
    """
    if not sites:
        raise ValueError("sites: none is given")
    check_option("dtype", dtype, tuple(DTYPES))
    if not is_exported(rows).any():
        raise ValueError("rows: they hold no token but the begins of stories")
    n_bytes = DTYPES[dtype].itemsize * lm.cfg.d_model * len(sites)
    rows_per_shard = max(1, shard_mb * 2**20 // (n_bytes * rows.ids.shape[1]))
    order = np.random.default_rng(seed).permutation(len(rows.ids))
    parts = np.split(order, np.arange(rows_per_shard, len(order), rows_per_shard))
    made_of = {"model_sha256": model_digest(lm), "rows_sha256": rows.digest()}
    how = {"seed": seed, "dtype": dtype, "sites": [str(site) for site in sites], "shard_mb": shard_mb}
    forward = forward_to(lm, sites)

    def make_shard(i: int) -> dict[str, np.ndarray]:
        return shuffled_acts(forward, rows.take(parts[i]), dtype, np.random.default_rng([seed, i]))

    return write_store(folder, facts | made_of | how, len(parts), make_shard, progress=progress)


Forward = Callable[[Int[np.ndarray, "batch context"]], dict[str, Float[Array, "batch context d_model"]]]


def forward_to(lm: LM, sites: Sequence[Site]) -> Forward:
    """The function from rows of ids to the activations at every site, which runs no layer above the last of them."""
    graph, params = nnx.split(lm, nnx.Param)
    return partial(_acts, params, graph=graph, sites=tuple(sites))


@compiled(static_argnames=("graph", "sites"))
def _acts(
    params: PyTree, ids: Int[Array, "batch context"], *, graph: Any, sites: tuple[Site, ...]
) -> dict[str, Float[Array, "batch context d_model"]]:
    lm = nnx.merge(graph, params)

    def of_rows(rows: Int[Array, "n context"]) -> dict[str, Float[Array, "n context d_model"]]:
        return {str(site): acts for site, acts in acts_at(lm, rows, sites).items()}

    if jax.default_backend() != "cpu":
        return of_rows(ids)
    # One after the other is twice as fast on CPUs, as attention stays in the caches.
    return jax.tree.map(lambda acts: acts[:, 0], jax.lax.map(of_rows, ids[:, None]))


def is_exported(rows: Rows) -> Bool[np.ndarray, "n_rows context"]:
    """True for tokens on whose activations SAEs are trained: all except each story's begin token."""
    exported = rows.real()
    exported[:, 0] &= rows.start > 0  # the begin token is the same in every story
    return exported


def shuffled_acts(forward: Forward, rows: Rows, dtype: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The activations of all exported tokens in a random order, with their `token`, `document` and `position`."""
    exported, batch = is_exported(rows), BATCH if jax.default_backend() == "cpu" else WIDE_BATCH
    order = rng.permutation(int(exported.sum()))
    place = np.argsort(order)  # of each token in the shard
    found: dict[str, np.ndarray] = {}
    n_done = 0
    for first in range(0, len(rows.ids), batch):
        ids, kept = rows.ids[first : first + batch], exported[first : first + batch]
        acts = forward(np.pad(ids, ((0, batch - len(ids)), (0, 0))))  # one shape, so one program
        places = place[n_done : n_done + kept.sum()]
        for name, values in acts.items():
            if name not in found:
                found[name] = np.empty((len(order), values.shape[-1]), DTYPES[dtype])
            found[name][places] = np.asarray(values[: len(ids)].astype(DTYPES[dtype]))[kept]
        n_done += len(places)
    positions = rows.start[:, None] + np.arange(rows.ids.shape[1])
    stories = np.broadcast_to(rows.document[:, None], positions.shape)
    columns = {"token": rows.ids, "document": stories, "position": positions}
    return found | {name: values[exported].astype(np.int32)[order] for name, values in columns.items()}
