"""Hierarchies of SAELens (6.54) as trees of ours with exactly the same distribution.

SAELens draws every feature independently with its entry of `firing_probabilities`, and then switches it off if its
nearest ancestor that is a feature is off; the entry is therefore P(on | parent on). Of mutually exclusive siblings that
are on together it keeps one at random, so that P(i) = p_i E[1 / (1 + number of the others on)] (`kept_one`).
A node without `feature_index` is not a feature, is on whenever its parent is, and takes no part in exclusion.
`scale_children_by_parent` scales the node's children by the nearest feature at or above it. Both may need an extra node
in our tree that is not a feature. A feature whose index no node has becomes a lone feature. SAELens' magnitudes
max(0, N(mean, std²)) equal our |N(mean, std²)| unless clipped; features that are clipped more often than `MAX_CLIPPED`
are refused.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from toy.checks import quoted
from toy.features.json_nodes import Entry, children_of, entries, type_name
from toy.features.magnitudes import share_below_zero
from toy.features.node import Node, TreeError, assembled, check_size, shown

MAX_CLIPPED = 1e-6  # share of a feature's magnitudes
KEYS = (
    "feature_index",
    "feature_id",
    "id",
    "mutually_exclusive_children",
    "scale_children_by_parent",
    "children",
)
_N_PANELS, _N_POINTS = 24, 32


class Firing(NamedTuple):
    """P(on | parent on) of each feature before exclusion, and its magnitude's mean and standard deviation."""

    prob: Sequence[float]
    mean: Sequence[float]
    std: Sequence[float]


def kept_one(probs: Sequence[float] | np.ndarray) -> np.ndarray:
    """P(i is kept) if each is on independently with its probability, and one of those that are on is kept at random.

    For the number N of the others that are on, E[1 / (1 + N)] = ∫₀¹ E[(1 − s)^N] ds with E[(1 − s)^N] = Π_{j ≠ i}
    (1 − p_j s). No term is negative, so nothing cancels. Gauss–Legendre on intervals that halve towards 0.
    """
    p, total = np.asarray(probs, float), np.zeros(len(probs))
    for s, weights in _panels():
        logs = np.log1p(-np.outer(s, p))  # s < 1, so 1 − p s > 0
        total += weights @ np.exp(logs.sum(axis=1, keepdims=True) - logs)
    return p * total


def gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """All points and weights of that integral."""
    points, weights = zip(*_panels(), strict=True)
    return np.concatenate(points), np.concatenate(weights)


def _panels() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Points and weights interval by interval, so that many siblings need little memory."""
    bounds = np.append(0.0, 0.5 ** np.arange(_N_PANELS - 1, -1, -1))
    x, weights = np.polynomial.legendre.leggauss(_N_POINTS)
    for low, high in pairwise(bounds):
        yield low + (high - low) * (x + 1) / 2, (high - low) / 2 * weights


def tree_of_forest(data: dict[str, Any]) -> tuple[Node, list[str]]:
    """The tree of `roots` and `firing_probabilities`, with magnitudes of 1, and notes on what was converted."""
    for key in data:
        if key not in ("roots", "firing_probabilities"):
            raise TreeError(
                f"root: unknown key '{quoted(key, 60)}'; beside 'roots' only 'firing_probabilities' is allowed"
            )
    roots, probs = data["roots"], data.get("firing_probabilities")
    if not isinstance(roots, list):
        raise TreeError(f"root.roots: expected a list, got {type_name(roots)}")
    if not isinstance(probs, list):
        raise TreeError(
            "root.firing_probabilities: a file with 'roots' needs this list, P(on | parent on) by feature_index; or "
            "give the folder of the synthetic model"
        )
    check_size(len(probs))
    for i, p in enumerate(probs):
        if not isinstance(p, Real) or isinstance(p, bool):
            raise TreeError(f"root.firing_probabilities[{i}]: expected a number, got {type_name(p)}")
    return tree_of_roots(roots, Firing(probs, [1.0] * len(probs), [0.0] * len(probs)))


def tree_of_roots(roots: list[Any], firing: Firing) -> tuple[Node, list[str]]:
    """The tree of a SAELens hierarchy, and notes on what was converted. Raises: `TreeError`."""
    _check_firing(firing)
    found = entries([(f"root.roots[{i}]", root) for i, root in enumerate(roots)], 1, KEYS)
    below = children_of(found)
    index = [entry.data.get("feature_index") for entry in found]
    for entry, i in zip(found, index, strict=True):
        if i is not None and not 0 <= i < len(firing.prob):
            raise TreeError(
                f"{shown(entry.path)}.feature_index: {quoted(i, 60)} has no entry among {len(firing.prob)} "
                "firing_probabilities"
            )
    prob, notes = _kept_probs(found, below, index, firing.prob)
    scales = _scales(found, below, index)
    nodes: list[tuple[int, dict[str, Any]]] = [(-1, {"active_prob": 1.0, "is_feature": False})]
    of_features, of_others = (
        [0] * len(found),
        [0] * len(found),
    )  # the node that becomes the parent of an entry's children
    for i, entry in enumerate(found):
        hang = of_others if index[i] is None else of_features
        nodes.append((hang[entry.parent] if entry.parent >= 0 else 0, _fields(entry, prob[i], index[i], firing)))
        of_features[i] = of_others[i] = len(nodes) - 1
        n_features = sum(index[child] is not None for child in below[i])
        flags = {
            "exclusive": _is_set(entry, "mutually_exclusive_children") and n_features > 1,
            "scale_children_by_parent": _is_set(entry, "scale_children_by_parent") and scales[i],
        }
        differ = flags["exclusive"] or flags["scale_children_by_parent"] != scales[i]
        if differ and 0 < n_features < len(below[i]):  # rules for features alone need an extra node
            of_features[i] = len(nodes)
            nodes.append((of_others[i], {"active_prob": 1.0, "is_feature": False, **flags}))
            flags["exclusive"] = False
        nodes[of_others[i]][1].update(flags, scale_children_by_parent=scales[i])
    used = set(index)
    nodes += [(0, _fields(None, p, i, firing)) for i, p in enumerate(firing.prob) if i not in used]
    return assembled(nodes)[0], notes


def _is_set(entry: Entry, flag: str) -> bool:
    return bool(entry.data.get(flag))


def _fields(entry: Entry | None, prob: float, index: int | None, firing: Firing) -> dict[str, Any]:
    data = {} if entry is None else entry.data
    fields = {"active_prob": prob, "name": data.get("feature_id") or data.get("id"), "feature_index": index}
    if index is None:
        return fields | {"is_feature": False}
    return fields | {"magnitude_mean": firing.mean[index], "magnitude_std": firing.std[index]}


def _scales(found: list[Entry], below: list[list[int]], index: list[int | None]) -> list[bool]:
    """Returns whether each node must scale its children, or pass on the scale of a feature above it."""
    anchored: list[bool] = []  # whether it is a feature or has one above it
    for i, entry in enumerate(found):
        anchored.append(index[i] is not None or (entry.parent >= 0 and anchored[entry.parent]))
    scales = [False] * len(found)
    for i in reversed(range(len(found))):
        own = _is_set(found[i], "scale_children_by_parent")
        through = any(scales[child] for child in below[i] if index[child] is None)
        scales[i] = anchored[i] and (through or (own and any(index[child] is not None for child in below[i])))
    return scales


def _kept_probs(
    found: list[Entry], below: list[list[int]], index: list[int | None], given: Sequence[float]
) -> tuple[list[float], list[str]]:
    """P(on | parent on) of each entry after exclusion, and a note on how exclusion changed the probabilities."""
    prob = [1.0 if i is None else float(given[i]) for i in index]
    groups: list[str] = []
    for entry, children in zip(found, below, strict=True):
        rivals = [child for child in children if index[child] is not None]
        if not _is_set(entry, "mutually_exclusive_children") or len(rivals) < 2:
            continue
        before = [prob[child] for child in rivals]
        after = kept_one(before).tolist()
        for child, p in zip(rivals, after, strict=True):
            prob[child] = p
        groups.append(f"{shown(entry.path)}: {few(before)} become {few(after)}")
    if not groups:
        return prob, []
    more = f" (and {len(groups) - 1} more groups)" if len(groups) > 1 else ""
    return prob, [f"SAELens keeps one of the mutually exclusive children that are on, at random; of {groups[0]}{more}"]


def few(probs: Sequence[float] | np.ndarray) -> str:
    """The first probabilities as text."""
    return ", ".join(f"{p:.4g}" for p in probs[:4]) + (", …" if len(probs) > 4 else "")


def _check_firing(firing: Firing) -> None:
    for i, (p, mean, std) in enumerate(zip(*firing, strict=True)):
        if not 0 <= p <= 1:
            number = quoted(p if isinstance(p, int) else str(p), 60)
            raise TreeError(f"root.firing_probabilities[{i}]: {number} is outside [0, 1]")
        clipped = share_below_zero(mean, std) if std > 0 else 0.0
        if clipped > MAX_CLIPPED:
            raise TreeError(
                f"feature {i}: SAELens clips its magnitude, {mean:g} ± {std:g}, to 0 with a probability of "
                f"{clipped:.2g}, which no tree here does; make std_firing_magnitudes at most 0.21 of the mean"
            )
