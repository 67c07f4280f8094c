"""The cost of a recovered tree: both kinds of SAE at equal L0 and at equal FVU.

Claim: holes are not a matter of sparsity or of reconstruction. At the L0 of the Matryoshka SAE that recovers the tree,
and at its FVU, a vanilla SAE still has holes and recovers it in no seed. The price: the Matryoshka SAE's FVU has a
floor near 0.015 whatever its L0, and vanilla's has none.
Command: python -m experiments.pareto (1 to 2 minutes on 2 cores).
The sparsity coefficient is varied and held fixed. A target of L0 would not do: whatever the target, on the reference
tree a vanilla SAE ends at L0 0.86 and a Matryoshka one at 1.14, and only their shrinkage changes.
Expected, seeds 0 to 7: the Matryoshka SAE recovers 8/8 at L0 1.14 and FVU 0.032; vanilla 0/8, with hole rate 0.76 at
L0 1.12 (FVU 0.0000), and 1.00 at FVU 0.032 (L0 0.86).
In the post: nothing; its two SAEs are compared at one target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import caption_text, evaluate_seeds, known, no_holes, outcome_text, summarise
from experiments.common.study import (
    SAES,
    PairConfig,
    Study,
    aimed_l0,
    check_study,
    held_out_features,
    make_hypers,
    train_config,
    train_settings,
)
from toy import prefixes
from toy.checks import NOT_NEGATIVE, check_fields, check_some
from toy.features.tree_json import tree_from_dict

NAMES = {"matryoshka": "Matryoshka", "equal_l0": "vanilla, same L0", "equal_fvu": "vanilla, same FVU"}


@dataclass(frozen=True)
class Config(PairConfig):
    """Options of `pareto`."""

    n_seeds: int = 8
    n_steps: int = 4_000
    control_rate: float = 0.0
    """Must be 0: the coefficients stay as they are."""
    no_preset: ClassVar = ("control_rate",)
    coefs: tuple[float, ...] = (0.005, 0.023, 0.1, 0.5, 1.0, 1.4, 2.0, 2.6)
    """Sparsity coefficients, as multiples of `sparsity_coef`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, coefs=NOT_NEGATIVE)
        check_some(self, "coefs")
        if self.control_rate:
            raise ValueError("control_rate: must be 0, since this experiment compares fixed coefficients")


def check(cfg: Config) -> None:
    """Raises: ValueError saying what is wrong with the options, before any work."""
    check_study(cfg, n_lanes_per_seed=len(cfg.coefs))


def n_steps(cfg: Config) -> int:
    return 2 * cfg.n_steps


def run(cfg: Config, work: Work) -> dict[str, Any]:
    kinds = {name: _run_kind(cfg, cfg.study, weighting, work) for name, weighting in cfg.weightings.items()}
    return {"coefs": [coef * cfg.sparsity_coef for coef in cfg.coefs], **kinds}


def _run_kind(cfg: Config, study: Study, weighting: str, work: Work) -> list[dict[str, Any]]:
    """An entry per coefficient; all coefficients and seeds are trained in one program."""
    tree, train_cfg = study.tree, train_config(cfg, study.tree)
    features, target = held_out_features(cfg, tree), aimed_l0(cfg, tree)
    hypers = make_hypers(cfg, tree, prefixes.named(weighting, train_cfg.n_latents))
    coefs = np.array(cfg.coefs) * cfg.sparsity_coef
    of_coefs = train_settings(cfg, study, hypers, train_cfg, work, {"sparsity_coef": coefs.tolist()})
    return [summarise(evaluate_seeds(saes, study.W_feat, tree, features), target) for saes in of_coefs]


def matched(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The Matryoshka SAE that recovers most seeds, at the least FVU, and the vanilla ones nearest in L0 and in FVU."""
    best = max(results["matryoshka"], key=lambda r: (r["recovered"], -_fvu(r)))

    def nearest(of: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
        return min(results["vanilla"], key=lambda r: abs(of(r) - of(best)))

    return {"matryoshka": best, "equal_l0": nearest(_l0), "equal_fvu": nearest(_fvu)}


def _fvu(result: dict[str, Any]) -> float:
    return float(np.mean(known(result["fvu"]) or [np.inf]))  # unknown where activations do not vary


def _l0(result: dict[str, Any]) -> float:
    return float(np.mean(result["l0"]))


def summary(record: dict[str, Any]) -> list[str]:
    return [f"{NAMES[name]}: {outcome_text(result)}" for name, result in matched(record["results"]).items()]


def caption(record: dict[str, Any]) -> str:
    found = matched(record["results"])
    coefs = ", ".join(f"{coef:g}" for coef in record["results"]["coefs"])
    text = (
        f"Matryoshka: {record['config']['n_prefixes']} sampled prefixes; sparsity coefficients {coefs}; "
        "a to c: dots: seeds, lines: means per coefficient, from the least to the greatest; "
        "d to h: the Matryoshka SAE that recovers most seeds, and the vanilla ones nearest to it in L0 and in FVU; "
        "bars: mean or share with 95% interval"
    )
    return caption_text(record, text, found)


def plot(record: dict[str, Any]) -> Figure:
    results, root = record["results"], tree_from_dict(record["config"]["tree"])
    why, found = no_holes(root), matched(results)
    with plots.styled(4.6) as figure:
        top, bottom = plots.stacked(figure, 1.05, 1)
        plots.name_kinds(top)
        panels = top.subplots(1, 3)
        pairs = (("l0", "fvu"), ("l0", "hole_rate"), ("fvu", "hole_rate"))
        for ax, letter, (x, y) in zip(panels, "abc", pairs, strict=True):
            _plot_curves(ax, results, x, y, why)
            ax.set_title(f"{letter}  {plots.OUTCOMES[y]} and {x.upper()}")
        marks = [
            plots.Mark(x, result, plots.COLOURS["vanilla" if x else "matryoshka"])
            for x, result in enumerate(found.values())
        ]
        plots.outcomes(bottom.subplots(1, 5), "defgh", marks, list(NAMES.values()), why)
    return figure


def _plot_curves(ax: Axes, results: dict[str, Any], x: str, y: str, empty: str) -> None:
    """Every seed as a dot, and a line through the means of each coefficient, for both kinds of SAE."""
    for name in SAES:
        points = [[pair for pair in zip(r[x], r[y], strict=True) if None not in pair] for r in results[name]]
        points = [np.array(pairs) for pairs in points if pairs]
        if not points:
            plots.nothing(ax, empty)
            return
        colour = plots.COLOURS[name]
        ax.scatter(*np.concatenate(points).T, s=5, color=colour, alpha=0.35, linewidths=0)
        ax.plot(*np.array([pairs.mean(axis=0) for pairs in points]).T, "-o", color=colour, markersize=3, linewidth=1)
    plots.log_scale(ax, "x")
    if y == "fvu":
        plots.log_scale(ax, "y")
    ax.set(xlabel=f"{x.upper()} (log scale)", ylabel=plots.OUTCOMES[y])


EXPERIMENT = Experiment("pareto", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
