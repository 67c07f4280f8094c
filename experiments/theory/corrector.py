"""Why a Matryoshka run fails on the reference tree: a latent that corrects a parent in place of a child's latent.

A *corrector* is defined before any is counted (`correctors.py`; the definition was made on seeds 0 to 63): a latent
whose decoder has a cosine above .6 with parent − Σ children, and that is on where the parent is on alone and off where
it is on with any child. A feature is *lost* where no decoder has a cosine of .6 with it.

Claim: a failed run has a corrector, of the last rank, in the place of one child. Nearly every run has correctors while
the sparsity coefficient is small, since they are part of the better optimum of the exact objective there. Between that
and the coefficients of a whole run lies a range in which descent leads from the corrector to the lost child; above it
the corrector's code is worse than the truth and yet a local minimum, which no run leaves, but a restart does.
Command: python -m experiments.theory.corrector (about 12 minutes on 2 cores).
Expected, seeds 6000 to 6255: 51 of 256 runs fail without restarts, 49 of them with a corrector; none with restarts.
In the post: nothing; it shows one run.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import evaluate_seeds, lane
from experiments.common.seeds import SeedConfig, seeds_text
from experiments.common.study import (
    Study,
    StudyConfig,
    check_study,
    held_out_features,
    make_hypers,
    make_study,
    train_config,
)
from experiments.theory.codes import of_pairs, of_subtrees
from experiments.theory.corrector_plots import plot, with_corrector
from experiments.theory.correctors import correctors, lost
from toy import prefixes
from toy.checks import NOT_NEGATIVE, POSITIVE, SHARE, Real, Whole, check_ascending, check_fields
from toy.data.source import TreeSource
from toy.eval.metrics import MAX_HOLE_RATE
from toy.features.named import reference_tree
from toy.features.node import feature_names
from toy.features.tree import build_tree, mean_l0
from toy.sae import SAE
from toy.training.config import MAX_STEPS, Hypers, TrainConfig
from toy.training.grid import train_grid, trained_saes
from toy.training.loop import Run

DEFAULT = "sampled_10"
N_SNAPSHOTS = 20


@dataclass(frozen=True)
class Config(SeedConfig):
    """Options of `corrector`."""

    seed: int = 6_000
    """The first seed, which the definition of a corrector has not seen."""
    n_seeds: int = 256
    """Number of seeds, with restarts of weak latents and without."""
    n_rate_seeds: int = 64
    """Number of seeds for each other setting, without restarts."""
    n_steps: int = TrainConfig.n_steps
    """Training steps."""
    learning_rate: float = Hypers._field_defaults["learning_rate"]
    """Adam's learning rate, where a setting has no other."""
    l0_ratios: tuple[float, ...] = (0.7, 0.85, 1.15, 1.4, 2.0)
    """Target L0 over the tree's."""
    sparsity_coefs: tuple[float, ...] = (0.1, 0.3, 0.7, 2.0, 4.0)
    """Coefficients from which the L0 controller starts."""
    learning_rates: tuple[float, ...] = (3e-3, 2e-2, 3e-2)
    """Adam's learning rates."""
    weightings: tuple[str, ...] = ("sampled_3", "sampled_5", "expected_10", "all")
    """Weightings of the prefixes."""
    warmups: tuple[float, ...] = (0.0, 0.05, 0.5)
    """Shares of the steps in which the coefficient rises from 0 to its start."""
    theory_coefs: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
    """L1 coefficients at which codes are compared by the exact objective."""
    edge_probs: tuple[float, ...] = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
    """P(child | parent) of a pair whose codes are compared likewise."""
    n_descent: int = 4_000
    """Steps of each descent on the exact objective."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_steps=Whole(most=MAX_STEPS), learning_rate=POSITIVE)
        check_fields(self, n_rate_seeds=Whole(most=self.n_seeds), l0_ratios=POSITIVE, sparsity_coefs=NOT_NEGATIVE)
        check_fields(self, learning_rates=POSITIVE, warmups=SHARE, theory_coefs=POSITIVE, n_descent=Whole())
        check_fields(self, edge_probs=Real(above=0, below=1))
        check_ascending(self, "theory_coefs", "edge_probs")
        for name in self.weightings:
            prefixes.named(name, 2)

    @property
    def base(self) -> StudyConfig:
        """The default training, without restarts."""
        return StudyConfig(
            seed=self.seed,
            n_seeds=self.n_seeds,
            n_steps=self.n_steps,
            learning_rate=self.learning_rate,
            reinit_below=0.0,
            n_eval_rows=5_000,
        )

    @property
    def settings(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Axis, value and what it changes, one setting after the other."""
        true = mean_l0(build_tree(reference_tree()))
        return [
            *(("target L0 / true L0", f"{x:g}", {"target_l0": x * true}) for x in self.l0_ratios),
            *(("first coefficient", f"{x:g}", {"sparsity_coef": x}) for x in self.sparsity_coefs),
            *(("learning rate", f"{x:g}", {"learning_rate": x}) for x in self.learning_rates),
            *(("prefixes", x.replace("_", " "), {"weighting": x}) for x in self.weightings),
            *(("warm-up", f"{x:g}", {"warmup": x}) for x in self.warmups),
        ]


class Snapshots:
    """Keeps the SAEs of every chunk in memory, where a checkpoint would save a run."""

    def __init__(self) -> None:
        self.saes: list[SAE] = []

    def load(self, like: Run, facts: dict[str, Any]) -> None:
        return None

    def save(self, run: Run, facts: dict[str, Any], *, last: bool) -> None:
        self.saes.append(jax.device_get(trained_saes(run.state)))

    def release(self) -> None:
        pass


def train(
    cfg: StudyConfig, study: Study, work: Work, weighting: str = DEFAULT, warmup: float | None = None
) -> tuple[list[SAE], np.ndarray]:
    """The SAEs of all seeds after each of `N_SNAPSHOTS` chunks, and the mean coefficient in each, [n_seeds chunks]."""
    train_cfg = train_config(cfg, study.tree)
    if warmup is not None:
        train_cfg = replace(train_cfg, sparsity_warmup_share=warmup)
    hypers = make_hypers(cfg, study.tree, prefixes.named(weighting, train_cfg.n_latents))
    source, in_axes = TreeSource(study.tree, study.W_feat), (TreeSource(None, 0), None)  # type: ignore[arg-type]
    kept, chunk = Snapshots(), -(-cfg.n_steps // N_SNAPSHOTS)
    _, history = train_grid(
        study.keys, source, hypers, cfg=train_cfg, in_axes=in_axes, chunk=chunk, progress=work, checkpoint=kept
    )
    return kept.saes, np.asarray(history.sparsity_coef)


def run(cfg: Config, work: Work) -> dict[str, Any]:
    study = make_study(cfg.base, build_tree(reference_tree()))
    default = Hypers._field_defaults["reinit_below"]
    runs = {
        name: fates(*train(replace(cfg.base, reinit_below=below), study, work), study, cfg.base)
        for name, below in (("off", 0.0), ("on", default))
    }
    few = replace(cfg.base, n_seeds=cfg.n_rate_seeds)
    rates = [{"axis": "default", "value": "", **rate(runs["off"], cfg.n_rate_seeds)}]
    for axis, value, changes in cfg.settings:
        special = {name: changes[name] for name in ("weighting", "warmup") if name in changes}
        changed = replace(few, **{name: x for name, x in changes.items() if name not in special})
        study = make_study(changed, build_tree(reference_tree()))
        found = fates(*train(changed, study, work, **special), study, changed)
        rates.append({"axis": axis, "value": value, **rate(found, cfg.n_rate_seeds)})
    subtrees = of_subtrees(cfg.theory_coefs, cfg.n_descent)
    pairs = of_pairs(cfg.edge_probs, cfg.base.sparsity_coef, cfg.n_descent)
    return {"runs": runs, "rates": rates, "subtrees": subtrees, "pairs": pairs}


def fates(saes: list[SAE], coefs: np.ndarray, study: Study, cfg: StudyConfig) -> dict[str, Any]:
    """Returns what became of every run, and how many had a corrector at each snapshot."""
    tree, names = study.tree, feature_names(reference_tree())
    last = evaluate_seeds(saes[-1], study.W_feat, tree, held_out_features(cfg, tree))
    seen = [[correctors(lane(part, i), study.W_feat[i], tree) for part in saes] for i in range(len(study.W_feat))]
    there = np.array([[bool(found) for found in of_run] for of_run in seen])  # [n_seeds n_snapshots]
    recovered = np.array([evaluation.recovered for evaluation in last])
    return {
        "recovered": recovered.tolist(),
        "hole_rate": [evaluation.hole_rate for evaluation in last],
        "l0": [evaluation.l0 for evaluation in last],
        "coef": coefs[:, -1].tolist(),
        "correctors": [[one._asdict() | {"parent": names[one.parent]} for one in of_run[-1]] for of_run in seen],
        "lost": [[names[i] for i in lost(lane(saes[-1], i), W)] for i, W in enumerate(study.W_feat)],
        "with_corrector": {"failed": there[~recovered].sum(0).tolist(), "recovered": there[recovered].sum(0).tolist()},
        "left": (there[:, :-1] & ~there[:, 1:]).sum(0).tolist(),
        "gained": (~there[:, :-1] & there[:, 1:]).sum(0).tolist(),
        "directions": [
            (float(coefs[i, k]), one.to_parent, one.to_children)
            for i in np.flatnonzero(~recovered)
            for k, found in enumerate(seen[i])
            for one in found
        ],
    }


def rate(found: dict[str, Any], n: int) -> dict[str, int]:
    """Counts over the first n runs."""
    failed, has = ~np.array(found["recovered"][:n]), np.array([bool(one) for one in found["correctors"][:n]])
    return {"n": n, "failed": int(failed.sum()), "with_corrector": int(has.sum()), "both": int((failed & has).sum())}


def n_steps(cfg: Config) -> int:
    return (2 + len(cfg.settings)) * cfg.n_steps


def check(cfg: Config) -> None:
    """Raises: ValueError for trainings that cannot be."""
    check_study(cfg.base, reference_tree())


def summary(record: dict[str, Any]) -> list[str]:
    results = record["results"]
    lines = [_told(f"restarts {name}", runs) for name, runs in results["runs"].items()]
    for setting in results["rates"]:
        name = f"{setting['axis']} {setting['value']}".strip()
        lines.append(
            f"{name}: {setting['failed']}/{setting['n']} fail, {setting['with_corrector']} with a corrector "
            f"({setting['both']} of the failed)"
        )
    lines += [f"coefficient {row['coef']:g}: {_told_code(row)}" for row in results["subtrees"]]
    error = direction_errors(record)
    lines.append(f"correctors' cosines at coefficients above 1: mean absolute error {error[0]:.3f}, {error[1]:.3f}")
    gaps = zip(record["config"]["edge_probs"], results["pairs"], strict=True)
    lines.append("a pair's code with parent alone over the truth: " + ", ".join(f"P {p:g} {x:+.1%}" for p, x in gaps))
    return lines


def _told(name: str, runs: dict[str, Any]) -> str:
    failed = [i for i, yes in enumerate(runs["recovered"]) if not yes]
    found = [(one, runs["lost"][i]) for i in failed for one in runs["correctors"][i]]
    own = sum(feature.startswith(one["parent"]) for one, features in found for feature in features)
    kinds = Counter(_kind(feature) for i in failed for feature in runs["lost"][i])
    return (
        f"{name}: {plots.count_text(len(failed), len(runs['recovered']), 3)} fail, "
        f"{sum(bool(runs['correctors'][i]) for i in failed)} of them with a corrector; "
        f"ranks {dict(Counter(one['rank'] for one, _ in found))}; lost {dict(kinds)}, its own child {own} times; "
        f"{sum(runs['hole_rate'][i] > MAX_HOLE_RATE for i in failed)} with holes"
    )


def _kind(name: str) -> str:
    return "lone" if name.startswith("L") else "child" if len(name) > 1 else "parent"


def _told_code(row: dict[str, Any]) -> str:
    parts = [
        f"{name} {r['earned']:.2f}, at best {r['earned_at_best']:.2f}, kept by {r['kept']:.2f} of descents, "
        f"strength {r['strength']:.3f}, aimed {r['aimed']:.2f}"
        for name, r in ((name, row[name]) for name in ("other", "same"))
    ]
    return f"earned by {'; '.join(parts)}; strength of a child {row['child_strength']:.2f}"


def direction_errors(record: dict[str, Any]) -> list[float]:
    """The mean absolute errors of the optimum's cosines with parent and children, in failed runs above coefficient 1.

    NaN where there is no such corrector.
    """
    rows = with_corrector(record["results"]["subtrees"])
    dots = np.array([dot for dot in record["results"]["runs"]["off"]["directions"] if dot[0] > 1]).reshape(-1, 3)
    if not rows or not len(dots):
        return [float("nan")] * 2
    coefs = np.log([row["coef"] for row in rows])
    lines = ([row["other"][name] for row in rows] for name in ("to_parent", "to_children"))
    return [
        float(np.mean(np.abs(dots[:, i + 1] - np.interp(np.log(dots[:, 0]), coefs, line))))
        for i, line in enumerate(lines)
    ]


def caption(record: dict[str, Any]) -> str:
    config = record["config"]
    parts = [
        "a: decoder cosines of correctors in failed runs, after each twentieth of the training (dots), and at the "
        "optimum of the objective (lines)",
        "b: runs that have a corrector; dotted: the end of the warm-up",
        "c: what a corrector takes off the objective, as a share of what the lost child's latent does; circles: the "
        "least objective that descents from there reach; dotted: the share of descents that keep the corrector",
        f"d: of {config['n_rate_seeds']} runs, without restarts, with 95% intervals",
        "e: a code with a latent for the parent alone, in a pair; dotted: the limit of L1 for tied codes",
        f"{config['n_steps']:,} steps",
        seeds_text(record["seeds"]),
    ]
    return "; ".join(parts) + "."


EXPERIMENT = Experiment("corrector", Config, run, summary, plot, check, n_steps, caption, folder="theory.")

if __name__ == "__main__":
    main(EXPERIMENT)
