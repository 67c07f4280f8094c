"""Cosines of the SAEs' decoder and encoder directions with the true ones, and how much related features mix.

Claim: a vanilla SAE's child latents hold their parent's direction (absorption). A Matryoshka SAE's nearly are the
features, with a mixing that more prefixes do not remove: parents lean to their children, siblings away from each other.
Command: python -m experiments.cosines (about 1 minute on 2 cores; `python -m experiments` shares its SAEs).
Expected, seeds 0 to 31: decoder mixing of the Matryoshka SAE +0.18 (parent to child), −0.21 (child to sibling), +0.05
(child to parent); of the vanilla SAE 0.71 child to parent.
Encoder cosines are far from 1 for every feature because the encoder keeps its random start in the d_in − n_features
dimensions that no data reaches.
In the post: the heatmaps of cosine similarities, and the comments on the mixing they show.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import (
    caption_text,
    evaluate_seeds,
    lane,
    mean_text,
    missed_targets,
    no_holes,
    outcome_text,
    summarise,
)
from experiments.common.study import (
    MethodConfig,
    aimed_l0,
    check_pair,
    held_out_features,
    pair_of,
    train_seeds,
)
from toy.eval.metrics import match_features, matched_cosines, mixing
from toy.features.tree_json import tree_from_dict

KINDS = {
    "parent_to_child": "parent's latent,\nchild's direction",
    "child_to_sibling": "child's latent,\nsibling's direction",
    "child_to_parent": "child's latent,\nparent's direction",
}
SIDES = ("decoder", "encoder")


@dataclass(frozen=True)
class Config(MethodConfig):
    """Options of `cosines`."""


def n_steps(cfg: Config) -> int:
    return 2 * cfg.n_steps


def run(cfg: Config, work: Work) -> dict[str, Any]:
    study = cfg.study
    features = held_out_features(cfg, study.tree)
    results: dict[str, Any] = {}
    for name, (_, method, weighting) in cfg.pair(study.tree).items():
        saes = train_seeds(cfg, study, weighting, work, method)
        evaluations = evaluate_seeds(saes, study.W_feat, study.tree, features, method.inference)
        results[name] = summarise(evaluations, aimed_l0(cfg, study.tree, method))
        for side in SIDES:
            cosines = [_cosines(lane(saes, i), study.W_feat[i], side) for i in range(cfg.n_seeds)]
            mixings = [mixing(values, study.tree)._asdict() for values in cosines]
            results[name][side] = {
                "cosines": cosines[0],
                "mixing": {key: [values[key] for values in mixings] for key in mixings[0]},
            }
    return results


def _cosines(sae: Any, W_feat: np.ndarray, side: str) -> np.ndarray:
    directions = np.asarray(sae.W_dec if side == "decoder" else sae.W_enc.T)
    return matched_cosines(directions, W_feat, match_features(np.asarray(sae.W_dec), W_feat))


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for name in pair_of(record["results"]):
        r = record["results"][name]
        values = r["decoder"]["mixing"]
        means = ", ".join(f"{kind.replace('_', ' ')} {mean_text(values[kind], '+.3f')}" for kind in KINDS)
        lines.append(f"{name} {outcome_text(r)}")
        lines.append(f"{name} decoder mixing {means}; largest |off-diagonal| {max(values['max_off_diagonal']):.3f}")
    return lines + missed_targets(record["results"])


def caption(record: dict[str, Any]) -> str:
    text = (
        f"a to d: cosines, seed {record['seeds'][0]}; e, f: mean cosine over pairs of related features; dots: seeds; "
        "bars: mean or share with 95% interval; dotted: target of L0"
    )
    return caption_text(record, text, record["results"])


def plot(record: dict[str, Any]) -> Figure:
    results, root = record["results"], tree_from_dict(record["config"]["tree"])
    with plots.styled(8.4) as figure:
        rows = plots.stacked(figure, 4.6, 1.8, 1.6)
        _plot_heatmaps(rows[0], results, plots.shown_names(root))
        plots.name_kinds(rows[1], pair_of(results))
        for ax, letter, side in zip(rows[1].subplots(1, 2), "ef", SIDES, strict=True):
            _plot_mixing(ax, results, side)
            ax.set(title=f"{letter}  Mixing, {side}", ylabel="mean cosine")
        marks = [plots.Mark(i, results[name], plots.colour(name)) for i, name in enumerate(pair_of(results))]
        plots.outcomes(rows[2].subplots(1, 5), "ghijk", marks, ["", ""], no_holes(root))
    return figure


def _plot_heatmaps(figure: Any, results: dict[str, Any], names: list[str]) -> None:
    panels = figure.subplots(2, 2)
    for row, side in enumerate(SIDES):
        for column, name in enumerate(pair_of(results)):
            ax = panels[row, column]
            plots.heatmap(ax, results[name][side]["cosines"], low=-1, high=1, colours="RdBu_r")
            plots.label_columns(ax, names)
            plots.label_rows(ax, names)
            ax.set(title=f"{'abcd'[2 * row + column]}  {plots.label(name)}, {side}", ylabel="latent of feature")
            if row:
                ax.set_xlabel("true feature")
    figure.colorbar(panels[0, 0].images[0], ax=panels, label="cosine", shrink=0.5)


def _plot_mixing(ax: Axes, results: dict[str, Any], side: str) -> None:
    ax.axhline(0, color=plots.COLOURS["truth"], linewidth=0.7)
    drawn = [
        plots.spread(ax, x + 0.3 * i - 0.15, results[name][side]["mixing"][kind], plots.colour(name), width=0.07)
        for i, name in enumerate(pair_of(results))
        for x, kind in enumerate(KINDS)
    ]
    if not any(drawn):
        plots.nothing(ax, "no feature has a parent feature")
    ax.set_xticks(range(len(KINDS)), list(KINDS.values()), fontsize=6.5)


EXPERIMENT = Experiment("cosines", Config, run, summary, plot, check_pair, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
