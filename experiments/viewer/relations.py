"""Relations of latents: trees over sizes, correlated latents of two SAEs, neighbours, and effects on logits.

Activations are sparse and never negative, so that products of two matrices have an entry wherever two latents are on
together, and nowhere else.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_matrix, csr_matrix

from experiments.viewer.activity import Activity, column_max
from experiments.viewer.runs import MATRYOSHKA, REFERENCE, Shown
from toy.lm.model import LM

LEAST_EDGE = 0.6
NOWHERE, ROOT = -2, -1  # in place of a parent
ROWS = 512  # of decoders, multiplied at once
DEFAULT_SHARES = (64, 16, 4)  # the prefixes of a Matryoshka SAE whose own were drawn are n_latents over these


class Best(NamedTuple):
    """The largest entries of every row, in descending order; −1 and NaN where a row has no more."""

    column: Int[np.ndarray, "n_rows k"]
    value: Float[np.ndarray, "n_rows k"]


class Level(NamedTuple):
    """Latents first … end − 1 of an SAE, by their numbers in it."""

    sae: int
    first: int
    end: int


class LatentTree(NamedTuple):
    """A forest of latents, which are numbered over all SAEs."""

    name: str
    levels: list[Level]
    parent: Int[np.ndarray, " n_all"]  # ROOT where there is none, NOWHERE for latents of other SAEs
    weight: Float[np.ndarray, " n_all"]  # of the edge to the parent; NaN where there is none


def best_of_rows(matrix: csr_matrix, k: int) -> Best:
    """The k largest entries; of equal ones those of the lower column come first."""
    row, n_rows = _rows_of(matrix), len(matrix.indptr) - 1
    order = np.lexsort((matrix.indices, np.negative(matrix.data), row))
    rank = np.arange(len(row)) - matrix.indptr[row]
    kept = rank < k
    best = Best(np.full((n_rows, k), -1), np.full((n_rows, k), np.nan))
    best.column[row[kept], rank[kept]] = matrix.indices[order[kept]]
    best.value[row[kept], rank[kept]] = matrix.data[order[kept]]
    return best


def _product(a: csc_matrix, b: csc_matrix) -> csr_matrix:
    found = csr_matrix(a.transpose() @ b)
    found.sort_indices()
    return found


def mapped(matrix: csc_matrix, of: Callable[[np.ndarray], np.ndarray]) -> csc_matrix:
    """A function of every entry, in float64."""
    return csc_matrix((of(matrix.data.astype(float)), matrix.indices, matrix.indptr), shape=matrix.shape)


def column_sum(matrix: csc_matrix) -> Float[np.ndarray, " n_columns"]:
    return np.asarray(matrix.sum(axis=0)).ravel()


def _rows_of(matrix: csr_matrix) -> np.ndarray:
    return np.repeat(np.arange(len(matrix.indptr) - 1), np.diff(matrix.indptr))


def edge_weights(smaller: csc_matrix, larger: csc_matrix) -> csr_matrix:
    """[n_larger n_smaller] cos(A, B) over the places where B is on, times max(B) / max(A): B of the larger SAE."""
    a, b = (mapped(one, np.array) for one in (smaller, larger))
    on = mapped(b, np.ones_like)
    found, squares = _product(b, a), _product(on, mapped(a, np.square))  # with the same entries
    row, column = _rows_of(found), found.indices
    norms = column_sum(mapped(b, np.square))
    cosine = found.data / np.sqrt(squares.data * norms[row])
    found.data = cosine * column_max(b)[row] / column_max(a)[column]
    return found


def parents(smaller: csc_matrix, larger: csc_matrix, least: float = LEAST_EDGE) -> Best:
    """The best parent of every latent of the larger SAE, where its edge has more than the least weight."""
    best = best_of_rows(edge_weights(smaller, larger), 1)
    weak = ~(best.value > least)
    best.column[weak], best.value[weak] = ROOT, np.nan
    return best


def correlations(a: csc_matrix, b: csc_matrix, n_tokens: int) -> csr_matrix:
    """Pearson correlation of activations over all tokens, where two latents are on together; less than 0 elsewhere."""
    a, b = (mapped(one, np.array) for one in (a, b))
    found = _product(a, b)
    (mean_a, sd_a), (mean_b, sd_b) = (_moments(one, n_tokens) for one in (a, b))
    row, column = _rows_of(found), found.indices
    covariance = found.data / n_tokens - mean_a[row] * mean_b[column]
    found.data = covariance / np.maximum(sd_a[row] * sd_b[column], np.finfo(float).tiny)
    return found


def _moments(a: csc_matrix, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    mean, square = (column_sum(one) / n_tokens for one in (a, mapped(a, np.square)))
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def nearest_by_activation(a: csc_matrix, n_tokens: int, k: int) -> Best:
    """The latents of the same SAE with the highest correlation, without the latent itself."""
    found = correlations(a, a, n_tokens)
    found.data[_rows_of(found) == found.indices] = -np.inf
    best = best_of_rows(found, k)
    itself = np.isneginf(best.value)
    best.column[itself], best.value[itself] = -1, np.nan
    return best


def nearest_by_decoder(directions: Float[np.ndarray, "n_latents d_in"], k: int) -> Best:
    """The latents of the same SAE with the highest cosine of decoder rows (at norm 1), without the latent itself."""
    n = len(directions)
    column, value = np.full((n, k), -1), np.full((n, k), np.nan)
    for first in range(0, n, ROWS):
        cosines = directions[first : first + ROWS] @ directions.T
        rows = np.arange(len(cosines))
        cosines[rows, first + rows] = -np.inf
        order = np.argsort(-cosines, axis=1, kind="stable")[:, : min(k, n - 1)]
        column[first + rows, : order.shape[1]] = order
        value[first + rows, : order.shape[1]] = np.take_along_axis(cosines, order, axis=1)
    return Best(column, value)


def logit_effects(lm: LM, directions: Float[np.ndarray, "n_latents d_in"], k: int) -> tuple[Best, Best]:
    """The tokens whose logits each decoder row raises and lowers most, straight to the end of the residual stream.

    Where the model has a last norm, the row is normalised by it alone, and the effects are known up to a factor.
    """
    last = lm.cfg.n_layers
    none = np.asarray(lm.logits_from(jnp.zeros((1, 1, directions.shape[1])), last))[0, 0]
    up, down = [], []
    for first in range(0, len(directions), ROWS):
        rows = jnp.asarray(directions[first : first + ROWS], jnp.float32)
        effects = np.asarray(lm.logits_from(rows[:, None], last))[:, 0] - none
        for found, order in ((up, np.argsort(-effects, axis=1)), (down, np.argsort(effects, axis=1))):
            found.append((order[:, :k], np.take_along_axis(effects, order[:, :k], axis=1)))
    raised, lowered = (Best(*(np.concatenate(part) for part in zip(*found, strict=True))) for found in (up, down))
    return raised, lowered


def trees(saes: Sequence[Shown], activities: Sequence[Activity], least: float = LEAST_EDGE) -> list[LatentTree]:
    """One tree over the reference SAEs by width, and one over the prefixes of each Matryoshka SAE."""
    widths = {one.n_latents: i for i, one in reversed(list(enumerate(saes))) if one.kind == REFERENCE}
    ladder = [Level(widths[width], 0, width) for width in sorted(widths)]
    found = [_tree("reference SAEs", ladder, saes, activities, least)] if len(ladder) > 1 else []
    for i, one in enumerate(saes):
        if one.kind == MATRYOSHKA:
            ends = [end for end in levels_of(one, sorted(widths)) if end]
            levels = [Level(i, first, end) for first, end in zip([0, *ends], ends, strict=False)]
            found.append(_tree(f"prefixes of {one.name}", levels, saes, activities, least))
    return found


def levels_of(one: Shown, widths: Sequence[int]) -> list[int]:
    """Lengths of prefixes: those of training where they are fixed, else the widths of reference SAEs."""
    n = one.n_latents
    own = list(one.prefixes) or [width for width in widths if width < n] or [n // share for share in DEFAULT_SHARES]
    return sorted({*own, n})


def _tree(
    name: str, levels: list[Level], saes: Sequence[Shown], activities: Sequence[Activity], least: float
) -> LatentTree:
    first = np.cumsum([0, *(one.n_latents for one in saes)])
    tree = LatentTree(name, levels, np.full(first[-1], NOWHERE), np.full(first[-1], np.nan))
    for i, level in enumerate(levels):
        own = slice(first[level.sae] + level.first, first[level.sae] + level.end)
        tree.parent[own] = ROOT
        if i:
            above = levels[i - 1]  # within one SAE, the whole prefix before this level
            start = 0 if above.sae == level.sae else above.first
            smaller = activities[above.sae].acts[:, start : above.end]
            best = parents(smaller, activities[level.sae].acts[:, level.first : level.end], least)
            tree.parent[own] = np.where(best.column >= 0, first[above.sae] + start + best.column, ROOT)[:, 0]
            tree.weight[own] = best.value[:, 0]
    return tree
