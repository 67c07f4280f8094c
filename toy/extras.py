"""Packages that only some users need: imported where they are used, and missed in one line."""

import importlib
from types import ModuleType


def optional(module: str, extra: str, wanted_for: str) -> ModuleType:
    """An optional package. Raises: ValueError naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ValueError(
            f"{wanted_for}: needs the package {package}; install the extra: pip install -e '.[{extra}]'"
        ) from None
