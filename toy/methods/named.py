"""Methods by name, as command lines and sweeps give them: those of this package, and those of a user's file.

A name is `NAME` or `NAME:field=value,…`, with fields of the method: `batchtopk:k=1.12`, `orthogonal:coef=0.1`. Its last
field may be `weighting=…`, the prefixes (`toy.prefixes.named`). A user's method is `my_file.py:name`, where `name` is
a `Method`, or a class of them, in that file. The number `l0` stands for the mean L0 of the features.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from toy import prefixes
from toy.checks import quoted
from toy.methods.constrained import Aligned, Orthogonal, Tied
from toy.methods.detached import Detached
from toy.methods.from_file import of_file
from toy.methods.gated import Gated
from toy.methods.hierarchical_topk import HierarchicalTopK
from toy.methods.jumprelu import JumpReLU
from toy.methods.method import Method
from toy.methods.pursuit import Pursuit
from toy.methods.rotated import Rotated
from toy.methods.rotation import Search
from toy.methods.standard import Matryoshka, Standard
from toy.methods.tied_finish import HeldFinish, TiedFinish
from toy.methods.topk import TargetedBatchTopK, TopKFamily
from toy.sae import BatchTopK, MatchingPursuit, TopK


def _topk(k: float = 0, aux_k: int = 0, **fields: Any) -> TopKFamily:
    if not k:
        raise ValueError("topk: give the number of latents that are on, as in topk:k=2")
    return TopKFamily(TopK(max(1, round(k))), aux_k, **fields)


def _batchtopk(k: float = 0, aux_k: int = 0, **fields: Any) -> TopKFamily:
    return TopKFamily(BatchTopK(k), aux_k, **fields) if k else TargetedBatchTopK(aux_k=aux_k, **fields)


def _hierarchical_topk(k: float = 0, levels: int = 0, aux_k: int = 0, **fields: Any) -> HierarchicalTopK:
    if not k:
        raise ValueError("hierarchical_topk: give k, as in hierarchical_topk:k=2, or k=1.5,levels=3 for BatchTopK")
    kept = BatchTopK(k) if levels else TopK(max(1, round(k)))
    return HierarchicalTopK(kept, aux_k, levels=levels or kept.k, **fields)


def _pursuit(k: int = 8, tolerance: float = 1e-3, **fields: Any) -> Pursuit:
    return Pursuit(MatchingPursuit(k, tolerance), **fields)


def _rotated(**given: Any) -> Rotated:
    of_search = {field.name for field in dataclasses.fields(Search)}
    how = Search(**{name: value for name, value in given.items() if name in of_search})
    return Rotated(how=how, **{name: value for name, value in given.items() if name not in of_search})


METHODS: dict[str, Callable[..., Method]] = {
    "vanilla": Standard,
    "matryoshka": Matryoshka,
    "topk": _topk,
    "batchtopk": _batchtopk,
    "hierarchical_topk": _hierarchical_topk,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "tied": Tied,
    "tied_finish": TiedFinish,
    "held_finish": HeldFinish,
    "rotated": _rotated,
    "aligned": Aligned,
    "orthogonal": Orthogonal,
    "detached": Detached,
    "pursuit": _pursuit,
}


class Named(NamedTuple):
    """A method with the weighting of its prefixes."""

    text: str
    method: Method
    weighting: str


def named(text: str, l0: float = 1.0) -> Named:
    """The method of a name; `l0` is the mean L0 of the features.

    Raises: ValueError that says which names, fields or files there are.
    """
    without, _, weighting = text.partition("weighting=")
    name, _, rest = without.rstrip(",:").partition(":")
    try:
        method = of_file(Path(name), rest) if name.endswith(".py") else _of_package(name, rest, l0)
    except TypeError as error:
        raise ValueError(f"method {quoted(text)}: {error}") from None
    weighting = weighting or method.weighting
    prefixes.named(weighting, 2)  # raises for an unknown name
    return Named(text, method, weighting)


@lru_cache(1_024)
def _of_package(name: str, rest: str, l0: float) -> Method:
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"method: expected {known}, or FILE.py:NAME, got {quoted(repr(name))}")
    fields = [field.partition("=") for field in rest.split(",") if field]
    return METHODS[name](**{key: l0 if value == "l0" else _value(value) for key, _, value in fields})


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
