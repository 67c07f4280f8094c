"""Which code a result was made by, and with which settings of JAX."""

import ast
import hashlib
import os
import shlex
import sys
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import jax

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("toy", "experiments")
_JAX_DEFAULTS = {  # what of JAX's configuration changes numbers, and what it is unless somebody set it
    "jax_allow_f16_reductions": "True",
    "jax_compiler_enable_remat_pass": "True",
    "jax_custom_vjp3": "False",
    "jax_default_matmul_precision": "None",
    "jax_default_prng_impl": "threefry2x32",
    "jax_disable_jit": "False",
    "jax_disable_most_optimizations": "False",
    "jax_enable_x64": "False",
    "jax_exec_time_optimization_effort": "0.0",
    "jax_explicit_x64_dtypes": "warn",
    "jax_high_dynamic_range_gumbel": "False",
    "jax_memory_fitting_effort": "0.0",
    "jax_memory_fitting_level": "O2",
    "jax_numpy_dtype_promotion": "standard",
    "jax_optimization_level": "UNKNOWN",
    "jax_random_seed_offset": "0",
    "jax_remat3": "False",
    "jax_scan3": "False",
    "jax_softmax_custom_jvp": "False",
    "jax_threefry_gpu_kernel_lowering": "False",
    "jax_threefry_partitionable": "True",
    "jax_use_direct_linearize": "True",
    "jax_use_simplified_jaxpr_constants": "False",
}
_VARIABLES = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE")  # which change numbers, too
_HARMLESS_XLA = ("xla_force_host_platform_device_count", "xla_dump_", "xla_hlo_profile", "xla_gpu_cuda_data_dir")


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
    """Of these modules and of all of this project that they import, by their names. Raises: ModuleNotFoundError."""
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

    A researcher may put others in their place while a program runs (`toy.step.sae_loss = mine`), which `code_digest`
    does not see. Not found are attributes of classes, constants, and wrappers that pass for what they wrap.
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


def jax_flags() -> dict[str, str]:
    """The settings of JAX, XLA and the devices' libraries that change numbers and are not at their default, by name.

    They are read anew at every call. How many devices there are, dumps, caches and checks are left out.
    """
    values = jax.config.values
    config = {name: _shown(values.get(name, default)) for name, default in _JAX_DEFAULTS.items()}
    found = {name: value for name, value in config.items() if value != _JAX_DEFAULTS[name]}
    found |= {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    return dict(sorted((found | _xla_flags(os.environ.get("XLA_FLAGS", ""))).items()))


def _shown(value: Any) -> str:
    return value.name.lower() if isinstance(value, Enum) else str(value)


def _xla_flags(text: str) -> dict[str, str]:
    """What stands in XLA_FLAGS, or in the file that it names, as XLA reads it: the last value of a flag counts."""
    text = text.strip()
    if text and not text.startswith("-"):
        file = Path(text)
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    try:
        words = shlex.split(text)
    except ValueError:  # a quotation mark that is never closed
        words = text.split()
    flags = {name: value or "true" for name, _, value in (word.lstrip("-").partition("=") for word in words)}
    return {name: value for name, value in flags.items() if not name.startswith(_HARMLESS_XLA)}
