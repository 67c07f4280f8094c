"""Methods side by side: which hierarchies each of them recovers, and at what price.

Claim: ten of eighteen methods that train prefixes find the reference tree in every seed; of the nine others only tied
SAEs ever do (5/16). A tied finish finds it without mixing or error, and a child twice as large as its parent, too. The
sparsest rotation before it (`rotated`) finds three levels, random trees and a child five times as large as its parent
in every seed. No method finds superposed features.
Command: python -m experiments.compare (24 minutes on two cores, 3.3 GB); --methods takes the names of `toy.methods` and
FILE.py:NAME for a method of yours. What was trained before is taken from the user's cache, so that adding a method
costs only its own runs.
Expected, seeds 0 to 15, recovered on the reference tree: 16/16 by Matryoshka, tied, orthogonal and BatchTopK SAEs on
prefixes, by the tied finish and by `rotated`, 15/16 by aligned ones, 0/16 by vanilla; of all 144 runs most by
`rotated`, 100.
In the post: nothing; it compares two SAEs on one tree.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from experiments.common.seeds import seeds_text
from experiments.sweeps.panels import PanelConfig, PanelRun, Panels, check_panels, check_scenes, n_runs
from toy.checks import POSITIVE, Whole, check_fields
from toy.eval.metrics import mean_known
from toy.features.named import forest, ordering_tree, reference_tree
from toy.features.node import Node
from toy.features.tree import build_tree, mean_l0
from toy.training.loop import Progress

# Methods, with the learning rate of .003, .01 and .02 at which they recovered most runs of `sweeps/tuning.yaml`, and of
# equal ones that with the greater mean of least cosines (figures/sweep_tuning.json).
TUNED = {
    "vanilla": 3e-3,
    "vanilla:sparsity=log": 1e-2,
    "matryoshka": 1e-2,
    "matryoshka:order=frequency": 3e-3,
    "matryoshka:weighting=expected_10": 1e-2,
    "matryoshka:weighting=all": 3e-3,
    "matryoshka:weighting=balanced_0.5": 2e-2,
    "matryoshka:weighting=levels:25%=1,50%=1,full=1": 2e-2,
    "topk:k=l0": 3e-3,
    "topk:k=l0,weighting=sampled_10": 3e-3,
    "batchtopk": 1e-2,
    "batchtopk:weighting=sampled_10": 3e-3,
    "jumprelu": 2e-2,
    "jumprelu:weighting=sampled_10": 2e-2,
    "gated": 1e-2,
    "gated:weighting=sampled_10": 1e-2,
    "tied": 3e-3,
    "tied:weighting=vanilla": 2e-2,
    "tied_finish": 3e-3,
    "rotated": 3e-3,
    "aligned": 2e-2,
    "orthogonal": 3e-3,
    "orthogonal:weighting=sampled_10": 1e-2,
    "detached": 1e-2,
    "detached:order=frequency": 2e-2,
    "pursuit:k=4,tolerance=0.02": 3e-3,
    "pursuit:k=4,tolerance=0.02,weighting=sampled_10": 1e-2,
}
REFERENCE = "reference"
LEAST_FVU = 1e-6  # of the frontier's axis


def lone(n: int = 8) -> list[Node]:
    return [Node(0.05) for _ in range(n)]


# A parent whose children no weighting of prefixes can balance, and pairs with a child as large as its parent or larger;
# the parent is twice as large as a lone feature, as in the comment's example.
UNBALANCEABLE = forest(Node(0.25, (Node(0.02), Node(0.15), Node(0.5)), name="parent"), *lone())
OWN_TREES = {
    "ratio 1": forest(*ordering_tree(edge_prob=0.2, ratio=1).children, *lone()),
    "ratio 2": forest(*ordering_tree(edge_prob=0.2, ratio=2).children, *lone()),
    "ratio 5": forest(*ordering_tree(edge_prob=0.2, ratio=5).children, *lone()),
    "unbalanceable": UNBALANCEABLE,
}
SCENES: dict[str, dict[str, Any]] = {
    REFERENCE: {"tree": REFERENCE},
    "three_level": {"tree": "three_level"},
    **{name: {"tree": name} for name in OWN_TREES},
    "random": {"tree": "random"},
    "superposed 1.5": {"tree": REFERENCE, "d_in": 13, "max_cosine": 0.6},
    "superposed 2": {"tree": REFERENCE, "d_in": 10, "max_cosine": 0.6},
}  # by the name in the figure; `random` stands for as many trees as `n_random`


@dataclass(frozen=True)
class Config(PanelConfig):
    """Options of `compare`."""

    n_steps: int = 5_000  # those of a sweep's cells
    """Training steps."""
    methods: tuple[str, ...] = tuple(TUNED)
    """Methods by name (`toy.methods.named`), such as tied, topk:k=l0 or my_file.py:mine."""
    scenes: tuple[str, ...] = tuple(SCENES)
    """What they are trained on; ratio: a child's magnitude over its parent's; superposed: features per dimension."""
    n_random: int = 12
    """Number of random trees, among which the seeds are divided."""
    l0_ratios: tuple[float, ...] = (0.7, 1.0, 1.5)
    """Targets of L0, or k, over the tree's mean L0, for the frontier on the reference tree."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_random=Whole(), l0_ratios=POSITIVE)
        check_scenes(self.methods, self.scenes, SCENES)

    @cached_property
    def runs(self) -> list[PanelRun]:
        """A run of every method on every panel for every seed; panels are scenes, and targets of the frontier."""
        scenes = {scene: {"l0_ratio": 1.0} | SCENES[scene] for scene in self.scenes}
        if REFERENCE in self.scenes:
            scenes |= {f"L0 {ratio:g}": {"tree": REFERENCE, "l0_ratio": ratio} for ratio in self.l0_ratios}
        rates = {method: {"learning_rate": TUNED.get(method, self.learning_rate)} for method in self.methods}
        return [
            PanelRun(method, scene, given | rates[method] | {"seed": seed, "tree_seed": i % self.n_random})
            for method in self.methods
            for scene, given in scenes.items()
            for i, seed in enumerate(self.seeds)
        ]

    @property
    def panels(self) -> Panels:
        return Panels("compare", self.runs, OWN_TREES, self.n_steps)


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    return cfg.panels.results(cfg.store, progress)


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for method, panels in record["results"].items():
        told = [f"{panel} {r['recovered']}/{r['n']}" for panel, r in panels.items() if not panel.startswith("L0 ")]
        lines.append(f"{method}: recovered {', '.join(told)}")
        if REFERENCE in panels:
            r = panels[REFERENCE]
            lines[-1] += f"; FVU {mean_known(r['fvu']):.4f}, L0 {mean_known(r['l0']):.3f} on {REFERENCE}"
            lines[-1] += f", {1e6 * mean_known(r['seconds']) / record['config']['n_steps']:.0f} µs per step"
    return lines


def caption(record: dict[str, Any]) -> str:
    config = record["config"]
    return (
        f"a: recovered runs of {config['n_seeds']}; b to d: means over runs; random: {config['n_random']} trees; "
        "ratio: a child's magnitude over its parent's, which is twice a lone feature's; superposed: features per "
        "dimension; e: the reference tree with targets of "
        f"{', '.join(f'{ratio:g}' for ratio in config['l0_ratios'])} times its L0, filled where most runs "
        "recover it, FVUs below 10⁻⁶ drawn there, dotted: the tree's L0; "
        f"{config['n_steps']:,} steps; {seeds_text(record['seeds'])}."
    )


def plot(record: dict[str, Any]) -> Figure:
    results, scenes = record["results"], record["config"]["scenes"]
    methods = list(results)
    height = 1.0 + 0.16 * len(methods)
    frontier = max(2.6, 0.9 + 0.1 * len(methods))
    with plots.styled(2 * height + frontier) as figure:
        top, middle, bottom = plots.stacked(figure, height, height, frontier)
        a, b = top.subplots(1, 2, sharey=True)
        counts = [[f"{results[m][s]['recovered']}/{results[m][s]['n']}" for s in scenes] for m in methods]
        shares = [[results[m][s]["recovered"] / results[m][s]["n"] for s in scenes] for m in methods]
        plots.table(a, "a  Recovered", shares, counts, methods, scenes, high=1.0)
        for ax, letter, (metric, title) in zip(
            [b, *middle.subplots(1, 2, sharey=True)],
            "bcd",
            {"hole_rate": "Hole rate", "fvu": "FVU", "max_off_diagonal": "Largest mixing"}.items(),
            strict=True,
        ):
            values = [[mean_known(results[m][s][metric]) for s in scenes] for m in methods]
            text = [[f"{value:.2f}".lstrip("0") if value == value else "–" for value in row] for row in values]
            plots.table(ax, f"{letter}  {title}", values, text, methods, scenes, high=1.0 if metric != "fvu" else 0.3)
        _frontier(bottom.subplots(), results)
    return figure


def _frontier(ax: Axes, results: dict[str, Any]) -> None:
    """FVU against L0 on the reference tree, a line per method through its targets."""
    ax.set_title("e  FVU and L0 on the reference tree")
    markers = "osD^v<>pPX*hH8d"
    drawn = False
    for i, (method, panels) in enumerate(results.items()):
        points = [panels[panel] for panel in panels if panel.startswith("L0 ")]
        if not points:
            continue
        drawn = True
        colour = f"C{i % 10}"
        x, y = [mean_known(r["l0"]) for r in points], [max(mean_known(r["fvu"]), LEAST_FVU) for r in points]
        ax.plot(x, y, color=colour, linewidth=0.6)
        for r, one_x, one_y in zip(points, x, y, strict=True):
            most = r["recovered"] > r["n"] / 2
            ax.plot(
                one_x,
                one_y,
                markers[i % len(markers)],
                color=colour,
                markersize=4,
                fillstyle="full" if most else "none",
            )
        ax.plot([], [], markers[i % len(markers)], color=colour, markersize=4, label=plots.shown_name(method, 36))
    if not drawn:
        plots.nothing(ax, "the reference tree is not among the scenes")
        return
    ax.axvline(mean_l0(build_tree(reference_tree())), color=plots.COLOURS["truth"], linewidth=0.7, linestyle=":")
    plots.log_scale(ax, "y")
    ax.set(xlabel="L0", ylabel="FVU (log scale)")
    ax.legend(fontsize=5, loc="center left", bbox_to_anchor=(1.01, 0.5))


EXPERIMENT = Experiment("compare", Config, run, summary, plot, check_panels, n_runs, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
