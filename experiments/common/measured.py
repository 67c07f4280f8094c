"""Records of trained SAEs, with one entry per seed, and the words that summaries and captions use for them."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.common.seeds import seeds_text
from toy.eval.against_tree import Evaluation, evaluate
from toy.eval.metrics import Mixing
from toy.features.node import Node
from toy.features.tree import Tree, build_tree, edges
from toy.sae import RELU, SAE, Activation
from toy.training.controllers import MAX_L0_ERROR, off_target

PER_SEED = (
    *("hole_rate", "firing_accuracy", "firing_precision", "firing_recall", "min_cosine"),
    *("mcc", "uniqueness", "fvu", "l0", "dead_latents", "shrinkage"),
)


def lane(saes: SAE, i: int) -> SAE:
    return jax.tree.map(lambda leaf: leaf[i], saes)


def evaluate_seeds(
    saes: SAE, W_feat: np.ndarray, tree: Tree, features: np.ndarray, activation: Activation = RELU
) -> list[Evaluation]:
    features = np.asarray(features, float)  # once, not for every seed
    return [evaluate(lane(saes, i), W_feat[i], tree, features, activation) for i in range(len(W_feat))]


def summarise(evaluations: Sequence[Evaluation], target_l0: float | None = None) -> dict[str, Any]:
    """Lists with one entry per seed, and counts of seeds: `recovered`, and with a target those that miss it."""

    def column(name: str) -> list:
        return [getattr(evaluation, name) for evaluation in evaluations]

    return {
        "n_seeds": len(evaluations),
        "recovered": sum(column("recovered")),
        "recovered_seeds": column("recovered"),
        **{name: column(name) for name in PER_SEED},
        "hole_rate_per_edge": column("hole_rates"),
        "mixing": {name: [getattr(mix, name) for mix in column("mixing")] for name in Mixing._fields},
        **against_target(column("l0"), target_l0),
    }


def against_target(l0: Iterable[float], target_l0: float | None) -> dict[str, Any]:
    """The entries of a record that say whether L0 on held-out rows is what the controller aims at; none without one."""
    if target_l0 is None:
        return {}
    return {"target_l0": target_l0, "off_target_seeds": sum(off_target(value, target_l0) for value in l0)}


def missed_targets(results: dict[str, Any]) -> list[str]:
    """A line for each kind of SAE whose L0 misses the target; none for records that do not hold the target."""
    return [
        f"{name}: L0 {_missed(r)} misses the target {r['target_l0']:.3g} by more than {MAX_L0_ERROR:.0%} in "
        f"{r['off_target_seeds']}/{np.size(r['l0'])} SAEs"
        for name, r in results.items()
        if isinstance(r, dict) and r.get("off_target_seeds")
    ]


def _missed(result: dict[str, Any]) -> str:
    """The least and the greatest L0 that miss the target, one number where they look alike."""
    missed = [value for value in np.ravel(result["l0"]).tolist() if off_target(value, result["target_l0"])]
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(missed), max(missed))))


def caption_text(record: dict[str, Any], text: str, results: dict[str, Any] | None = None) -> str:
    """A figure's caption: the text, the targets that kinds of SAE in `results` miss, seeds and configuration."""
    config = record["config"]
    parts = [text, *missed_targets(results or {}), seeds_text(record["seeds"])]
    if "n_steps" in config:
        sparsity = {"l1": "L1", "log": "log"}[config["sparsity"]]
        parts.append(f"{config['n_steps']:,} steps, {sparsity} sparsity")
    return "; ".join([*parts, f"d_in {config['d_in']}"]) + "."


def outcome_text(result: dict[str, Any]) -> str:
    """Recovery and holes of a kind of SAE, and their price, for a summary."""
    return (
        f"recovered {result['recovered']}/{result['n_seeds']}, hole rate {mean_text(result['hole_rate'], '.4f')}; "
        f"FVU {mean_text(result['fvu'], '.4f')}, L0 {mean_text(result['l0'], '.3f')}, "
        f"shrinkage {mean_text(result['shrinkage'], '.3f')}"
    )


def no_holes(root: Node) -> str:
    """Says why no hole rate of a tree is known."""
    return "no child is on in the held-out rows" if edges(build_tree(root)) else "no feature has a parent feature"


def known(values: Iterable[float | None]) -> list[float]:
    """A record's values that are not null."""
    return [value for value in values if value is not None]


def known_where(values: Iterable[float | None], recovered: Iterable[bool | float]) -> list[float]:
    """The known values of the recovered runs: where a feature is lost, its pairs say nothing."""
    return known(value for value, yes in zip(values, recovered, strict=True) if yes)


def mean_text(values: Iterable[float | None], form: str) -> str:
    """The mean of what is known, or a dash where nothing is."""
    there = known(values)
    return format(float(np.mean(there)), form) if there else "–"
