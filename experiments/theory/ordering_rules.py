"""Does another order of the latents find a child that is larger than its parent? Ratio × P(child | parent) × rule.

Claim: no order that sorts latents moves the limit. Recovery ends where a lone latent leans too far towards the child
(`toy.theory.first_latent_angle`), by energy, by normalised contribution and by frequency, though frequency keeps every
parent first. Much further the truth is the optimum of the objective, and SAEs that start there in the truth's order
stay. Where lone features come between a parent and its child decides how far the parent's latent mixes.
Command: python -m experiments.theory.ordering_rules (about 10 minutes on 2 cores).
Expected, seeds 7000 to 7015: of 560 runs recovered 197 by energy, 184 by normalised contribution, 129 by frequency, 192
where latents are never sorted, and 301 from the truth; of 32 on the reference tree 31, 8 and 15 by the three orders.
In the post: a comment's example of a child that is larger than its parent, for latents ordered by energy.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from experiments.common.seeds import seeds_text
from experiments.sweeps.cell import Start
from experiments.sweeps.panels import PanelConfig, PanelRun, Panels, check_panels, n_runs, recovered_only
from experiments.theory.pair_order import optimum, places
from experiments.theory.spare_latents import spare_latents
from toy.checks import POSITIVE, Real, Whole, check_ascending, check_fields
from toy.eval.metrics import MIN_COSINE, mean_known
from toy.features.named import forest, ordering_tree
from toy.features.node import Node
from toy.features.tree import build_tree, marginals
from toy.theory import first_latent_angle
from toy.training.config import MAX_STEPS, Hypers
from toy.training.loop import Progress

THEORIES = {
    "lean": "a lone latent leans less than cos .9 to the child",
    "first": "the parent comes before the child",
    "optimum": "the optimum from the truth's supports is a recovery",
    "both": "the first and the third",
}
LINES = {"lean": "-", "first": "--", "optimum": ":"}


class Rule(NamedTuple):
    """A rule by which latents stand before others."""

    method: str
    power: float | None  # features come in the order of P(on) · magnitude^power; None: as in the tree, parents first
    weighting: str = "sampled_10"
    start: Start = "random"
    sparsity_coef: float = Hypers._field_defaults["sparsity_coef"]  # the controller starts there, and stays near it
    control_rate: float = Hypers._field_defaults["control_rate"]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a cell under this rule."""
        return {name: getattr(self, name) for name in ("start", "sparsity_coef", "control_rate")}


RULES = {
    "energy": Rule("matryoshka", 2),
    "normalised": Rule("matryoshka:order=normalised", 1),
    "frequency": Rule("matryoshka:order=frequency", 0),
    "learned": Rule("matryoshka:order=fixed", 2),  # never sorted: the first place learns what has the most energy
    "given": Rule("matryoshka:order=fixed", None, start="features"),
    "given, little L1": Rule("matryoshka:order=fixed", None, start="features", sparsity_coef=0.1, control_rate=0.0),
    "frequency, half full": Rule("matryoshka:order=frequency,weighting=balanced_0.5", 0, "balanced_0.5"),
}
ORDERS = ("energy", "normalised", "frequency")


def among(edge_prob: float, ratio: float, lone_prob: float = 0.05, lone_magnitude: float = 1.0) -> Node:
    """A parent (.3) of magnitude 1 and its child among 8 lone features."""
    pair = ordering_tree(edge_prob=edge_prob, magnitude=1.0, ratio=ratio)
    return forest(*pair.children, *[Node(lone_prob, magnitude_mean=lone_magnitude) for _ in range(8)])


PAIRS = {
    "pair, ratio 2": among(0.2, 2.0),
    "rare, large lone": among(0.3, 1.0, 0.01, 4.0),  # between parent and child by energy, after them by frequency
    "frequent, small lone": among(0.3, 1.0, 0.15, 0.5),  # the other way round
}
SCENES: dict[str, dict[str, Any]] = {
    **{name: {"tree": name} for name in PAIRS},
    "reference": {"tree": "reference"},
    "reference, no restarts": {"tree": "reference", "reinit_below": 0.0},
    "reference, detached": {"tree": "reference", "method": "detached", "learning_rate": 0.02},
    "random": {"tree": "random"},
    "random, no restarts": {"tree": "random", "reinit_below": 0.0},
}  # on which orders are compared


@dataclass(frozen=True)
class Config(PanelConfig):
    """Options of `ordering_rules`."""

    edge_probs: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    """P(child | parent)."""
    ratios: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)
    """The child's magnitude over the parent's."""
    seed: int = 7_000
    """The first seed, which no tuning has seen."""
    n_scene_seeds: int = 32
    """Number of seeds of each tree on which orders are compared."""
    n_steps: int = 4_000
    """Training steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, ratios=POSITIVE, edge_probs=Real(above=0, below=1), n_scene_seeds=Whole(most=MAX_STEPS))
        check_ascending(self, "edge_probs", "ratios")

    @cached_property
    def trees(self) -> dict[str, Node]:
        """The trees of the phase diagram, by their names."""
        return {_name(ratio, prob): among(prob, ratio) for ratio in self.ratios for prob in self.edge_probs}

    @cached_property
    def runs(self) -> list[PanelRun]:
        """Those of the phase diagram, then those of the scenes."""
        shared = {"learning_rate": self.learning_rate, "reinit_below": 0.2, "tree_seed": 0}
        diagram = [
            PanelRun(rule.method, f"{name}: {tree}", shared | rule.settings | {"tree": tree, "seed": seed})
            for name, rule in RULES.items()
            for tree in self.trees
            for seed in self.seeds
        ]
        return diagram + [
            PanelRun(
                _method(scene, order),
                scene,
                shared | RULES[order].settings | _settings(scene) | {"seed": seed, "tree_seed": seed},
            )
            for scene in SCENES
            for order in ORDERS
            for seed in range(self.seed, self.seed + self.n_scene_seeds)
        ]

    @property
    def panels(self) -> Panels:
        return Panels("ordering_rules", self.runs, self.trees | PAIRS, self.n_steps)


def _name(ratio: float, prob: float) -> str:
    return f"ratio {ratio:g}, P {prob:g}"


def _method(scene: str, order: str) -> str:
    return f"{SCENES[scene].get('method', 'matryoshka')}:order={order}"


def _settings(scene: str) -> dict[str, Any]:
    return {name: value for name, value in SCENES[scene].items() if name != "method"}


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    found = cfg.panels.results(cfg.store, progress)

    def diagram(value: Any) -> dict[str, Any]:
        return {name: [[value(name, ratio, prob) for prob in cfg.edge_probs] for ratio in cfg.ratios] for name in RULES}

    def recovered(name: str, ratio: float, prob: float) -> int:
        return found[RULES[name].method][f"{name}: {_name(ratio, prob)}"]["recovered"]

    def hole_rate(name: str, ratio: float, prob: float) -> float:
        return mean_known(found[RULES[name].method][f"{name}: {_name(ratio, prob)}"]["hole_rate"])

    predicted = {theory: diagram(lambda *at, theory=theory: expected(*at)[theory]) for theory in THEORIES}
    scenes = {
        scene: {order: _of_scene(found[_method(scene, order)][scene], scene, order) for order in ORDERS}
        for scene in SCENES
    }
    spare = {order: spare_latents(order, cfg.seed, cfg.n_scene_seeds, cfg.n_steps) for order in ORDERS}
    diagrams = {"recovered": diagram(recovered), "hole_rate": diagram(hole_rate), "predicted": predicted}
    return {**diagrams, "scenes": scenes, "spare": spare}


def _of_scene(r: dict[str, Any], scene: str, order: str) -> dict[str, Any]:
    kept = recovered_only(r, "parent_to_child")
    rule = RULES[order]
    best = optimum(PAIRS[scene], rule.power, rule.weighting, rule.sparsity_coef) if scene in PAIRS else None
    means = {name: mean_known(r[name]) for name in ("hole_rate", "min_cosine", "fvu")}
    return {
        "n": r["n"],
        "recovered": r["recovered"],
        **means,
        "parent_to_child": mean_known(kept) if kept else None,
        "predicted_parent_to_child": best.parent_to_child if best else None,
    }


def expected(name: str, ratio: float, prob: float) -> dict[str, bool]:
    """Returns whether each theory has a rule recover a pair."""
    rule, root = RULES[name], among(prob, ratio)
    leans = float(np.cos(first_latent_angle(prob, ratio))) < MIN_COSINE
    tree = build_tree(root)
    parent, child = places(tree, rule.power)[:2]
    best = optimum(root, rule.power, rule.weighting, rule.sparsity_coef)
    _, of_child, *of_lone = marginals(tree) * tree.magnitude_mean**2
    # A place that is never sorted away learns what has most energy of what is left, so that the child has to have it.
    stays = rule.power is not None or bool(of_child >= max(of_lone))
    lean = rule.start == "features" or not leans
    holds = stays and min(best.cosines) >= MIN_COSINE and not best.has_hole
    return {"lean": lean, "first": bool(parent < child), "optimum": holds, "both": lean and holds}


def agreement(record: dict[str, Any], theory: str) -> dict[str, tuple[int, int]]:
    """By rule the rows in which theory and at least half of the seeds end within a step, and the cells that agree."""
    config, results = record["config"], record["results"]
    found = {}
    for name, rows in results["recovered"].items():
        measured = [[n >= config["n_seeds"] / 2 for n in row] for row in rows]
        predicted = results["predicted"][theory][name]
        near = [abs(_end(a) - _end(b)) <= 1 for a, b in zip(measured, predicted, strict=True)]
        found[name] = (sum(near), int(np.sum(np.array(measured) == np.array(predicted))))
    return found


def _end(row: list[bool]) -> int:
    """The place of the first probability without recovery."""
    return [*row, False].index(False)


def summary(record: dict[str, Any]) -> list[str]:
    config, results = record["config"], record["results"]
    n_rows, n_probs = len(config["ratios"]), len(config["edge_probs"])
    lines = []
    for name, rows in results["recovered"].items():
        total = config["n_seeds"] * n_rows * n_probs
        lines.append(f"{name}: recovered {sum(map(sum, rows))} of {total}")
        for ratio, row in zip(config["ratios"], rows, strict=True):
            told = ", ".join(f"P {p:g} {n}/{config['n_seeds']}" for p, n in zip(config["edge_probs"], row, strict=True))
            lines.append(f"  ratio {ratio:g}: {told}")
    for theory, what in THEORIES.items():
        told = ", ".join(
            f"{name} {rows}/{n_rows} rows, {cells}/{n_rows * n_probs} cells"
            for name, (rows, cells) in agreement(record, theory).items()
        )
        lines.append(f"{what}: {told}")
    for scene, orders in results["scenes"].items():
        lines.append(f"{scene}: recovered {', '.join(f'{name} {_told(r)}' for name, r in orders.items())}")
    for order, r in results["spare"].items():
        told = f"{order}: {r['n_failed']} of {r['n']} fail without restarts, with {len(r['place'])} spare latents"
        means = f", place {np.mean(r['place']):.1f}, frequency {np.mean(r['frequency']):.3f}" if r["place"] else ""
        lines.append(told + means)
    return lines


def _told(r: dict[str, Any]) -> str:
    told = plots.count_text(r["recovered"], r["n"])
    if r["parent_to_child"] is None or r["predicted_parent_to_child"] is None:
        return told
    return f"{told} parent → child {r['parent_to_child']:.3f} (optimum {r['predicted_parent_to_child']:.3f})"


def _shown(r: dict[str, Any]) -> str:
    told = f"{r['recovered']}/{r['n']}"
    if r["parent_to_child"] is None or r["predicted_parent_to_child"] is None:
        return told
    return f"{told}; {r['parent_to_child']:.3f}, {r['predicted_parent_to_child']:.3f}"


def caption(record: dict[str, Any]) -> str:
    config = record["config"]
    return (
        f"a to {'abcdefgh'[len(RULES) - 1]}: recovered runs of {config['n_seeds']} of a pair among 8 lone features, by "
        "what puts a latent before others (learned: never sorted; given: never sorted, from the features, parents "
        "first; little L1: a coefficient of .1 that stays; half full: half of the weight on the full prefix). Solid "
        "line: a lone latent's cosine with the parent falls below .9; dashed: the child comes first; dotted: the "
        "optimum from the truth's supports is no recovery (given: or a lone feature has more energy than the child). "
        f"Last panel: {config['n_scene_seeds']} runs; {config['n_steps']:,} steps; "
        f"{seeds_text(record['seeds'])}."
    )


def plot(record: dict[str, Any]) -> Figure:
    config, results = record["config"], record["results"]
    rows, columns = [f"{ratio:g}" for ratio in config["ratios"]], [f"{prob:g}" for prob in config["edge_probs"]]
    scenes = list(results["scenes"])
    heights = 1.0 + 0.16 * len(rows), 1.0 + 0.16 * len(scenes)
    with plots.styled(sum(heights)) as figure:
        top, bottom = plots.stacked(figure, *heights)
        for i, (ax, (name, counts)) in enumerate(
            zip(top.subplots(1, len(RULES), sharey=True), results["recovered"].items(), strict=True)
        ):
            shares = [[n / config["n_seeds"] for n in row] for row in counts]
            text = [[str(n) for n in row] for row in counts]
            title = f"{'abcdefgh'[i]}  {name}".replace(", ", ",\n")
            plots.table(ax, title, shares, text, rows, columns, high=1.0)
            for theory, line in LINES.items():
                _outline(ax, results["predicted"][theory][name], line)
            ax.set_xlabel("P(child | parent)")
            if i == 0:
                ax.set_ylabel("child / parent")
        shares = [[r["recovered"] / r["n"] for r in orders.values()] for orders in results["scenes"].values()]
        text = [[_shown(r) for r in orders.values()] for orders in results["scenes"].values()]
        title = f"{'abcdefgh'[len(RULES)]}  Orders on other trees: recovered; parent → child, at the optimum"
        plots.table(bottom.subplots(), title, shares, text, scenes, list(ORDERS), high=1.0)
    return figure


def _outline(ax: Axes, predicted: list[list[bool]], line: str) -> None:
    """Lines between neighbouring cells of which one is predicted to be recovered."""
    cells = np.array(predicted)
    style: Any = {"linestyle": line, "color": plots.COLOURS["truth"], "linewidth": 1.0}
    for i, j in np.argwhere(cells[:, 1:] != cells[:, :-1]):
        ax.plot([j + 0.5, j + 0.5], [i - 0.5, i + 0.5], **style)
    for i, j in np.argwhere(cells[1:] != cells[:-1]):
        ax.plot([j - 0.5, j + 0.5], [i + 0.5, i + 0.5], **style)


EXPERIMENT = Experiment("ordering_rules", Config, run, summary, plot, check_panels, n_runs, caption, folder="theory.")

if __name__ == "__main__":
    main(EXPERIMENT)
