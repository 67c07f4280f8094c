"""How `experiments.speed` shows its record: lines for the terminal, and the figure."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.bench.cases import DENSE, SPARSE
from experiments.common import plots

OURS, THEIRS = plots.COLOURS["matryoshka"], plots.COLOURS["other"]


def ratios(table: dict[str, Any], name: str, to: str) -> np.ndarray:
    """Of a case's time to another's, round by round."""
    return np.array(table["cases"][name]["ms"]) / np.array(table["cases"][to]["ms"])


def baseline(name: str) -> str:
    """What a case's ratio is to: the vanilla loss of its activation; the fastest plain TopK for BatchTopK, too."""
    return "full" if name in DENSE else "topk_full"


def share_of_matmul(table: dict[str, Any], name: str) -> float:
    """FLOP/s of the dense products that a case needs, over FLOP/s of one such product alone, by medians."""
    case, matmul = table["cases"][name], table["cases"]["matmul"]
    return case["products"] * matmul["median_ms"] / case["median_ms"]


def describe_table(table: dict[str, Any]) -> list[str]:
    job, cases = table["job"], table["cases"]
    shape = f"({job['n_latents']}, {job['d_in']}, {job['batch_size']})"
    flops = 2 * job["n_latents"] * job["d_in"] * job["batch_size"] / cases["matmul"]["median_ms"] / 1e9
    cores = "one thread" if job["threads"] == 1 else f"{table['cores']} threads"
    lines = [f"{shape}, {table['device']}, {cores}, {job['dtype']}: one product runs at {flops:.3g} TFLOP/s"]
    for name, case in cases.items():
        line = f"  {name:29s} {case['median_ms']:9.1f} ms ({case['min_ms']:.1f} to {case['max_ms']:.1f})"
        if name in (*DENSE, *SPARSE):
            ratio = ratios(table, name, baseline(name))
            line += f", {np.median(ratio):.2f} of {baseline(name)} ({ratio.min():.2f} to {ratio.max():.2f})"
            line += f", {share_of_matmul(table, name):.0%} of a product's rate"
            line += f", {case['memory_mb']:.0f} MB, compiled in {case['compile_s']:.1f} s"
        elif "sae_lens_matryoshka_batchtopk" in cases and name.startswith("step"):
            times = 1 / ratios(table, name, "sae_lens_matryoshka_batchtopk")
            line += f", SAELens' Matryoshka takes {np.median(times):.1f} times as long"
        lines.append(line)
    return lines


def summary(record: dict[str, Any]) -> list[str]:
    results, n_seeds = record["results"], record["config"]["n_seeds"]
    names = {"one_run": "one run, a step", "grid": f"{n_seeds} seeds, a step and seed", "sampling": "sampling, a batch"}
    named = {label: results[name] for name, label in names.items()}
    named |= {f"toy width, {name}, a step": timing for name, timing in results["toy"].items()}
    lines = []
    for label, timing in named.items():
        lines.append(f"{label}: median {timing['median_us']:.0f} µs ({timing['min_us']:.0f} to {timing['max_us']:.0f})")
    for n_features, rate in results["generator"].items():
        lines.append(f"generator, {int(n_features):,} features: {rate['median']:.3g} million rows a second")
    for table in (*results["width"], *(results["gpu"] or ())):
        lines += describe_table(table)
    if not results["gpu"]:
        lines.append("GPU: not measured (python -m experiments.speed --device gpu)")
    if not results["peers"]:
        lines.append("SAELens: not measured (install the extra peers)")
    if "whole" in results:
        whole = results["whole"]
        lines.append(f"python -m experiments: {whole['seconds']:.0f} s, peak {whole['peak_memory_gb']:.2f} GB")
    return lines


def plot(record: dict[str, Any]) -> Figure:
    results = record["results"]
    one_thread = [table for table in results["width"] if table["job"]["threads"] == 1]
    with plots.styled(6.6 if one_thread else 3.0) as figure:
        grid = figure.add_gridspec(
            2 if one_thread else 1, 2, width_ratios=[1.25, 1], height_ratios=[1.2, 1][: 1 + bool(one_thread)]
        )
        _plot_toy(figure.add_subplot(grid[0, 0]), record)
        _plot_generator(figure.add_subplot(grid[-1, 1] if one_thread else grid[0, 1]), results["generator"])
        if one_thread:
            _plot_ratios(figure.add_subplot(grid[0, 1]), one_thread)
            _plot_steps(figure.add_subplot(grid[1, 0]), one_thread[-1])
        gpu = "GPU: see the record" if results["gpu"] else "GPU: not measured"
        text = f"medians, bars from minimum to maximum; {gpu}; CPU {record['versions']['devices']}"
        plots.caption(figure, record, text)
    return figure


def _plot_toy(ax: Axes, record: dict[str, Any]) -> None:
    results, n_seeds = record["results"], record["config"]["n_seeds"]
    rows = {_label(name): results["toy"][name] for name in results["toy"]}
    rows = {f"{n_seeds} seeds at once, a seed": results["grid"], **rows}
    _plot_times(ax, rows, "us", "µs a training step, batch included")
    ax.set_title("a  Toy width (20 latents, 30 inputs, batch 200)")


def _label(name: str) -> str:
    """`batchtopk_all` and the like as a reader says it."""
    kinds = {
        "topk": "TopK",
        "batchtopk": "BatchTopK",
        "relu": "ReLU",
        "standard": "standard",
    }
    if name.startswith("sae_lens_"):
        kind = name.removeprefix("sae_lens_").replace("matryoshka_batchtopk", "Matryoshka BatchTopK")
        return f"SAELens {kinds.get(kind, kind)}"
    name = name.removeprefix("step_")
    first, _, rest = name.partition("_")
    kind, prefix = (kinds[first], rest) if first in kinds else ("ReLU", name)
    prefix = {"full": "full prefix", "vanilla": "full prefix", "all": "every prefix", "plain": "as first written"}.get(
        prefix, prefix
    )
    head, _, number = prefix.partition("_")
    return f"{kind}, {number + ' ' if number else ''}{head}"


def _plot_times(ax: Axes, rows: dict[str, Any], unit: str, xlabel: str) -> None:
    for y, (label, timing) in enumerate(rows.items()):
        median, low, high = (timing[f"{kind}_{unit}"] for kind in ("median", "min", "max"))
        colour = THEIRS if label.startswith("SAELens") else OURS
        error = [[median - low], [high - median]]
        ax.errorbar(median, y, xerr=error, fmt="o", color=colour, markersize=4.5, elinewidth=1)
        ax.text(high, y, f"  {median:,.0f}", va="center", fontsize=6.5)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", color="#eeeeee", linewidth=0.6)
    ax.margins(x=0.17)
    ax.set_xlabel(xlabel)


def _plot_ratios(ax: Axes, tables: list[dict[str, Any]]) -> None:
    names = [name for name in (*DENSE, *SPARSE) if name not in ("full", "topk_full", "topk_plain")]
    for i, table in enumerate(tables):
        job = table["job"]
        for y, name in enumerate(names):
            ratio = ratios(table, name, baseline(name))
            median = float(np.median(ratio))
            error = [[median - ratio.min()], [ratio.max() - median]]
            ax.errorbar(
                median,
                y + 0.24 * i - 0.12,
                xerr=error,
                fmt="os"[i],
                markersize=3.5,
                elinewidth=0.8,
                color=(THEIRS, OURS)[i],
                label=f"({job['n_latents']:,}, {job['d_in']}, {job['batch_size']:,})" if y == 0 else None,
            )
    ax.axvline(1, color="#999999", linewidth=0.7, linestyle=":")
    ax.set_yticks(range(len(names)), [_label(name) for name in names])
    ax.invert_yaxis()
    ax.set(title="b  Loss and gradient", xlabel="time / full prefix's, one thread")
    ax.legend(title="latents, inputs, batch", title_fontsize=7, bbox_to_anchor=(1.02, 0.43), loc="upper right")


def _plot_steps(ax: Axes, table: dict[str, Any]) -> None:
    job = table["job"]
    rows = {_label(name): case for name, case in table["cases"].items() if name.startswith(("step", "sae_lens"))}
    _plot_times(ax, rows, "ms", "ms a training step")
    ax.set_title(f"c  Whole steps at ({job['n_latents']:,}, {job['d_in']}, {job['batch_size']}), one thread")


def _plot_generator(ax: Axes, rates: dict[str, Any]) -> None:
    n_features = [int(n) for n in rates]
    median, low, high = (np.array([rate[kind] for rate in rates.values()]) for kind in ("median", "min", "max"))
    ax.errorbar(n_features, median, [median - low, high - median], fmt="o-", color=OURS, markersize=3.5, elinewidth=0.8)
    ax.set(xscale="log", yscale="log", title="d  Generator", xlabel="features", ylabel="million rows a second")
