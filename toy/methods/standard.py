"""ReLU SAEs with a sparsity penalty: the standard SAE, and the Matryoshka SAE, which differs in its prefixes alone."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from toy.loss import LossParts, log_offset
from toy.methods.method import Batch, Method, Params


@dataclass(frozen=True)
class Standard(Method):
    """Squared error and a penalty, whose coefficient is moved until the L0 is the target (`toy.training.controllers`).

    It is the vanilla SAE on the full prefix, and a Matryoshka SAE (Bussmann et al., arXiv 2503.17547) on several.
    """

    pads: ClassVar[bool] = True

    sparsity: str = "l1"  # or log, or log_O with the offset O

    aims_at_l0: ClassVar[bool] = True
    controls_l0: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        log_offset(self.sparsity)  # raises for an unknown name

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        sae = self.sae(params, batch.done)
        return self.reconstruction_loss(sae, batch, sparsity_coef=batch.sparsity_coef, sparsity=self.sparsity)


STANDARD = Standard()


@dataclass(frozen=True)
class Matryoshka(Standard):
    """The standard SAE on the post's ten sampled prefixes, unless a command says others."""

    pads: ClassVar[bool] = True

    weighting: ClassVar[str] = "sampled_10"
