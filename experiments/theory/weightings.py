"""Which prefixes to train: sampled or every one, how many levels, and in which order of the latents.

Claim: at the best settings of each, prefixes of the dictionary recover the reference tree whether they are sampled or
all trained, and none of them exactly: each mixes a parent's latent with its children, the less the more weight the full
prefix has. Two and three levels recover it less often than six and more. Prefixes in the order of a row's activations
(HierarchicalTopK) do not stop absorption: the code that absorbs has one latent on where the truth has two.
Command: python -m experiments.theory.weightings (about 7 minutes on 2 cores, 13 on one). What was trained before is
taken from the user's cache.
Expected, seeds 5000 to 5031, recovered of 32: 32 with 10 prefixes, six levels or half of the weight on the full one, 31
with every prefix, 29 and 22 with two and three levels; with BatchTopK 30 in the dictionary's order, 0 in that of
activations.
In the post: the first comment's question, and the author's answer from one run (see `experiments.all_prefixes`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from experiments.common.seeds import seeds_text
from experiments.sweeps.panels import MIXING, PanelRun, Panels, RunConfig, check_scenes, recovered_only
from experiments.theory.recovery import LONE, OWN_TREES
from toy.checks import POSITIVE, SEED, Whole, check_fields, check_some
from toy.eval.metrics import mean_known
from toy.features.named import forest, ordering_tree
from toy.training.loop import Progress

METHODS = {
    "matryoshka": "10 sampled",
    "matryoshka:weighting=expected_10": "10 expected",
    "matryoshka:weighting=all": "every prefix",
    "matryoshka:weighting=balanced_0.5": "half on the full one",
    "matryoshka:weighting=levels:50%=1,full=1": "2 levels",
    "matryoshka:weighting=levels:33%=1,67%=1,full=1": "3 levels",
    "matryoshka:weighting=levels:17%=1,33%=1,50%=1,67%=1,83%=1,full=1": "6 levels",
    "batchtopk": "BatchTopK, one prefix",
    "batchtopk:weighting=all": "BatchTopK, dictionary",
    "hierarchical_topk:k=l0,levels=3": "BatchTopK, activations",
    "topk:k=l0,weighting=all": "TopK, dictionary",
    "hierarchical_topk:k=l0": "TopK, activations",
}  # with what the figure calls them; 20 levels of the reference tree's 20 latents are every prefix
EXCLUSIVE, PAIR = "3 exclusive, P .3", "pair, ratio 2, P .2"  # whose parent is twice as large as a lone feature
TREES = {EXCLUSIVE: OWN_TREES[EXCLUSIVE], PAIR: forest(*ordering_tree(edge_prob=0.2, ratio=2).children, *LONE)}
REFERENCE = "reference"
SCENES = {REFERENCE: "#00798c", EXCLUSIVE: "#d1495b", PAIR: "#edae49"}  # with their colours
METRICS = {"hole_rate": "Hole rate", "min_cosine": "Least cosine", "fvu": "FVU"}


class Setting(NamedTuple):
    """The settings that are tuned for every method."""

    learning_rate: float
    l0_ratio: float  # the target of L0, or k, over the tree's mean L0


@dataclass(frozen=True)
class Config(RunConfig):
    """Options of `weightings`."""

    scenes: tuple[str, ...] = tuple(SCENES)
    """Trees on which the best settings of the reference tree are measured."""
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.02)
    """Learning rates among which the best is chosen for every method."""
    l0_ratios: tuple[float, ...] = (1.0, 1.3)
    """Targets of L0 over the tree's mean L0, likewise."""
    topk_ratios: tuple[float, ...] = (2.0, 3.0)
    """The same for TopK, whose k is a whole number."""
    tuning_seed: int = 1_000
    """The first seed of the choice."""
    n_tuning_seeds: int = 8
    """Number of seeds of each setting."""
    seed: int = 5_000
    """The first seed, which no tuning has seen."""
    n_seeds: int = 32
    """Number of seeds on the reference tree; each has directions, an initialisation and data of its own."""
    n_other_seeds: int = 8
    """Number of seeds on the other trees."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scenes(list(METHODS), self.scenes, SCENES)
        check_fields(self, learning_rates=POSITIVE, l0_ratios=POSITIVE, topk_ratios=POSITIVE)
        check_fields(self, tuning_seed=SEED, n_tuning_seeds=Whole(), n_other_seeds=Whole())
        check_some(self, "learning_rates", "l0_ratios", "topk_ratios")

    def settings(self, method: str) -> list[Setting]:
        of_topk = method.startswith(("topk", "hierarchical_topk")) and "levels=" not in method
        ratios = self.topk_ratios if of_topk else self.l0_ratios
        return [Setting(rate, ratio) for rate in self.learning_rates for ratio in ratios]

    @cached_property
    def tuning(self) -> list[PanelRun]:
        seeds = range(self.tuning_seed, self.tuning_seed + self.n_tuning_seeds)
        return [
            PanelRun(method, _panel(setting), {"tree": REFERENCE, "seed": seed} | setting._asdict())
            for method in METHODS
            for setting in self.settings(method)
            for seed in seeds
        ]

    def runs(self, chosen: Mapping[str, Setting]) -> list[PanelRun]:
        return [
            PanelRun(method, scene, {"tree": scene, "seed": seed} | chosen[method]._asdict())
            for method in METHODS
            for scene in self.scenes
            for seed in self.seeds[: self.n_seeds if scene == REFERENCE else self.n_other_seeds]
        ]


def _panel(setting: Setting) -> str:
    return f"{setting.learning_rate:g}, {setting.l0_ratio:g}"


def _panels(cfg: Config, runs: list[PanelRun]) -> Panels:
    return Panels("weightings", runs, TREES, cfg.n_steps)


def check(cfg: Config) -> None:
    first = {method: cfg.settings(method)[0] for method in METHODS}
    for runs in (cfg.tuning, cfg.runs(first)):
        _panels(cfg, runs).check()


def n_steps(cfg: Config) -> int:
    return len(cfg.tuning) + len(cfg.runs({method: cfg.settings(method)[0] for method in METHODS}))


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    tried = _panels(cfg, cfg.tuning).results(cfg.store, progress)
    tuning = {
        method: {
            panel: {"recovered": r["recovered"], "n": r["n"], "min_cosine": mean_known(r["min_cosine"])}
            for panel, r in panels.items()
        }
        for method, panels in tried.items()
    }
    chosen = {method: best(cfg.settings(method), tuning[method]) for method in METHODS}
    runs = cfg.runs(chosen)
    found = _panels(cfg, runs).results(cfg.store, progress)
    return {"tuning": tuning, "chosen": {method: _panel(of) for method, of in chosen.items()}, "found": found}


def best(settings: list[Setting], tried: Mapping[str, Mapping[str, Any]]) -> Setting:
    """The setting that recovers most seeds, and of equal ones that with the greatest mean of least cosines."""
    return max(settings, key=lambda setting: [tried[_panel(setting)][name] for name in ("recovered", "min_cosine")])


def summary(record: dict[str, Any]) -> list[str]:
    results, lines = record["results"], []
    for method, scenes in results["found"].items():
        lines.append(f"{METHODS[method]} (learning rate, L0 over the true one: {results['chosen'][method]})")
        for scene, r in scenes.items():
            mixing = ", ".join(f"{kind} {_interval(recovered_only(r, kind))}" for kind in (*MIXING, "max_off_diagonal"))
            metrics = ", ".join(f"{metric} {_interval(r[metric])}" for metric in (*METRICS, "l0"))
            lines.append(
                f"  {scene}: recovered {plots.count_text(r['recovered'], r['n'])}, {metrics}; recovered ones: {mixing}"
            )
    return lines


def _interval(values: list[float]) -> str:
    if not values:
        return "–"
    found = plots.bootstrap(values)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def caption(record: dict[str, Any]) -> str:
    config = record["config"]
    n = {len(config["learning_rates"]) * len(config[ratios]) for ratios in ("l0_ratios", "topk_ratios")}
    return (
        f"Each column has the best of {' or '.join(map(str, sorted(n)))} settings (learning rate × target of L0 or k), "
        f"chosen on the reference tree by {config['n_tuning_seeds']} other seeds; a to d: "
        f"{' | '.join(config['scenes'])}; e to h: mean cosines, and the largest, of related features on "
        f"{config['scenes'][0]}, recovered runs alone; dictionary and activations: the order that prefixes follow; "
        f"dots: seeds; bars: mean or share with 95% interval; {config['n_steps']:,} steps; "
        f"{seeds_text(record['seeds'])}."
    )


def plot(record: dict[str, Any]) -> Figure:
    found, scenes = record["results"]["found"], record["config"]["scenes"]
    with plots.styled(5.0) as figure:
        top, bottom = plots.stacked(figure, 1, 1)
        lines = [Line2D([], [], color=SCENES[scene], label=scene) for scene in scenes]
        top.legend(handles=lines, loc="outside upper right", ncols=len(lines))
        recovered, *others = top.subplots(1, 1 + len(METRICS))
        for i, scene in enumerate(scenes):
            aside = 0.22 * (i - (len(scenes) - 1) / 2)
            for x, of_scenes in enumerate(found.values()):
                r, colour = of_scenes[scene], SCENES[scene]
                plots.share(recovered, x + aside, r["recovered"], r["n"], colour, width=0.8)
                for ax, metric in zip(others, METRICS, strict=True):
                    plots.spread(ax, x + aside, r[metric], colour, width=0.06, size=4)
        _name(recovered, "a", "Recovered")
        for ax, letter, title in zip(others, "bcd", METRICS.values(), strict=True):
            _name(ax, letter, title)
        kinds = {name: name.replace("_to_", " → ") for name in MIXING} | {"max_off_diagonal": "Largest mixing"}
        for ax, letter, (kind, title) in zip(bottom.subplots(1, len(kinds)), "efgh", kinds.items(), strict=True):
            ax.axhline(0, color=plots.COLOURS["truth"], linewidth=0.6)
            drawn = [
                plots.spread(ax, x, recovered_only(of_scenes[scenes[0]], kind), SCENES[scenes[0]], size=6)
                for x, of_scenes in enumerate(found.values())
            ]
            if not any(drawn):
                plots.nothing(ax, "no run recovered")
            _name(ax, letter, title)
    return figure


def _name(ax: Axes, letter: str, title: str) -> None:
    ax.set_xticks(range(len(METHODS)), list(METHODS.values()), rotation=90, fontsize=6)
    ax.set(title=f"{letter}  {title}", xlim=(-0.6, len(METHODS) - 0.4))


EXPERIMENT = Experiment("weightings", Config, run, summary, plot, check, n_steps, caption, folder="theory.")

if __name__ == "__main__":
    main(EXPERIMENT)
