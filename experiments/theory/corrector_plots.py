"""The figure of `corrector`."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from toy.theory import edge_limit
from toy.training.config import TrainConfig

MIN_STRENGTH = 0.01
COLOURS = {"recovered": plots.COLOURS["matryoshka"], "failed": plots.COLOURS["vanilla"], "restarts": "#edae49"}


def plot(record: dict[str, Any]) -> Figure:
    results = record["results"]
    with plots.styled(5.2) as figure:
        upper, lower = plots.stacked(figure, 1, 1.15)
        a, b, c = upper.subplots(1, 3)
        d, e = lower.subplots(1, 2, width_ratios=[3, 1])
        _plot_directions(a, results)
        _plot_times(b, record)
        _plot_earned(c, results["subtrees"])
        _plot_rates(d, results["rates"])
        _plot_pair(e, record["config"]["edge_probs"], results["pairs"])
    return figure


def with_corrector(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The coefficients at which the best SAE with a corrector's support still has one: a large one turns it off."""
    return [row for row in rows if row["other"]["strength"] > MIN_STRENGTH]


def _plot_directions(ax: Axes, results: dict[str, Any]) -> None:
    dots = np.array(results["runs"]["off"]["directions"]).reshape(-1, 3)
    theory = [
        (row["coef"], row["other"]["to_parent"], row["other"]["to_children"])
        for row in with_corrector(results["subtrees"])
    ]
    lines = np.array(theory, float).reshape(-1, 3)
    for column, colour, label in ((1, "recovered", "with the parent"), (2, "failed", "with its children")):
        ax.plot(dots[:, 0], dots[:, column], ".", color=COLOURS[colour], markersize=2, alpha=0.3, linewidth=0)
        ax.plot(lines[:, 0], lines[:, column], color=COLOURS[colour], label=label)
    plots.log_scale(ax, "x")
    ax.set(title="a  A corrector's direction", xlabel="L1 coefficient", ylabel="cosine", ylim=(-1, 1.05))
    ax.legend()


def _plot_times(ax: Axes, record: dict[str, Any]) -> None:
    config, runs = record["config"], record["results"]["runs"]
    n_snapshots = len(runs["off"]["with_corrector"]["failed"])
    steps = np.arange(1, n_snapshots + 1) * (config["n_steps"] / n_snapshots)
    n_failed = runs["off"]["recovered"].count(False)
    lines = {
        "failed": (runs["off"]["with_corrector"]["failed"], n_failed, "failed"),
        "recovered": (runs["off"]["with_corrector"]["recovered"], config["n_seeds"] - n_failed, "recovered"),
        "restarts": (np.sum(list(runs["on"]["with_corrector"].values()), axis=0), config["n_seeds"], "restarts on"),
    }
    for name, (counts, n, label) in lines.items():
        ax.plot(steps, np.array(counts) / max(n, 1), ".-", color=COLOURS[name], markersize=3, label=label)
    ax.axvline(TrainConfig.sparsity_warmup_share * config["n_steps"], color=plots.COLOURS["truth"], linestyle=":")
    ax.set(title="b  When there is one", xlabel="step", ylabel="share with a corrector", ylim=(-0.05, 1.05))
    ax.legend()


def _plot_earned(ax: Axes, rows: list[dict[str, Any]]) -> None:
    rows = with_corrector(rows)
    coefs = [row["coef"] for row in rows]
    for name, colour, label in (("other", "recovered", "another's child"), ("same", "failed", "its own child")):
        earned, best, kept = ([row[name][key] for row in rows] for key in ("earned", "earned_at_best", "kept"))
        ax.plot(coefs, earned, color=COLOURS[colour], label=label)
        ax.plot(coefs, best, "o", color=COLOURS[colour], markersize=3, markerfacecolor="white")
        ax.plot(coefs, kept, ":", color=COLOURS[colour], linewidth=1)
    ax.axhline(1, color=plots.COLOURS["truth"], linewidth=0.8)
    plots.log_scale(ax, "x")
    ax.set(title="c  Earned in place of", xlabel="L1 coefficient", ylabel="child's latent = 1", ylim=(0, 2.4))
    ax.legend(loc="upper right")


def _plot_rates(ax: Axes, rates: list[dict[str, Any]]) -> None:
    for i, setting in enumerate(rates):
        for aside, name, colour in ((-0.15, "failed", "0.6"), (0.15, "with_corrector", COLOURS["failed"])):
            plots.share(ax, i + aside, setting[name], setting["n"], colour)
    starts = [i for i, setting in enumerate(rates) if i == 0 or setting["axis"] != rates[i - 1]["axis"]]
    for start, stop in zip(starts, [*starts[1:], len(rates)], strict=True):
        ax.axvline(start - 0.5, color="0.85", linewidth=0.6)
        if start:
            ax.text((start + stop - 1) / 2, 1.08, rates[start]["axis"], ha="center", fontsize=6)
    ax.set_xticks(range(len(rates)), [one["value"] or "default" for one in rates], rotation=60, ha="right", fontsize=6)
    ax.set_title("d  Share of runs that fail (grey) and that have a corrector (red)", pad=12)
    ax.set(ylim=(-0.05, 1.05), xlim=(-0.5, len(rates) - 0.5))


def _plot_pair(ax: Axes, probs: list[float], gaps: list[float]) -> None:
    ax.plot(probs, 100 * np.array(gaps), ".-", color=COLOURS["failed"])
    ax.axhline(0, color=plots.COLOURS["truth"], linewidth=0.8)
    ax.axvline(edge_limit(1.0), color=plots.COLOURS["truth"], linestyle=":")
    ax.set(title="e  A pair's parent alone", xlabel="P(child | parent)", ylabel="objective over the truth's, %")
