"""The Matryoshka objective, in the forms that fit toy and language-model width. `sae_loss` takes the right one.

gram      any prefixes at toy width             sparse    any prefixes of the TopK family, at width
tiled     any prefixes of ReLU SAEs, at width:  topk      which latents are on, for `sparse`
          `few` or `every`, by `tiles`          auxk      the loss of dead latents
"""

from toy.loss.auxk import auxk_mse
from toy.loss.objective import Form, LossParts, choose_form, needs_order, reconstruct, sae_loss
from toy.loss.penalty import Sparsity, sparsity_penalty

__all__ = [
    "Form",
    "LossParts",
    "Sparsity",
    "auxk_mse",
    "choose_form",
    "needs_order",
    "reconstruct",
    "sae_loss",
    "sparsity_penalty",
]
