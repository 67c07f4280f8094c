"""A concept's latent in each reference SAE, beside its closest match in the large SAEs: on which words is each on?

For each concept (a set of words: female, animal, ...) and each reference SAE, the latent whose activation correlates
most with the concept, on half of the held-out tokens; for each large SAE, at the middle L0, the latent whose activation
correlates most with that latent's. On the other half, the share of each word's tokens on which they are on: above a
share of the mean that a latent has on the concept's tokens (`toy.lm.absorption.ON_THRESHOLD`). Claim of the post: a
small SAE's latent of female words has a close match in the Matryoshka SAE; that in the vanilla SAE is on for few words.
Command: python -m experiments.tinystories --only matches.
In the post: "Let's return to our female words example".
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.language import plots as lp
from experiments.language.chain import Chain
from experiments.language.concepts import MOST_ROWS, check_words, facts, members_of
from experiments.language.measure import Measure, OfSite
from experiments.language.saes import SiteSAEs
from toy.eval.metrics import mean_known
from toy.eval.streaming import concatenate, max_correlation
from toy.lm.absorption import MIN_ROWS, ON_THRESHOLD, best_latents
from toy.lm.model import Site
from toy.sae import SAE, encode, take_latents

CHUNK = 4_096


class Shown(NamedTuple):
    """A latent, and on how much of each word it is on."""

    latent: int
    correlation: float  # with the concept; of a match, with the reference SAE's latent
    on: list[float]  # of each of the concept's words; NaN where they are rare


def of_model(chain: Chain) -> OfSite:
    """Lists [seed] of concepts, each with a list over reference widths of latents by SAE; None for a rare concept."""
    members, cfg = members_of(chain), chain.cfg
    middle = cfg.sizes.target_l0.index(cfg.reference_l0)

    def of_site(site: Site, saes: SiteSAEs) -> dict[str, Any]:
        acts = chain.acts.valid.activations(str(site))
        x = acts.take(np.arange(min(acts.n_rows, MOST_ROWS)))  # rows of a store are in a random order
        return {"matches": [of_seed(x, saes, seed) for seed in range(cfg.n_seeds)]}

    def of_seed(x: np.ndarray, saes: SiteSAEs, seed: int) -> dict[str, Any]:
        ladder = [saes.reference[width][seed] for width in cfg.reference_widths]
        found = _matches(x, ladder, {kind: saes.large[kind][seed][middle] for kind in saes.large}, members)
        return {name: found.get(name) for name in cfg.concept_words}

    return of_site


def _matches(
    x: np.ndarray, ladder: list[SAE], large: dict[str, SAE], members: dict[str, np.ndarray]
) -> dict[str, list[dict[str, Shown]]]:
    """For each concept, the latent of each reference SAE and its matches."""
    if not members:
        return {}
    present = np.stack([of >= 0 for of in members.values()], axis=1)
    best = [best_latents(sae, x[::2], present[::2]) for sae in ladder]
    references = concatenate([take_latents(sae, latent) for sae, (latent, _) in zip(ladder, best, strict=True)])
    chunks = [x[first : first + 2 * CHUNK : 2] for first in range(0, len(x), 2 * CHUNK)]
    shown = [(references, np.concatenate([latent for latent, _ in best]), np.concatenate([r for _, r in best]))]
    for sae in large.values():
        match = max_correlation(references, sae, chunks)
        shown.append((take_latents(sae, match.latent), match.latent, match.correlation))
    found: dict[str, list[dict[str, Shown]]] = {name: [{} for _ in ladder] for name in members}
    for kind, (sae, latents, correlations) in zip(("reference", *large), shown, strict=True):
        acts = np.concatenate(
            [np.asarray(encode(sae, jnp.asarray(x[first : first + CHUNK])))[1::2] for first in range(0, len(x), CHUNK)]
        )
        columns = ((w, name) for w in range(len(ladder)) for name in members)
        for i, (w, name) in enumerate(columns):
            on = _on(acts[:, i], members[name][1::2]) if latents[i] >= 0 else []
            found[name][w][kind] = Shown(int(latents[i]), float(correlations[i]), on)
    return found


def _on(acts: np.ndarray, members: np.ndarray) -> list[float]:
    """The share of each member's rows on which the latent is on."""
    of_concept = acts[members >= 0]
    positive = of_concept[of_concept > 0]
    on = acts > ON_THRESHOLD * (positive.mean() if len(positive) else np.inf)
    of_members = (on[members == member] for member in range(members.max() + 1))
    return [float(rows.mean()) if len(rows) >= MIN_ROWS else float("nan") for rows in of_members]


def summary(record: dict[str, Any]) -> list[str]:
    config, lines = record["config"], []
    for site, found in record["results"]["sites"].items():
        for w, width in enumerate(config["reference_widths"]):
            correlations = {
                kind: mean_known(
                    np.array([of[w][kind][1] for seed in found["matches"] for of in seed.values() if of], float)
                )
                for kind in lp.kinds(config)
            }
            told = ", ".join(f"{kind} {correlation:.3f}" for kind, correlation in correlations.items())
            lines.append(f"{site}, reference {width}: mean correlation of concepts' latents with their match: {told}")
    return lines + lp.off_target_named(record)


def plot(record: dict[str, Any]) -> Figure:
    """The first seed's latents of the first concept, which is the broadest, at the first site."""
    config, results = record["config"], record["results"]
    site, found = next(iter(results["sites"].items()))
    known = {name: of for name, of in found["matches"][0].items() if of}
    name = next(iter(known), None)
    with plots.styled(1.6 + 0.13 * (1 + len(lp.kinds(config))) * len(config["reference_widths"])) as figure:
        ax = figure.subplots()
        if name is None:
            plots.nothing(ax, "no concept's words are frequent enough")
            return figure
        rows = [(f"S/{w}", kind, of_kind) for w, of in enumerate(known[name]) for kind, of_kind in of.items()]
        words = results["concepts"][name]
        on = np.full((len(rows), len(words)), np.nan)
        for row, (_, _, (_, _, of_words)) in zip(on, rows, strict=True):
            row[: len(of_words)] = np.array(of_words, float)
        frequent = np.flatnonzero(~np.isnan(on).all(axis=0))
        image = ax.imshow(on[:, frequent], aspect="auto", cmap="Blues", vmin=0, vmax=1)
        ax.set_xticks(range(len(frequent)), [plots.shown_name(words[i]) for i in frequent])
        ax.tick_params(axis="x", rotation=60, labelsize=6)
        ax.set_yticks(range(len(rows)), [_label(config, *row) for row in rows], fontsize=6)
        for w in range(1, len(config["reference_widths"])):
            ax.axhline(w * (1 + len(lp.kinds(config))) - 0.5, color="#555555", linewidth=0.8)
        bar = figure.colorbar(image, ax=ax, fraction=0.03)
        bar.set_label("share of the word's tokens\non which it is on", fontsize=6.5)
        ax.set_title(f"{plots.shown_name(name)}, {lp.title(site)}", fontsize=8)
        widths = ", ".join(f"S/{w} {width:,}" for w, width in enumerate(config["reference_widths"]))
        text = (
            f"S/0, S/1, ...: reference SAEs ({widths} latents), r with the concept; below each, its closest match in "
            f"the large SAEs of L0 {lp.middle_l0(config):g}, r with it; seed {record['seeds'][0]} is drawn"
        )
        lp.caption(figure, record, text)
    return figure


def _label(config: dict[str, Any], reference: str, kind: str, shown: list[Any]) -> str:
    latent, correlation, _ = shown
    sae = reference if kind == "reference" else lp.kind_label(config, kind)
    return f"{sae}, latent {latent}, r = {'none' if correlation is None else f'{correlation:.2f}'}"


MATCHES = Measure("tinystories_matches", of_model, summary, plot, facts, check_words)
