"""The study of trained SAEs: options, features, and training over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from experiments.common.experiment import Work
from experiments.common.memory import FLOAT, check_fits
from experiments.common.seeds import SeedConfig
from experiments.common.tree_option import TREE_OPTION, TreeOption
from toy import prefixes
from toy.checks import NOT_NEGATIVE, POSITIVE, SHARE, Real, Whole, check_fields
from toy.data.source import TreeSource
from toy.features.directions import check_directions, make_directions
from toy.features.node import Node
from toy.features.tree import Tree, build_tree, held_out_key, mean_l0, sample_features
from toy.loss import Sparsity
from toy.methods import STANDARD, Method, Named, Standard, named
from toy.prefixes import Weighting
from toy.sae import SAE, is_finite
from toy.training.config import MAX_STEPS, Hypers, TrainConfig, check_memory
from toy.training.grid import hyper_axes, train_grid, trained_saes
from toy.training.state import TrainState

MOST_SHOWN = 100_000  # rows of a batch that a figure can show, and its record holds
SAES = ("vanilla", "matryoshka")
REFERENCE = TreeOption("reference")
_HYPERS = Hypers._field_defaults
Preset = Literal["default", "post"]
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "post": {
        "n_steps": 20_000,
        "batch_size": 200,
        "learning_rate": 2e-2,
        "sparsity_coef": 1.0,
        "control_rate": 3e-4,
        "reinit_below": 0.3,
    },
}


class Study(NamedTuple):
    """The features of an experiment: one tree, and one dictionary per seed."""

    tree: Tree
    keys: jax.Array  # [n_seeds], of the training runs
    W_feat: np.ndarray  # [n_seeds n_features d_in]


@dataclass(frozen=True)
class TreeConfig(SeedConfig):
    """The features of a study."""

    tree: Annotated[TreeOption, TREE_OPTION] = REFERENCE
    """JSON file of your own tree (see the README), or a named one: reference, three_level, ordering."""
    d_in: int = 30
    """Dimension of the activations."""
    max_cosine: float | None = None
    """Superposition mode: random directions with no |cosine| above this; default: orthogonal ones."""
    norm_std: float = 0.05
    """Standard deviation of the features' norms about 1."""
    n_seeds: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, d_in=Whole(), norm_std=SHARE, max_cosine=Real(above=0, most=1))

    @cached_property
    def study(self) -> Study:
        """The study of the option's tree, made when it is first asked for."""
        return make_study(self, self.tree.tree)


@dataclass(frozen=True)
class StudyConfig(TreeConfig):
    """The training and the measures of a study."""

    preset: Preset = "default"
    """Settings that stand in for those that are not given; post: those for the post's 20,000 steps."""
    n_latents: int | None = None
    """Number of latents; default: the number of features."""
    target_l0: float | None = None
    """L0 that the controller aims at; default: the tree's exact mean L0."""
    n_steps: int = TrainConfig.n_steps
    """Training steps."""
    batch_size: int = TrainConfig.batch_size
    """Rows per training step."""
    sparsity: Sparsity = "l1"
    """Penalty of activations weighted by decoder norm: L1, or the post's logarithm."""
    learning_rate: float = _HYPERS["learning_rate"]
    """Adam's learning rate, between warm-up and cool-down."""
    sparsity_coef: float = _HYPERS["sparsity_coef"]
    """Sparsity coefficient from which the L0 controller starts."""
    control_rate: float = _HYPERS["control_rate"]
    """Relative change of the coefficient per step; 0 keeps it fixed."""
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
    """Prefixes per batch of the Matryoshka SAE, the full one included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_prefixes=Whole())  # the full one is one of them

    @property
    def weightings(self) -> dict[str, str]:
        return {"vanilla": "vanilla", "matryoshka": f"sampled_{self.n_prefixes}"}


@dataclass(frozen=True)
class MethodConfig(PairConfig):
    """A vanilla SAE beside a Matryoshka one, or beside one of another method."""

    method: str = "matryoshka"
    """The method beside vanilla: a name of `toy.methods`, such as tied, or FILE.py:NAME."""

    def __post_init__(self) -> None:
        super().__post_init__()
        named(self.method)
        given = (self.sparsity, self.n_prefixes) != (StudyConfig.sparsity, PairConfig.n_prefixes)
        if given and self.method not in self.weightings:
            raise ValueError(
                "sparsity and n_prefixes: apply to vanilla and matryoshka alone; write them into the name of another "
                "method, as in tied:sparsity=log,weighting=sampled_3"
            )

    def pair(self, tree: Tree) -> dict[str, Named]:
        """The two methods by name, with their weightings; the first two entries of the results have these names."""
        standard = Standard(self.sparsity)
        pair = {name: Named(name, standard, weighting) for name, weighting in self.weightings.items()}
        if self.method not in pair:
            pair = {"vanilla": pair["vanilla"], self.method: named(self.method, target_l0(self, tree))}
        return pair


def check_pair(cfg: MethodConfig) -> Tree:
    """`check_study`, and the same of both methods. Raises: ValueError."""
    tree = check_study(cfg)
    if cfg.method == "vanilla":
        raise ValueError("method: vanilla is the other SAE of the pair; give another method")
    for _, method, _ in cfg.pair(tree).values():
        train_config(cfg, tree, method)
    return tree


def pair_of(results: dict[str, Any]) -> list[str]:
    """The names of the two methods in the results of a `MethodConfig`."""
    return list(results)[:2]


def make_study(cfg: TreeConfig, tree: Tree) -> Study:
    """Directions and keys of every seed, the same whatever the number of seeds."""
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(np.array(cfg.seeds))
    W_feat = make_directions(keys[:, 0], tree.n_features, cfg.d_in, max_cosine=cfg.max_cosine, norm_std=cfg.norm_std)
    return Study(tree, keys[:, 1], np.asarray(W_feat))


def check_features(cfg: TreeConfig, tree: Tree) -> None:
    """Raises: ValueError, before any work, for directions that cannot be or need more memory than there is."""
    check_directions(tree.n_features, cfg.d_in, cfg.max_cosine)
    each = cfg.d_in**2 if cfg.max_cosine is None else tree.n_features * (tree.n_features + cfg.d_in)
    check_fits({"n_seeds and d_in": FLOAT * cfg.n_seeds * each})  # a whole rotation per seed, or all cosines
    if cfg.max_cosine is not None and tree is cfg.tree.tree:
        cfg.study  # noqa: B018  whether it can be reached is known only once it is made


def check_study(cfg: StudyConfig, root: Node | None = None, n_lanes_per_seed: int = 1) -> Tree:
    """Returns the tree. Raises: ValueError as `check_features`, and for SAEs that cannot be trained or measured."""
    tree = cfg.tree.tree if root is None else build_tree(root)
    if not mean_l0(tree):
        raise ValueError(f"tree: no feature of {cfg.tree} is ever on, so nothing can be learnt; raise an active_prob")
    check_features(cfg, tree)
    train_cfg = train_config(cfg, tree)
    check_memory(cfg.d_in, train_cfg, cfg.n_seeds * n_lanes_per_seed)
    per_row = tree.n_features + cfg.d_in + train_cfg.n_latents
    check_fits({"n_eval_rows": 2 * FLOAT * cfg.n_eval_rows * per_row})  # measured in float64
    return tree


def held_out_features(cfg: StudyConfig, tree: Tree) -> np.ndarray:
    """[n_eval_rows n_features] of the first seed, the same for every SAE."""
    return np.asarray(sample_features(held_out_key(jax.random.key(cfg.seed)), tree, cfg.n_eval_rows))


def shown_batch(seed: int, tree: Tree, batch_size: int) -> np.ndarray:
    """A batch without all-zero rows, sorted so that rows with the same features on stand together."""
    features = np.asarray(sample_features(jax.random.key(seed), tree, batch_size))
    features = features[features.any(axis=1)]
    return features[np.lexsort((features > 0).T[::-1])[::-1]]


def train_config(cfg: StudyConfig, tree: Tree, method: Method | None = None) -> TrainConfig:
    """The configuration of a method, by default of the standard SAE with the options' penalty."""
    return TrainConfig(
        n_latents=tree.n_features if cfg.n_latents is None else cfg.n_latents,
        n_steps=cfg.n_steps,
        batch_size=cfg.batch_size,
        method=Standard(cfg.sparsity) if method is None else method,
    )


def target_l0(cfg: StudyConfig, tree: Tree) -> float:
    """L0 that SAEs aim at where their method aims at one."""
    return mean_l0(tree) if cfg.target_l0 is None else cfg.target_l0


def aimed_l0(cfg: StudyConfig, tree: Tree, method: Method = STANDARD) -> float | None:
    """The target L0 of SAEs whose controller is on; None for others."""
    return target_l0(cfg, tree) if cfg.control_rate and method.controls_l0 else None


def make_hypers(cfg: StudyConfig, tree: Tree, prefixes: Weighting, method: Method | None = None) -> Hypers:
    return Hypers(
        prefixes=prefixes,
        target_l0=target_l0(cfg, tree) if method is None or method.aims_at_l0 else None,
        learning_rate=cfg.learning_rate,
        sparsity_coef=cfg.sparsity_coef,
        control_rate=cfg.control_rate,
        reinit_below=cfg.reinit_below,
    )


def train_seeds(cfg: StudyConfig, study: Study, weighting: str, work: Work, method: Method | None = None) -> SAE:
    """The trained SAE of every seed, with a leading axis. Raises: ValueError where training diverged."""
    train_cfg = train_config(cfg, study.tree, method)
    kind, _, n_prefixes = weighting.partition("_")
    if kind == "sampled" and int(n_prefixes) >= train_cfg.n_latents:
        weighting = "all"  # nothing is left to draw: the same weights in every batch
    key = study_options(cfg), weighting, train_cfg.method
    if key in work.trained:
        work(cfg.n_steps)
        return work.trained[key]
    hypers = make_hypers(cfg, study.tree, prefixes.named(weighting, train_cfg.n_latents), method)
    source = TreeSource(study.tree, study.W_feat)  # type: ignore[arg-type]
    in_axes = (TreeSource(None, 0), None)  # type: ignore[arg-type]
    work.compiling()
    state, _ = train_grid(study.keys, source, hypers, cfg=train_cfg, in_axes=in_axes, progress=work)
    return work.trained.setdefault(key, _trained(state, cfg, cfg.seeds))


def train_settings(
    cfg: StudyConfig,
    study: Study,
    hypers: Hypers,
    train_cfg: TrainConfig,
    work: Work,
    columns: Mapping[str, Sequence[float]] | None = None,
    trees: Sequence[Tree] | None = None,
) -> list[SAE]:
    """The trained SAEs of every setting, each with a leading axis of seeds; all are trained in one program.

    A setting has its own values of the `columns` of `hypers`, or a tree of its own in place of the study's, from which
    it differs in mean magnitudes alone. Raises: ValueError where training diverged.
    """
    tree, tree_axes, n_settings = study.tree, None, 1
    if trees is not None:
        magnitudes = np.repeat([one.magnitude_mean for one in trees], cfg.n_seeds, axis=0)
        tree = tree._replace(magnitude_mean=magnitudes)
        tree_axes = Tree(*[None] * len(Tree._fields))._replace(magnitude_mean=0)  # type: ignore[arg-type]
        n_settings = len(trees)
    columns = columns or {}
    for name, values in columns.items():
        hypers = hypers._replace(**{name: np.repeat(np.asarray(values), cfg.n_seeds)})
        n_settings = len(values)
    seeds = np.tile(np.arange(cfg.n_seeds), n_settings)
    work.compiling()
    state, _ = train_grid(
        study.keys[seeds],
        TreeSource(tree, study.W_feat[seeds]),  # type: ignore[arg-type]
        hypers,
        cfg=train_cfg,
        in_axes=(TreeSource(tree_axes, 0), hyper_axes(**dict.fromkeys(columns, 0))),  # type: ignore[arg-type]
        progress=work,
    )
    saes = _trained(state, cfg, [cfg.seeds[i] for i in seeds])
    return [
        jax.tree.map(lambda leaf, first=first: leaf[first : first + cfg.n_seeds], saes)
        for first in range(0, len(seeds), cfg.n_seeds)
    ]


def study_options(cfg: StudyConfig) -> StudyConfig:
    """The options that an experiment shares with other studies."""
    names = {field.name for field in fields(StudyConfig)} - {"preset"}  # whose settings stand in the others
    return StudyConfig(**{name: getattr(cfg, name) for name in names})


def _trained(state: TrainState, cfg: StudyConfig, seeds: list[int]) -> SAE:
    """The SAEs of all lanes, whose seeds are given. Raises: ValueError where training diverged."""
    saes = jax.device_get(trained_saes(state))
    broken = [seed for seed, finite in zip(seeds, is_finite(saes), strict=True) if not finite]
    if broken:
        raise ValueError(
            f"training diverged in {len(broken)} of {len(seeds)} SAEs (the first has seed {broken[0]}); lower "
            f"learning_rate = {cfg.learning_rate:g} or sparsity_coef = {cfg.sparsity_coef:g}"
        )
    return saes
