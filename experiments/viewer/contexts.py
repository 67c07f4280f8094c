"""The contexts that a page shows of every latent, and the activations of related latents on them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_matrix

from experiments.viewer.text import WINDOW

N_BINS = 20  # of a histogram
N_LABELS = 4  # tokens that stand for a latent
LEVELS = 255  # of activations, of a latent's largest


class Contexts(NamedTuple):
    """Windows in which a latent is on: those with its largest activations, then others by quantile."""

    window: Int[np.ndarray, " n"]
    quantile: Float[np.ndarray, " n"]  # the share of the latent's windows whose largest activation is no larger


class Entries(NamedTuple):
    """The activations above 0 of a latent in some windows, in order of place."""

    place: Int[np.ndarray, " n"]  # slot · WINDOW + place in the window
    value: Float[np.ndarray, " n"]


class Column(NamedTuple):
    """One latent's activations above 0."""

    place: Int[np.ndarray, " n"]  # in the text, ascending
    value: Float[np.ndarray, " n"]


def column(matrix: csc_matrix, i: int) -> Column:
    part = slice(matrix.indptr[i], matrix.indptr[i + 1])
    return Column(matrix.indices[part], matrix.data[part])


def choose_contexts(of: Column, n_top: int, n_quantiles: int) -> Contexts:
    """The windows with the `n_top` largest activations, and `n_quantiles` of the others, evenly by rank."""
    window = of.place // WINDOW
    starts = np.flatnonzero(np.diff(window, prepend=-1))
    if not len(starts):
        return Contexts(np.zeros(0, int), np.zeros(0))
    largest = np.maximum.reduceat(of.value, starts)
    order = np.lexsort((window[starts], -largest))  # of equal windows the first
    n, rest = len(order), len(order) - n_top
    ranks = np.arange(min(n_top, n))
    if rest > 0:
        spread = np.linspace(n_top, n - 1, min(n_quantiles, rest)).round().astype(int)
        ranks = np.concatenate([ranks, spread])
    return Contexts(window[starts][order[ranks]], 1 - ranks / n)


def entries(of: Column, windows: Int[np.ndarray, " n"]) -> Entries:
    """A latent's activations in these windows, slot by slot."""
    low, high = (np.searchsorted(of.place, edge) for edge in (windows * WINDOW, (windows + 1) * WINDOW))
    counts = high - low
    slot = np.repeat(np.arange(len(windows)), counts)
    at = np.arange(len(slot)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
    return Entries(slot * WINDOW + of.place[at] % WINDOW, of.value[at])


def quantised(values: Float[np.ndarray, " n"], largest: float) -> np.ndarray:
    """Shares of a latent's largest activation in 1 … 255, so that what is on stays on."""
    return np.ceil(values / largest * LEVELS).clip(1, LEVELS).astype(np.uint8) if len(values) else np.zeros(0, np.uint8)


def histogram(of: Column, largest: float) -> Int[np.ndarray, " n_bins"]:
    """Counts the activations above 0 in each of equal parts of 0 … the largest."""
    return np.histogram(of.value, N_BINS, (0, largest if largest > 0 else 1))[0]


def labels(of: Column, tokens: Int[np.ndarray, " n_places"]) -> Int[np.ndarray, " n_labels"]:
    """The ids on which a latent's activations have the largest sums; −1 where there are no more."""
    found = np.full(N_LABELS, -1)
    if len(of.place):
        ids, which = np.unique(tokens[of.place], return_inverse=True)
        best = np.argsort(-np.bincount(which, of.value), kind="stable")[:N_LABELS]
        found[: len(best)] = ids[best]
    return found
