"""The magnitude-ordering failure: a child much larger than its parent is learnt first, and absorbs it.

Claim: latents are ordered by energy, and a child has more than its parent above the magnitude ratio √(p_parent /
p_child). From there on it comes first and the parent has holes in most seeds. Below it nothing is certain: with
P(child | parent) 0.5 most seeds fail, with 0.2 (among lone features) nearly all recover from 0.7 to 1.
Command: python -m experiments.ordering (about 1 minute on 2 cores).
Expected, seeds 0 to 31: recovered 0/32 at ratio 5, in all trees; at ratio 1, 30/32 in the tree with P(child | parent)
0.2, and 2/32 and 6/32 in the others.
In the post: the comment with parent p 0.3, magnitude 2 and child p 0.15, magnitude 10 (ratio 5). `comment` is that tree
alone; the other two stand among lone features, which set the scale of what is weak.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import against_target, caption_text, evaluate_seeds, known, missed_targets
from experiments.common.study import (
    Study,
    StudyConfig,
    aimed_l0,
    check_study,
    held_out_features,
    make_hypers,
    make_study,
    train_config,
    train_settings,
)
from experiments.common.tree_option import TREE_OPTION, TreeOption
from toy import prefixes
from toy.checks import POSITIVE, SHARE, Whole, check_fields, check_some
from toy.eval.against_tree import Evaluation
from toy.features.named import forest, ordering_tree, scale_children
from toy.features.node import MAX_NODES, Node, TreeError
from toy.features.tree import Tree, build_tree, edges, marginals
from toy.features.tree_json import tree_to_dict

COMMENT = TreeOption("ordering")
FIELDS = ("hole_rate", "recovered", "child_first", "min_cosine")
PER_SEED = (*FIELDS, "l0", "fvu", "shrinkage")
OUTCOMES = {
    "recovered": ("recovered", "-", "o"),
    "hole_rate": ("hole rate", "--", "s"),
    "child_first": ("child first", ":", "^"),
}
PRICE = {"fvu": ("FVU", "-", "o"), "l0_share": ("L0 / target", "--", "s"), "shrinkage": ("shrinkage", ":", "^")}


@dataclass(frozen=True)
class Config(StudyConfig):
    """Options of `ordering`. With `--tree` the children's magnitudes are scaled in that tree instead."""

    tree: Annotated[TreeOption, TREE_OPTION] = COMMENT
    """Your own tree; default: the comment's, alone and among lone features."""
    n_steps: int = 4_000
    """Training steps, half of the other experiments': the trees are smaller, and more steps do not find more pairs."""
    ratios: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0, 5.0)
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
    """Prefixes per batch, the full one included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_some(self, "ratios")
        check_fields(self, ratios=POSITIVE, magnitude=POSITIVE, n_lone=Whole(0, MAX_NODES), n_prefixes=Whole())
        check_fields(self, prob=SHARE, edge_prob=SHARE, other_edge_prob=SHARE)

    @cached_property
    def trees(self) -> dict[str, Node]:
        """The trees at ratio 1."""
        if self.tree.name != COMMENT.name:
            return {"tree": scale_children(self.tree.root, 1.0)}

        def among_lone(edge_prob: float) -> Node:
            pair = ordering_tree(self.prob, edge_prob, self.magnitude, ratio=1.0)
            lone = [Node(0.05, name=f"L{i + 1}", magnitude_mean=self.magnitude) for i in range(self.n_lone)]
            return forest(*pair.children, *lone)

        return {
            "comment": ordering_tree(self.prob, self.edge_prob, self.magnitude, ratio=1.0),
            "among_lone": among_lone(self.edge_prob),
            "among_lone_other_edge": among_lone(self.other_edge_prob),
        }

    @cached_property
    def studies(self) -> dict[str, Study]:
        return {name: make_study(self, build_tree(root)) for name, root in self.trees.items()}


def check(cfg: Config) -> None:
    for root in cfg.trees.values():
        tree = check_study(cfg, root, n_lanes_per_seed=len(cfg.ratios))
        _check_ratios(cfg, root)
        if not edges(tree):
            raise ValueError(f"--tree {cfg.tree}: no feature has a parent feature, so there is no order to get wrong")
    if cfg.max_cosine is not None:
        cfg.studies  # noqa: B018  whether it can be reached is known only once they are made


def _check_ratios(cfg: Config, root: Node) -> None:
    for ratio in cfg.ratios:
        try:
            build_tree(scale_children(root, ratio))
        except TreeError as error:
            raise ValueError(f"ratios: {ratio:g} makes a tree that cannot be: {error}") from None


def n_steps(cfg: Config) -> int:
    return cfg.n_steps * len(cfg.trees)


def run(cfg: Config, work: Work) -> dict[str, Any]:
    by_tree = {name: _run_tree(cfg, cfg.trees[name], study, work) for name, study in cfg.studies.items()}
    first = next(iter(by_tree.values()))
    return {"ratios": cfg.ratios, **{name: first[name] for name in FIELDS}, "trees": by_tree}


def _run_tree(cfg: Config, root: Node, study: Study, work: Work) -> dict[str, Any]:
    """Every ratio and seed in one program: the ratios differ only in the magnitudes of the tree."""
    trees = [build_tree(scale_children(root, ratio)) for ratio in cfg.ratios]
    train_cfg = train_config(cfg, study.tree)
    hypers = make_hypers(cfg, study.tree, prefixes.named(f"sampled_{cfg.n_prefixes}", train_cfg.n_latents))
    of_ratios = train_settings(cfg, study, hypers, train_cfg, work, trees=trees)
    rows = []
    for tree, saes in zip(trees, of_ratios, strict=True):
        evaluations = evaluate_seeds(saes, study.W_feat, tree, held_out_features(cfg, tree))
        rows.append([_outcome(evaluation, tree) for evaluation in evaluations])
    return {
        "tree": tree_to_dict(root),
        "energy_crossing": energy_crossings(study.tree),
        **{name: [[seed[name] for seed in row] for row in rows] for name in PER_SEED},
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
        "fvu": evaluation.fvu,
        "shrinkage": evaluation.shrinkage,
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


def caption(record: dict[str, Any]) -> str:
    text = (
        f"Matryoshka ReLU SAEs, {record['config']['n_prefixes']} sampled prefixes; energy: P(on) times squared mean "
        "magnitude, equal in parent and child at the dashed ratio; child first: share of edges whose child's latent "
        "stands before the parent's, where the first latents are in the most prefixes; d to f: the price; "
        "dots: means or shares over seeds with 95% interval"
    )
    return caption_text(record, text, record["results"]["trees"])


def plot(record: dict[str, Any]) -> Figure:
    results, config = record["results"], record["config"]
    with plots.styled(4.2) as figure:
        panels = figure.subplots(2, len(results["trees"]), sharex=True, sharey="row", squeeze=False)
        for column, (name, tree) in enumerate(results["trees"].items()):
            top, bottom = panels[:, column]
            _plot_lines(top, results["ratios"], tree, OUTCOMES)
            _plot_lines(bottom, results["ratios"], _with_l0_share(tree), PRICE)
            top.set(title=f"{'abc'[column]}  {_title(config, name)}", ylim=(-0.05, 1.05))
            bottom.set(title="def"[column], xlabel="magnitude of child / parent")
        panels[1, 0].set_ylim(bottom=-0.05)
        panels[0, 0].set_ylabel("rate, or share of seeds")
        panels[1, 0].set_ylabel("value (held-out rows)")
        for ax in panels[:, -1]:
            ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
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


def _with_l0_share(tree: dict[str, Any]) -> dict[str, Any]:
    target = tree.get("target_l0", np.nan)
    return {**tree, "l0_share": [[l0 / target for l0 in row] for row in tree["l0"]]}


def _plot_lines(ax: Axes, ratios: list[float], tree: dict[str, Any], lines: dict[str, tuple[str, str, str]]) -> None:
    """Some fields of a tree's record against the ratio, each with its label, line style and marker."""
    for at in tree["energy_crossing"]:
        ax.axvline(at, color=plots.COLOURS["truth"], linewidth=0.9, linestyle="--")
    for i, (field, (label, line, marker)) in enumerate(lines.items()):
        rows = [known(row) for row in tree.get(field, [[]] * len(ratios))]
        intervals = [_interval(field, row) if row else None for row in rows]
        means = [np.nan if found is None else found.mean for found in intervals]
        x, colour = np.array(ratios) * 1.06 ** (i - 1), plots.COLOURS["matryoshka"]
        style: Any = {"markersize": 4, "markerfacecolor": "white" if i else colour}
        ax.plot(x, means, line, color=colour, marker=marker, linewidth=1, label=label, **style)
        for at, found in zip(x, intervals, strict=True):
            if found is not None:
                plots.bar(ax, at, found, colour, fmt=marker, capsize=2, elinewidth=0.8, **style)
    ax.set(xscale="log")
    ax.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    ax.minorticks_off()


def _interval(field: str, values: list[float]) -> plots.Interval:
    """The interval of a share where every seed either is so or is not, and of a mean otherwise."""
    is_share = field == "recovered" or (field == "child_first" and set(values) <= {0, 1})
    return plots.wilson(int(sum(values)), len(values)) if is_share else plots.bootstrap(values)


EXPERIMENT = Experiment("ordering", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
