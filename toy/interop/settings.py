"""Configurations of SAEs by other libraries, in which every key is known by name.

Anything else is refused, because an ignored setting would silently change the activations.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from toy.checks import quoted
from toy.files.json_files import load_object

_MOST_CFG = 2**20  # bytes
MOST = 2**31  # latents, or dimensions


class Setting(NamedTuple):
    """The allowed values of a key, and what to do about others."""

    allowed: tuple[Any, ...]
    remedy: str
    default: Any = None  # the library's own default; None if the key is required


TRUTHS = (False, True)


def load_cfg(path: Path) -> dict[str, Any]:
    """Raises: ValueError naming the file if it is no object."""
    return load_object(path, "an SAE", most_bytes=_MOST_CFG)


def settled(
    path: Path, cfg: dict[str, Any], settings: Mapping[str, Setting], others: Collection[str], remedy: str
) -> dict[str, Any]:
    """The configuration with defaults filled in, if all its keys are settings or `others`, which change no activation.

    Raises: ValueError naming the file, the key and the remedy.
    """
    for key, setting in settings.items():
        _check(path, cfg, key, setting)
    if unknown := sorted(cfg.keys() - {*settings, *others}):
        kind = f" for {cfg['architecture']!r}" if "architecture" in cfg else ""
        raise ValueError(
            f"{path}: {quoted(unknown[0])} is {quoted(cfg[unknown[0]])}, which is not known{kind}: {remedy}"
        )
    return {key: setting.default for key, setting in settings.items()} | cfg


def _check(path: Path, cfg: dict[str, Any], key: str, setting: Setting) -> None:
    if key not in cfg and setting.default is not None:
        return
    value = cfg.get(key)
    if not any(type(value) is type(allowed) and value == allowed for allowed in setting.allowed):
        options = " or ".join(map(repr, setting.allowed))
        got = f"is {quoted(value)}" if key in cfg else "is missing"
        raise ValueError(f"{path}: {key} {got}, expected {options}: {setting.remedy}")


def whole(path: Path, cfg: dict[str, Any], key: str) -> int:
    """Returns a number of the configuration. Raises: ValueError if it is no whole number of at least 1."""
    if type(cfg.get(key)) is not int or cfg[key] < 1:
        raise ValueError(f"{path}: {key}: expected a whole number of at least 1, got {quoted(cfg.get(key))}")
    if cfg[key] > MOST:
        raise ValueError(f"{path}: {key}: must be at most {MOST:,}, got {quoted(cfg[key], 40)}")
    return cfg[key]


def check_k(owner: Path | str, k: Any, n_latents: int) -> int:
    """Returns the k of TopK. Raises: ValueError naming its owner if there are not so many latents."""
    if type(k) is not int or not 1 <= k <= n_latents:
        raise ValueError(f"{owner}: k: expected a whole number from 1 to d_sae = {n_latents}, got {quoted(k)}")
    return k


def of_function(cfg: Mapping[str, Any], settings: Mapping[str, Setting], others: Collection[str]) -> str:
    """The part of a configuration on which activations depend, as text."""
    defaults = {key: setting.default for key, setting in settings.items()}
    return json.dumps({key: value for key, value in (defaults | {**cfg}).items() if key not in others}, sort_keys=True)
