"""Does a method find trees that it was not tuned on? Many fresh seeds on each of them, and what recovery costs.

Claim: the sparsest rotation of Matryoshka's subspace, finished with a tied encoder (`rotated`), recovers the trees here
whose edges are below 1/2 in nearly all seeds, without mixing, holes or error. From 1/2 on the truth is not the sparsest
code, so that no search for one can find it.
Command: python -m experiments.theory.recovery (about 12 minutes on 2 cores); --methods takes names of `toy.methods` and
FILE.py:NAME for a method of yours. What was trained before is taken from the user's cache.
Expected, seeds 5000 to 5099: 100 recovered on the reference tree, 89 to 100 on the other trees below 1/2, none at .6.
In the post: nothing; it shows one tree.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from experiments.common.seeds import seeds_text
from experiments.sweeps.panels import PanelConfig, PanelRun, Panels, check_panels, check_scenes, n_runs, recovered_only
from toy.eval.metrics import mean_known
from toy.features.named import RegularTree, forest, ordering_tree, regular_tree
from toy.features.node import Node
from toy.training.loop import Progress

LONE = [Node(0.05) for _ in range(8)]
INDEPENDENT = RegularTree(edge_prob=0.3, exclusive=False, n_lone=4)
REGULAR = {
    "3 exclusive, P .3": RegularTree(edge_prob=0.3),
    "3 independent, depth 2": replace(INDEPENDENT, n_roots=2, depth=2),
    "2 independent, depth 3": replace(INDEPENDENT, n_roots=1, depth=3, branching=2, root_prob=0.3),
    "2 independent, depth 4": replace(INDEPENDENT, n_roots=1, depth=4, branching=2, expanded=1, root_prob=0.3),
}
OWN_TREES = {
    **{name: regular_tree(spec) for name, spec in REGULAR.items()},
    "pair, ratio 5, P .2": forest(*ordering_tree(edge_prob=0.2, ratio=5).children, *LONE),
    "pair, P .6": forest(*ordering_tree(edge_prob=0.6, ratio=1).children, *LONE),
    "comment (ratio 5, P .5)": ordering_tree(),
}
SCENES: dict[str, dict[str, Any]] = {
    "reference": {"tree": "reference"},
    "three_level": {"tree": "three_level"},
    **{name: {"tree": name} for name in OWN_TREES},
    "random": {"tree": "random"},
}  # by the name in the figure


@dataclass(frozen=True)
class Config(PanelConfig):
    """Options of `recovery`."""

    methods: tuple[str, ...] = ("rotated",)
    """Methods by name (`toy.methods.named`)."""
    scenes: tuple[str, ...] = tuple(SCENES)
    """What they are trained on; random: another tree for every seed."""
    seed: int = 5_000
    """The first seed, which no tuning has seen."""
    n_seeds: int = 100
    """Number of seeds; each has directions, an initialisation and data of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scenes(self.methods, self.scenes, SCENES)

    @cached_property
    def runs(self) -> list[PanelRun]:
        return [
            PanelRun(
                method, scene, SCENES[scene] | {"learning_rate": self.learning_rate, "seed": seed, "tree_seed": seed}
            )
            for method in self.methods
            for scene in self.scenes
            for seed in self.seeds
        ]

    @property
    def panels(self) -> Panels:
        return Panels("recovery", self.runs, OWN_TREES, self.n_steps)


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    return cfg.panels.results(cfg.store, progress)


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for method, scenes in record["results"].items():
        for scene, r in scenes.items():
            mixing = recovered_only(r, "max_off_diagonal")
            worst = f", mixing at most {max(mixing):.3f} where recovered" if mixing else ""
            lines.append(
                f"{method}, {scene}: recovered {plots.count_text(r['recovered'], r['n'])}{worst}; "
                f"holes {mean_known(r['hole_rate']):.3f}, "
                f"FVU {mean_known(r['fvu']):.4f}, {mean_known(r['seconds']):.2f} s per run"
            )
    return lines


def caption(record: dict[str, Any]) -> str:
    config = record["config"]
    return (
        f"a: recovered runs of {config['n_seeds']}; b: the largest mixing of the recovered runs (–: none); c: mean "
        "hole rate; P: P(child | parent); ratio: a child's magnitude over its parent's, which is twice a lone "
        f"feature's; random: another tree for every seed; {config['n_steps']:,} steps; {seeds_text(record['seeds'])}."
    )


def plot(record: dict[str, Any]) -> Figure:
    results, scenes = record["results"], record["config"]["scenes"]
    methods = list(results)
    with plots.styled(1.6 + 0.17 * len(scenes)) as figure:
        a, b, c = figure.subplots(1, 3, sharey=True)
        of_scenes = [[results[method][scene] for method in methods] for scene in scenes]
        shares = [[r["recovered"] / r["n"] for r in row] for row in of_scenes]
        counts = [[f"{r['recovered']}/{r['n']}" for r in row] for row in of_scenes]
        plots.table(a, "a  Recovered", shares, counts, scenes, methods, high=1.0)
        worst = [[max(recovered_only(r, "max_off_diagonal"), default=np.nan) for r in row] for row in of_scenes]
        plots.table(b, "b  Largest mixing", worst, _text(worst, 3), scenes, methods, high=1.0)
        holes = [[mean_known(r["hole_rate"]) for r in row] for row in of_scenes]
        plots.table(c, "c  Hole rate", holes, _text(holes, 3), scenes, methods, high=1.0)
    return figure


def _text(values: list[list[float]], n_digits: int) -> list[list[str]]:
    return [[f"{x:.{n_digits}f}".removeprefix("0") if x == x else "–" for x in row] for row in values]


EXPERIMENT = Experiment("recovery", Config, run, summary, plot, check_panels, n_runs, caption, folder="theory.")

if __name__ == "__main__":
    main(EXPERIMENT)
