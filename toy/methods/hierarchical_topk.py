"""HierarchicalTopK: prefixes of each row's own latents, the largest first, in place of prefixes of the dictionary."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from toy.checks import Whole, check_fields
from toy.loss import LossParts, ordered_mse
from toy.loss.products import in_full
from toy.loss.tiled import full_mse
from toy.loss.topk import select
from toy.methods.method import Batch
from toy.methods.topk import TopKFamily
from toy.sae import SAE, TopK, decoder_norms, encode, keep_largest


@dataclass(frozen=True)
class HierarchicalTopK(TopKFamily):
    """The squared error averaged over the 1, 2, … `levels` − 1 largest latents of a row, and all that are on.

    With TopK and as many levels as latents that are on it is the loss of Balagansky et al. (arXiv 2505.24473). A latent
    has no place of its own in it, so the weighting of prefixes is ignored.
    """

    pads: ClassVar[bool] = True

    levels: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, levels=Whole())

    def reconstruction_loss(self, sae: SAE, batch: Batch, **options: Any) -> tuple[Float[Array, ""], LossParts]:
        _, parts = super().reconstruction_loss(sae, batch, **options)
        mse = self._dense(sae, batch.x) if batch.form == "gram" else self._by_slots(sae, batch.x)
        return mse, parts._replace(mse=mse)

    def _dense(self, sae: SAE, x: Float[Array, "batch d_in"]) -> Float[Array, ""]:
        """A decoding for every level, which is the fastest at toy width."""
        acts, norms = encode(sae, x, self.kept), decoder_norms(sae)
        levels = [*(keep_largest(acts, norms, TopK(n)) for n in range(1, self.levels)), acts]
        return jnp.mean(jnp.stack([full_mse(kept, sae.W_dec, x - sae.b_dec) for kept in levels]))

    def _by_slots(self, sae: SAE, x: Float[Array, "batch d_in"]) -> Float[Array, ""]:
        """All levels for the price of one: the slots of a row stand in the order of their sizes."""
        norms = decoder_norms(sae._replace(W_dec=in_full(sae.W_dec)))
        values, latents, _ = select(x.astype(sae.W_enc.dtype), sae.W_enc, sae.b_enc, norms, self.kept)
        held = 1 - jnp.minimum(jnp.arange(values.shape[1]), self.levels - 1) / self.levels
        held = jnp.broadcast_to(held.astype(norms.dtype), values.shape)
        return ordered_mse(values, sae.W_dec, in_full(x) - in_full(sae.b_dec), latents, held)
