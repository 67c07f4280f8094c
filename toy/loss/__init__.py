"""The Matryoshka objective, in the forms that fit toy and language-model width. `sae_loss` chooses among them.

objective           the loss, and the choice of its form      penalty   sparsity penalties of ReLU SAEs
gram                any prefixes at toy width                 auxk      the loss of dead latents
tiled               ReLU SAEs at width, by                    sparse    the TopK family at width
relu_few_prefixes   a few prefixes, or                        topk      which latents are on, for `sparse`
relu_all_prefixes   every prefix
"""

from toy.loss.auxk import auxk_mse
from toy.loss.gram import gram_mse
from toy.loss.objective import Form, LossParts, acts_mse, choose_form, needs_order, reconstruct, sae_loss
from toy.loss.penalty import Sparsity, log_offset, sparsity_penalty
from toy.loss.sparse import ordered_mse

__all__ = [
    "Form",
    "LossParts",
    "Sparsity",
    "acts_mse",
    "auxk_mse",
    "choose_form",
    "gram_mse",
    "log_offset",
    "needs_order",
    "ordered_mse",
    "reconstruct",
    "sae_loss",
    "sparsity_penalty",
]
