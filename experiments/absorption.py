"""Absorption: the vanilla SAE's parent latents are silent where a child is on; the Matryoshka SAE's are not.

Claim: vanilla absorbs in every seed (hole rate 1); Matryoshka recovers the tree, without holes. Its parent latents
fire more strongly when a child is present. With BatchTopK (4,000 steps, learning rate .003) it recovers the tree in 6
of 8 seeds where k is the true L0, and in none with k = 2 or with TopK at k = 1 and 2: a row holds from 0 to several
features, and seldom k.
Command: python -m experiments.absorption (about 1 minute on 2 cores).
Expected, seeds 0 to 31: vanilla recovered 0/32, hole rate 1.00 in each; Matryoshka recovered 32/32, hole rate 0;
Matryoshka BatchTopK 6/8 with k = 1.12 and 0/8 with k = 2, seeds 0 to 7.
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
from experiments.common.measured import (
    caption_text,
    evaluate_seeds,
    known,
    lane,
    missed_targets,
    no_holes,
    outcome_text,
    summarise,
)
from experiments.common.study import (
    MOST_SHOWN,
    MethodConfig,
    Study,
    StudyConfig,
    aimed_l0,
    check_pair,
    held_out_features,
    pair_of,
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
from toy.methods import TopKFamily
from toy.sae import SAE, Activation, BatchTopK, TopK, encode

MOST_EDGES = 20  # that panel d shows seed by seed


@dataclass(frozen=True)
class Config(MethodConfig):
    """Options of `absorption`."""

    n_shown: int = 200
    """Rows of the batch that is shown, before all-zero rows are dropped."""
    n_topk_seeds: int = 8
    """Seeds of each SAE of the TopK family, at most n_seeds, for half the steps; 0, or --method, leaves them out."""
    topk_learning_rate: float = 3e-3
    """Adam's learning rate for the TopK family."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_shown=Whole(most=MOST_SHOWN), n_topk_seeds=Whole(0), topk_learning_rate=NOT_NEGATIVE)

    @property
    def has_topk(self) -> bool:
        return self.n_topk_seeds > 0 and self.method == "matryoshka"

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
    tree = check_pair(cfg)
    if not cfg.has_topk or cfg.n_eval_rows >= cfg.batch_size:
        return
    if any(method.inference != method.activation for method in topk_methods(cfg, tree).values()):
        raise ValueError(
            f"n_eval_rows: {cfg.n_eval_rows} is less than batch_size = {cfg.batch_size}, and BatchTopK SAEs are "
            "measured on whole batches; raise n_eval_rows, lower batch_size, or leave them out by n_topk_seeds 0"
        )


def topk_methods(cfg: Config, tree: Tree) -> dict[str, TopKFamily]:
    """TopK and BatchTopK by name, with k = 2 and with the tree's mean L0 (rounded for TopK), as far as k fits."""
    true_l0, n_latents = mean_l0(tree), cfg.n_latents or tree.n_features
    rounded = max(1, round(true_l0))
    kinds: dict[str, tuple[type[TopK] | type[BatchTopK], float]] = {
        f"topk_{rounded}": (TopK, rounded),
        "topk_2": (TopK, 2),
        f"batchtopk_{true_l0:.3g}": (BatchTopK, true_l0),
        "batchtopk_2": (BatchTopK, 2),
    }
    there = {name: kind(k) for name, (kind, k) in kinds.items() if 0 < k <= n_latents}  # type: ignore[arg-type]
    # At toy width weak latents start anew, which does the same as AuxK for less.
    return {name: TopKFamily(kept, aux_k=0) for name, kept in there.items()}


def n_steps(cfg: Config) -> int:
    if not cfg.has_topk:
        return 2 * cfg.n_steps
    return 2 * (cfg.n_steps + len(topk_methods(cfg, cfg.tree.tree)) * cfg.topk_study.n_steps)


def run(cfg: Config, work: Work) -> dict[str, Any]:
    study = cfg.study
    features, batch = held_out_features(cfg, study.tree), shown_batch(cfg.seed, study.tree, cfg.n_shown)
    results: dict[str, Any] = {}
    for name, (_, method, weighting) in cfg.pair(study.tree).items():
        saes = train_seeds(cfg, study, weighting, work, method)
        evaluations = evaluate_seeds(saes, study.W_feat, study.tree, features, method.inference)
        results[name] = summarise(evaluations, aimed_l0(cfg, study.tree, method)) | {
            "parent_alone": [mean_known(e.parent_alone) for e in evaluations],
            "parent_with_child": [mean_known(e.parent_with_child) for e in evaluations],
            "example": relative_acts(lane(saes, 0), study, batch, method.inference),
        }
    if cfg.has_topk:
        results |= run_topk(cfg, study, features, work)
    return results | {"features": batch}


def run_topk(cfg: Config, study: Study, features: np.ndarray, work: Work) -> dict[str, Any]:
    """`NAME_vanilla` and `NAME_matryoshka` for each of `topk_methods`, on the first seeds of the study."""
    n_seeds = cfg.topk_study.n_seeds
    part = study._replace(keys=study.keys[:n_seeds], W_feat=study.W_feat[:n_seeds])
    results = {}
    for kind, method in topk_methods(cfg, study.tree).items():
        for name, weighting in cfg.weightings.items():
            saes = train_seeds(cfg.topk_study, part, weighting, work, method)
            measured = summarise(evaluate_seeds(saes, part.W_feat, study.tree, features, method.inference))
            if method.inference != method.activation:
                gaps = [
                    inference_gap(lane(saes, i), features @ W_feat, method.kept, cfg.batch_size)  # type: ignore[arg-type]
                    for i, W_feat in enumerate(part.W_feat)
                ]
                measured["inference_gap"] = {"l0": [gap.l0 for gap in gaps], "fvu": [gap.fvu for gap in gaps]}
            results[f"{kind}_{name}"] = measured
    return results


def relative_acts(sae: SAE, study: Study, batch: np.ndarray, activation: Activation) -> np.ndarray:
    """[rows n_features]: a‖d‖ of each feature's latent over the feature's size, for the first seed."""
    W_feat = study.W_feat[0]
    match = match_features(np.asarray(sae.W_dec), W_feat)
    acts = np.asarray(encode(sae, jnp.asarray(batch @ W_feat), activation))
    return matched_acts(acts, np.asarray(sae.W_dec), match) / feature_sizes(study.tree, W_feat)


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for kind in ("", *topk_kinds(record)):
        for name in pair_of(record["results"]):
            r = record["results"][kind + name]
            lines.append(f"{kind}{name} {outcome_text(r)}, min cosine {min(r['min_cosine']):.3f}")
            for gap, values in r.get("inference_gap", {}).items():
                if there := known(values):
                    low, high = (f"{100 * value:+.1f}%" for value in (min(there), max(there)))
                    lines.append(f"{kind}{name} {gap} with its threshold against training: {low} to {high}")
    return lines + missed_targets(record["results"])


def topk_kinds(record: dict[str, Any]) -> list[str]:
    """The kinds of the TopK family, as their names in the record begin: `topk_2_`."""
    of_kinds = list(record["results"])[2:]  # after the pair
    return [name.removesuffix("vanilla") for name in of_kinds if name.endswith("_vanilla")]


def caption(record: dict[str, Any]) -> str:
    config, results, kinds = record["config"], record["results"], topk_kinds(record)
    about = f"Matryoshka: {config['n_prefixes']} sampled prefixes; " if "matryoshka" in results else ""
    text = (
        f"{about}a to c: rows of the first seed's batch that are not all "
        "zero; d: P(parent's latent off | child on); e: parent's latent where no child is on, and where one is; "
        "dots: seeds; bars: mean or share with 95% interval; dotted: target of L0"
    )
    if kinds:
        text += f"; TopK family: {results[kinds[0] + 'vanilla']['n_seeds']} seeds, half the steps"
    return caption_text(record, text, results)


def plot(record: dict[str, Any]) -> Figure:
    results, root = record["results"], tree_from_dict(record["config"]["tree"])
    with plots.styled(7.8) as figure:
        rows = plots.stacked(figure, 1.6, 1, 1.05)
        _plot_batch(rows[0], results, plots.shown_names(root))
        plots.name_kinds(rows[1], pair_of(results))
        holes, parent = rows[1].subplots(1, 2, width_ratios=[3, 1])
        why = no_holes(root)
        _plot_edges(holes, results, root, why)
        _plot_parent(parent, results)
        kinds = ["", *topk_kinds(record)]
        marks = [
            plots.Mark(x + 0.36 * i - 0.18, results[kind + name], plots.colour(name))
            for x, kind in enumerate(kinds)
            for i, name in enumerate(pair_of(results))
        ]
        labels = [kind.replace("topk_", "TopK ").replace("batchT", "BatchT").rstrip("_") or "ReLU" for kind in kinds]
        plots.outcomes(rows[2].subplots(1, 5), "fghij", marks, labels, why)
    return figure


def _plot_batch(figure: Any, results: dict[str, Any], names: list[str]) -> None:
    shown = {"ground truth": results["features"]} | {
        plots.label(name): results[name]["example"] for name in pair_of(results)
    }
    high = max([1.0, *(value for rows in shown.values() for row in rows for value in known(row))])
    panels = figure.subplots(1, 3, sharey=True)
    for ax, letter, (title, values) in zip(panels, "abc", shown.items(), strict=True):
        plots.heatmap(ax, values, low=0, high=high, colours="Greys", empty="no row has a feature on")
        plots.label_columns(ax, names)
        ax.set(title=f"{letter}  {title}", xlabel="latent of feature")
    panels[0].set(xlabel="feature", ylabel="row of the batch")
    figure.colorbar(panels[0].images[0], ax=panels, label="activation / size of feature", shrink=0.7)


def _plot_edges(ax: Axes, results: dict[str, Any], root: Node, empty: str) -> None:
    """The hole rate of every edge: a dot per seed, or a row of a heatmap where there are more than `MOST_EDGES`."""
    names, pairs = [plots.shown_name(name, 8) for name in feature_names(root)], edges(build_tree(root))
    rates = {name: results[name]["hole_rate_per_edge"] for name in pair_of(results)}
    ax.set_title("d  Hole rate per edge")
    if len(pairs) > MOST_EDGES:
        image = plots.heatmap(
            ax, [rows for kind in rates.values() for rows in kind], low=0, high=1, colours="Greys", empty=empty
        )
        n_seeds = len(rates["vanilla"])
        ax.axhline(n_seeds - 0.5, color=plots.COLOURS["other"], linewidth=1.5)
        ax.set_yticks(
            [(n_seeds - 1) / 2, 1.5 * n_seeds - 0.5],
            [f"{plots.label(name).removesuffix(' SAE')}\nseeds" for name in rates],
        )
        ax.figure.colorbar(image, ax=ax, label="hole rate")
    else:
        drawn = [
            plots.spread(ax, x + 0.3 * i - 0.15, one_edge, plots.colour(name), width=0.08)
            for i, name in enumerate(pair_of(results))
            for x, one_edge in enumerate(zip(*rates[name], strict=True))
        ]
        ax.set(ylabel="hole rate", ylim=(-0.05, 1.05))
        if not any(drawn):
            plots.nothing(ax, empty)
    plots.label_columns(ax, [f"{names[parent]}→{names[child]}" for parent, child in pairs])


def _plot_parent(ax: Axes, results: dict[str, Any]) -> None:
    drawn = [
        plots.spread(ax, x + 0.3 * i - 0.15, results[name][field], plots.colour(name), width=0.08)
        for i, name in enumerate(pair_of(results))
        for x, field in enumerate(("parent_alone", "parent_with_child"))
    ]
    if not any(drawn):
        plots.nothing(ax, "no parent is on,\nor there is none")
    ax.axhline(1, color=plots.COLOURS["truth"], linewidth=0.7, linestyle=":")
    ax.set_xticks([0, 1], ["alone", "with child"])
    ax.set(title="e  Parent's latent", ylabel="activation / size", xlim=(-0.5, 1.5), ylim=(-0.05, None))


EXPERIMENT = Experiment("absorption", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
