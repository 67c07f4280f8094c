"""Do concepts have holes? Latents of known concepts in the language model, off where a member is present.

For each concept (a set of words: female, animal, ...) the latent whose activation correlates most with it, on half of
the held-out tokens; on the other half its holes, P(latent off | member), the mean over members. The absorbing latent is
the one that adds most along the concept's probe direction in the holes, where it makes up for a fair share of what is
missing (`toy.lm.absorption`). Direction: a member's latent (child) absorbs the concept (parent). A latent that is on
everywhere has no holes, so its precision is told, too: the share of the rows where it is on that are of a member.
Claim of the post: fewer holes with Matryoshka.
Command: python -m experiments.tinystories_absorption, or all three figures: python -m experiments.tinystories.
In the post: "Feature Absorption Example", female words and Lily, Sue.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import language_plots as lp
from experiments import plots
from experiments.cli import main
from experiments.language import Chain, check, facts_of_model
from experiments.language_config import LanguageConfig
from experiments.language_saes import KINDS, SiteSAEs, n_steps, train_sites
from experiments.study import Progress
from toy.lm.absorption import MIN_ROWS, best_latents, find_words, fit_probe, measure_absorption
from toy.lm.model import Site
from toy.metrics import mean_known
from toy.sae import SAE

Config = LanguageConfig
MOST_ROWS = 100_000  # of the held-out ones
REPRESENTED = 0.5  # correlation of a latent with a concept from which on it is called the concept's
MEASURES = {"hole_rate": "Hole rate", "absorbed_rate": "Absorbed rate", "precision": "Precision"}
__all__ = ["Config", "check", "n_steps", "plot", "run", "summary"]


def run(cfg: LanguageConfig, progress: Progress) -> dict[str, Any]:
    sites, results, seconds = {}, {}, 0.0
    members: dict[str, np.ndarray] = {}
    absent: list[str] = []
    for chain, site, saes in train_sites(cfg, progress):
        if not members:
            members, absent = members_of(cfg, chain)
        sites[str(site)] = of_site(cfg, chain, site, saes, members)
        results, seconds = results or facts_of_model(cfg, chain), seconds + saes.seconds
    words = {name: list(words) for name, words in cfg.concept_words.items() if name in members}
    results["seconds"]["saes"] = seconds
    return results | {"concepts": words, "absent": absent, "min_rows": MIN_ROWS, "sites": sites}


def members_of(cfg: LanguageConfig, chain: Chain) -> tuple[dict[str, np.ndarray], list[str]]:
    """For each concept which of its words ends at each held-out row; concepts that the text lacks are left out.

    And the words that it lacks. Raises: ValueError if it lacks all concepts.
    """
    store, concepts = chain.acts.valid, cfg.concept_words
    wanted = sorted({word for words in concepts.values() for word in words})
    places = store.document[:MOST_ROWS], store.position[:MOST_ROWS]
    index = find_words(chain.tokens.valid, chain.tokens.tokenizer.pieces(), wanted).of(*places)
    found = {}
    for name, words in concepts.items():
        place = np.full(len(wanted) + 1, -1)  # the last is for no word, −1
        place[[wanted.index(word) for word in words]] = np.arange(len(words))
        members = place[index]
        counts = np.bincount(members[1::2][members[1::2] >= 0], minlength=1)
        if (members[::2] >= 0).any() and counts.max() >= MIN_ROWS:  # else nothing to choose or nothing to measure on
            found[name] = members
    if not found:
        raise ValueError(
            f"concepts: none of the words {', '.join(wanted[:5])}, ... is in the held-out text often enough"
        )
    return found, [word for i, word in enumerate(wanted) if not (index == i).any()]


def of_site(
    cfg: LanguageConfig, chain: Chain, site: Site, saes: SiteSAEs, members: dict[str, np.ndarray]
) -> dict[str, Any]:
    """For each kind lists [seed, L0, concept], and of the middle L0 every member's numbers [seed, concept, member]."""
    acts = chain.acts.valid.activations(str(site))
    x = acts.take(np.arange(min(acts.n_rows, MOST_ROWS)))  # rows of a store are in a random order
    probes = [fit_probe(x[::2], of[::2] >= 0) for of in members.values()]
    middle = cfg.sizes.target_l0.index(cfg.reference_l0)
    found: dict[str, Any] = {}
    for kind in KINDS:
        measured = [[measure(cfg, sae, x, members, probes) for sae in seed] for seed in saes.large[kind]]
        names = ("hole_rate", "absorbed_rate", "correlation", "precision", "parent_cosine")
        found[kind] = {name: [[[m[name] for m in sae] for sae in seed] for seed in measured] for name in names} | {
            f"members_{name}": [[m[name] for m in seed[middle]] for seed in measured]
            for name in ("hole_rates", "absorbed_rates", "cosines", "latent", "absorbers")
        }
    return found


def measure(
    cfg: LanguageConfig, sae: SAE, x: np.ndarray, members: dict[str, np.ndarray], probes: list[np.ndarray]
) -> list[dict[str, Any]]:
    """One SAE, every concept."""
    present = np.stack([of >= 0 for of in members.values()], axis=1)
    latents, correlations = best_latents(sae, x[::2], present[::2])
    return [
        measure_absorption(sae, x[1::2], of[1::2], len(cfg.concept_words[name]), int(latent), probe)._asdict()
        | {"correlation": correlation}
        for (name, of), latent, correlation, probe in zip(
            members.items(), latents, correlations.tolist(), probes, strict=True
        )
    ]


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
        n, holes = represented(record, j)
        told.append(f"holes where both have a latent of the concept ({n}) {holes[0]:.3f} against {holes[1]:.3f}")
        lines.append(f"L0 {l0:g}: fewer holes with Matryoshka at {fewer}/{len(sites)} sites; means " + ", ".join(told))
    if absent := record["results"]["absent"]:
        lines.append(f"words that the held-out text has not: {', '.join(absent)}")
    return lines


def _mean_of(of_kind: dict[str, Any], name: str, j: int) -> float:
    """Over seeds and concepts, for one L0."""
    return mean_known(np.array(of_kind[name], float)[:, j])


def represented(record: dict[str, Any], j: int) -> tuple[int, tuple[float, float]]:
    """Of (site, seed, concept) those where both kinds have a latent that correlates with the concept: how many, and
    the mean hole rates of Matryoshka and vanilla. Elsewhere a hole may be of a latent that is not the concept's."""

    def values(kind: str, name: str) -> np.ndarray:
        return np.array([site[kind][name] for site in record["results"]["sites"].values()], float)[:, :, j]

    both = np.all([values(kind, "correlation") > REPRESENTED for kind in KINDS], axis=0)
    vanilla, matryoshka = (mean_known(values(kind, "hole_rate")[both]) for kind in KINDS)
    return int(both.sum()), (matryoshka, vanilla)


def plot(record: dict[str, Any]) -> Figure:
    config, results = record["config"], record["results"]
    sites, concepts = results["sites"], list(results["concepts"])
    middle = sorted(config["target_l0"])[len(config["target_l0"]) // 2]
    j = config["target_l0"].index(middle)
    rows, columns = lp.grid_shape(len(sites))
    with plots.styled(3.2 + (0.5 + 0.105 * len(concepts)) * rows) as figure:
        parts = figure.add_gridspec(2, 1, height_ratios=[(0.5 + 0.105 * len(concepts)) * rows, 2.4])
        top, bottom = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
        panels = lp.site_axes(top, list(sites), letter="a")
        for i, (ax, site) in enumerate(zip(panels, sites.values(), strict=True)):
            for kind in KINDS:
                values = np.array(site[kind]["hole_rate"], float)[:, j]  # [seed, concept]
                y = np.arange(len(concepts)) + (0.18 if kind == "matryoshka" else -0.18)
                for row in values:
                    ax.plot(row, y, "o", color=plots.COLOURS[kind], markersize=1.8, alpha=0.45)
                ax.plot(values.mean(axis=0), y, "|", color=plots.COLOURS[kind], markersize=5, markeredgewidth=1.3)
            ax.set(xlim=(-0.03, 1.03), ylim=(len(concepts) - 0.4, -0.6))
            if i % columns == 0:
                ax.set_yticks(range(len(concepts)), concepts, fontsize=5)
        top.supxlabel(f"hole rate of the concept's latent, target L0 {middle:g}", fontsize=7.5)
        *by_l0, members = bottom.subplots(1, 4, width_ratios=[1, 1, 1, 2.6])
        for ax, letter, (name, label) in zip(by_l0, "bcd", MEASURES.items(), strict=True):
            _plot_by_l0(ax, record, name)
            ax.set_title(f"{letter}  {label}", fontsize=7)
        lp.legend(by_l0[0])
        _plot_members(members, record)
        text = "Dots: seeds; bars: mean over seeds (b to d: of the mean over concepts and sites, with its 95% interval)"
        lp.caption(figure, record, text)
    return figure


def _plot_by_l0(ax: Axes, record: dict[str, Any], name: str) -> None:
    targets, sites = record["config"]["target_l0"], record["results"]["sites"]
    for kind in KINDS:
        values = np.array([site[kind][name] for site in sites.values()], float)  # [site, seed, L0, concept]
        for j in range(len(targets)):
            per_seed = [mean_known(values[:, seed, j]) for seed in range(values.shape[1])]
            x = j + (0.15 if kind == "matryoshka" else -0.15)
            plots.spread(ax, x, list(per_seed), plots.COLOURS[kind], width=0.05)
    ax.set_xticks(range(len(targets)), [f"{target:g}" for target in targets])
    ax.set(xlabel="target L0", ylim=(0, None))


def _plot_members(ax: Axes, record: dict[str, Any]) -> None:
    """One concept's members at the last residual stream: holes, and the absorbing latent's cosine with the probe."""
    sites, concepts = record["results"]["sites"], record["results"]["concepts"]
    name = "female" if "female" in concepts else next(iter(concepts))
    site = [site for site in sites if site.startswith("resid")][-1:] or list(sites)[-1:]
    i = list(concepts).index(name)
    for kind in KINDS:
        holes = np.array([seed[i] for seed in sites[site[0]][kind]["members_hole_rates"]], float)  # [seed, member]
        cosines = np.array([seed[i] for seed in sites[site[0]][kind]["members_cosines"]], float)
        for m in range(holes.shape[1]):
            x = m + (0.18 if kind == "matryoshka" else -0.18)
            plots.spread(ax, x, holes[:, m].tolist(), plots.COLOURS[kind], width=0.05)
            known = cosines[:, m][~np.isnan(cosines[:, m])]
            if len(known):
                y = 1.06 if kind == "matryoshka" else 1.12
                ax.text(x, y, f"{known.mean():.1f}", fontsize=4.5, ha="center", color=plots.COLOURS[kind])
    ax.set_xticks(range(len(concepts[name])), concepts[name], rotation=60, fontsize=6)
    ax.set(ylim=(-0.05, 1.18), ylabel="hole rate")
    ax.set_title(f"e  {name}, {lp.title(site[0])}\nabove: cosine of absorber and probe", fontsize=6.5)


if __name__ == "__main__":
    main("tinystories_absorption")
