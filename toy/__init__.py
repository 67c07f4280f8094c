"""Matryoshka SAEs on features that form trees: the names that most programs need. The rest of the package is

features/           the ground truth: trees, their JSON, their exact statistics, directions
sae.py              the SAE and its activations
prefixes.py         which prefixes are trained, and their weights
inclusion.py        how often each prefix is drawn, exactly
methods/            what is trained, and by which loss
loss/               the Matryoshka objective
training/           the trainer of one run and of many
data/               sources and streams of activations
eval/               metrics, with and without a ground truth
lm/                 language models, of TinyStories and others such as SmolLM2
interop/            SAEs of other libraries
theory/             when a hierarchy can be found: exact objectives of small trees
files/              formats of files, and how they are written whole or not at all
io.py               the functions that read and write the library's files
checks.py           checks of a user's numbers, and text for messages
decompositions.py   decompositions of small matrices
keys.py             keys from which a CPU draws random numbers faster
compiled.py         compiled programs that notice when a function is replaced
"""

from toy import methods, prefixes
from toy.data.source import ArraySource, TreeSource
from toy.data.stream import ShardSource
from toy.eval.against_tree import evaluate
from toy.features.directions import make_directions
from toy.features.named import forest, reference_tree
from toy.features.node import Node
from toy.features.tree import build_tree, mean_l0, sample_features
from toy.io import load_tree, read_sae, save_tree, write_sae
from toy.sae import SAE, BatchTopK, TopK
from toy.training.config import Hypers, TrainConfig
from toy.training.grid import train_grid, trained_saes
from toy.training.run import train
from toy.training.state import trained_sae
