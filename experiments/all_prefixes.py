"""Does training more prefixes per batch, or all of them, remove what is left of the mixing?

Claim: no. Sampled prefixes, their exact expectation and every prefix with equal weight recover the tree equally well
and mix parents and children alike. Fewer prefixes, and so more weight on the full one, mix a parent's latent less with
its children and siblings less with each other, but a child's latent more with its parent.
Command: python -m experiments.all_prefixes (about 1 minute on 2 cores).
Expected, seeds 0 to 31: recovered 32/32 by each weighting, and 0/32 by vanilla; parent to child +0.15 with 3 sampled
prefixes and +0.18 with more; child to parent +0.07 with 3, +0.05 with 10 and +0.06 with all.
In the post: the first comment's question, and the author's answer from one run.
With 20 latents there are only 20 prefixes, so "30 sampled" is every prefix in every batch, that is, `all`.
"""

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import (
    caption_text,
    evaluate_seeds,
    known_where,
    mean_text,
    missed_targets,
    no_holes,
    outcome_text,
    summarise,
)
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
    """Numbers of sampled prefixes per batch."""
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
        means = ", ".join(f"{kind.replace('_', ' ')} {mean_text(_recovered_only(r, kind), '+.3f')}" for kind in MIXINGS)
        lines.append(f"{name} {outcome_text(r)}; {means}")
    return lines + missed_targets(record["results"])


def _recovered_only(result: dict[str, Any], kind: str) -> list[float]:
    return known_where(result["mixing"][kind], result["recovered_seeds"])


def caption(record: dict[str, Any]) -> str:
    text = (
        "Prefixes per batch: vanilla has the full one alone; numbers are sampled ones, the full one included; "
        "exp.: the exact expectation of so many sampled; all: every prefix with equal weight; f to h: mean cosine over "
        "pairs of related features, recovered seeds alone; dots: seeds; bars: mean or share with 95% interval; "
        "dotted: target of L0"
    )
    return caption_text(record, text, _distinct(record))


def plot(record: dict[str, Any]) -> Figure:
    results, root = _distinct(record), tree_from_dict(record["config"]["tree"])
    marks = [plots.Mark(x, r, plots.COLOURS[_kind(name)]) for x, (name, r) in enumerate(results.items())]
    labels = [_label(name) for name in results]
    with plots.styled(4.4) as figure:
        top, bottom = plots.stacked(figure, 1.1, 1)
        plots.name_kinds(top)
        plots.outcomes(top.subplots(1, 5), "abcde", marks, labels, no_holes(root))
        for ax, letter, (kind, label) in zip(bottom.subplots(1, 3), "fgh", MIXINGS.items(), strict=True):
            ax.axhline(0, color=plots.COLOURS["truth"], linewidth=0.6)
            drawn = [plots.spread(ax, mark.x, _recovered_only(mark.result, kind), mark.colour) for mark in marks]
            if not any(drawn):
                plots.nothing(ax, _why_empty(results))
            ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
            ax.set(title=f"{letter}  Mixing {label}", ylabel="mean cosine", xlim=(-0.6, len(labels) - 0.4))
    return figure


def _distinct(record: dict[str, Any]) -> dict[str, Any]:
    """The results without sampled weightings that draw every prefix and so equal `all`."""
    n_latents = record["config"]["n_latents"] or build_tree(tree_from_dict(record["config"]["tree"])).n_features
    return {
        name: result
        for name, result in record["results"].items()
        if not (name.startswith("sampled_") and int(name.removeprefix("sampled_")) >= n_latents)
    }


def _kind(name: str) -> str:
    return "vanilla" if name == "vanilla" else "matryoshka"


def _label(name: str) -> str:
    kind, _, number = name.partition("_")
    return {"sampled": number, "expected": f"{number} exp."}.get(kind, kind)


def _why_empty(results: dict[str, Any]) -> str:
    if not any(value is not None for r in results.values() for value in r["mixing"]["parent_to_child"]):
        return "no feature has a parent feature"
    return "no feature has siblings" if any(r["recovered"] for r in results.values()) else "no seed recovered"


EXPERIMENT = Experiment("all_prefixes", Config, run, summary, plot, check_study, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
