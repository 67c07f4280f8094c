"""The methods: what is trained, and by which loss, through the interface of `toy.methods.method`.

method        the interface, and what it gives a loss    jumprelu      learnt thresholds, and L0 as the penalty
standard      ReLU and a penalty: vanilla, Matryoshka    gated         separate parameters for gate and magnitude
topk          TopK and BatchTopK, with AuxK              constrained   tied, aligned, orthogonal
detached      levels without gradients between them      tied_finish   Matryoshka, then tied, at a held L0 or not
pursuit       matching pursuit                           rotated       Matryoshka, its sparsest rotation, tied
rotation      the search for that rotation               from_file     methods of a user's file
named         methods by their names on a command line

hierarchical_topk: prefixes of each row's own latents, the largest first
"""

from toy.methods.constrained import Aligned, Orthogonal, Tied
from toy.methods.detached import Detached
from toy.methods.from_file import method_facts
from toy.methods.gated import Gated
from toy.methods.hierarchical_topk import HierarchicalTopK
from toy.methods.jumprelu import JumpReLU
from toy.methods.method import Batch, Method
from toy.methods.named import METHODS, Named, named
from toy.methods.standard import STANDARD, Matryoshka, Standard
from toy.methods.topk import TopKFamily

__all__ = [
    "METHODS",
    "STANDARD",
    "Aligned",
    "Batch",
    "Detached",
    "Gated",
    "HierarchicalTopK",
    "JumpReLU",
    "Matryoshka",
    "Method",
    "Named",
    "Orthogonal",
    "Standard",
    "Tied",
    "TopKFamily",
    "method_facts",
    "named",
]
