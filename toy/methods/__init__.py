"""What is trained, and by which loss: every method through the interface of `toy.methods.method`.

method     the interface, and what it gives a loss
standard   ReLU SAEs with a penalty: vanilla and Matryoshka        topk   TopK and BatchTopK, with AuxK
"""

from toy.methods.method import Batch, Method
from toy.methods.standard import Matryoshka, Standard
from toy.methods.topk import TopKFamily

__all__ = ["Batch", "Matryoshka", "Method", "Standard", "TopKFamily"]
