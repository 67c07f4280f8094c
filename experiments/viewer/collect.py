"""All that a page shows of SAEs on a text, as JSON; arrays are base64."""

import base64
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.viewer import contexts as ctx
from experiments.viewer import relations
from experiments.viewer.activity import Activity
from experiments.viewer.contexts import Column, Contexts, Entries
from experiments.viewer.relations import Best, LatentTree
from experiments.viewer.runs import Shown
from experiments.viewer.text import WINDOW, Source

N_NEAREST = 4
N_EFFECTS = 8  # tokens whose logits a latent raises most, and as many that it lowers
TYPES = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "i4": np.int32, "f4": np.float32}


class Shapes(NamedTuple):
    """The numbers of contexts that a latent has on the page."""

    n_top: int = 10
    n_quantiles: int = 10


class Book(NamedTuple):
    """SAEs, what they do on a text, and how their latents, numbered over all SAEs, are related."""

    saes: Sequence[Shown]
    activities: Sequence[Activity]
    trees: list[LatentTree]
    match: Best  # [n_all n_saes], the most correlated latent of every SAE; −1 in the latent's own
    least_edge: float  # of the trees

    @property
    def first(self) -> Int[np.ndarray, " n_saes+1"]:
        """The number of each SAE's first latent, and that of all latents."""
        return np.cumsum([0, *(one.n_latents for one in self.saes)])

    def columns(self) -> list[Column]:
        """The activations of all latents; views of the matrices."""
        return [ctx.column(of.acts, i) for of in self.activities for i in range(len(of.max))]

    def partners(self) -> list[list[int]]:
        """The latents whose activations are laid over each latent's contexts, itself first."""
        found: list[list[int]] = [[i] for i in range(self.first[-1])]
        for tree in self.trees:
            for child in np.flatnonzero(tree.parent >= 0).tolist():
                found[child].append(int(tree.parent[child]))
                found[tree.parent[child]].append(child)
        for own, row in zip(found, self.match.column.tolist(), strict=True):
            own += [i for i in row if i >= 0]
        return [list(dict.fromkeys(own)) for own in found]


def packed(array: np.ndarray | Sequence[Any], kind: str) -> dict[str, str]:
    """An array for `unpack` of data.js, in the order of its rows."""
    flat = np.ascontiguousarray(array, np.dtype(TYPES[kind]).newbyteorder("<"))
    return {"type": kind, "data": base64.b64encode(flat.tobytes()).decode()}


def relate(
    saes: Sequence[Shown], activities: Sequence[Activity], n_tokens: int, least_edge: float = relations.LEAST_EDGE
) -> Book:
    first = np.cumsum([0, *(one.n_latents for one in saes)])
    match = Best(np.full((first[-1], len(saes)), -1), np.full((first[-1], len(saes)), np.nan))
    for s, a in enumerate(activities):
        for t in range(s):
            between = relations.correlations(a.acts, activities[t].acts, n_tokens)
            for i, j, of_pair in ((s, t, between), (t, s, between.T.tocsr())):
                best, own = relations.best_of_rows(of_pair, 1), slice(first[i], first[i + 1])
                match.column[own, j] = np.where(best.column >= 0, first[j] + best.column, -1)[:, 0]
                match.value[own, j] = best.value[:, 0]
    return Book(saes, activities, relations.trees(saes, activities, least_edge), match, least_edge)


def collect(source: Source, book: Book, shapes: Shapes = Shapes()) -> dict[str, Any]:  # noqa: B008
    """The data of a page, which `data.js` reads."""
    text, columns = source.text, book.columns()
    shown = [ctx.choose_contexts(column, *shapes) for column in columns]
    names = ("name", "kind", "n", "fvu", "l0", "dead")
    saes = (
        (one.name, one.kind, one.n_latents, number(of.fvu), of.l0, int((of.max == 0).sum()))
        for one, of in zip(book.saes, book.activities, strict=True)
    )
    return {
        "site": source.site,
        "n_tokens": text.n_tokens,
        "least_edge": book.least_edge,
        "window": WINDOW,
        "pieces": text.pieces,
        "tokens": _ids(text.tokens, text.pieces),
        "follows": packed(text.follows, "u1"),
        "saes": [dict(zip(names, one, strict=True)) for one in saes],
        "latents": _latents(source, book, columns),
        "contexts": _contexts(shown),
        **_overlays(book, columns, shown),
        "trees": [_tree(tree, book.first) for tree in book.trees],
    }


def number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _ids(ids: np.ndarray, pieces: list[str]) -> dict[str, str]:
    """Ids of tokens; that after the last stands for none."""
    return packed(np.where(ids < 0, len(pieces), ids), "u2" if len(pieces) < 2**16 else "u4")


def _latents(source: Source, book: Book, columns: list[Column]) -> dict[str, Any]:
    """A row for every latent."""
    activities, pieces, flat = book.activities, source.text.pieces, source.text.tokens.ravel()
    largest = np.concatenate([of.max for of in activities])
    bins = [ctx.histogram(column, top) for column, top in zip(columns, largest, strict=True)]
    directions = [one.directions for one in book.saes]
    by_activation = [relations.nearest_by_activation(of.acts, source.text.n_tokens, N_NEAREST) for of in activities]
    by_decoder = [relations.nearest_by_decoder(own, N_NEAREST) for own in directions]
    found = {
        "max": packed(largest, "f4"),
        "density": packed(np.concatenate([of.density for of in activities]), "f4"),
        "prefix_fvu": packed(np.concatenate([of.prefix_fvu for of in activities]), "f4"),
        "histogram": packed(bins, "u4"),
        "labels": _ids(np.array([ctx.labels(column, flat) for column in columns]), pieces),
        "match": _best(book.match),
        "by_activation": _best(_numbered(by_activation, book.first)),
        "by_decoder": _best(_numbered(by_decoder, book.first)),
    }
    if source.lm is not None:
        k = min(N_EFFECTS, source.lm.cfg.vocab_size)
        raised, lowered = relations.logit_effects(source.lm, np.concatenate(directions), k)
        found |= {"raised": _best(raised), "lowered": _best(lowered)}
    return found


def _numbered(of_saes: list[Best], first: np.ndarray) -> Best:
    """Latents of each SAE by their numbers over all SAEs."""
    columns = [np.where(best.column >= 0, start + best.column, -1) for best, start in zip(of_saes, first, strict=False)]
    return Best(np.concatenate(columns), np.concatenate([best.value for best in of_saes]))


def _best(best: Best) -> dict[str, Any]:
    return {"k": best.column.shape[1], "column": packed(best.column, "i4"), "value": packed(best.value, "f4")}


def _contexts(shown: list[Contexts]) -> dict[str, Any]:
    start = np.cumsum([0, *(len(one.window) for one in shown)])
    window, quantile = (np.concatenate(parts) for parts in zip(*shown, strict=True))
    return {"start": packed(start, "u4"), "window": packed(window, "u4"), "quantile": packed(quantile, "f4")}


def _overlays(book: Book, columns: list[Column], shown: list[Contexts]) -> dict[str, Any]:
    """The activations of every latent and of its partners on its contexts: `pairs` say whose `entries` are whose."""
    partners, largest = book.partners(), np.concatenate([of.max for of in book.activities])

    def found() -> Iterator[tuple[int, Entries]]:
        for own, windows in zip(partners, shown, strict=True):
            for partner in own:
                yield partner, ctx.entries(columns[partner], windows.window)

    pairs = list(found())
    values = [ctx.quantised(of.value, largest[partner]) for partner, of in pairs]
    return {
        "pairs": {
            "start": packed(np.cumsum([0, *map(len, partners)]), "u4"),
            "partner": packed([partner for partner, _ in pairs], "u4"),
            "entry": packed(np.cumsum([0, *(len(of.place) for _, of in pairs)]), "u4"),
        },
        "entries": {
            "place": packed(np.concatenate([of.place for _, of in pairs]), "u2"),
            "value": packed(np.concatenate(values), "u1"),
        },
    }


def _tree(tree: LatentTree, first: np.ndarray) -> dict[str, Any]:
    levels = [[int(first[of.sae]) + of.first, int(first[of.sae]) + of.end] for of in tree.levels]
    return {
        "name": tree.name,
        "levels": levels,
        "parent": packed(tree.parent, "i4"),
        "weight": packed(tree.weight, "f4"),
    }
