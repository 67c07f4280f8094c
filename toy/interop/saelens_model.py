"""Saved synthetic models of SAELens (6.54) as sources, and as trees unless they have settings that no tree has."""

import math
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np

from toy.checks import quoted
from toy.data.source import SyntheticSource
from toy.features.hierarchy import Drawn, synthetic
from toy.features.json_nodes import type_name
from toy.features.node import Node, TreeError, check_size
from toy.features.saelens_forest import forest_of_tree
from toy.features.saelens_tree import Firing, tree_of_roots
from toy.features.synthsaebench import LEAST_NORMALS, TorchNormal

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
_CORRELATION = {"correlation_factor", "correlation_diag"}
_SEED_OF = {"std_firing_magnitudes": 1, "mean_firing_magnitudes": 2}  # beyond the model's seed


def synthetic_model(config: Any, hierarchy: Any, tensors: dict[str, np.ndarray]) -> tuple[Node, list[str]]:
    """The tree of a saved `SyntheticModel` without its directions, bias and seed, and notes on what was converted.

    `hierarchy` is None if the model has no such file. Raises: `TreeError` for models that are not trees.
    """
    if isinstance(config, dict) and (config.get("correlation") is not None or _CORRELATION & set(tensors)):
        raise TreeError(
            "correlation: features that are correlated beyond the hierarchy are no tree; set it to null, or read the "
            "model as a source, toy.io.load_synthetic"
        )
    probs, roots = _checked(config, hierarchy, tensors)
    mean, std = (_magnitudes(f"{name}_firing_magnitudes", config, len(probs)).tolist() for name in ("mean", "std"))
    root, notes = tree_of_roots(roots, Firing(probs.astype(float).tolist(), mean, std))
    return root, [*notes, "the model's directions and bias are not read; directions are drawn anew"]


def synthetic_source(config: Any, hierarchy: Any, tensors: dict[str, np.ndarray]) -> SyntheticSource:
    """The activations of a saved `SyntheticModel`, with its correlations, directions and bias. Raises: `TreeError`."""
    probs, roots = _checked(config, hierarchy, tensors)
    n, d_in = len(probs), config.get("hidden_dim")
    shapes = {"feature_vectors": (n, d_in), "bias": (d_in,)}
    if set(tensors) & _CORRELATION:
        rank = tensors["correlation_factor"].shape[1:2] if "correlation_factor" in tensors else ()
        shapes |= {"correlation_factor": (n, *rank), "correlation_diag": (n,)}
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape or not np.isfinite(tensors[name]).all():
            raise TreeError(f"{name}: expected finite numbers of shape {shape}, as the configuration says")
    if not ((probs >= 0) & (probs <= 1)).all():  # NaN is neither
        raise TreeError("firing_probabilities: expected numbers in [0, 1]")
    if "correlation_diag" in shapes and (tensors["correlation_diag"] <= 0).any():
        raise TreeError("correlation_diag: expected variances above 0")
    mean, std = (_magnitudes(f"{name}_firing_magnitudes", config, n) for name in ("mean", "std"))
    if (std < 0).any():
        raise TreeError("std_firing_magnitudes: must not be negative")
    loading = tensors.get("correlation_factor", np.zeros((n, 0), np.float32))
    drawn = Drawn(probs, mean, std, loading, tensors.get("correlation_diag", np.ones(n, np.float32)))
    W_feat, bias = (jnp.asarray(tensors[name], jnp.float32) for name in ("feature_vectors", "bias"))
    return SyntheticSource(synthetic(roots, drawn), W_feat, bias)


def model_of_tree(
    root: Node, W_feat: np.ndarray, bias: np.ndarray | None = None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray], tuple[str, ...]]:
    """Configuration, hierarchy and tensors of the `SyntheticModel` of a tree, and notes on numbers that changed.

    SAELens keeps no magnitudes feature by feature: where they differ, directions are multiplied by them. Raises:
    `TreeError` naming the invalid node or array.
    """
    roots, firing, notes = forest_of_tree(root)
    n, mean, std = len(firing.prob), np.asarray(firing.mean, float), np.asarray(firing.std, float)
    if W_feat.ndim != 2 or len(W_feat) != n:
        raise TreeError(f"directions: expected {n} rows, one for each feature, got shape {W_feat.shape}")
    d_in = W_feat.shape[1]
    bias = np.zeros(d_in) if bias is None else np.asarray(bias)
    if bias.shape != (d_in,) or not np.isfinite(bias).all() or not np.isfinite(W_feat).all():
        raise TreeError(f"directions and bias: expected finite numbers in {d_in} dimensions, got shape {bias.shape}")
    if len({*mean.tolist()}) > 1:
        spread = std / np.where(mean > 0, mean, np.nan)
        if not np.allclose(spread, spread[0], rtol=1e-9, atol=0):
            raise TreeError(
                "magnitude_std: SAELens keeps no magnitudes feature by feature; make it one share of the mean"
            )
        notes = [*notes, "the magnitudes of features differ: directions are multiplied by them, and magnitudes are 1"]
        W_feat, mean, std = W_feat * mean[:, None], np.ones(n), spread
    tensors = {"feature_vectors": W_feat, "bias": bias, "firing_probabilities": np.asarray(firing.prob)}
    config = dict.fromkeys(sorted(_CONFIG_KEYS)) | {
        "num_features": n,
        "hidden_dim": d_in,
        "firing_probability": {"generator_name": "constant", "probability": 0.5},  # the tensor's take their place
        "mean_firing_magnitudes": float(mean[0]),
        "std_firing_magnitudes": float(std[0]),
        "bias": float(np.linalg.norm(bias)),
        "dtype": "float32",
    }
    arrays = {name: np.asarray(values, np.float32) for name, values in tensors.items()}
    return config, {"roots": roots}, arrays, tuple(notes)


def _checked(config: Any, hierarchy: Any, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, list[Any]]:
    """The probabilities, and the roots of the hierarchy."""
    if not isinstance(config, dict):
        raise TreeError(f"the configuration: expected an object, got {type_name(config)}")
    for key in config:
        if key not in _CONFIG_KEYS:
            raise TreeError(f"the configuration: unknown key '{quoted(key, 60)}', which SAELens 6.54 does not have")
    unknown = sorted(set(tensors) - _TENSORS - _CORRELATION)
    if unknown:
        raise TreeError(f"{quoted(unknown[0], 60)}: a tensor that SAELens 6.54 does not save")
    if hierarchy is None and config.get("hierarchy") is not None:
        raise TreeError("hierarchy: the configuration has one, and the folder no hierarchy.json; save the model again")
    probs = tensors.get("firing_probabilities", np.zeros(0))
    n = config.get("num_features")
    if isinstance(n, bool) or not isinstance(n, int) or probs.shape != (n,) or probs.dtype.kind in "biu":
        raise TreeError(f"firing_probabilities: expected one for each of num_features = {quoted(n, 60)} features")
    check_size(n)
    return probs, [] if hierarchy is None else _roots(hierarchy)


def _roots(hierarchy: Any) -> list[Any]:
    if not isinstance(hierarchy, dict) or set(hierarchy) != {"roots"} or not isinstance(hierarchy["roots"], list):
        raise TreeError("the hierarchy: expected an object with the list 'roots' alone")
    return hierarchy["roots"]


def _magnitudes(name: str, config: dict[str, Any], n: int) -> np.ndarray:
    """One number for all features, or the numbers of a generator of SAELens."""
    given = config.get(name, 1.0 if name.startswith("mean") else 0.0)
    if not isinstance(given, dict):
        return np.full(n, _number(name, given))
    kind, optional = given.get("generator_name"), {"min_value", "max_value"}
    keys = {"constant": {"value"}, "linear": {"start", "end"}, "exponential": {"start", "end"}}
    keys = (keys | {"folded_normal": {"mean", "std"}}).get(str(kind))
    given = {key: value for key, value in given.items() if not (key in optional and value is None)}
    if keys is None or not keys <= set(given) - {"generator_name"} <= keys | (optional if "mean" in keys else set()):
        raise TreeError(f"{name}: the generator {quoted(kind, 60)} is not read: only those that SAELens 6.54 has")
    numbers = {key: _number(f"{name}.{key}", given[key]) for key in given if key != "generator_name"}
    if kind == "constant":
        return np.full(n, numbers["value"])
    if kind == "folded_normal":
        return _folded(name, config.get("seed"), n, **numbers)
    start, end = numbers["start"], numbers["end"]
    if min(start, end) <= 0:
        raise TreeError(f"{name}: start and end must be above 0")
    return np.linspace(start, end, n) if kind == "linear" else np.geomspace(start, end, n)


def _folded(name: str, seed: Any, n: int, mean: float, std: float, **limits: float) -> np.ndarray:
    """|N(mean, std²)| within limits, which the file does not hold: SAELens draws them anew, from the seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or n < LEAST_NORMALS:
        raise TreeError(
            f"{name}: the generator folded_normal is random: its numbers are known with a seed and 16 features or more"
        )
    numbers = np.abs(mean + TorchNormal(seed + _SEED_OF[name])(n) * np.float32(std))
    return np.clip(numbers, limits.get("min_value"), limits.get("max_value"))


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise TreeError(f"{name}: expected a number, got {quoted(value, 60)}")
    return float(value)
