"""Absorption: the vanilla SAE's parent latents are silent where a child is on; the Matryoshka SAE's are not.

Claim: vanilla absorbs in every seed (hole rate 1); Matryoshka recovers the tree, without holes. Its parent latents
fire more strongly when a child is present. With BatchTopK it recovers the tree in 5 of 8 seeds where k is the true
L0, and with k = 2, or TopK, in none: rows hold from 0 to several features and not k.
Command: python -m experiments.absorption (2 to 4 minutes on 2 cores; 1 with --n-topk-seeds 0).
Expected, seeds 0 to 31: vanilla recovered 0/32, hole rate 1.00 in each; Matryoshka recovered 32/32, hole rate 0;
Matryoshka BatchTopK 5/8 with k = 1.12 and 0/8 with k = 2, seeds 0 to 7.
In the post: "Toy Model", the activations of both SAEs beside the ground truth.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import evaluate_seeds, known, lane, missed_clause, missed_targets, summarise
from experiments.common.study import (
    LABELS,
    MOST_SHOWN,
    SAES,
    PairConfig,
    Study,
    StudyConfig,
    aimed_l0,
    check_study,
    held_out_features,
    shown_batch,
    study_options,
    train_seeds,
)
from toy.checks import NOT_NEGATIVE, Whole, check_fields
from toy.eval.against_tree import feature_sizes, inference_gap
from toy.eval.metrics import match_features, matched_acts, mean_known
from toy.features.node import Node, feature_names
from toy.features.tree import Tree, build_tree, edges, mean_l0
from toy.features.tree_json import tree_from_dict
from toy.sae import RELU, SAE, BatchTopK, TopK, encode


@dataclass(frozen=True)
class Config(PairConfig):
    """Options of `absorption`."""

    n_shown: int = 200
    """Rows of the batch that is shown, before all-zero rows are dropped."""
    n_topk_seeds: int = 8
    """Seeds of each SAE of the TopK family, at most n_seeds, for half the steps; 0 leaves them out."""
    topk_learning_rate: float = 3e-3
    """Adam's, of these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_shown=Whole(most=MOST_SHOWN), n_topk_seeds=Whole(0), topk_learning_rate=NOT_NEGATIVE)

    @property
    def topk_study(self) -> StudyConfig:
        return replace(
            study_options(self),
            n_seeds=min(self.n_topk_seeds, self.n_seeds),
            n_steps=max(1, self.n_steps // 2),
            learning_rate=self.topk_learning_rate,
        )


def check(cfg: Config) -> None:
    """Raises: ValueError saying what is wrong with the options, before any work."""
    tree = check_study(cfg)
    if not cfg.n_topk_seeds or cfg.n_eval_rows >= cfg.batch_size:
        return
    if any(isinstance(kind, BatchTopK) for kind in activations(cfg, tree).values()):
        raise ValueError(
            f"n_eval_rows: {cfg.n_eval_rows} is less than batch_size = {cfg.batch_size}, and BatchTopK SAEs are "
            "measured on whole batches; raise n_eval_rows, lower batch_size, or leave them out by n_topk_seeds 0"
        )


def activations(cfg: Config, tree: Tree) -> dict[str, TopK | BatchTopK]:
    """TopK and BatchTopK with k = 2 and with the tree's own mean L0, which TopK rounds, by name; those there can be."""
    true_l0, n_latents = mean_l0(tree), cfg.n_latents or tree.n_features
    rounded = max(1, round(true_l0))
    kinds: dict[str, tuple[type[TopK] | type[BatchTopK], float]] = {
        f"topk_{rounded}": (TopK, rounded),
        "topk_2": (TopK, 2),
        f"batchtopk_{true_l0:.3g}": (BatchTopK, true_l0),
        "batchtopk_2": (BatchTopK, 2),
    }
    return {name: kind(k) for name, (kind, k) in kinds.items() if 0 < k <= n_latents}  # type: ignore[arg-type]


def n_steps(cfg: Config) -> int:
    if not cfg.n_topk_seeds:
        return 2 * cfg.n_steps
    return 2 * (cfg.n_steps + len(activations(cfg, cfg.tree.tree)) * cfg.topk_study.n_steps)


def run(cfg: Config, work: Work) -> dict[str, Any]:
    study = cfg.study
    features, batch = held_out_features(cfg, study.tree), shown_batch(cfg.seed, study.tree, cfg.n_shown)
    results: dict[str, Any] = {}
    for name, weighting in cfg.weightings.items():
        saes = train_seeds(cfg, study, weighting, work)
        evaluations = evaluate_seeds(saes, study.W_feat, study.tree, features)
        results[name] = summarise(evaluations, aimed_l0(cfg, study.tree)) | {
            "parent_alone": [mean_known(e.parent_alone) for e in evaluations],
            "parent_with_child": [mean_known(e.parent_with_child) for e in evaluations],
            "example": relative_acts(lane(saes, 0), study, batch),
        }
    if cfg.n_topk_seeds:
        results |= run_topk(cfg, study, features, work)
    return results | {"features": batch}


def run_topk(cfg: Config, study: Study, features: np.ndarray, work: Work) -> dict[str, Any]:
    """`NAME_vanilla` and `NAME_matryoshka` for each of `activations`, on the first seeds of the study."""
    n_seeds = cfg.topk_study.n_seeds
    part = study._replace(keys=study.keys[:n_seeds], W_feat=study.W_feat[:n_seeds])
    results = {}
    for kind, activation in activations(cfg, study.tree).items():
        for name, weighting in cfg.weightings.items():
            saes = train_seeds(cfg.topk_study, part, weighting, work, activation)
            measured = summarise(
                evaluate_seeds(
                    saes, part.W_feat, study.tree, features, activation if isinstance(activation, TopK) else RELU
                )
            )
            if isinstance(activation, BatchTopK):
                gaps = [
                    inference_gap(lane(saes, i), features @ W_feat, activation, cfg.batch_size)
                    for i, W_feat in enumerate(part.W_feat)
                ]
                measured["inference_gap"] = {"l0": [gap.l0 for gap in gaps], "fvu": [gap.fvu for gap in gaps]}
            results[f"{kind}_{name}"] = measured
    return results


def relative_acts(sae: SAE, study: Study, batch: np.ndarray) -> np.ndarray:
    """[rows n_features]: a‖d‖ of each feature's latent over the feature's size, for the first seed."""
    W_feat = study.W_feat[0]
    match = match_features(np.asarray(sae.W_dec), W_feat)
    acts = np.asarray(encode(sae, jnp.asarray(batch @ W_feat)))
    return matched_acts(acts, np.asarray(sae.W_dec), match) / feature_sizes(study.tree, W_feat)


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for name in (*SAES, *(f"{kind}_{name}" for kind in topk_names(record) for name in SAES)):
        r = record["results"][name]
        holes = known(r["hole_rate"])
        text = f"hole rate {np.mean(holes):.4f} ({min(holes):.3f} to {max(holes):.3f})" if holes else "no edges"
        lines.append(f"{name} recovered {r['recovered']}/{r['n_seeds']}, {text}, min cosine {min(r['min_cosine']):.3f}")
        for gap, values in r.get("inference_gap", {}).items():
            if there := known(values):
                low, high = (f"{100 * value:+.1f}%" for value in (min(there), max(there)))
                lines.append(f"{name} {gap} with its threshold against training: {low} to {high}")
    return lines + missed_targets(record["results"])


def topk_names(record: dict[str, Any]) -> list[str]:
    """Of the TopK family, without the weighting."""
    return [name.removesuffix("_vanilla") for name in record["results"] if name.endswith("_vanilla")]


def plot(record: dict[str, Any]) -> Figure:
    results, root = record["results"], tree_from_dict(record["config"]["tree"])
    names = plots.shown_names(root)
    shown = {"ground truth": results["features"]} | {LABELS[name]: results[name]["example"] for name in SAES}
    high = max([1.0, *(value for rows in shown.values() for row in rows for value in known(row))])
    with plots.styled(6.8) as figure:
        rows = figure.add_gridspec(2, 1, height_ratios=[1.4, 1])
        top, bottom = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
        panels = top.subplots(1, 3)
        for ax, letter, (title, values) in zip(panels, "abc", shown.items(), strict=True):
            plots.heatmap(ax, values, low=0, high=high, colours="Greys", empty="no row has a feature on")
            plots.label_columns(ax, names, size=5)
            ax.set(title=f"{letter}  {title}", xlabel="latent of feature")
        panels[0].set(xlabel="feature", ylabel="row of the batch")
        top.colorbar(panels[0].images[0], ax=panels, label="activation / size of feature", shrink=0.7)
        holes, recovery, parent = bottom.subplots(1, 3, width_ratios=[5, 4, 3])
        _plot_edges(holes, results, root)
        _plot_recovery(recovery, record)
        _plot_parent(parent, results)
        text = f"Matryoshka: {record['config']['n_prefixes']} sampled prefixes; a to c: seed {record['seeds'][0]}"
        if topk_names(record):
            n_seeds = results[topk_names(record)[0] + "_vanilla"]["n_seeds"]
            text += f"; e: {n_seeds} seeds of the TopK family, half the steps"
        plots.caption(figure, record, f"{text}; dots: seeds; bars: mean or share, 95% interval{missed_clause(results)}")
    return figure


def _plot_edges(ax: Axes, results: dict[str, Any], root: Node) -> None:
    names, pairs = [plots.shown_name(name, 12) for name in feature_names(root)], edges(build_tree(root))
    drawn = []
    for i, name in enumerate(SAES):
        for x, rates in enumerate(zip(*results[name]["hole_rate_per_edge"], strict=True)):
            drawn.append(plots.spread(ax, x + 0.3 * i - 0.15, list(rates), plots.COLOURS[name], width=0.08))
        ax.plot([], [], color=plots.COLOURS[name], label=LABELS[name])
    plots.label_columns(ax, [f"{names[p]}→{names[c]}" for p, c in pairs], size=7)
    ax.set(title="d  Holes: P(parent's latent off | child on)", ylabel="hole rate", ylim=(-0.05, 1.05))
    if any(drawn):
        ax.legend(loc="best")
    else:
        plots.nothing(ax, "no child is on in the held-out rows" if pairs else "no feature has a parent feature")


def _plot_recovery(ax: Axes, record: dict[str, Any]) -> None:
    results, kinds = record["results"], ["", *(f"{kind}_" for kind in topk_names(record))]
    for x, kind in enumerate(kinds):
        for i, name in enumerate(SAES):
            r = results[kind + name]
            plots.share(ax, x + 0.3 * i - 0.15, r["recovered"], r["n_seeds"], plots.COLOURS[name])
    labels = [
        "ReLU",
        *(kind[:-1].replace("batchtopk_", "BatchTopK ").replace("topk_", "TopK ") for kind in kinds[1:]),
    ]
    ax.set_xticks(range(len(kinds)), labels, rotation=90, fontsize=5.5)
    ax.set(title="e  Recovered", ylabel="share of seeds", xlim=(-0.5, len(kinds) - 0.5), ylim=(-0.05, 1.05))


def _plot_parent(ax: Axes, results: dict[str, Any]) -> None:
    drawn = [
        plots.spread(ax, 2.5 * i + j, results[name][key], plots.COLOURS[name])
        for i, name in enumerate(SAES)
        for j, key in enumerate(("parent_alone", "parent_with_child"))
    ]
    if not any(drawn):
        plots.nothing(ax, "no parent is on,\nor there is none")
    ax.axhline(1, color="#999999", linewidth=0.7, linestyle=":")
    ax.set_xticks([0, 1, 2.5, 3.5], ["alone", "with\nchild"] * 2)
    ax.set(title="f  Parent's latent", ylabel="activation / size of feature", ylim=(-0.05, None))


EXPERIMENT = Experiment("absorption", Config, run, summary, plot, check, n_steps)

if __name__ == "__main__":
    main(EXPERIMENT)
