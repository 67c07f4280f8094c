"""When does the post's log penalty recover the tree? Its offset, from L0 to L1, against the coefficient it starts with.

Claim: the tree is recovered from a high enough price of a whole feature on, whatever the penalty, and the smaller the
offset is, the higher that is. The truth is a minimum of the exact objective at every price. So is a code in which a
latent corrects a parent that is alone and another feature has none, up to a price that exact descent gives. The
controller reaches that price in the end, but from a low start only after the last restart of weak latents, so that
the corrector dies and its latent finds no feature. A controller that is three times as fast recovers in 15 or
16 of 16 seeds from any start.
Command: python -m experiments.theory.log_sparsity (about 5 minutes on 2 cores). What was trained before is taken from
the user's cache.
Expected, seeds 5000 to 5015: with the post's offset 0, 2, 5, 16 and 15 of 16 recovered for prices from .2 to 20, with
the faster controller 15 or 16, with L1 14, 10, 16, 16 and 15. The corrector goes at 9.1 (offset .1) and 6.5 (L1).
In the post: the log penalty, with offset .1 and a coefficient that starts with .2.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from experiments.common.seeds import seeds_text
from experiments.sweeps.panels import PanelConfig, PanelRun, Panels, check_panels, n_runs
from toy import prefixes
from toy.checks import POSITIVE, check_ascending, check_fields
from toy.eval.metrics import MIN_COSINE, mean_known
from toy.features.named import forest, reference_tree
from toy.features.node import Node
from toy.features.tree import build_tree
from toy.loss import sparsity_penalty
from toy.prefixes import inclusion
from toy.sae import SAE, sae_of_directions
from toy.theory import Population, enumerate_states, minimum
from toy.training.config import Hypers, TrainConfig
from toy.training.loop import Progress

D_IN = 32
RATE = float(Hypers._field_defaults["control_rate"])


class Row(NamedTuple):
    """A penalty, and how fast the controller moves its coefficient."""

    sparsity: str
    control_rate: float = RATE

    @property
    def method(self) -> str:
        return f"matryoshka:sparsity={self.sparsity}"

    def start(self, price: float) -> dict[str, float]:
        return {"sparsity_coef": price / whole(self.sparsity), "control_rate": self.control_rate}

    def panel(self, price: float) -> str:
        return f"price {price:g}, control rate {self.control_rate:g}"


ROWS = {
    "log, offset .03": Row("log_0.03"),
    "log, offset .1 (the post)": Row("log_0.1"),
    "log, offset 1": Row("log_1"),
    "log, offset 10": Row("log_10"),
    "L1": Row("l1"),
    "offset .1, controller × 3": Row("log_0.1", 3 * RATE),
}


@dataclass(frozen=True)
class Config(PanelConfig):
    """Options of `log_sparsity`."""

    prices: tuple[float, ...] = (0.2, 0.6, 2.0, 6.0, 20.0)
    """Starting prices of a latent that holds a whole feature: its penalty times the coefficient."""
    seed: int = 5_000
    """The first seed, which no tuning has seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, prices=POSITIVE)
        check_ascending(self, "prices")

    @cached_property
    def runs(self) -> list[PanelRun]:
        shared = {"tree": "reference", "d_in": D_IN, "learning_rate": self.learning_rate}
        return [
            PanelRun(row.method, row.panel(price), shared | row.start(price) | {"seed": seed})
            for row in ROWS.values()
            for price in self.prices
            for seed in self.seeds
        ]

    @property
    def panels(self) -> Panels:
        return Panels("log_sparsity", self.runs, {}, self.n_steps)


@cache
def scale() -> float:
    """A feature's norm in the trainer's units, in which inputs have a mean norm of √d_in."""
    return enumerate_states(build_tree(reference_tree())).input_scale(D_IN)


@cache
def whole(sparsity: str) -> float:
    """The penalty of a latent that is on with the whole of a feature."""
    return float(sparsity_penalty(jnp.full((1, 1), scale()), jnp.ones(1), sparsity)[0])


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    found = cfg.panels.results(cfg.store, progress)
    limits = {row.sparsity: corrector_limit(row.sparsity) for row in ROWS.values()}
    return {
        name: {
            "found": [found[row.method][row.panel(price)] for price in cfg.prices],
            "limit": limits[row.sparsity],
            "growth": growth(row.control_rate, cfg.n_steps),
            "truth_stays": [truth_stays(row.sparsity, price) for price in cfg.prices],
        }
        for name, row in ROWS.items()
    }


def growth(control_rate: float, n_steps: int) -> float:
    """The most by which the controller can raise the coefficient before the last restart of weak latents."""
    cfg = TrainConfig(1, n_steps=n_steps)
    last = cfg.reinit_window[1] * n_steps // cfg.reinit_every * cfg.reinit_every
    return float((1 + control_rate) ** max(last - cfg.n_sparsity_warmup_steps, 0))


# A subtree of the reference tree and a child of another one, in units of the trainer; the places of their latents among
# all 20 are those of features of such energies. The last is that of the corrector, where there is one.
PLACES = (1, 12, 14, 16, 19)
LOST = 4  # the other child


@cache
def states() -> Population:
    children = tuple(Node(0.2) for _ in range(3))
    found = enumerate_states(build_tree(forest(Node(0.15, children, exclusive=True), Node(0.03))))
    return found._replace(features=found.features * scale())


def corrector() -> SAE:
    """A code that trained SAEs with a lost feature have, exact, with rounded cosines: their last latent is on where the
    parent is alone, and the lost feature is a sum of the parent's three children, which lean to it and off each other.
    """
    W_dec = np.full((5, 5), -0.33)
    W_dec[0], W_dec[LOST] = (1, 0.18, 0.18, 0.18, 0), (0.49, -0.49, -0.49, -0.49, 0.1)
    W_dec[1:4, 0], W_dec[1:4, LOST] = 0, 0.32
    W_dec[[1, 2, 3], [1, 2, 3]] = 0.82
    zeros = np.zeros(5)
    return SAE(*(jnp.asarray(a, jnp.float32) for a in (np.linalg.inv(W_dec), zeros, W_dec, zeros)))


def descended(start: SAE, sparsity: str, price: float) -> SAE:
    """The minimum of the exact objective of 10 expected prefixes that is reached from an SAE of the five features."""
    weights = prefixes.of_inclusion(inclusion(prefixes.expected(20), jnp.array(PLACES)))
    x, prob = (jnp.asarray(a, jnp.float32) for a in states())
    sae, _ = minimum(start, x, prob, weights, sparsity_coef=price / whole(sparsity), sparsity=sparsity, n_steps=4_000)
    return sae


def least_cosine(sae: SAE, features: Any) -> float:
    """The least, over features, of the cosine with the latent that is nearest."""
    directions = np.asarray(sae.W_dec) / np.maximum(np.linalg.norm(sae.W_dec, axis=1, keepdims=True), 1e-9)
    return float(directions.max(axis=0)[features].min())


def corrector_limit(sparsity: str, low: float = 0.5, high: float = 50.0) -> float:
    """The price from which on exact descent, from a code with a corrector, gives the lost feature a latent again."""
    start = descended(corrector(), sparsity, 0.1)
    while high > 1.05 * low:
        middle = float(np.sqrt(low * high))
        is_lost = least_cosine(descended(start, sparsity, middle), [LOST]) < MIN_COSINE
        low, high = (middle, high) if is_lost else (low, middle)
    return float(np.sqrt(low * high))


def truth_stays(sparsity: str, price: float) -> bool:
    """Returns whether exact descent from the features stays at them."""
    return least_cosine(descended(sae_of_directions(np.eye(5)), sparsity, price), slice(None)) >= MIN_COSINE


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for name, r in record["results"].items():
        limit, needed = r["limit"], r["limit"] / r["growth"]
        lines.append(f"{name}: a corrector goes at a price of {limit:.2f}, which a start of {needed:.2f} can reach")
        for price, of, stays in zip(record["config"]["prices"], r["found"], r["truth_stays"], strict=True):
            lines.append(
                f"  price {price:g} (coefficient {price / whole(ROWS[name].sparsity):.3g}): recovered "
                f"{plots.count_text(of['recovered'], of['n'])}, least cosine "
                f"{mean_known(of['min_cosine']):.3f}, holes {mean_known(of['hole_rate']):.3f}, L0 "
                f"{mean_known(of['l0']):.3f}, FVU {mean_known(of['fvu']):.4f}, dead "
                f"{mean_known(of['dead_latents']):.2f}; the truth is {'a' if stays else 'no'} minimum"
            )
    return lines


def caption(record: dict[str, Any]) -> str:
    config = record["config"]
    return (
        f"a: recovered runs of {config['n_seeds']} on the reference tree; b: mean of the least cosines; c: mean number "
        "of dead latents of 20; price: the penalty of a latent with the whole of a feature times the coefficient, from "
        "which the controller starts; solid line: the price at which theory has a corrector give its feature back; "
        "dashed: the start from which the controller can reach that before the last restart of weak latents; "
        f"{config['n_steps']:,} steps; {seeds_text(record['seeds'])}."
    )


def plot(record: dict[str, Any]) -> Figure:
    results, prices = record["results"], record["config"]["prices"]
    rows, columns = list(results), [f"{price:g}" for price in prices]
    with plots.styled(2.6) as figure:
        panels = {"a  Recovered": "recovered", "b  Least cosine": "min_cosine", "c  Dead latents": "dead_latents"}
        for ax, (title, metric) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
            values = [[_value(of, metric) for of in r["found"]] for r in results.values()]
            text = [[f"{x:.0f}" if metric == "recovered" else f"{x:.2f}" for x in row] for row in values]
            plots.table(ax, title, values, text, rows, columns, high=max(1.0, np.nanmax(values)))
            ax.set(xlabel="price at the start")
        for style, grown in (("-", False), ("--", True)):
            needed = [r["limit"] / (r["growth"] if grown else 1) for r in results.values()]
            places = np.interp(
                np.log(needed), np.log(prices), np.arange(len(prices)), left=-0.5, right=len(prices) - 0.5
            )
            at = np.arange(len(rows))
            colour = plots.COLOURS["vanilla"]
            figure.axes[0].vlines(places, at - 0.4, at + 0.4, color=colour, linestyle=style, linewidth=1.2)
    return figure


def _value(of: dict[str, Any], metric: str) -> float:
    return float(of["recovered"]) if metric == "recovered" else mean_known(of[metric])


EXPERIMENT = Experiment("log_sparsity", Config, run, summary, plot, check_panels, n_runs, caption, folder="theory.")

if __name__ == "__main__":
    main(EXPERIMENT)
