"""What an SAE's reconstruction costs the language model, when it stands in for the activations at a site."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from toy.lm.model import LM, Site
from toy.lm.tokens import Rows
from toy.lm.train_lm import row_batches, summed_loss
from toy.sae import RELU, SAE, Activation, decode, encode


class SplicedLoss(NamedTuple):
    """Mean cross-entropy of the next token, in nats, with these in place of the activations at one site."""

    original: float
    reconstruction: float
    zero: float
    mean: float  # of the activations at that site

    def recovered(self) -> float:
        """(zero − reconstruction) / (zero − original): 1 is a lossless SAE, 0 one as bad as zeros.

        NaN where zeros cost nothing, so that there is nothing to recover.
        """
        cost = self.zero - self.original
        return (self.zero - self.reconstruction) / cost if cost > 0 else float("nan")


def spliced_loss(
    lm: LM,
    rows: Rows,
    site: Site,
    put: SAE | Float[np.ndarray, " d_model"] | None = None,
    activation: Activation = RELU,
    batch_size: int = 32,
) -> float:
    """One of the above: `put` is an SAE, whose reconstruction replaces the activations; a vector; or None: nothing.

    A row's first position (the begin token, which SAEs are not trained on) is left as it is.
    """
    graph, params = nnx.split(lm, nnx.Param)
    placed = jnp.asarray(put) if isinstance(put, np.ndarray) else put
    of_batch = partial(_loss, params, placed, graph=graph, site=site, activation=activation)
    sums = np.array([of_batch(ids, real) for ids, real in row_batches(rows, batch_size)], float)
    total, n_tokens = sums.sum(axis=0)
    return float(total / n_tokens)


@partial(jax.jit, static_argnames=("graph", "site", "activation"))
def _loss(
    params: PyTree,
    put: SAE | Array | None,
    ids: Int[Array, "batch context"],
    real: Bool[Array, "batch context"],
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
        return acts.at[:, 1:].set(replaced(acts)[:, 1:]) if put is not None and where == site else acts

    return summed_loss(nnx.merge(graph, params), ids, real, tap)
