"""Does a large SAE keep what small ones find? Mean max correlation of reference latents with those of large SAEs.

For every latent of a small vanilla (reference) SAE, the highest activation correlation with any latent of a large SAE,
on held-out tokens; the mean over the reference latents that are on somewhere. Claim of the post: the large Matryoshka
SAE has the higher one at the same L0, for the smaller reference SAEs, at most locations.
Command: python -m experiments.tinystories --only mmc.
In the post: "Language Model Results", mean max correlation by location.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.language import plots as lp
from experiments.language.chain import Chain
from experiments.language.measure import Measure, OfSite
from experiments.language.saes import KINDS, HeldOut, SiteSAEs
from toy.eval.metrics import mean_known
from toy.eval.streaming import concatenate, max_correlation
from toy.lm.model import Site


def of_model(chain: Chain) -> OfSite:
    """Measures `[seed, L0, reference width]` for each kind; a seed's large SAEs with its own reference SAEs."""
    widths = chain.cfg.reference_widths

    def of_site(site: Site, saes: SiteSAEs) -> dict[str, Any]:
        held_out = HeldOut(chain.acts, site)
        found: dict[str, Any] = {kind: [] for kind in saes.large}
        for seed in range(chain.cfg.n_seeds):
            ladder = concatenate([saes.reference[width][seed] for width in widths])
            for kind in saes.large:
                best = [max_correlation(ladder, large, held_out).correlation for large in saes.large[kind][seed]]
                parts = [np.split(row, np.cumsum(widths)[:-1]) for row in best]
                found[kind].append([[mean_known(part) for part in of_l0] for of_l0 in parts])
        return found

    return of_site


def summary(record: dict[str, Any]) -> list[str]:
    config, sites = record["config"], record["results"]["sites"]
    lines = []

    def at(kind: str, i: int, j: int) -> float:
        return mean_known([np.array(site[kind], float)[:, j, i].mean() for site in sites.values()])

    for j, l0 in enumerate(config["target_l0"]):
        for i, width in enumerate(config["reference_widths"]):
            pairs = [[np.array(site[kind], float)[:, j, i].mean() for kind in KINDS] for site in sites.values()]
            higher = sum(matryoshka > vanilla for vanilla, matryoshka in pairs)
            means = [mean_known(of_kind) for of_kind in np.transpose(pairs)]
            lines.append(
                f"L0 {l0:g}, reference {width}: Matryoshka higher at {higher}/{len(pairs)} sites, mean over sites "
                f"{means[1]:.3f} against {means[0]:.3f}"
                + "".join(f", {kind} {at(kind, i, j):.3f}" for kind in config.get("methods", ()))
            )
    return lines + lp.off_target_named(record)


def plot(record: dict[str, Any]) -> Figure:
    config, sites = record["config"], record["results"]["sites"]
    rows, columns = lp.grid_shape(len(sites))
    styles = {f"L0 {l0:g}": lp.LINES[j % 4] for j, l0 in enumerate(config["target_l0"])}
    with plots.styled(1.3 + 1.75 * rows) as figure:
        panels = lp.site_axes(figure, list(sites))
        for ax, site in zip(panels, sites.values(), strict=True):
            for kind in lp.kinds(config):
                values = np.array(site[kind], float)
                for j, style in enumerate(styles.values()):
                    lp.line(ax, config["reference_widths"], values[:, j], lp.colour(config, kind), style)
            if all(np.isnan(np.array(site[kind], float)).all() for kind in lp.kinds(config)):
                plots.nothing(ax, "no reference latent is on")
            ax.set_xscale("log")
            ax.set_xticks(config["reference_widths"], [str(width) for width in config["reference_widths"]])
            ax.minorticks_off()
        lp.legend(figure, panels[0], config, styles=styles)
        figure.supylabel("mean max correlation", fontsize=8)
        for ax in panels[-columns:]:
            ax.set_xlabel("latents of the reference SAE", fontsize=7)
        lp.caption(
            figure, record, "Latents of the reference SAE against those of the large SAE; lines: mean, dots: seeds"
        )
    return figure


MMC = Measure("tinystories_mmc", of_model, summary, plot)
