"""Digests of the code that a result was made by."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("toy", "experiments")


@cache
def code_digest(*modules: str) -> str:
    """SHA-256 of the source of these modules and of all of this project that they import, directly or not.

    A result that is kept under a name with it in is made anew once that code has changed, and not when other code has.
    Raises: ModuleNotFoundError.
    """
    digest = hashlib.sha256()
    for name, source in sorted(_sources(*modules).items()):
        digest.update(f"{name} {len(source)} ".encode() + source)
    return digest.hexdigest()


def _sources(*modules: str) -> dict[str, bytes]:
    """The sources of these modules and of all they import from this project, by name. Raises: ModuleNotFoundError."""
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
    return sources


def replaced(*modules: str) -> list[str]:
    """Functions and classes of these modules, and of what they import, that are not those of the source.

    A researcher may put others in their place while a program runs (`toy.methods.method.sae_loss = mine`), which
    `code_digest` does not see. Not found are attributes of classes, constants, and wrappers that pass for what they
    wrap.
    """
    return [f"{module}.{name}" for module, name, origin in _named(*modules) if _is_other(module, name, origin)]


@cache
def _named(*modules: str) -> list[tuple[str, str, tuple[str, str] | None]]:
    """(module, name, where it is imported from; None if it is defined there) of functions and classes at the top."""
    found: list[tuple[str, str, tuple[str, str] | None]] = []
    for module, source in _sources(*modules).items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.append((module, node.name, None))
            elif isinstance(node, ast.ImportFrom) and node.module and _file(node.module) is not None:
                found += [(module, alias.asname or alias.name, (node.module, alias.name)) for alias in node.names]
    return found


def _is_other(module: str, name: str, origin: tuple[str, str] | None) -> bool:
    if module not in sys.modules:
        return False
    value = vars(sys.modules[module]).get(name)
    if origin is not None:
        return value is not getattr(sys.modules[origin[0]], origin[1], None)
    return (getattr(value, "__module__", None), getattr(value, "__qualname__", None)) != (module, name)


def file_digest(module: str) -> str:
    """SHA-256 of the source of one module alone. Raises: ModuleNotFoundError."""
    file = _file(module)
    if file is None:
        raise ModuleNotFoundError(f"{module}: no module of this project")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _file(name: str) -> Path | None:
    """The file of a module of this project; None for any other name."""
    if name.partition(".")[0] not in _PACKAGES:
        return None
    path = _ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imports(source: bytes) -> Iterator[str]:
    """The modules imported anywhere in the source; `from a import b` imports a.b where that is a module, else a."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if _file(name) is not None else node.module for name in inside)
