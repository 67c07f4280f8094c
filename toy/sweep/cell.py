"""One cell of a sweep: a feature tree, how an SAE is trained on it, and what follows from the two."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from toy import prefixes
from toy.config import Hypers, TrainConfig
from toy.loss import Sparsity
from toy.node import Node
from toy.prefixes import Weighting
from toy.tree import Tree, build_tree, mean_l0
from toy.tree_json import parse_tree
from toy.trees import RandomTree, RegularTree, random_tree, regular_tree

D_IN = 32  # the least; doubled until it holds the features
OBJECTIVES = "vanilla, all, sampled_N, expected_N (N prefixes), balanced_S (share S of the full one)"
MAX_SEED = 2**32 - 1
_HYPERS = Hypers._field_defaults


@dataclass(frozen=True)
class GivenTree:
    """A tree of a file, or a named one."""

    name: str
    text: str  # as JSON


TreeSpec = RegularTree | RandomTree | GivenTree


@dataclass(frozen=True)
class Training:
    """All of a cell that is not its tree."""

    objective: str = "expected_10"
    latents_per_feature: float = 1.0
    l0_ratio: float = 1.0  # the L0 that is aimed at, over the tree's exact mean L0
    d_in: int | None = None  # None: the least of 32, 64, 128, … that holds the features
    max_cosine: float | None = None  # None: orthogonal directions
    norm_std: float = 0.05
    n_steps: int = 5_000
    batch_size: int = 200
    sparsity: Sparsity = "l1"
    learning_rate: float = _HYPERS["learning_rate"]
    b1: float = _HYPERS["b1"]
    b2: float = _HYPERS["b2"]
    clip_norm: float = _HYPERS["clip_norm"]
    sparsity_coef: float = _HYPERS["sparsity_coef"]
    control_rate: float = _HYPERS["control_rate"]
    reinit_below: float = _HYPERS["reinit_below"]
    n_eval_rows: int = 5_000
    seed: int = 0

    def __post_init__(self) -> None:
        make_weighting(self.objective, 2)
        TrainConfig(1, n_steps=self.n_steps, batch_size=self.batch_size, sparsity=self.sparsity)
        for name in ("latents_per_feature", "l0_ratio", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, got {getattr(self, name)}")
        for name in ("norm_std", "sparsity_coef", "control_rate", "reinit_below", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must not be negative, got {getattr(self, name)}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is outside [0, 1)")
        for name in ("d_in", "n_eval_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.max_cosine is not None and not 0 < self.max_cosine <= 1:
            raise ValueError(f"max_cosine: {self.max_cosine} is outside (0, 1]")
        if self.seed > MAX_SEED:
            raise ValueError(f"seed: {self.seed} is above {MAX_SEED}")


class Cell(NamedTuple):
    tree: TreeSpec
    training: Training


@lru_cache(1_024)
def make_weighting(objective: str, n_latents: int) -> Weighting:
    """Arrays of the host. Raises: ValueError if there is no such objective."""
    kind, _, number = objective.partition("_")
    try:
        if objective == "vanilla":
            return prefixes.full(n_latents)
        if objective == "all":
            return prefixes.all_prefixes(n_latents)
        if kind in ("sampled", "expected"):
            return {"sampled": prefixes.sampled, "expected": prefixes.expected}[kind](n_latents, int(number))
        if kind == "balanced":
            return prefixes.balanced(n_latents, float(number))
    except ValueError:
        pass  # no number, or one that cannot be
    raise ValueError(f"objective: expected {OBJECTIVES}, got {objective!r}")


def root_of(spec: TreeSpec) -> Node:
    if isinstance(spec, RegularTree):
        return regular_tree(spec)
    return random_tree(spec) if isinstance(spec, RandomTree) else parse_tree(spec.text)


class Built(NamedTuple):
    """What follows from a cell's tree."""

    tree: Tree
    mean_l0: float


@lru_cache(4_096)
def built(spec: TreeSpec) -> Built:
    """Raises: TreeError if the tree is impossible."""
    tree = build_tree(root_of(spec))
    return Built(tree, mean_l0(tree))


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
    """A cell as JSON knows it; defaults stand in it, too."""
    spec = cell.tree
    if isinstance(spec, GivenTree):
        tree = {"tree": spec.name, "json": json.loads(spec.text)}
    else:
        tree = {"tree": "regular" if isinstance(spec, RegularTree) else "random", **vars(spec)}
    return {"tree": tree, "training": vars(cell.training)}


def cell_digest(cell: Cell) -> str:
    """32 hexadecimal digits that say which cell it is, to any version of the code."""
    return _digest(json.dumps(as_data(cell), sort_keys=True))


def cell_key(cell: Cell, code: str) -> str:
    """A digest of all that determines a cell's numbers: the cell, and the version of the code (`code_version`)."""
    return _digest(f"{cell_digest(cell)} {code}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
