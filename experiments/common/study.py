"""What the experiments on trained SAEs share: options, features, and training over seeds."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.given import GivenTree, read_given
from experiments.common.memory import check_fits
from toy import prefixes
from toy.checks import MAX_SEED, NOT_NEGATIVE, POSITIVE, SEED, SHARE, Real, Whole, check_fields
from toy.data.source import TreeSource
from toy.features.directions import check_directions, make_directions
from toy.features.named import TREES
from toy.features.node import Node
from toy.features.tree import Tree, build_tree, held_out_key, mean_l0, sample_features
from toy.loss import Sparsity
from toy.prefixes import Weighting
from toy.sae import RELU, SAE, Activation, ReLU
from toy.training.config import Hypers, TrainConfig
from toy.training.grid import train_grid, trained_saes

FLOAT = 4  # bytes
COPIES = 4  # in training: parameters, gradients, and Adam's two moments
MAX_STEPS = 2**31 - 1  # JAX counts them in 32 bits
Progress = Callable[[int], Any]
_HYPERS = Hypers._field_defaults


@dataclass(frozen=True)
class TreeConfig:
    """Which features there are."""

    tree: Path | None = None
    """JSON file of your own tree (see the README), or a named one: reference, three_level, ordering."""
    d_in: int = 30
    """Dimension of the activations."""
    max_cosine: float | None = None
    """Superposition mode: random directions with no |cosine| above this; default: orthogonal ones."""
    norm_std: float = 0.05
    """Standard deviation of the features' norms about 1."""
    seed: int = 0
    """The first seed."""
    n_seeds: int = 32
    """Number of seeds; each has directions, an initialisation and data of its own."""

    def __post_init__(self) -> None:
        check_fields(self, seed=SEED, n_seeds=Whole(), d_in=Whole(), norm_std=SHARE, max_cosine=Real(above=0, most=1))
        last = self.seed + self.n_seeds - 1
        if last > MAX_SEED:
            raise ValueError(f"seed and n_seeds: the last seed, {last}, is more than {MAX_SEED}; lower one of them")

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.n_seeds))


@dataclass(frozen=True)
class StudyConfig(TreeConfig):
    """How the SAEs are trained and measured."""

    n_latents: int | None = None
    """Number of latents; default: the number of features."""
    target_l0: float | None = None
    """L0 that the controller aims at; default: the tree's exact mean L0."""
    n_steps: int = TrainConfig.n_steps
    """Training steps."""
    batch_size: int = TrainConfig.batch_size
    """Rows a training step."""
    sparsity: Sparsity = TrainConfig.sparsity
    """Penalty of activations weighted by decoder norm: L1, or the post's logarithm."""
    learning_rate: float = _HYPERS["learning_rate"]
    """Adam's, between warm-up and cool-down."""
    sparsity_coef: float = _HYPERS["sparsity_coef"]
    """Sparsity coefficient from which the L0 controller starts."""
    control_rate: float = _HYPERS["control_rate"]
    """Relative change of the coefficient a step; 0 keeps it fixed."""
    reinit_below: float = _HYPERS["reinit_below"]
    """Latents that contribute less than this share of the median start anew; 0 turns it off."""
    n_eval_rows: int = 20_000
    """Held-out rows that every SAE is measured on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_latents=Whole(), n_steps=Whole(most=MAX_STEPS), batch_size=Whole(), n_eval_rows=Whole())
        check_fields(self, target_l0=POSITIVE, learning_rate=NOT_NEGATIVE, sparsity_coef=NOT_NEGATIVE)
        check_fields(self, control_rate=Real(least=0, below=1), reinit_below=NOT_NEGATIVE)


@dataclass(frozen=True)
class PairConfig(StudyConfig):
    """A vanilla SAE beside a Matryoshka one."""

    n_prefixes: int = 10
    """Prefixes a batch of the Matryoshka SAE, the full one included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_prefixes=Whole())  # the full one is one of them

    @property
    def weightings(self) -> dict[str, str]:
        return {"vanilla": "vanilla", "matryoshka": f"sampled_{self.n_prefixes}"}


class Study(NamedTuple):
    """The features of an experiment: one tree, one dictionary a seed."""

    root: Node
    tree: Tree
    keys: jax.Array  # [n_seeds]
    W_feat: np.ndarray  # [n_seeds n_features d_in]


def with_tree(cfg: Any) -> Any:
    """The configuration with the tree itself in place of its name, read once; others come back as they are.

    Raises: `TreeError` naming the file.
    """
    if not isinstance(cfg, TreeConfig) or cfg.tree is None or isinstance(cfg.tree, GivenTree):
        return cfg
    return replace(cfg, tree=read_given(cfg.tree))


def load_root(cfg: TreeConfig) -> Node:
    """The configuration's tree; a file is read only where `with_tree` has not done so. Raises: `TreeError`."""
    given = with_tree(cfg).tree
    return TREES["reference"]() if given is None else given.root


def seed_keys(cfg: TreeConfig) -> tuple[jax.Array, jax.Array]:
    """Keys of the directions and of the training runs, one a seed, whatever the number of seeds."""
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(np.array(cfg.seeds))
    return keys[:, 0], keys[:, 1]


def make_study(cfg: TreeConfig, root: Node | None = None) -> Study:
    root = load_root(cfg) if root is None else root
    tree = build_tree(root)
    keys_directions, keys = seed_keys(cfg)
    W_feat = make_directions(
        keys_directions, tree.n_features, cfg.d_in, max_cosine=cfg.max_cosine, norm_std=cfg.norm_std
    )
    return Study(root, tree, keys, np.asarray(W_feat))


def held_out_features(cfg: StudyConfig, tree: Tree) -> np.ndarray:
    """[n_eval_rows n_features] of the first seed, the same for every SAE."""
    return np.asarray(sample_features(held_out_key(jax.random.key(cfg.seed)), tree, cfg.n_eval_rows))


def train_config(cfg: StudyConfig, tree: Tree, activation: Activation = RELU) -> TrainConfig:
    return TrainConfig(
        n_latents=tree.n_features if cfg.n_latents is None else cfg.n_latents,
        n_steps=cfg.n_steps,
        batch_size=cfg.batch_size,
        activation=activation,
        sparsity=cfg.sparsity,
        aux_k=0,  # at toy width weak latents start anew, which does the same for less
    )


def target_l0(cfg: StudyConfig, tree: Tree, activation: Activation = RELU) -> float | None:
    """L0 that the controller of a ReLU SAE aims at; None for the TopK family, which has its k."""
    if not isinstance(activation, ReLU):
        return None
    return mean_l0(tree) if cfg.target_l0 is None else cfg.target_l0


def aimed_l0(cfg: StudyConfig, tree: Tree) -> float | None:
    """The same for ReLU SAEs whose controller is on."""
    return target_l0(cfg, tree) if cfg.control_rate else None


def make_hypers(cfg: StudyConfig, tree: Tree, prefixes: Weighting, activation: Activation = RELU) -> Hypers:
    return Hypers(
        prefixes=prefixes,
        target_l0=target_l0(cfg, tree, activation),
        learning_rate=cfg.learning_rate,
        sparsity_coef=cfg.sparsity_coef,
        control_rate=cfg.control_rate,
        reinit_below=cfg.reinit_below,
    )


_trained: dict[
    tuple[StudyConfig, str, Activation], SAE
] = {}  # several figures show the same SAEs; `python -m experiments`


def train_seeds(
    cfg: StudyConfig, study: Study, weighting: str, progress: Progress, activation: Activation = RELU
) -> SAE:
    """The trained SAE of every seed, with a leading axis. In one process, each is trained only once."""
    train_cfg = train_config(cfg, study.tree, activation)
    kind, _, n_prefixes = weighting.partition("_")
    if kind == "sampled" and int(n_prefixes) >= train_cfg.n_latents:
        weighting = "all"  # nothing is left to draw: the same weights in every batch
    shared = replace(study_options(cfg), tree=GivenTree("", study.root))
    if (shared, weighting, activation) in _trained:
        progress(cfg.n_steps)
    else:
        hypers = make_hypers(cfg, study.tree, prefixes.named(weighting, train_cfg.n_latents), activation)
        source = TreeSource(study.tree, study.W_feat)  # type: ignore[arg-type]
        in_axes = (TreeSource(None, 0), None)  # type: ignore[arg-type]
        state, _ = train_grid(study.keys, source, hypers, cfg=train_cfg, in_axes=in_axes, progress=progress)
        saes = jax.device_get(trained_saes(state))
        check_trained(saes, cfg, cfg.seeds)
        _trained[shared, weighting, activation] = saes
    return _trained[shared, weighting, activation]


def study_options(cfg: StudyConfig) -> StudyConfig:
    """What of an experiment's options is a study's."""
    return StudyConfig(**{field.name: getattr(cfg, field.name) for field in fields(StudyConfig)})


def check_study(cfg: StudyConfig, root: Node | None = None, n_lanes_per_seed: int = 1) -> Tree:
    """Say what is wrong with the options, before any work; gives the tree.

    Raises: ValueError for options that cannot be, or that need more memory than there is.
    """
    root = load_root(cfg) if root is None else root
    tree = build_tree(root)
    if not mean_l0(tree):
        raise ValueError(f"tree: no feature of {cfg.tree} is ever on, so nothing can be learnt; raise an active_prob")
    check_directions(tree.n_features, cfg.d_in, cfg.max_cosine)
    train_cfg = train_config(cfg, tree)
    check_fits(
        least_bytes(cfg, tree.n_features)
        | training_bytes(cfg, tree.n_features, train_cfg.n_latents, cfg.n_seeds * n_lanes_per_seed)
    )
    if cfg.max_cosine is not None:
        make_study(cfg, root)  # whether it can be reached is known only once it is
    return tree


def least_bytes(cfg: TreeConfig, n_features: int) -> dict[str, int]:
    """What the directions of all seeds need, by the options that decide it: a whole rotation each, or all cosines."""
    each = cfg.d_in**2 if cfg.max_cosine is None else n_features * (n_features + cfg.d_in)
    return {"n_seeds and d_in": FLOAT * cfg.n_seeds * each}


def training_bytes(cfg: StudyConfig, n_features: int, n_latents: int, n_lanes: int) -> dict[str, int]:
    """Likewise for training all lanes at once, and for measuring one SAE in float64."""
    parameters = COPIES * n_lanes * 2 * n_latents * cfg.d_in
    per_row = n_features + cfg.d_in + n_latents
    return {
        "n_seeds, n_latents and d_in": FLOAT * parameters,
        "n_seeds and batch_size": FLOAT * n_lanes * cfg.batch_size * per_row,
        "n_eval_rows": 2 * FLOAT * cfg.n_eval_rows * per_row,
    }


def check_trained(saes: SAE, cfg: StudyConfig, seeds: list[int]) -> None:
    """Raises: ValueError where training diverged; `seeds` are those of the lanes."""
    broken = [seed for seed, W_dec in zip(seeds, saes.W_dec, strict=True) if not np.isfinite(W_dec).all()]
    if broken:
        raise ValueError(
            f"training diverged in {len(broken)} of {len(seeds)} SAEs (the first has seed {broken[0]}); lower "
            f"learning_rate = {cfg.learning_rate:g} or sparsity_coef = {cfg.sparsity_coef:g}"
        )
