"""The magnitude-ordering failure: a child much larger than its parent is learnt first, and absorbs it.

Claim: latents are ordered by energy, and a child has more than its parent above the magnitude ratio √(p_parent /
p_child). From there on it comes first and the parent has holes in nearly every seed. That ratio is no guarantee: with
P(child | parent) 0.5 most seeds fail well below it, with 0.2 (among lone features) most recover up to a ratio of 1.
Command: python -m experiments.ordering (2 to 4 minutes on 2 shared cores).
Expected, seeds 0 to 9: recovered 0/10 at every ratio above the crossing, in all three trees; at ratio 1, 10/10 in the
tree with P(child | parent) 0.2 and at most 1/10 in the others.
In the post: the comment with parent p 0.3, magnitude 2 and child p 0.15, magnitude 10 (ratio 5). `comment` is that tree
alone; the other two stand among lone features, which set the scale of what is weak.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.measured import against_target, evaluate_seeds, known, missed_clause, missed_targets
from experiments.common.study import (
    Progress,
    StudyConfig,
    aimed_l0,
    check_study,
    check_trained,
    held_out_features,
    load_root,
    make_hypers,
    make_study,
    train_config,
)
from toy import prefixes
from toy.checks import POSITIVE, SHARE, Whole, check_fields
from toy.data.source import TreeSource
from toy.eval.against_tree import Evaluation
from toy.features.named import forest, ordering_tree, scale_children
from toy.features.node import MAX_NODES, Node, TreeError
from toy.features.tree import Tree, build_tree, edges, marginals
from toy.features.tree_json import tree_to_dict
from toy.training.grid import train_grid, trained_saes

FIELDS = ("hole_rate", "recovered", "child_first", "min_cosine")


@dataclass(frozen=True)
class Config(StudyConfig):
    """Options of `ordering`. With `--tree` the children's magnitudes are scaled in that tree instead."""

    n_seeds: int = 10
    ratios: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 5.0, 8.0)
    """Child magnitude / parent magnitude."""
    prob: float = 0.3
    """P(parent)."""
    magnitude: float = 2.0
    """Magnitude of the parent and of the lone features."""
    edge_prob: float = 0.5
    """P(child | parent) of the comment's tree."""
    other_edge_prob: float = 0.2
    """P(child | parent) of the third tree."""
    n_lone: int = 8
    """Number of lone features (p 0.05) of the second and third tree."""
    n_prefixes: int = 10
    """Prefixes a batch, the full one included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratios:
            raise ValueError("ratios: need at least one")
        check_fields(self, ratios=POSITIVE, magnitude=POSITIVE, n_lone=Whole(0, MAX_NODES), n_prefixes=Whole())
        check_fields(self, prob=SHARE, edge_prob=SHARE, other_edge_prob=SHARE)

    def trees(self) -> dict[str, Node]:
        """The trees at ratio 1."""
        if self.tree is not None:
            return {"tree": scale_children(load_root(self), 1.0)}

        def among_lone(edge_prob: float) -> Node:
            pair = ordering_tree(self.prob, edge_prob, self.magnitude, ratio=1.0)
            lone = [Node(0.05, name=f"L{i + 1}", magnitude_mean=self.magnitude) for i in range(self.n_lone)]
            return forest(*pair.children, *lone)

        return {
            "comment": ordering_tree(self.prob, self.edge_prob, self.magnitude, ratio=1.0),
            "among_lone": among_lone(self.edge_prob),
            "among_lone_other_edge": among_lone(self.other_edge_prob),
        }


def check(cfg: Config) -> None:
    for root in cfg.trees().values():
        tree = check_study(cfg, root, n_lanes_per_seed=len(cfg.ratios))
        _check_ratios(cfg, root)
        if not edges(tree):
            raise ValueError(f"--tree {cfg.tree}: no feature has a parent feature, so there is no order to get wrong")


def _check_ratios(cfg: Config, root: Node) -> None:
    for ratio in cfg.ratios:
        try:
            build_tree(scale_children(root, ratio))
        except TreeError as error:
            raise ValueError(f"ratios: {ratio:g} makes a tree that cannot be: {error}") from None


def n_steps(cfg: Config) -> int:
    return cfg.n_steps * (1 if cfg.tree is not None else 3)


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    by_tree = {name: _run_tree(cfg, root, progress) for name, root in cfg.trees().items()}
    first = next(iter(by_tree.values()))
    return {"ratios": cfg.ratios, **{name: first[name] for name in FIELDS}, "trees": by_tree}


def _run_tree(cfg: Config, root: Node, progress: Progress) -> dict[str, Any]:
    """Every ratio and seed in one program: the ratios differ only in the magnitudes of the tree."""
    study, n_ratios = make_study(cfg, root), len(cfg.ratios)
    trees = [build_tree(scale_children(root, ratio)) for ratio in cfg.ratios]
    magnitudes = np.repeat([tree.magnitude_mean for tree in trees], cfg.n_seeds, axis=0)
    source = TreeSource(
        study.tree._replace(magnitude_mean=magnitudes), jnp.tile(jnp.asarray(study.W_feat), (n_ratios, 1, 1))
    )
    shared = Tree(*[None] * len(Tree._fields))  # type: ignore[arg-type]
    in_axes = (TreeSource(shared._replace(magnitude_mean=0), 0), None)  # type: ignore[arg-type]
    train_cfg = train_config(cfg, study.tree)
    hypers = make_hypers(cfg, study.tree, prefixes.named(f"sampled_{cfg.n_prefixes}", train_cfg.n_latents))
    keys = jnp.tile(study.keys, n_ratios)
    state, _ = train_grid(keys, source, hypers, cfg=train_cfg, in_axes=in_axes, progress=progress)
    saes = jax.device_get(trained_saes(state))
    check_trained(saes, cfg, cfg.seeds * n_ratios)
    rows = []
    for i, tree in enumerate(trees):
        seeds = slice(i * cfg.n_seeds, (i + 1) * cfg.n_seeds)
        saes_at_ratio = jax.tree.map(lambda leaf, seeds=seeds: leaf[seeds], saes)
        evaluations = evaluate_seeds(saes_at_ratio, study.W_feat, tree, held_out_features(cfg, tree))
        rows.append([_outcome(evaluation, tree) for evaluation in evaluations])
    return {
        "tree": tree_to_dict(root),
        "energy_crossing": energy_crossings(study.tree),
        **{name: [[seed[name] for seed in row] for row in rows] for name in (*FIELDS, "l0")},
        **against_target([seed["l0"] for row in rows for seed in row], aimed_l0(cfg, study.tree)),
    }


def _outcome(evaluation: Evaluation, tree: Tree) -> dict[str, Any]:
    latent = evaluation.match.latent
    return {
        "hole_rate": evaluation.hole_rate,
        "recovered": evaluation.recovered,
        "child_first": float(np.mean([latent[child] < latent[parent] for parent, child in edges(tree)])),
        "min_cosine": evaluation.min_cosine,
        "l0": evaluation.l0,
    }


def energy_crossings(tree: Tree) -> list[float]:
    """√(p_parent / p_child) of each edge: the ratio at which p · magnitude² of the two is equal."""
    p = marginals(tree)
    return sorted({float(np.sqrt(p[parent] / p[child])) for parent, child in edges(tree) if p[child] > 0})


def summary(record: dict[str, Any]) -> list[str]:
    results, lines = record["results"], []
    for name, tree in results["trees"].items():
        crossing = ", ".join(f"{ratio:.3g}" for ratio in tree["energy_crossing"]) or "–"
        recovered = ", ".join(
            f"{ratio:g}: {sum(row)}/{len(row)}" for ratio, row in zip(results["ratios"], tree["recovered"], strict=True)
        )
        lines.append(f"{name} (energies cross at ratio {crossing}) recovered at ratio {recovered}")
    return lines + missed_targets(results["trees"])


def plot(record: dict[str, Any]) -> Figure:
    results = record["results"]
    with plots.styled(2.7) as figure:
        axes = np.atleast_1d(figure.subplots(1, len(results["trees"]), sharey=True))
        for letter, ax, (name, tree) in zip("abc", axes, results["trees"].items(), strict=False):
            _plot_tree(ax, results["ratios"], tree)
            ax.set_title(f"{letter}  {_title(record['config'], name)}")
        axes[0].set_ylabel("hole rate, or share of seeds")
        axes[-1].legend(loc="center right")
        text = (
            f"{record['config']['n_prefixes']} sampled prefixes; bars: 95% intervals over seeds; dashed: energies cross"
        )
        plots.caption(figure, record, text + missed_clause(results["trees"]))
    return figure


def _title(config: dict[str, Any], name: str) -> str:
    edge = {
        "comment": config["edge_prob"],
        "among_lone": config["edge_prob"],
        "among_lone_other_edge": config["other_edge_prob"],
    }
    if name not in edge:
        return "your tree"
    alone = "the pair alone" if name == "comment" else f"pair and {config['n_lone']} lone"
    return f"P(child | parent) {edge[name]:g},\n    {alone}"


def _plot_tree(ax: Axes, ratios: list[float], tree: dict[str, Any]) -> None:
    for at in tree["energy_crossing"]:
        ax.axvline(at, color="#999999", linewidth=0.9, linestyle="--")
    lines = {
        "hole_rate": ("hole rate", plots.COLOURS["vanilla"], 0.94),
        "child_first": ("child first", plots.COLOURS["other"], 1.0),
        "recovered": ("recovered", plots.COLOURS["matryoshka"], 1.06),
    }
    for field, (label, colour, aside) in lines.items():
        x = np.array(ratios) * aside
        values = [np.array(known(row), float) for row in tree[field]]
        ax.plot(x, [row.mean() if len(row) else np.nan for row in values], color=colour, linewidth=1, label=label)
        for at, row in zip(x, values, strict=True):
            if set(row) <= {0.0, 1.0}:
                plots.share(ax, at, int(row.sum()), len(row), colour, width=0.8)
            else:
                plots.spread(ax, at, list(row), colour, width=0.02 * at)
    ax.set(xscale="log", xlabel="magnitude of child / parent", ylim=(-0.05, 1.05))
    ax.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    ax.minorticks_off()


if __name__ == "__main__":
    main("ordering")
