"""Methods of users' files, and the facts that say which source made a result."""

import hashlib
import importlib.util
import inspect
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from toy.checks import quoted
from toy.methods.method import Method

_DIGEST = "__digest__"  # of the source that a module was made from, which its file may no longer hold


def of_file(path: Path, name: str) -> Method:
    """The method of this name in a Python file, which is run. Raises: ValueError naming the file."""
    shown = quoted(str(path))
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ValueError(f"method {shown}: {error.strerror or error}") from None
    found = getattr(_module(path.resolve(), hashlib.sha256(source).hexdigest()), name, None)
    if isinstance(found, type) and issubclass(found, Method):
        found = found()
    if not isinstance(found, Method):
        raise ValueError(f"method {shown}: has no toy.methods.Method called {quoted(repr(name))}")
    return found


@lru_cache(64)
def _module(path: Path, digest: str) -> ModuleType:
    """The file's module, which is run anew when the file has changed."""
    name = f"method_{path.stem}_{digest[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    setattr(module, _DIGEST, digest)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"method {quoted(str(path))}: {type(error).__name__}: {quoted(str(error))}") from error
    return module


def method_facts(method: Method) -> dict[str, str]:
    """All that a method's results follow from: its fields, and the source of classes from outside of this package."""
    facts = {"method": repr(method)}
    for kind in type(method).__mro__:
        if kind is not object and not kind.__module__.startswith("toy."):
            facts[f"source of {kind.__qualname__}"] = _digest(kind)
    return facts


def _digest(kind: type) -> str:
    """The SHA-256 of the source of a class's module, or of the class alone where its module has no file."""
    module = sys.modules.get(kind.__module__)
    if module is not None and hasattr(module, _DIGEST):
        return getattr(module, _DIGEST)
    try:
        source = inspect.getsource(module if module is not None and getattr(module, "__file__", None) else kind)
    except (OSError, TypeError):
        source = repr(kind)
    return hashlib.sha256(source.encode()).hexdigest()
