"""Language models from named tensors, and back."""

from collections.abc import Mapping
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

from toy.checks import quoted
from toy.lm.config import Family, Kind, LMConfig
from toy.lm.model import LM

_MOST_NAMES = 1_000  # characters of the names of tensors in a message
_TYPES: dict[str, tuple[type, ...]] = {  # of the configuration in JSON; others are whole numbers
    "family": (str,),
    "d_mlp": (int, type(None)),
    "norm_eps": (float, int),
    "attention": (list, type(None)),
    "n_kv_heads": (int, type(None)),
    "d_head": (int, type(None)),
    "rope_theta": (float, int),
    "tied": (bool,),
}


def config_from(values: dict[str, Any]) -> LMConfig:
    """Check the types of values from JSON; `LMConfig` checks their ranges."""
    for name, value in values.items():
        if type(value) not in _TYPES.get(name, (int,)):
            raise ValueError(f"config: {name}: must be {_TYPES.get(name, (int,))[0].__name__}, got {quoted(value)}")
    family, kinds = values["family"], values.get("attention")
    if family not in get_args(Family):
        raise ValueError(f"config: family: must be {' or '.join(get_args(Family))}, got {quoted(family)}")
    if not all(kind in get_args(Kind) for kind in kinds or ()):
        raise ValueError(f"config: attention: must be a list of global and local, got {quoted(kinds)}")
    checked: dict[str, Any] = values | ({} if kinds is None else {"attention": tuple(kinds)})
    return LMConfig(**checked)


def parameters(lm: LM) -> dict[str, np.ndarray]:
    """The parameters in float32, each named by its path in the model, such as `blocks.0.attn.Q.kernel`."""
    # safetensors writes wrong values for arrays that are not C-contiguous.
    flat = nnx.to_flat_state(nnx.state(lm, nnx.Param))
    return {".".join(map(str, path)): np.ascontiguousarray(leaf[...], np.float32) for path, leaf in flat}


def _abstract(cfg: LMConfig) -> tuple[Any, Any]:
    """Returns the graph of a model, and the shapes of its parameters by path, without allocating them."""
    graph, state = nnx.split(nnx.eval_shape(lambda: LM(cfg, rngs=nnx.Rngs(0))))
    return graph, nnx.to_flat_state(state)


def _renamed(path: tuple[Any, ...], names: Mapping[str, str]) -> str:
    name = ".".join(map(str, path))
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def shapes_of(cfg: LMConfig, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the file of such a model; a Linear of PyTorch is (out, in).

    `names` maps parts of our names to those of another program, where it is not empty.
    """
    return _shapes(_abstract(cfg)[1], names)


def _shapes(flat: Any, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {
        _renamed(path, names): leaf.shape[::-1] if names and path[-1] == "kernel" else leaf.shape for path, leaf in flat
    }


def check_names(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, np.ndarray]) -> None:
    """Raises: ValueError naming the tensors that are missing and those that are unknown."""
    missing, extra = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    parts = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(extra)}"] * bool(extra)
    if parts:
        raise ValueError(f"tensors: {quoted('; '.join(parts), _MOST_NAMES)}")


def check_finite(tensors: Mapping[str, np.ndarray]) -> None:
    """Raises: ValueError naming the tensors that are not finite in float32."""
    with np.errstate(over="ignore"):
        wrong = [name for name, values in tensors.items() if not np.isfinite(values.astype(np.float32)).all()]
    if wrong:
        raise ValueError(f"tensors: not finite in float32: {quoted(', '.join(wrong))}")


def model_from(cfg: LMConfig, state: Mapping[str, np.ndarray], names: Mapping[str, str]) -> LM:
    """The model with these tensors, named as in `shapes_of`. Raises: ValueError naming every tensor that is wrong."""
    graph, flat = _abstract(cfg)
    shapes = _shapes(flat, names)
    check_names(shapes, state)
    wrong = [f"{k} has shape {v.shape}, not {shapes[k]}" for k, v in state.items() if v.shape != shapes[k]]
    wrong += [f"{k} has {v.dtype} values" for k, v in state.items() if not jnp.issubdtype(v.dtype, jnp.floating)]
    if wrong:
        raise ValueError(f"tensors: {quoted('; '.join(wrong), _MOST_NAMES)}")
    check_finite(state)
    loaded = []
    for path, leaf in flat:
        values = state[_renamed(path, names)]
        values = values.T if names and path[-1] == "kernel" else values
        loaded.append((path, leaf.replace(jnp.asarray(np.ascontiguousarray(values, np.float32)))))
    return nnx.merge(graph, nnx.from_flat_state(loaded))
