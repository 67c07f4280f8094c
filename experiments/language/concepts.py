"""Concepts in SAEs of a language model: where their words are, and how each SAE does on them."""

from typing import Any

import numpy as np

from experiments.language.chain import Chain, Tokens
from experiments.language.config import LanguageConfig
from experiments.language.measure import OfSite
from experiments.language.saes import SiteSAEs
from toy.checks import quoted
from toy.lm.absorption import MIN_ROWS, best_latents, find_words, fit_probe, measure_absorption, unknown
from toy.lm.model import Site
from toy.sae import SAE

MOST_ROWS = 100_000  # of the held-out ones
NUMBERS = ("hole_rate", "absorbed_rate", "precision", "average_precision", "correlation", "parent_cosine")
OF_MEMBERS = ("hole_rates", "absorbed_rates", "cosines", "latent", "absorbers")


def facts(cfg: LanguageConfig) -> dict[str, Any]:
    """Returns what a record says of how concepts are measured."""
    return {"concepts": {name: list(words) for name, words in cfg.concept_words.items()}, "min_rows": MIN_ROWS}


def wanted_words(cfg: LanguageConfig) -> list[str]:
    """The words of all concepts, each once."""
    return sorted({word for words in cfg.concept_words.values() for word in words})


def check_words(cfg: LanguageConfig, tokens: list[Tokens]) -> None:
    """Raises: ValueError if the held-out text of a language model has no word of a concept often enough."""
    wanted = wanted_words(cfg)
    for of_model in tokens:
        found = find_words(of_model.valid, of_model.tokenizer.pieces(), wanted).found
        if max(_counts(found, len(wanted))) < MIN_ROWS:
            named = quoted(", ".join(wanted[:5]))
            raise ValueError(f"concepts: none of the words {named}, ... is in the held-out text often enough")


def _counts(members: np.ndarray, n_members: int) -> list[int]:
    """Rows of each member."""
    return np.bincount(members[members >= 0], minlength=n_members).tolist()


def of_model(chain: Chain) -> OfSite:
    """Measures for each kind lists [seed, L0, concept], and at the middle L0 every member's [seed, concept, member].

    Concepts that are too rare in the text have NaN; `n_rows` are the rows measured on, [model, concept, member].
    """
    members = members_of(chain)
    sizes = {name: len(words) for name, words in chain.cfg.concept_words.items()}
    n_rows = [_counts(members[name][1::2], n) if name in members else [0] * n for name, n in sizes.items()]
    middle = chain.cfg.sizes.target_l0.index(chain.cfg.reference_l0)

    def of_site(site: Site, saes: SiteSAEs) -> dict[str, Any]:
        acts = chain.acts.valid.activations(str(site))
        x = acts.take(np.arange(min(acts.n_rows, MOST_ROWS)))  # rows of a store are in a random order
        probes = {name: fit_probe(x[::2], of[::2] >= 0) for name, of in members.items()}
        found: dict[str, Any] = {"n_rows": [n_rows]}
        for kind in saes.large:
            measured = [[measure(sizes, sae, x, members, probes) for sae in seed] for seed in saes.large[kind]]
            found[kind] = {name: [[[m[name] for m in sae] for sae in seed] for seed in measured] for name in NUMBERS}
            found[kind] |= {
                f"members_{name}": [[m[name] for m in seed[middle]] for seed in measured] for name in OF_MEMBERS
            }
        return found

    return of_site


def members_of(chain: Chain) -> dict[str, np.ndarray]:
    """The place among a concept's words of the one that ends at each held-out row, −1 for none.

    A concept is left out unless it has rows to fit its probe on, with it and without it, and a member with rows enough
    to be measured on.
    """
    store, wanted = chain.acts.valid, wanted_words(chain.cfg)
    places = store.document[:MOST_ROWS], store.position[:MOST_ROWS]
    index = find_words(chain.tokens.valid, chain.tokens.tokenizer.pieces(), wanted).of(*places)
    found = {}
    for name, words in chain.cfg.concept_words.items():
        place = np.full(len(wanted) + 1, -1)  # the last is for no word, −1
        place[[wanted.index(word) for word in words]] = np.arange(len(words))
        members = place[index]
        present = members[::2] >= 0
        if present.any() and not present.all() and max(_counts(members[1::2], len(words))) >= MIN_ROWS:
            found[name] = members
    return found


def measure(
    sizes: dict[str, int], sae: SAE, x: np.ndarray, members: dict[str, np.ndarray], probes: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """One SAE, every concept; `sizes` are numbers of members."""
    best = {}
    if members:
        present = np.stack([of >= 0 for of in members.values()], axis=1)
        best = dict(zip(members, zip(*best_latents(sae, x[::2], present[::2]), strict=True), strict=True))
    measured = []
    for name, n_members in sizes.items():
        found, correlation = unknown(n_members), float("nan")
        if name in members:
            latent, correlation = int(best[name][0]), float(best[name][1])
            found = measure_absorption(sae, x[1::2], members[name][1::2], n_members, latent, probes[name])
        measured.append(found._asdict() | {"correlation": correlation})
    return measured
