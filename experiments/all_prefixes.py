"""Does training more prefixes a batch, or all of them, remove what is left of the mixing?

Claim: no. Sampled prefixes, their exact expectation and every prefix with equal weight recover the tree equally well
and mix parents and children alike. Fewer prefixes, and so more weight on the full one, mix a parent's latent less with
its children and siblings less with each other, but a child's latent more with its parent.
Command: python -m experiments.all_prefixes (about 2 minutes on 2 cores).
Expected, seeds 0 to 31: recovered 30 to 32 of 32 but for vanilla (0/32); parent to child +0.15 with 3 sampled
prefixes and +0.18 with more, child to parent +0.07 and +0.04.
In the post: the first comment's question, and the author's answer from one run.
With 20 latents there are only 20 prefixes, so "30 sampled" is every prefix in every batch, that is, `all`.
"""

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import evaluate_seeds, mean_text, missed_clause, missed_targets, summarise
from experiments.common.study import (
    StudyConfig,
    aimed_l0,
    check_study,
    held_out_features,
    train_seeds,
)
from toy.checks import Whole, check_fields
from toy.features.tree import build_tree
from toy.features.tree_json import tree_from_dict

MIXINGS = {
    "parent_to_child": "parent → child",
    "child_to_sibling": "child → sibling",
    "child_to_parent": "child → parent",
}


@dataclass(frozen=True)
class Config(StudyConfig):
    """Options of `all_prefixes`."""

    n_prefixes: tuple[int, ...] = (3, 10, 30)
    """Numbers of sampled prefixes a batch."""
    n_expected: int = 10
    """Number of sampled prefixes whose exact expectation is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_prefixes=Whole(), n_expected=Whole())  # the full one is one of them

    @property
    def weightings(self) -> list[str]:
        return ["vanilla", *(f"sampled_{n}" for n in self.n_prefixes), f"expected_{self.n_expected}", "all"]


def n_steps(cfg: Config) -> int:
    return len(cfg.weightings) * cfg.n_steps


def run(cfg: Config, work: Work) -> dict[str, Any]:
    study = cfg.study
    features = held_out_features(cfg, study.tree)

    def measured(name: str) -> dict[str, Any]:
        saes = train_seeds(cfg, study, name, work)
        return summarise(evaluate_seeds(saes, study.W_feat, study.tree, features), aimed_l0(cfg, study.tree))

    return {name: measured(name) for name in cfg.weightings}


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for name, r in record["results"].items():
        lines.append(
            f"{name} recovered {r['recovered']}/{r['n_seeds']}, hole rate {mean_text(r['hole_rate'], '.4f')}; "
            + ", ".join(f"{kind.replace('_', ' ')} {mean_text(_recovered_only(r, kind), '+.3f')}" for kind in MIXINGS)
        )
    return lines + missed_targets(record["results"])


def _recovered_only(result: dict[str, Any], kind: str) -> list[float]:
    """Mixing of the recovered seeds: where a feature is lost, its pairs say nothing."""
    return [v for v, ok in zip(result["mixing"][kind], result["recovered_seeds"], strict=True) if ok and v is not None]


def n_trained(name: str, n_latents: int) -> int:
    """How many different prefixes a batch a weighting trains (or stands for, in `expected`)."""
    kind, _, number = name.partition("_")
    return {"vanilla": 1, "all": n_latents}.get(kind) or min(int(number), n_latents)


def plot(record: dict[str, Any]) -> Figure:
    results, config = record["results"], record["config"]
    n_latents = config["n_latents"] or build_tree(tree_from_dict(config["tree"])).n_features
    panels = {
        "a  Recovered": ("share of seeds", _plot_recovered),
        "b  Holes": ("mean hole rate", _plot_holes),
        **{
            f"{letter}  Mixing {label}": ("mean cosine\n(recovered seeds)", _plot_mixing(kind))
            for letter, (kind, label) in zip("cde", MIXINGS.items(), strict=True)
        },
    }
    with plots.styled(4.4) as figure:
        axes = figure.subplots(2, 3).ravel()
        for ax, (title, (ylabel, draw)) in zip(axes, panels.items(), strict=False):
            drawn = [draw(ax, result, *_position(name, n_latents)) for name, result in results.items()]
            if not any(drawn):
                plots.nothing(ax, _why_empty(title, results))
            ax.set(xscale="log", title=title, ylabel=ylabel, xlabel="prefixes a batch", xlim=(0.8, 1.45 * n_latents))
            ticks = sorted({n_trained(name, n_latents) for name in results})
            ax.set_xticks(ticks, [str(tick) for tick in ticks])
            ax.minorticks_off()
        legend = axes[len(panels)]
        legend.axis("off")
        for label, name in {_label(name): name for name in results}.items():
            _, colour, marker = _position(name, n_latents)
            legend.plot([], [], marker, color=colour, label=label)
        legend.legend(loc="center left", handlelength=1, fontsize=7.5)
        every = [f"{n} sampled are every prefix" for n in config["n_prefixes"] if n > n_latents]
        shown = "; ".join([f"{n_latents} latents", *every])
        plots.caption(
            figure, record, f"{shown}; dots: seeds; bars: mean or share with 95% interval{missed_clause(results)}"
        )
    return figure


def _position(name: str, n_latents: int) -> tuple[float, str, str]:
    """x (moved a little aside, so that equal numbers do not hide each other), colour and marker."""
    x, kind = float(n_trained(name, n_latents)), name.partition("_")[0]
    if kind == "vanilla":
        return x, plots.COLOURS["vanilla"], "o"
    if kind == "sampled":
        return x, plots.COLOURS["matryoshka"], "o"
    if kind == "expected":
        return x * 1.16, plots.COLOURS["other"], "s"
    return x * 1.16, plots.COLOURS["truth"], "D"


def _label(name: str) -> str:
    kind, _, number = name.partition("_")
    return {
        "vanilla": "vanilla (full prefix only)",
        "sampled": "sampled each batch",
        "expected": f"exact expectation of {number} sampled",
        "all": "all, equal weight",
    }[kind]


def _why_empty(title: str, results: dict[str, Any]) -> str:
    related = [value for r in results.values() for value in r["mixing"]["parent_to_child"] if value is not None]
    if not related:
        return "no feature has a parent feature"
    if "Mixing" not in title:
        return "no child is on in the held-out rows"
    recovered = any(r["recovered"] for r in results.values())
    return "no feature has siblings" if recovered else "no seed recovered the tree"


def _plot_recovered(ax: Axes, result: dict, x: float, colour: str, marker: str) -> bool:
    plots.share(ax, x, result["recovered"], result["n_seeds"], colour, marker=marker)
    ax.set_ylim(-0.05, 1.05)
    return True


def _plot_holes(ax: Axes, result: dict, x: float, colour: str, marker: str) -> bool:
    ax.set_ylim(-0.05, 1.05)
    return plots.spread(ax, x, result["hole_rate"], colour, width=0.04 * x)


def _plot_mixing(kind: str) -> Any:
    def draw(ax: Axes, result: dict, x: float, colour: str, marker: str) -> bool:
        ax.axhline(0, color="#999999", linewidth=0.6)
        return plots.spread(ax, x, list(_recovered_only(result, kind)), colour, width=0.04 * x)

    return draw


EXPERIMENT = Experiment("all_prefixes", Config, run, summary, plot, check_study, n_steps)

if __name__ == "__main__":
    main(EXPERIMENT)
