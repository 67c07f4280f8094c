"""The TopK family: SAEs whose latents are the largest of a sample (TopK) or of a batch (BatchTopK)."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from toy.checks import Whole, check_fields
from toy.loss import Form, LossParts, auxk_mse
from toy.methods.method import Batch, Memory, Method, Params
from toy.sae import RELU, SAE, Activation, BatchTopK, TopK, decoder_norms, has_encoder

THRESHOLD_RATE = 0.02
MAX_AUX_K = 2**24
ONE = BatchTopK(1)


class Kept(NamedTuple):
    """Arrays that the TopK family keeps between steps."""

    threshold: Float[Array, "*lanes"] | None  # of BatchTopK, on activation · decoder norm
    silent: Int[Array, "*lanes n_latents"] | None  # with AuxK, the number of steps since a latent was on


@dataclass(frozen=True)
class TopKFamily(Method):
    """The squared error alone, since the number of latents that are on is given; dead latents learn by AuxK.

    Sources: Gao et al. (arXiv 2406.04093) for TopK and AuxK, Bussmann et al. (arXiv 2412.06410) for BatchTopK, whose
    batch is replaced by a threshold once it is trained.
    """

    pads: ClassVar[bool] = True

    kept: TopK | BatchTopK
    aux_k: int | None = None  # dead latents that AuxK trains per sample; None: d_in / 2; 0 turns AuxK off
    dead_after: int = 1_000  # steps without being on, after which AuxK trains a latent

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, aux_k=Whole(0, MAX_AUX_K), dead_after=Whole(most=2**31 - 1))

    @property
    def activation(self) -> Activation:
        return self.kept

    @property
    def inference(self) -> Activation:
        """BatchTopK's SAE has a threshold in place of its batch."""
        return self.kept if isinstance(self.kept, TopK) else RELU

    def n_aux(self, d_in: int, n_latents: int) -> int:
        """The number of dead latents that AuxK trains per sample."""
        return min(n_latents, max(1, d_in // 2) if self.aux_k is None else self.aux_k)

    def init_memory(self, d_in: int, n_latents: int) -> Memory:
        return Kept(
            threshold=jnp.ones(()) if isinstance(self.kept, BatchTopK) else None,
            silent=jnp.zeros(n_latents, jnp.int32) if self.n_aux(d_in, n_latents) else None,
        )

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        sae, (threshold, silent) = self.sae(params, batch.done), batch.memory
        loss, parts = self.reconstruction_loss(sae, batch, threshold=0.0 if threshold is None else threshold)
        if silent is not None:
            k = self.n_aux(batch.x.shape[1], len(silent))
            dead = (silent >= self.dead_after) & has_encoder(sae)  # padding is never on, and none is to learn
            loss += batch.aux_coef * auxk_mse(sae, batch.x, dead, activation=self.kept, form=batch.form, k=k)
        return loss, parts

    def remember(self, memory: Memory, parts: LossParts, lr_share: Float[Array, ""]) -> Memory:
        threshold, silent = memory
        if silent is not None:
            silent = jnp.where(parts.contribution > 0, 0, silent + 1)
        if threshold is not None:  # moves with the learning rate, so that it settles with the SAE
            threshold = control_threshold(threshold, parts.l0_over_threshold, parts.l0, THRESHOLD_RATE * lr_share)
        return Kept(threshold, silent)

    def export(self, params: Params, memory: Memory) -> SAE:
        sae = self.sae(params)
        if memory.threshold is None:
            return sae
        return sae._replace(threshold=memory.threshold / jnp.maximum(decoder_norms(sae), 1e-12))

    def check(self, n_latents: int) -> None:
        if self.kept.k > n_latents:
            raise ValueError(f"method: k = {self.kept.k} is more than n_latents = {n_latents}")


@dataclass(frozen=True)
class TargetedBatchTopK(TopKFamily):
    """BatchTopK whose k is the run's target L0, so that runs with different targets share a compiled program."""

    pads: ClassVar[bool] = True

    kept: TopK | BatchTopK = ONE  # in place of which the target stands

    aims_at_l0: ClassVar[bool] = True

    def at(self, target_l0: Float[Array, ""] | float | None) -> TopKFamily:
        """The method for one target."""
        assert target_l0 is not None
        return TopKFamily(BatchTopK(target_l0), self.aux_k, self.dead_after)

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        return self.at(batch.target_l0).loss(params, batch)

    def reconstruct(
        self,
        params: Params,
        x: Float[Array, "batch d_in"],
        done: Float[Array, ""],
        form: Form,
        target_l0: Float[Array, ""] | float | None = None,
    ) -> Float[Array, "batch d_in"]:
        return self.at(target_l0).reconstruct(params, x, done, form)

    def form(self, n_latents: int, given: Form | None) -> Form:
        if super().form(n_latents, given) == "wide":
            raise ValueError(f"method: with n_latents = {n_latents:,} in the wide form, give k, as in batchtopk:k=32")
        return "gram"


def control_threshold(
    threshold: Float[Array, ""],
    l0_over_threshold: Float[Array, ""],
    l0: Float[Array, ""],
    rate: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Raises the threshold where more latents exceed it than are on in training, lowers it where fewer do.

    Both then have the same L0 on average. A running mean of each batch's smallest activation that is on, as in SAELens
    and dictionary_learning, fails where activations have a gap, since the mean lies outside of the gap.
    """
    return threshold * (1 + rate * jnp.clip((l0_over_threshold - l0) / jnp.maximum(l0, 1e-12), -1, 1))
