"""What the experiments record of trained SAEs, one entry per seed, and how they tell of L0 that misses its target."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from toy.eval.against_tree import Evaluation, evaluate
from toy.eval.metrics import Mixing
from toy.features.tree import Tree
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
        f"{name}: L0 {_range(r)} misses the target {r['target_l0']:.3g} by more than {MAX_L0_ERROR:.0%} in {_count(r)} "
        f"{'seeds' if 'n_seeds' in r else 'SAEs'}"
        for name, r in _off_target(results).items()
    ]


def missed_clause(results: dict[str, Any]) -> str:
    """The same as a clause of a caption; empty where no target is missed."""
    missed = [f"{name} {_range(r)} for {r['target_l0']:.3g} ({_count(r)})" for name, r in _off_target(results).items()]
    return f"; L0 misses its target by more than {MAX_L0_ERROR:.0%}: {', '.join(missed)}" if missed else ""


def _off_target(results: dict[str, Any]) -> dict[str, Any]:
    return {name: r for name, r in results.items() if isinstance(r, dict) and r.get("off_target_seeds")}


def _count(result: dict[str, Any]) -> str:
    return f"{result['off_target_seeds']}/{len(_l0(result))}"


def _range(result: dict[str, Any]) -> str:
    """The least and the greatest L0 that miss the target, one number where they look alike."""
    missed = [value for value in _l0(result) if off_target(value, result["target_l0"])] or _l0(result)
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(missed), max(missed))))


def _l0(result: dict[str, Any]) -> list[float]:
    """A value per seed, or per ratio and seed."""
    return np.ravel(result["l0"]).tolist()


def known(values: Iterable[float | None]) -> list[float]:
    """A record's values that are not null."""
    return [value for value in values if value is not None]


def mean_text(values: Iterable[float | None], form: str) -> str:
    """The mean of what is known, or a dash where nothing is."""
    there = known(values)
    return format(float(np.mean(there)), form) if there else "–"
