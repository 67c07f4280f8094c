"""Cosines of the SAEs' decoder and encoder directions with the true ones, and how much related features mix.

Claim: a vanilla SAE's child latents hold their parent's direction (absorption). A Matryoshka SAE's nearly are the
features, with a mixing that more prefixes do not remove: parents lean to their children, siblings away from each other.
Command: python -m experiments.cosines (about 1 minute on 2 cores; `python -m experiments` shares its SAEs).
Expected, seeds 0 to 31: decoder mixing of the Matryoshka SAE +0.18 (parent to child), −0.21 (child to sibling), +0.04
(child to parent); of the vanilla SAE 0.71 child to parent.
Encoder cosines are far from 1 for every feature because the encoder keeps its random start in the d_in − n_features
dimensions that no data reaches.
In the post: the heatmaps of cosine similarities, and the comments on the mixing they show.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import evaluate_seeds, lane, mean_text, missed_clause, missed_targets, summarise
from experiments.common.study import (
    LABELS,
    SAES,
    PairConfig,
    aimed_l0,
    check_study,
    held_out_features,
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
class Config(PairConfig):
    """Options of `cosines`."""


def n_steps(cfg: Config) -> int:
    return 2 * cfg.n_steps


def run(cfg: Config, work: Work) -> dict[str, Any]:
    study = cfg.study
    features = held_out_features(cfg, study.tree)
    results: dict[str, Any] = {}
    for name, weighting in cfg.weightings.items():
        saes = train_seeds(cfg, study, weighting, work)
        evaluations = evaluate_seeds(saes, study.W_feat, study.tree, features)
        results[name] = summarise(evaluations, aimed_l0(cfg, study.tree))
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
    for name in SAES:
        values = record["results"][name]["decoder"]["mixing"]
        means = ", ".join(f"{kind.replace('_', ' ')} {mean_text(values[kind], '+.3f')}" for kind in KINDS)
        lines.append(f"{name} decoder mixing {means}; largest |off-diagonal| {max(values['max_off_diagonal']):.3f}")
    return lines + missed_targets(record["results"])


def plot(record: dict[str, Any]) -> Figure:
    results = record["results"]
    names = plots.shown_names(tree_from_dict(record["config"]["tree"]))
    with plots.styled(7.6) as figure:
        grid = figure.add_gridspec(3, 2, height_ratios=[1.35, 1.35, 1])
        axes = []
        for row, side in enumerate(SIDES):
            for column, name in enumerate(SAES):
                ax = figure.add_subplot(grid[row, column])
                plots.heatmap(ax, results[name][side]["cosines"], low=-1, high=1, colours="RdBu_r")
                plots.label_columns(ax, names, size=5.5)
                plots.label_rows(ax, names, size=5.5)
                ax.set(title=f"{'abcd'[2 * row + column]}  {LABELS[name]}, {side}", xlabel="true feature")
                ax.set_ylabel("latent of feature")
                axes.append(ax)
        figure.colorbar(axes[0].images[0], ax=axes, label="cosine", shrink=0.5)
        for column, side in enumerate(SIDES):
            ax = figure.add_subplot(grid[2, column])
            ax.axhline(0, color="#999999", linewidth=0.7)
            drawn = []
            for i, name in enumerate(SAES):
                for x, kind in enumerate(KINDS):
                    values = results[name][side]["mixing"][kind]
                    drawn.append(plots.spread(ax, x + 0.3 * i - 0.15, values, plots.COLOURS[name], width=0.07))
                ax.plot([], [], color=plots.COLOURS[name], label=LABELS[name])
            if not any(drawn):
                plots.nothing(ax, "no feature has a parent feature")
            ax.set_xticks(range(len(KINDS)), list(KINDS.values()), fontsize=6.5)
            ax.set(title=f"{'ef'[column]}  Mixing, {side}: mean over pairs", ylabel="mean cosine")
            if side == "decoder":
                ax.legend(loc="upper center")
        seed = record["seeds"][0]
        text = f"a to d: seed {seed}; e, f: dots are seeds, bars mean and 95% interval"
        plots.caption(figure, record, text + missed_clause(results))
    return figure


EXPERIMENT = Experiment("cosines", Config, run, summary, plot, check_study, n_steps)

if __name__ == "__main__":
    main(EXPERIMENT)
