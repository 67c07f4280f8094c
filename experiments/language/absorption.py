"""Do concepts have holes? Latents of known concepts in the language model, off where a member is present.

For each concept (a set of words: female, animal, ...) the latent whose activation correlates most with it, on half of
the held-out tokens; on the other half its holes, P(latent off | member), the mean over members. The absorbing latent is
the one that adds most along the concept's probe direction in the holes, where it makes up for a fair share of what is
missing (`toy.lm.absorption`). Direction: a member's latent (child) absorbs the concept (parent). A latent that is on
everywhere has no holes, so its precision is shown too: the share of the rows where it is on that are of a member; and
its average precision, which takes both together at all thresholds.
Claim of the post: fewer holes with Matryoshka.
Command: python -m experiments.tinystories --only absorption.
In the post: "Feature Absorption Example", female words and Lily, Sue.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.language import plots as lp
from experiments.language.concepts import check_words, facts, of_model
from experiments.language.measure import Measure
from experiments.language.saes import KINDS
from toy.eval.metrics import mean_known
from toy.lm.absorption import MIN_ROWS

SAME_PRECISION = 0.05  # difference up to which two latents are called as precise
REPRESENTED = 0.5  # correlation of a latent with a concept from which on it is called the concept's
LEAST_LINES = 3  # concepts that a panel has room for, even if there are fewer
MEASURES = {
    "hole_rate": "Hole rate",
    "absorbed_rate": "Absorbed rate",
    "precision": "Precision",
    "average_precision": "Avg. precision",
}


def summary(record: dict[str, Any]) -> list[str]:
    sites = record["results"]["sites"]
    lines = []
    for j, l0 in enumerate(record["config"]["target_l0"]):
        rates = {kind: [_mean_of(site[kind], "hole_rate", j) for site in sites.values()] for kind in KINDS}
        fewer = sum(m < v for v, m in zip(*rates.values(), strict=True))
        told = []
        for name in MEASURES:
            means = (np.mean([_mean_of(site[kind], name, j) for site in sites.values()]) for kind in reversed(KINDS))
            told.append(f"{name} " + " against ".join(f"{mean:.3f}" for mean in means))
        n, matryoshka, vanilla = represented(record, j)
        told.append(f"holes where both have a latent of the concept ({n}) {matryoshka:.3f} against {vanilla:.3f}")
        n, fewer_holes, more_holes = matched(record, j)
        told.append(f"where both are as precise ({n}) fewer holes {fewer_holes} times and more {more_holes}")
        lines.append(f"L0 {l0:g}: fewer holes with Matryoshka at {fewer}/{len(sites)} sites; means " + ", ".join(told))
        for kind in record["config"].get("methods", ()):
            means = {name: np.mean([_mean_of(site[kind], name, j) for site in sites.values()]) for name in MEASURES}
            lines.append(f"L0 {l0:g}: {kind}: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
    if rare := _rare(record["results"]):
        lines.append(f"on fewer than {MIN_ROWS} rows, and so not measured: {', '.join(rare)}")
    return lines + lp.off_target_named(record)


def _rare(results: dict[str, Any]) -> list[str]:
    """Words that the held-out text of no language model has often enough."""
    n_rows = next(iter(results["sites"].values()))["n_rows"]  # the same at every site
    words = [word for words in results["concepts"].values() for word in words]
    most = np.max([[n for concept in of_model for n in concept] for of_model in n_rows], axis=0)
    return sorted({word for word, n in zip(words, most, strict=True) if n < results["min_rows"]})


def _mean_of(of_kind: dict[str, Any], name: str, j: int) -> float:
    """The mean over seeds and concepts at the j-th L0."""
    return mean_known(np.array(of_kind[name], float)[:, j])


def represented(record: dict[str, Any], j: int) -> tuple[int, float, float]:
    """The number of (site, seed, concept) where both kinds have a latent that correlates with the concept, and the mean
    hole rates of Matryoshka and vanilla there. Elsewhere a hole may be of a latent that is not the concept's."""
    both = np.all([_values(record, kind, "correlation", j) > REPRESENTED for kind in KINDS], axis=0)
    vanilla, matryoshka = (mean_known(_values(record, kind, "hole_rate", j)[both]) for kind in KINDS)
    return int(both.sum()), matryoshka, vanilla


def matched(record: dict[str, Any], j: int) -> tuple[int, int, int]:
    """The number of (site, seed, concept) where the two kinds' latents are as precise as each other, and in how many of
    these Matryoshka has fewer, and more, holes."""
    precision = [_values(record, kind, "precision", j) for kind in KINDS]
    same = np.abs(np.subtract(*precision)) < SAME_PRECISION
    vanilla, matryoshka = (_values(record, kind, "hole_rate", j)[same] for kind in KINDS)
    return int(same.sum()), int((matryoshka < vanilla).sum()), int((matryoshka > vanilla).sum())


def _values(record: dict[str, Any], kind: str, name: str, j: int) -> np.ndarray:
    """`[site, seed, concept]` at the j-th L0; NaN where nothing was measured."""
    return np.array([site[kind][name] for site in record["results"]["sites"].values()], float)[:, :, j]


def plot(record: dict[str, Any]) -> Figure:
    config, results = record["config"], record["results"]
    sites, n_rows = results["sites"], next(iter(results["sites"].values()))["n_rows"]
    shown = [i for i in range(len(results["concepts"])) if any(max(of[i]) >= results["min_rows"] for of in n_rows)]
    concepts = [list(results["concepts"])[i] for i in shown]
    middle = lp.middle_l0(config)
    j = config["target_l0"].index(middle)
    rows, columns = lp.grid_shape(len(sites))
    height = (0.5 + 0.105 * max(len(concepts), LEAST_LINES)) * rows
    with plots.styled(3.6 + height) as figure:
        parts = figure.add_gridspec(2, 1, height_ratios=[height, 2.7])
        top, bottom = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
        panels = lp.site_axes(top, list(sites), letter="a")
        for i, (ax, site) in enumerate(zip(panels, sites.values(), strict=True)):
            for at, kind in zip(lp.beside(config, 0.36), lp.kinds(config), strict=True):
                values = np.array(site[kind]["hole_rate"], float)[:, j, shown]  # [seed, concept]
                y, colour = np.arange(len(concepts)) + at, lp.colour(config, kind)
                for row in values:
                    ax.plot(row, y, "o", color=colour, markersize=1.8, alpha=0.45)
                means = [mean_known(of) for of in values.T]
                ax.plot(means, y, "|", color=colour, markersize=5, markeredgewidth=1.3)
            ax.set(xlim=(-0.03, 1.03), ylim=(len(concepts) - 0.4, -0.6))
            if not concepts:
                plots.nothing(ax, "no concept's words are frequent enough")
            if i % columns == 0:
                ax.set_yticks(range(len(concepts)), [plots.shown_name(name) for name in concepts], fontsize=5)
        top.supxlabel(f"hole rate of the concept's latent, target L0 {middle:g}", fontsize=7.5)
        *by_l0, members = bottom.subplots(1, 5, width_ratios=[1, 1, 1, 1, 3])
        for ax, letter, (name, label) in zip(by_l0, "bcde", MEASURES.items(), strict=True):
            _plot_by_l0(ax, record, name)
            ax.set_title(f"{letter}  {label}", fontsize=6.5)
        lp.legend(bottom, members, config)
        _plot_members(members, record)
        lp.caption(figure, record, f"Dots: seeds; {lp.BARS}; b to e: means over concepts and sites")
    return figure


def _plot_by_l0(ax: Axes, record: dict[str, Any], name: str) -> None:
    config, sites = record["config"], record["results"]["sites"]
    targets = config["target_l0"]
    for at, kind in zip(lp.beside(config, 0.3), lp.kinds(config), strict=True):
        values = np.array([site[kind][name] for site in sites.values()], float)  # [site, seed, L0, concept]
        for j in range(len(targets)):
            per_seed = [mean_known(values[:, seed, j]) for seed in range(values.shape[1])]
            plots.spread(ax, j + at, list(per_seed), lp.colour(config, kind), width=0.05)
    ax.set_xticks(range(len(targets)), [f"{target:g}" for target in targets])
    lp.from_zero(ax)
    ax.set(xlabel="target L0", xlim=(-0.5, len(targets) - 0.5), ylim=(0, None))


def _plot_members(ax: Axes, record: dict[str, Any]) -> None:
    """One concept's members at the last residual stream: holes, and the absorbing latent's cosine with the probe."""
    config, sites, concepts = record["config"], record["results"]["sites"], record["results"]["concepts"]
    name = "female" if "female" in concepts else next(iter(concepts))
    by_layer = sorted(sites, key=lambda site: int(site.partition(".")[2]))
    site = [site for site in by_layer if site.startswith("resid")][-1:] or by_layer[-1:]
    i = list(concepts).index(name)
    rows = np.max([of_model[i] for of_model in sites[site[0]]["n_rows"]], axis=0)
    measured = np.flatnonzero(rows >= record["results"]["min_rows"])
    for row, (at, kind) in enumerate(zip(lp.beside(config, 0.36), lp.kinds(config), strict=True)):
        colour = lp.colour(config, kind)
        holes = np.array([seed[i] for seed in sites[site[0]][kind]["members_hole_rates"]], float)  # [seed, member]
        cosines = np.array([seed[i] for seed in sites[site[0]][kind]["members_cosines"]], float)
        for place, m in enumerate(measured):
            plots.spread(ax, place + at, holes[:, m].tolist(), colour, width=0.05)
            known = cosines[:, m][~np.isnan(cosines[:, m])]
            if len(known):
                ax.text(place + at, 1.06 + 0.06 * row, f"{known.mean():.1f}", fontsize=4.5, ha="center", color=colour)
    if not len(measured):
        plots.nothing(ax, "no word is frequent enough")
    ax.set_xticks(
        range(len(measured)), [plots.shown_name(concepts[name][m]) for m in measured], rotation=60, fontsize=6
    )
    ax.set(ylim=(-0.05, 1.06 + 0.06 * len(lp.kinds(config))), ylabel="hole rate")
    ax.set_title(f"f  {plots.shown_name(name)}, {lp.title(site[0])}\nabove: cosine of absorber and probe", fontsize=6.5)


ABSORPTION = Measure("tinystories_absorption", of_model, summary, plot, facts, check_words)
