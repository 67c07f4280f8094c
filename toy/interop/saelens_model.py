"""Saved synthetic models of SAELens (6.54) as trees, unless they have settings that no tree has."""

import math
from numbers import Real
from typing import Any

import numpy as np

from toy.checks import quoted
from toy.features.json_nodes import type_name
from toy.features.node import Node, TreeError, check_size
from toy.features.saelens_tree import Firing, tree_of_roots

_CONFIG_KEYS = {  # all of `SyntheticModelConfig`; those that are not read here do not change the features
    "num_features",
    "hidden_dim",
    "firing_probability",
    "hierarchy",
    "orthogonalization",
    "correlation",
    "std_firing_magnitudes",
    "mean_firing_magnitudes",
    "bias",
    "dtype",
    "seed",
}
_TENSORS = {"feature_vectors", "bias", "firing_probabilities"}


def synthetic_model(config: Any, hierarchy: Any, tensors: dict[str, np.ndarray]) -> tuple[Node, list[str]]:
    """The tree of a saved `SyntheticModel` without its directions, bias and seed, and notes on what was converted.

    `hierarchy` is None if the model has no such file. Raises: `TreeError` for models that are not trees.
    """
    if not isinstance(config, dict):
        raise TreeError(f"the configuration: expected an object, got {type_name(config)}")
    for key in config:
        if key not in _CONFIG_KEYS:
            raise TreeError(f"the configuration: unknown key '{quoted(key, 60)}', which SAELens 6.54 does not have")
    if config.get("correlation") is not None or not _TENSORS.issuperset(tensors):
        raise TreeError("correlation: features that are correlated beyond the hierarchy are no tree; set it to null")
    if hierarchy is None and config.get("hierarchy") is not None:
        raise TreeError("hierarchy: the configuration has one, and the folder no hierarchy.json; save the model again")
    probs = tensors.get("firing_probabilities", np.zeros(0))
    n = config.get("num_features")
    if isinstance(n, bool) or not isinstance(n, int) or probs.shape != (n,) or probs.dtype.kind in "biu":
        raise TreeError(f"firing_probabilities: expected one for each of num_features = {quoted(n, 60)} features")
    check_size(n)
    mean, std = (_magnitudes(f"{name}_firing_magnitudes", config, len(probs)) for name in ("mean", "std"))
    roots = [] if hierarchy is None else _roots(hierarchy)
    root, notes = tree_of_roots(roots, Firing(probs.astype(float).tolist(), mean, std))
    return root, [*notes, "the model's directions and bias are not read; directions are drawn anew"]


def _roots(hierarchy: Any) -> list[Any]:
    if not isinstance(hierarchy, dict) or set(hierarchy) != {"roots"} or not isinstance(hierarchy["roots"], list):
        raise TreeError("the hierarchy: expected an object with the list 'roots' alone")
    return hierarchy["roots"]


def _magnitudes(name: str, config: dict[str, Any], n: int) -> list[float]:
    """One number for all features, or the numbers of a deterministic generator of SAELens."""
    given = config.get(name, 1.0 if name.startswith("mean") else 0.0)
    if not isinstance(given, dict):
        return [_number(name, given)] * n
    kind = given.get("generator_name")
    keys = {"constant": {"value"}, "linear": {"start", "end"}, "exponential": {"start", "end"}}.get(str(kind))
    if keys is None or set(given) - {"generator_name"} != keys:
        raise TreeError(
            f"{name}: the generator {quoted(kind, 60)} is not read, only constant, linear and exponential: a random "
            "one's values are not in the file"
        )
    numbers = {key: _number(f"{name}.{key}", given[key]) for key in keys}
    if kind == "constant":
        return [numbers["value"]] * n
    start, end = numbers["start"], numbers["end"]
    if min(start, end) <= 0:
        raise TreeError(f"{name}: start and end must be above 0")
    spaced = np.linspace(start, end, n) if kind == "linear" else np.geomspace(start, end, n)
    return spaced.tolist()


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise TreeError(f"{name}: expected a number, got {quoted(value, 60)}")
    return float(value)
