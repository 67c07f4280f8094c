"""Pieces that the TinyStories figures share: a panel per site, the two kinds of SAE, the line under the figure."""

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.seeds import seeds_text
from experiments.language.saes import KINDS, OffTarget
from toy.training.controllers import MAX_L0_ERROR

OTHERS = ("#edae49", "#6a4c93", "#7f7f7f")  # colours of methods beside the two
LINES = ("-", "--", ":", "-.")
BARS = "bars: mean with 95% bootstrap interval (of 3 seeds: their range)"
MOST_NAMED = 5  # SAEs off target, in a summary
MOST_NAMES = 6  # of kinds and line styles, in a row of a legend
PLACES = {
    "resid_pre": "residual before attention",
    "resid_mid": "residual before MLP",
    "attn_out": "attention output",
    "mlp_out": "MLP output",
}


def title(site: str) -> str:
    """The site `mlp_out.0` as a person says it."""
    location, _, layer = site.partition(".")
    return f"{PLACES[location]}, layer {layer}"


def middle_l0(config: dict[str, Any]) -> float:
    """The target L0 of the reference SAEs (`LanguageConfig.reference_l0`) in a record's configuration."""
    return sorted(config["target_l0"])[len(config["target_l0"]) // 2]


def grid_shape(n_sites: int) -> tuple[int, int]:
    """Rows and columns of panels."""
    columns = min(n_sites, 3 if n_sites <= 6 or n_sites == 9 else 4)
    return -(-n_sites // columns), columns


def site_axes(figure: Any, sites: list[str], *, same_y: bool = True, letter: str = "") -> list[Axes]:
    """One panel per site, with the same x axis; the first has the letter."""
    rows, columns = grid_shape(len(sites))
    panels = figure.subplots(rows, columns, sharex=True, sharey=same_y, squeeze=False).ravel()
    for ax in panels[len(sites) :]:
        ax.remove()
    for i, (ax, site) in enumerate(zip(panels, sites, strict=False)):
        told = f"{letter}  {title(site)}" if letter and i == 0 else title(site)
        ax.set_title(told, fontsize=7.5 if columns <= 3 else 5.8)
    return list(panels[: len(sites)])


def kinds(config: dict[str, Any]) -> list[str]:
    """The methods of the large SAEs of a record."""
    return [*KINDS, *config.get("methods", ())]


def colour(config: dict[str, Any], kind: str) -> str:
    return plots.COLOURS.get(kind) or OTHERS[list(config["methods"]).index(kind) % len(OTHERS)]


def beside(config: dict[str, Any], width: float) -> np.ndarray:
    """The places of the kinds beside each other, around 0."""
    n_kinds = len(kinds(config))
    return width * (np.arange(n_kinds) - (n_kinds - 1) / 2) * 2 / n_kinds


def line(ax: Axes, x: Any, y: Any, colour: str, style: str = "-") -> None:
    """The mean over seeds (rows of `y`, and of `x` where each seed has its own) as a line, and a dot for each seed."""
    y = np.array(y, float)
    x = np.broadcast_to(np.array(x, float), y.shape)
    ax.plot(x.mean(axis=0), y.mean(axis=0), style, color=colour, linewidth=1.1)
    ax.plot(x.ravel(), y.ravel(), "o", color=colour, markersize=2, alpha=0.5)


def from_zero(ax: Axes) -> None:
    """Let the y axis show 0, with a margin above the largest value."""
    ax.update_datalim([(0, 0)], updatex=False)
    ax.autoscale_view()


def kind_label(config: dict[str, Any], kind: str) -> str:
    """The name of a kind, without the prefixes that it has in common with the Matryoshka SAEs."""
    return plots.label(kind.replace(f",weighting=sampled_{config['n_prefixes']}", ""))


def legend(figure: Any, ax: Axes, config: dict[str, Any], styles: dict[str, str] | None = None) -> None:
    """Names the kinds, and the line styles, in the panel; more than two kinds above the figure or subfigure."""
    for kind in kinds(config):
        ax.plot([], [], color=colour(config, kind), label=kind_label(config, kind))
    for name, style in (styles or {}).items():
        ax.plot([], [], style, color="#555555", label=name)
    handles = ax.get_legend_handles_labels()
    if len(kinds(config)) <= 2:
        ax.legend(loc="best", fontsize=5.5)
    else:
        n_rows = -(-len(handles[0]) // MOST_NAMES)
        ncols = -(-len(handles[0]) // n_rows)
        figure.legend(*handles, loc="outside upper right", ncols=ncols, fontsize=5.5)


def off_target(record: dict[str, Any]) -> list[str]:
    """A line that says how many SAEs miss their target L0; none where all meet it, or where a record does not say."""
    missed, config = record["results"].get("off_target"), record["config"]
    if not missed:
        return []
    n_each = len(config["reference_widths"]) + len(kinds(config)) * len(config["target_l0"])
    n_saes = len(record["results"]["sites"]) * len(record["seeds"]) * n_each
    return [f"{len(missed)} of {n_saes} SAEs end more than {MAX_L0_ERROR:.0%} off their target L0"]


def off_target_named(record: dict[str, Any]) -> list[str]:
    """The same line with the first of these SAEs named, for a summary."""
    missed = [OffTarget(*one) for one in record["results"].get("off_target", [])]
    named = [
        f"{one.site} {one.family}, seed {one.seed}, {'unknown' if one.l0 is None else f'{one.l0:.2f}'} for "
        f"{one.target_l0:g}"
        for one in missed[:MOST_NAMED]
    ]
    return [f"{text}: {'; '.join(named)}{'; …' * (len(missed) > MOST_NAMED)}" for text in off_target(record)]


def _last_part(name: str) -> str:
    return plots.shown_name(name.rpartition("/")[2], 60)


def caption(figure: Figure, record: dict[str, Any], text: str) -> None:
    """The caption of a figure: what is shown, and of which model and SAEs."""
    config = record["config"]
    models = [facts["model"] for facts in record["results"]["models"]]
    model = models[0] | {name: sum(m[name] for m in models) / len(models) for name in ("loss", "unigram_entropy")}
    own = f"{model['n_layers']}-layer model trained {'for each seed' if len(models) > 1 else 'here'}"
    own += f", d_model {model['d_model']}"
    parts = [
        text,
        seeds_text(record["seeds"]),
        f"corpus: {_last_part(config['corpus'])}",
        own if config["model"] is None else f"model: {_last_part(config['model'])}",
        *([f"SAEs trained on {n:,} stories that it tells"] if (n := config.get("sampled_stories")) else []),
        f"held-out loss {model['loss']:.2f} nats (unigram entropy {model['unigram_entropy']:.2f})",
        f"{config['n_latents']:,} latents, {config['n_steps']:,} steps of {config['batch_size']} tokens",
        f"reference SAEs of L0 {middle_l0(config):g} (at most a quarter of their latents)",
        f"{ {'log': 'log', 'l1': 'L1'}[config['sparsity']] } sparsity",
        *off_target(record),
    ]
    figure.supxlabel(textwrap.fill("; ".join(parts) + ".", 150), fontsize=6, color="#555555")
