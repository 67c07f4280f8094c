"""One cell of a sweep: a feature tree, the training of an SAE on it, and what follows from the two."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from toy import prefixes
from toy.checks import SEED, Real, Whole, check_numbers, check_option
from toy.features.named import RandomTree, RegularTree, random_tree, regular_tree
from toy.features.node import Node, TreeError
from toy.features.tree import Tree, build_tree, mean_l0
from toy.features.tree_json import parse_tree
from toy.loss import Sparsity
from toy.methods import Method, Named, Standard, method_facts, named
from toy.training.config import Hypers, TrainConfig

D_IN = 32  # the least; doubled until it holds the features
_HYPERS = Hypers._field_defaults
_MOST_FLOAT32 = float(np.finfo(np.float32).max)  # as which they are trained with
_UP_TO_FLOAT32 = Real(least=0, most=_MOST_FLOAT32)


@dataclass(frozen=True)
class GivenTree:
    """A tree of a file, or a named one."""

    name: str
    text: str  # as JSON


TreeSpec = RegularTree | RandomTree | GivenTree
Start = Literal["random", "features"]


@dataclass(frozen=True)
class Training:
    """All of a cell that is not its tree."""

    weighting: str = "expected_10"  # of the prefixes
    latents_per_feature: float = 1.0
    l0_ratio: float = 1.0  # the L0 that is aimed at, over the tree's exact mean L0
    d_in: int | None = None  # None: the least of 32, 64, 128, … that holds the features
    max_cosine: float | None = None  # None: orthogonal directions
    norm_std: float = 0.05
    n_steps: int = 5_000
    batch_size: int = 200
    sparsity: Sparsity = "l1"
    method: str | None = None  # as `toy.methods.named` reads it, with its own weighting; None: the standard SAE
    learning_rate: float = _HYPERS["learning_rate"]
    b1: float = _HYPERS["b1"]
    b2: float = _HYPERS["b2"]
    clip_norm: float = _HYPERS["clip_norm"]
    sparsity_coef: float = _HYPERS["sparsity_coef"]
    control_rate: float = _HYPERS["control_rate"]
    reinit_below: float = _HYPERS["reinit_below"]
    n_eval_rows: int = 5_000
    seed: int = 0
    start: Start = "random"  # or the features, parents before their children, a latent each: this uses the truth
    most_lanes: int | None = None  # cells that are trained at once (None: 32), on which the last bits depend

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            _check_number(name, getattr(self, name))
        check_option("start", self.start, get_args(Start))
        prefixes.named(self.weighting, 2)
        if self.method is not None:
            named(self.method)
        train_config(1, self.n_steps, self.batch_size, Standard(self.sparsity))


_NUMBERS = {  # of a training, and what they may be
    "latents_per_feature": Real(above=0, most=1e9),
    "l0_ratio": Real(above=0, most=1e9),
    "d_in": Whole(),
    "max_cosine": Real(above=0, most=1),
    "norm_std": _UP_TO_FLOAT32,
    "n_steps": Whole(most=10**9),
    "batch_size": Whole(most=10**9),
    "learning_rate": Real(above=0, most=_MOST_FLOAT32),
    "b1": Real(least=0, below=1),
    "b2": Real(least=0, below=1),
    "clip_norm": Real(above=0, most=_MOST_FLOAT32),
    "sparsity_coef": _UP_TO_FLOAT32,
    "control_rate": Real(least=0, below=1),
    "reinit_below": _UP_TO_FLOAT32,
    "n_eval_rows": Whole(most=10**9),
    "seed": SEED,
    "most_lanes": Whole(most=1_024),
}


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, int | float | None):  # a sweep has few different ones, and many cells
        _check_number_once(name, value)
    else:
        check_numbers({name: value}, {name: _NUMBERS[name]})


@lru_cache(4_096, typed=True)
def _check_number_once(name: str, value: float | None) -> None:
    check_numbers({name: value}, {name: _NUMBERS[name]})


@lru_cache(1_024, typed=True)
def train_config(n_latents: int, n_steps: int, batch_size: int, method: Method) -> TrainConfig:
    """Made once for all cells that share it. Raises: ValueError."""
    return TrainConfig(n_latents, n_steps=n_steps, batch_size=batch_size, method=method)


class Cell(NamedTuple):
    tree: TreeSpec
    training: Training


def root_of(spec: TreeSpec) -> Node:
    if isinstance(spec, RegularTree):
        return regular_tree(spec)
    return random_tree(spec) if isinstance(spec, RandomTree) else parse_tree(spec.text)


class Built(NamedTuple):
    """The arrays and numbers that follow from a cell's tree."""

    tree: Tree
    mean_l0: float


@lru_cache(4_096)
def built(spec: TreeSpec) -> Built:
    """Raises: TreeError if the tree is impossible."""
    tree = build_tree(root_of(spec))
    return Built(tree, mean_l0(tree))


def method_of(cell: Cell) -> Named:
    """The cell's method, with the weighting of its prefixes."""
    training = cell.training
    if training.method is None:
        return Named("standard", Standard(training.sparsity), training.weighting)
    return named(training.method, target_l0(cell))


def n_latents(cell: Cell) -> int:
    return max(1, round(cell.training.latents_per_feature * built(cell.tree).tree.n_features))


def target_l0(cell: Cell) -> float:
    return cell.training.l0_ratio * built(cell.tree).mean_l0


def d_in(cell: Cell) -> int:
    if cell.training.d_in is not None:
        return cell.training.d_in
    n_features, d = built(cell.tree).tree.n_features, D_IN
    while d < n_features:
        d *= 2
    return d


def as_data(cell: Cell) -> dict:
    """A cell as plain JSON, defaults included."""
    spec = cell.tree
    if isinstance(spec, GivenTree):
        tree = {"tree": spec.name, "json": json.loads(spec.text)}
    else:
        tree = {"tree": "regular" if isinstance(spec, RegularTree) else "random", **vars(spec)}
    training = dict(vars(cell.training))
    if cell.training.most_lanes is None:  # keeps digests from before this field existed
        del training["most_lanes"]
    if cell.training.start == "random":  # likewise
        del training["start"]
    if cell.training.method is None:  # likewise
        del training["method"]
    else:
        training["method"] = method_facts(_method_of_any(cell)) | {"name": cell.training.method}
    return {"tree": tree, "training": training}


def _method_of_any(cell: Cell) -> Method:
    """The cell's method, also where its tree is impossible and so has no L0."""
    try:
        return method_of(cell).method
    except TreeError:
        return named(cell.training.method or "").method


def cell_digest(cell: Cell) -> str:
    """32 hexadecimal digits that say which cell it is, to any version of the code.

    It is made with the name `objective` that weightings once had, since records and commands hold such digests.
    """
    data = as_data(cell)
    named = {"objective" if name == "weighting" else name: value for name, value in data["training"].items()}
    return _digest(json.dumps({**data, "training": named}, sort_keys=True))


def cell_key(cell: Cell, code: str) -> str:
    """A digest of all that determines a cell's numbers: the cell, and the version of the code (`code_version`)."""
    return _digest(f"{cell_digest(cell)} {code}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
