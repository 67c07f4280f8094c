"""The cost of the hierarchy: FVU, loss of the language model, dead latents and density of both kinds of SAE.

On held-out tokens: FVU against L0; the share of the model's loss that is recovered when the reconstruction is spliced
in; the width at which vanilla SAEs have the Matryoshka SAE's FVU, at the middle L0, as a share of its own (the post:
"comparable to a vanilla SAE 0.4x their size"). Claim of the post: a slightly worse FVU at the same L0.
Command: python -m experiments.tinystories --only fvu.
In the post: "Reconstruction Quality".
"""

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.language import plots as lp
from experiments.language.chain import Chain
from experiments.language.config import LanguageConfig
from experiments.language.measure import Measure, OfSite
from experiments.language.saes import KINDS, HeldOut, SiteSAEs
from toy.eval.streaming import Fit, equivalent_width, measure_fit
from toy.lm.model import Site
from toy.lm.splice import loss_recovered, spliced_loss
from toy.lm.tokens import Rows
from toy.sae import SAE

PLACES = {"above the large vanilla SAE": ("^", 1.06), "below all": ("v", 0.02), "undefined": ("x", 0.94)}
N_SPLICED_ROWS = 128  # held-out rows for the loss of the language model, which is most of the time
MIN_COST = 0.05  # nats that zero ablation must cost; below that, the recovered share is noise
DENSITY_BINS = np.linspace(-5, 0, 21)  # log10 of the share of tokens on which a latent is on


def of_model(chain: Chain) -> OfSite:
    """Measures lists [seed, L0] of each kind, and [seed, width] of the reference SAEs; losses of the language model."""
    return partial(_of_site, chain)


def _of_site(chain: Chain, site: Site, saes: SiteSAEs) -> dict[str, Any]:
    cfg, lm, held_out = chain.cfg, chain.model.lm, HeldOut(chain.acts, site)
    rows = Rows(*(column[:N_SPLICED_ROWS] for column in chain.tokens.valid))
    mean = chain.acts.means[str(site)]
    original, zero, of_mean = (spliced_loss(lm, rows, site, put) for put in (None, np.zeros_like(mean), mean))

    def recovered(loss: float) -> float:
        enough = zero - original >= MIN_COST
        return loss_recovered(original, loss, zero) if enough else float("nan")

    found: dict[str, Any] = {"loss": {"original": [original], "zero": [zero], "mean": [of_mean]}}
    for kind in saes.large:
        losses = [[spliced_loss(lm, rows, site, sae) for sae in seed] for seed in saes.large[kind]]
        found[kind] = _fits(saes.large[kind], held_out) | {
            "reconstruction_loss": losses,
            "loss_recovered": [[recovered(loss) for loss in seed] for seed in losses],
        }
    ladder = [[saes.reference[width][seed] for width in cfg.reference_widths] for seed in range(cfg.n_seeds)]
    found["reference"] = _fits(ladder, held_out)
    middle = cfg.sizes.target_l0.index(cfg.reference_l0)
    vanilla, matryoshka = ([seed[middle] for seed in found[kind]["fvu"]] for kind in KINDS)
    fvus = zip(vanilla, matryoshka, found["reference"]["fvu"], strict=True)
    found["equivalent_width"] = [_equivalent(cfg, *of_seed) for of_seed in fvus]
    found["equivalent_width_is"] = [_place(share) for share in found["equivalent_width"]]
    return found


def _fits(saes: list[list[SAE]], held_out: HeldOut) -> dict[str, Any]:
    fits = [[measure_fit(sae, held_out) for sae in seed] for seed in saes]
    each = {"fvu": lambda fit: fit.fvu, "l0": lambda fit: fit.l0, "dead": Fit.dead, "log10_density": _histogram}
    return {name: [[of(fit) for fit in seed] for seed in fits] for name, of in each.items()}


def _histogram(fit: Fit) -> np.ndarray:
    return np.histogram(np.log10(fit.density[fit.density > 0]), DENSITY_BINS)[0]


def _equivalent(cfg: LanguageConfig, vanilla: float, matryoshka: float, reference: list[float]) -> float:
    """Width of a vanilla SAE as good as the Matryoshka one, over its own; of widths whose L0 is the middle one."""
    ladder = zip(cfg.reference_widths, reference, strict=True)
    same = {width: fvu for width, fvu in ladder if width / 4 >= cfg.reference_l0}
    return equivalent_width(matryoshka, [*same, cfg.n_latents], [*same.values(), vanilla]) / cfg.n_latents


def _place(share: float) -> str:
    """The place of an equivalent width among the widths that were trained."""
    if np.isnan(share):
        return "undefined"  # a wider vanilla SAE is no better than a narrower one
    return "above the large vanilla SAE" if np.isinf(share) else "inside" if share else "below all"


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for site, found in record["results"]["sites"].items():
        for j, l0 in enumerate(record["config"]["target_l0"]):
            parts = []
            for kind in lp.kinds(record["config"]):
                of = {name: np.mean(np.array(found[kind][name], float)[:, j]) for name in ("fvu", "l0", "dead")}
                recovered = np.mean(np.array(found[kind]["loss_recovered"], float)[:, j])
                parts.append(f"{kind} FVU {of['fvu']:.4f} at L0 {of['l0']:.2f}, loss recovered {recovered:.3f}")
            lines.append(f"{site}, target L0 {l0:g}: " + "; ".join(parts))
        places = Counter(found["equivalent_width_is"])
        text = ", ".join(f"{place} in {n} seeds" for place, n in places.items())
        if places["inside"]:
            text += f", where it is {np.mean(_inside(found)):.2f}"
        cost = np.mean(np.subtract(found["loss"]["zero"], found["loss"]["original"]))
        lines.append(f"{site}: zero ablation costs {cost:.3f} nats; equivalent vanilla width over its own: {text}")
    return lines + lp.off_target_named(record)


def _inside(found: dict[str, Any]) -> list[float]:
    """The equivalent widths, as shares, that are between those of two SAEs."""
    widths = zip(found["equivalent_width"], found["equivalent_width_is"], strict=True)
    return [width for width, place in widths if place == "inside"]


def plot(record: dict[str, Any]) -> Figure:
    sites = record["results"]["sites"]
    rows, _ = lp.grid_shape(len(sites))
    with plots.styled(3.9 + 1.75 * rows) as figure:
        parts = figure.add_gridspec(2, 1, height_ratios=[1.75 * rows, 2.6])
        top, bottom = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
        panels = lp.site_axes(top, list(sites), same_y=False, letter="a")
        for ax, site in zip(panels, sites.values(), strict=True):
            for kind in lp.kinds(record["config"]):
                lp.line(ax, site[kind]["l0"], site[kind]["fvu"], lp.colour(record["config"], kind))
            if all(np.isnan(np.array(site[kind]["fvu"], float)).all() for kind in lp.kinds(record["config"])):
                plots.nothing(ax, "activations that do not vary")
            lp.from_zero(ax)
            ax.set(xscale="log", ylim=(0, None))
            ticks = record["config"]["target_l0"]
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        lp.legend(top, panels[0], record["config"])
        top.supylabel("FVU", fontsize=8)
        top.supxlabel("L0 (log scale)", fontsize=8)
        _plot_bottom(bottom, record)
        text = (
            f"All on held-out tokens; lines: mean, dots: seeds, {lp.BARS}; b to e: at the middle target L0; "
            f"b: where zero ablation costs {MIN_COST:g} nats at least; d: numbers of seeds whose FVU is below that of "
            "the large vanilla SAE (triangle up) or above all (down), or where a wider vanilla SAE is no better (cross)"
        )
        lp.caption(figure, record, text)
    return figure


def _plot_bottom(figure: Any, record: dict[str, Any]) -> None:
    config, sites = record["config"], record["results"]["sites"]
    j = config["target_l0"].index(lp.middle_l0(config))
    recovered, dead, width, density = figure.subplots(1, 4, width_ratios=[3, 3, 3, 2.6])
    for x, site in enumerate(sites.values()):
        for at, kind in zip(x + lp.beside(config, 0.3), lp.kinds(config), strict=True):
            colour = lp.colour(config, kind)
            lost = [None if row[j] is None else 1 - row[j] for row in site[kind]["loss_recovered"]]
            plots.spread(recovered, at, lost, colour, width=0.05)
            plots.spread(dead, at, [row[j] / config["n_latents"] for row in site[kind]["dead"]], colour, width=0.05)
        plots.spread(width, x, list(_inside(site)), plots.COLOURS["matryoshka"], width=0.05)
        places = Counter(site["equivalent_width_is"])
        for place, (marker, y) in PLACES.items():
            if places[place]:
                width.plot(x, y, marker, color=plots.COLOURS["matryoshka"], markersize=3)
                width.text(x + 0.12, y, str(places[place]), fontsize=4.5, va="center")
    for ax in (recovered, dead, width):
        ax.set_xticks(range(len(sites)), list(sites), rotation=90, fontsize=5.5)
        ax.set_xlim(-0.6, len(sites) - 0.4)
    lp.from_zero(recovered)
    recovered.set_title("b  Loss not recovered", fontsize=7.5)
    dead.set_title("c  Dead latents (share)", fontsize=7.5)
    width.set_title("d  Equivalent width (share)", fontsize=7.5)
    width.axhline(0.4, color="#999999", linewidth=0.7, linestyle=":")
    for ax in (dead, width):
        ax.set_ylim(-0.05, 1.12)
    for kind in lp.kinds(config):
        counts = sum(np.sum(np.array(site[kind]["log10_density"])[:, j], axis=0) for site in sites.values())
        density.stairs(counts, DENSITY_BINS, color=lp.colour(config, kind))
    density.set_title("e  Density, all sites", fontsize=7.5)
    density.set(ylabel="latents")
    density.set_xlabel("log10(share of tokens on)", fontsize=6.5)


FVU = Measure("tinystories_fvu", of_model, summary, plot)
