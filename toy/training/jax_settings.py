"""The settings of JAX that change numbers."""

import os
import shlex
from enum import Enum
from pathlib import Path
from typing import Any

import jax

_JAX_DEFAULTS = {  # the settings of JAX that can change numbers, and their defaults
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
_VARIABLES = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE")  # can change numbers, too
_HARMLESS_XLA = ("xla_force_host_platform_device_count", "xla_dump_", "xla_hlo_profile", "xla_gpu_cuda_data_dir")


def jax_flags() -> dict[str, str]:
    """Returns the settings of JAX, XLA and the devices' libraries that can change numbers and differ from the defaults.

    They are read at every call. The number of devices, dumps, caches and checks are left out.
    """
    values = jax.config.values
    config = {name: _shown(values.get(name, default)) for name, default in _JAX_DEFAULTS.items()}
    found = {name: value for name, value in config.items() if value != _JAX_DEFAULTS[name]}
    found |= {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    return dict(sorted((found | _xla_flags(os.environ.get("XLA_FLAGS", ""))).items()))


def _shown(value: Any) -> str:
    return value.name.lower() if isinstance(value, Enum) else str(value)


def _xla_flags(text: str) -> dict[str, str]:
    """The flags in XLA_FLAGS or in the file that it names; the last value of a flag counts, as in XLA."""
    text = text.strip()
    if text and not text.startswith("-"):
        file = Path(text)
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    try:
        words = shlex.split(text)
    except ValueError:  # an unclosed quotation mark
        words = text.split()
    flags = {name: value or "true" for name, _, value in (word.lstrip("-").partition("=") for word in words)}
    return {name: value for name, value in flags.items() if not name.startswith(_HARMLESS_XLA)}
