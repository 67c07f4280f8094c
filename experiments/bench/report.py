"""Summaries and figures of records of tables: medians of all calls, with minimum and maximum."""

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from experiments.common import plots

ROW, HEAD = 0.17, 0.95  # inches of a panel: of a case, and of its title and axis


def values(table: dict[str, Any], name: str) -> np.ndarray:
    """The numbers of a case that are shown, in the table's unit."""
    seconds = np.array(table["cases"][name]["seconds"])
    return table["scale"] / seconds if table["per_second"] else table["scale"] * seconds


def ratios(table: dict[str, Any], name: str) -> np.ndarray | None:
    """A case's values over those of the case that it is compared with, call by call; None without such a case."""
    other = table["cases"][name].get("to")
    if other not in table["cases"] or other == name:
        return None
    return values(table, name) / values(table, other)


def short(value: float) -> str:
    """Three digits of a number, and no exponent for a large one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for table in record["results"]["tables"]:
        lines.append(f"{table['title']}, {table['unit']}, on {table['device']}")
        lines += [f"  {describe(table, name)}" for name in table["cases"]]
    return lines + [f"not measured: {what}" for what in record["results"]["not_measured"]]


def describe(table: dict[str, Any], name: str) -> str:
    """A case in a line: its values, those relative to another case, and its facts."""
    found, ratio = values(table, name), ratios(table, name)
    parts = [f"{name:32s} {np.median(found):,.4g} ({found.min():,.4g} to {found.max():,.4g})"]
    if ratio is not None:
        other = table["cases"][name]["to"]
        parts.append(f"{np.median(ratio):.2f} of {other} ({ratio.min():.2f} to {ratio.max():.2f})")
    facts = {key: value for key, value in table["cases"][name].items() if key not in ("seconds", "to")}
    return ", ".join(parts + [f"{key.replace('_', ' ')} {value:,.4g}" for key, value in facts.items()])


def caption(record: dict[str, Any]) -> str:
    others = {case["to"] for table in record["results"]["tables"] for case in table["cases"].values() if "to" in case}
    beside = f", numbers in brackets ratios to {'; '.join(sorted(others))}" if others else ""
    return f"Bars are medians, dots single calls{beside}."


def plot(record: dict[str, Any]) -> Figure:
    """A panel per table, two side by side."""
    tables = record["results"]["tables"]
    pairs = [tables[i : i + 2] for i in range(0, len(tables), 2)]
    heights = [HEAD + ROW * max(len(table["cases"]) for table in pair) for pair in pairs]
    with plots.styled(sum(heights)) as figure:
        places = figure.add_gridspec(len(pairs), len(pairs[0]), height_ratios=heights)
        for row, pair in enumerate(pairs):
            for column, table in enumerate(pair):
                plot_table(figure.add_subplot(places[row, column]), table)
    return figure


def plot_table(ax: Axes, table: dict[str, Any]) -> None:
    for y, name in enumerate(table["cases"]):
        found, ratio = values(table, name), ratios(table, name)
        colour = plots.COLOURS["other" if "SAELens" in name or " as of " in name else "matryoshka"]
        ax.plot(found, [y] * len(found), "o", color=colour, markersize=3, alpha=0.4)
        ax.plot(np.median(found), y, "|", color=colour, markersize=9, markeredgewidth=2)
        beside = "" if ratio is None else f" ({np.median(ratio):.2f})"
        ax.text(found.max(), y, f"  {short(float(np.median(found)))}{beside}", va="center", size=6)
    ax.set_yticks(range(len(table["cases"])), list(table["cases"]))
    ax.set_ylim(len(table["cases"]) - 0.5, -0.5)
    ax.set(xscale="log", title=textwrap.fill(table["title"], 30), xlabel=table["unit"])
    ax.grid(axis="y", color="#eeeeee", linewidth=0.6)
    ax.margins(x=0.3)
    low, high = ax.get_xlim()
    told = FuncFormatter(lambda x, _: short(x))
    ax.xaxis.set_major_formatter(told)
    ax.xaxis.set_minor_formatter(told if high < 10 * low else NullFormatter())  # else an axis might have no number
