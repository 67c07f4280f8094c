"""The loss of a language model in which an SAE's reconstruction replaces the activations at a site."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from toy.compiled import compiled
from toy.lm.model import LM, Site, parse_site
from toy.lm.tokens import Rows
from toy.lm.train_lm import row_batches, summed_loss
from toy.sae import RELU, SAE, Activation, decode, encode

BATCH = 32  # rows


def loss_recovered(original: float, reconstruction: float, zero: float) -> float:
    """(zero − reconstruction) / (zero − original): 1 is lossless, 0 as bad as zeros. NaN if zeros cost nothing.

    The losses are mean cross-entropies of the next token, by what replaces the activations at one site.
    """
    return (zero - reconstruction) / (zero - original) if zero > original else float("nan")


def spliced_loss(
    lm: LM,
    rows: Rows,
    site: Site,
    put: SAE | Float[np.ndarray, " d_model"] | None = None,
    activation: Activation = RELU,
) -> float:
    """The loss with `put` at a site: an SAE, whose reconstruction is used; a vector; or None for no replacement.

    Activations of a story's begin token, on which SAEs are not trained, are kept. Raises: ValueError if the model has
    no such site, or `put` has another width.
    """
    parse_site(str(site), lm.cfg.n_layers)
    width = lm.cfg.d_model if put is None else (put.b_dec if isinstance(put, SAE) else put).shape[-1]
    if width != lm.cfg.d_model:
        raise ValueError(f"put: of width {width}, but the model's is {lm.cfg.d_model}")
    graph, params = nnx.split(lm, nnx.Param)
    placed = jnp.asarray(put) if isinstance(put, np.ndarray) else put
    of_batch = partial(_loss, params, placed, graph=graph, site=site, activation=activation)
    begins = np.pad(rows.start == 0, (0, -len(rows.start) % BATCH)).reshape(-1, BATCH)
    batches = zip(row_batches(rows, BATCH), begins, strict=True)
    sums = np.array([of_batch(ids, real, begin) for (ids, real), begin in batches], float)
    total, n_tokens = sums.sum(axis=0)
    return float(total / n_tokens)


@compiled(static_argnames=("graph", "site", "activation"))
def _loss(
    params: PyTree,
    put: SAE | Array | None,
    ids: Int[Array, "batch context"],
    real: Bool[Array, "batch context"],
    begin: Bool[Array, " batch"],
    *,
    graph: Any,
    site: Site,
    activation: Activation,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    def replaced(acts: Float[Array, "batch context d_model"]) -> Float[Array, "batch context d_model"]:
        if not isinstance(put, SAE):
            return jnp.broadcast_to(jnp.asarray(put), acts.shape)
        flat = acts.reshape(-1, acts.shape[-1])
        return decode(put, encode(put, flat, activation)).reshape(acts.shape)

    def tap(where: Site, acts: Float[Array, "batch context d_model"]) -> Float[Array, "batch context d_model"]:
        if put is None or where != site:
            return acts
        is_begin = begin[:, None] & (jnp.arange(acts.shape[1]) == 0)
        return jnp.where(is_begin[:, :, None], acts, replaced(acts))

    return summed_loss(nnx.merge(graph, params), ids, real, tap)
