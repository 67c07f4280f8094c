"""Which code a result was made by."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("toy", "experiments")


@cache
def code_digest(*modules: str) -> str:
    """SHA-256 of the source of these modules and of all of this project that they import, directly or not.

    A result that is kept under a name with it in is made anew once that code has changed, and not when other code has.
    Raises: ModuleNotFoundError.
    """
    sources: dict[str, bytes] = {}
    for name in modules:
        if _file(name) is None:
            raise ModuleNotFoundError(f"{name}: no module of this project")
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if file is not None and name not in sources:
            sources[name] = file.read_bytes()
            waiting += _imports(sources[name])
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        digest.update(f"{name} {len(source)} ".encode() + source)
    return digest.hexdigest()


def file_digest(module: str) -> str:
    """SHA-256 of the source of one module alone. Raises: ModuleNotFoundError."""
    file = _file(module)
    if file is None:
        raise ModuleNotFoundError(f"{module}: no module of this project")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _file(name: str) -> Path | None:
    """Of a module of this project; None for other modules, and for what is no module."""
    if name.partition(".")[0] not in _PACKAGES:
        return None
    path = _ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imports(source: bytes) -> Iterator[str]:
    """Names that are imported, wherever in the source; of `from a import b` both a and a.b, which may be no module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
