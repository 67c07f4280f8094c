"""Hedging: a latent trained without room for a child takes up part of it. Absorption is the reverse.

Claim: a prefix that holds the parent's latent alone bends it towards the child (hedging), and the full prefix bends the
parent's encoder away from it (absorption). One weight β of the short prefix over the full one balances the two for one
child; children that differ in P(child | parent) need different weights. Training ends where the exact objective over
all states has its minimum.
Command: python -m experiments.hedging (about 40 seconds on 2 cores).
Expected, seeds 0 to 15: decoder cosines of every trained SAE within .017 of an exact minimum.
In the post: nothing. Source: the notebooks of Chanin et al. (arXiv 2505.11756), whose β is that of `levels:1=β,full=1`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.seeds import SeedConfig, seeds_text
from toy.checks import NOT_NEGATIVE, POSITIVE, SHARE, Whole, check_fields, check_some
from toy.data.source import TreeSource
from toy.features.directions import make_directions
from toy.features.named import forest
from toy.features.node import Node
from toy.features.tree import Tree, build_tree
from toy.prefixes import FixedPrefixes
from toy.sae import SAE, sae_of_directions
from toy.theory import enumerate_states, minimised
from toy.training.config import MAX_STEPS, Hypers, TrainConfig
from toy.training.grid import hyper_axes, train_grid, trained_saes

NOISES = (0.0, *np.repeat((0.1, 0.2, 0.3, 0.5), 4).tolist())  # of the starts of the search for the least minimum
SAME_LOSS = 1e-3  # relative difference of losses within which minima are taken for one
UNBALANCEABLE = (0.02, 0.15, 0.5)  # P(child | parent) of the notebook's three children


@dataclass(frozen=True)
class Config(SeedConfig):
    """Options of `hedging`."""

    prob: float = 0.25
    """P(parent)."""
    edge_prob: float = 0.15
    """P(child | parent) of the pair whose β is varied."""
    edge_probs: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """P(child | parent) where one latent stands for both features."""
    betas: tuple[float, ...] = (0.0, 0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0, 2.0, 4.0, 10.0)
    """Weights of the prefix of one latent over that of the full one."""
    sparsity_coef: float = 0.15
    """L1 coefficient for inputs of mean norm √d_in, which stays as it is."""
    d_in: int = 8
    """Dimension of the activations."""
    n_seeds: int = 16
    """Number of seeds; each has directions and data of its own, and starts from its features."""
    n_steps: int = 5_000
    """Training steps."""
    batch_size: int = 400
    """Rows per training step."""
    learning_rate: float = 3e-3
    """Adam's learning rate, between warm-up and cool-down."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, prob=SHARE, edge_prob=SHARE, edge_probs=SHARE, betas=NOT_NEGATIVE)
        check_fields(self, sparsity_coef=NOT_NEGATIVE, learning_rate=POSITIVE)
        check_fields(self, d_in=Whole(4), n_steps=Whole(most=MAX_STEPS), batch_size=Whole(most=MAX_STEPS))
        check_some(self, "edge_probs", "betas")

    @property
    def cases(self) -> dict[str, "Case"]:
        return {
            "one latent": Case([self._tree(q) for q in self.edge_probs], 1, [0.0] * len(self.edge_probs)),
            "pair": Case([self._tree(self.edge_prob)] * len(self.betas), 2, self.betas),
            "unbalanceable": Case([self._tree(*UNBALANCEABLE)] * len(self.betas), 4, self.betas),
        }

    def _tree(self, *edge_probs: float) -> Tree:
        return build_tree(forest(Node(self.prob, tuple(Node(q) for q in edge_probs))))


class Case(NamedTuple):
    """Settings that share their shapes: a tree and a β each."""

    trees: Sequence[Tree]
    n_latents: int  # which start from the first features
    betas: Sequence[float]

    def prefixes(self, i: int) -> FixedPrefixes:
        return FixedPrefixes(np.array([1, self.n_latents]), np.array([self.betas[i], 1.0]) / (1 + self.betas[i]))


def check(cfg: Config) -> None:
    """Nothing is left to check once the options are made."""


def n_steps(cfg: Config) -> int:
    return cfg.n_steps * len(cfg.cases)


def run(cfg: Config, work: Work) -> dict[str, Any]:
    return {name: _run_case(cfg, case, work) for name, case in cfg.cases.items()}


def _run_case(cfg: Config, case: Case, work: Work) -> dict[str, Any]:
    """Cosines of the best minimum, [settings n_latents n_features], and of training, [settings seeds …].

    `from_features` has those of the minimum that is reached from the features. `difference`, [settings seeds], is the
    largest of decoder cosines from the minimum that the seed is nearest to, and `at_best` whether that is the best one.
    Encoders are not compared: a latent that is on with several features at once only fixes the sum of their weights.
    """
    minima, loss = _minima(cfg, case)
    trained = _trained(cfg, case, work)
    apart = np.abs(trained["decoder"][:, :, None] - minima["decoder"][:, None]).max(axis=(-1, -2))
    best, settings = loss.argmin(axis=1), np.arange(len(loss))
    reached = np.take_along_axis(loss, apart.argmin(axis=2), axis=1)
    return {
        "betas": case.betas,
        "exact": {name: values[settings, best] for name, values in minima.items()},
        "from_features": {name: values[:, 0] for name, values in minima.items()},
        "trained": trained,
        "difference": apart.min(axis=2),
        "at_best": reached <= loss.min(axis=1, keepdims=True) * (1 + SAME_LOSS),
        "loss": loss.min(axis=1),
    }


def _start(W_feat: np.ndarray, n_latents: int, noise: float = 0.0, seed: int = 0) -> SAE:
    """The first features as latents, [… n_features d_in], each number with Gaussian noise."""
    rng = np.random.default_rng(seed)
    sae = sae_of_directions(W_feat[..., :n_latents, :])
    return jax.tree.map(lambda a: np.asarray(a + noise * rng.normal(size=a.shape), np.float32), sae)


def _cosines(sae: SAE, W_feat: np.ndarray) -> dict[str, np.ndarray]:
    """Returns cosines of latents' decoders and encoders with features, [… n_latents n_features], in the features' span.

    Adam moves an encoder also in directions that no input has.
    """

    def of(rows: np.ndarray) -> np.ndarray:
        along = rows @ np.swapaxes(W_feat, -1, -2)
        return along / np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-12)

    return {"decoder": of(np.asarray(sae.W_dec)), "encoder": of(np.swapaxes(np.asarray(sae.W_enc), -1, -2))}


def _minima(cfg: Config, case: Case) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Local minima of the objective over all states, [settings starts …], and their losses, [settings starts]."""
    found, losses = [], []
    for i, tree in enumerate(case.trees):
        states, W_feat = enumerate_states(tree), np.eye(tree.n_features, dtype=np.float32)
        x = states.features * states.input_scale(cfg.d_in)
        starts = [_start(W_feat, case.n_latents, noise, j) for j, noise in enumerate(NOISES)]
        saes, loss = minimised(
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts),
            jnp.asarray(x, jnp.float32),
            jnp.asarray(states.prob, jnp.float32),
            jax.tree.map(jnp.asarray, case.prefixes(i)),
            sparsity_coef=cfg.sparsity_coef,
        )
        found.append(_cosines(saes, W_feat))
        losses.append(loss)
    return {name: np.stack([one[name] for one in found]) for name in ("decoder", "encoder")}, np.stack(losses)


def _trained(cfg: Config, case: Case, work: Work) -> dict[str, np.ndarray]:
    """One lane per setting and seed."""
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(np.array(cfg.seeds))
    n_settings, n_features = len(case.trees), case.trees[0].n_features
    W_feat = np.tile(np.asarray(make_directions(keys[:, 0], n_features, cfg.d_in, norm_std=0.0)), (n_settings, 1, 1))
    repeat = np.repeat(np.arange(n_settings), cfg.n_seeds)
    trees = jax.tree.map(lambda *leaves: np.stack(leaves)[repeat], *case.trees)
    weights = np.stack([case.prefixes(i).weights for i in range(n_settings)])[repeat]
    hypers = Hypers(
        FixedPrefixes(case.prefixes(0).lengths, weights),
        target_l0=1.0,
        learning_rate=cfg.learning_rate,
        sparsity_coef=cfg.sparsity_coef,
        control_rate=0.0,
        reinit_below=0.0,
        start=_start(W_feat, case.n_latents),
    )
    train_cfg = TrainConfig(case.n_latents, n_steps=cfg.n_steps, batch_size=cfg.batch_size)
    work.compiling()
    state, _ = train_grid(
        jnp.tile(keys[:, 1], n_settings),
        TreeSource(trees, W_feat),  # type: ignore[arg-type]
        hypers,
        cfg=train_cfg,
        in_axes=(0, hyper_axes(prefixes=FixedPrefixes(None, 0), start=0)),  # type: ignore[arg-type]
        progress=work,
    )
    saes, order = jax.device_get((trained_saes(state), jnp.argsort(-state.contribution, stable=True)))
    back = np.argsort(order, axis=1)  # to the places in which latents started
    cosines = {name: np.take_along_axis(of, back[:, :, None], axis=1) for name, of in _cosines(saes, W_feat).items()}
    return {name: values.reshape(n_settings, cfg.n_seeds, *values.shape[1:]) for name, values in cosines.items()}


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for name, case in record["results"].items():
        difference, at_best = np.array(case["difference"]), np.array(case["at_best"])
        lines.append(
            f"{name}: decoder cosines of {difference.size} runs within {difference.max():.3f} of an exact minimum "
            f"({difference.mean():.3f} on average), which is the best one in {at_best.sum()}"
        )
    free = _crossing(record["results"]["pair"], 0, 1)
    lines.append(f"pair: the encoder of the parent's latent is free of the child at β = {free:.2f}")
    return lines


def _crossing(case: dict[str, Any], latent: int, feature: int) -> float:
    """The β at which an exact encoder cosine rises above 0, by a line between neighbours; NaN if it does not."""
    cosine, betas = np.array(case["exact"]["encoder"])[:, latent, feature], np.array(case["betas"])
    at = np.flatnonzero((cosine[:-1] < 0) & (cosine[1:] >= 0))
    if not len(at):
        return float("nan")
    i = at[0]
    return float(np.interp(0.0, cosine[i : i + 2], betas[i : i + 2]))


def caption(record: dict[str, Any]) -> str:
    config = record["config"]
    return (
        "Lines: the least minimum found of the exact objective, dashed that next to the features; dots: trained SAEs, "
        "one per seed; β: weight of the prefix of one latent over that of the full one; "
        f"P(parent) = {config['prob']:g}; b: P(child | parent) = "
        f"{config['edge_prob']:g}; c: three children with {', '.join(map(str, UNBALANCEABLE))}; "
        f"{config['n_steps']:,} steps from the features; {seeds_text(record['seeds'])}."
    )


def plot(record: dict[str, Any]) -> Figure:
    results, config = record["results"], record["config"]
    with plots.styled(2.4) as figure:
        axes = figure.subplots(1, 3, sharey=True)
        one, pair, several = (results[name] for name in ("one latent", "pair", "unbalanceable"))
        _lines(axes[0], config["edge_probs"], one, {(0, 0, "decoder"): "with parent", (0, 1, "decoder"): "with child"})
        axes[0].set(title="a  One latent for both", xlabel="P(child | parent)", ylabel="cosine")
        of_pair = {
            (0, 1, "decoder"): "parent's decoder, child",
            (0, 1, "encoder"): "parent's encoder, child",
            (1, 0, "decoder"): "child's decoder, parent",
        }
        _lines(axes[1], pair["betas"], pair, of_pair)
        axes[1].set_title("b  A latent each")
        children = {(0, 1 + i, "decoder"): f"child with {q:g}" for i, q in enumerate(UNBALANCEABLE)}
        _lines(axes[2], several["betas"], several, children)
        axes[2].set_title("c  Parent's decoder, 3 children")
        for ax in axes[1:]:
            ax.set_xscale("symlog", linthresh=0.03)
            ax.set_xlim(-0.005, 13)
            ax.set_xticks([0, 0.1, 1, 10], ["0", "0.1", "1", "10"])
            ax.minorticks_off()
            ax.set_xlabel("β")
    return figure


def _lines(ax: Axes, x: list[float], case: dict[str, Any], shown: dict[tuple[int, int, str], str]) -> None:
    """Exact cosines of a latent with a feature as lines, those of seeds as dots."""
    ax.axhline(0, color="0.8", linewidth=0.8)
    for i, ((latent, feature, part), label) in enumerate(shown.items()):
        ax.plot(x, np.array(case["exact"][part])[:, latent, feature], color=f"C{i}", linewidth=1, label=label)
        ax.plot(x, np.array(case["from_features"][part])[:, latent, feature], "--", color=f"C{i}", linewidth=0.7)
        trained = np.array(case["trained"][part])[:, :, latent, feature]
        ax.plot(x, trained, ".", color=f"C{i}", markersize=2.5, alpha=0.6)
    ax.legend(fontsize=6, loc="lower right")


EXPERIMENT = Experiment("hedging", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
