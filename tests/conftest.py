"""Before anything imports the library: shapes and types are checked, and there are two devices for lanes."""

import os
import signal
import sys
from collections.abc import Iterator

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: the workers' threads would wait for each other

import fuzzing
import jax
import numpy as np
import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# Most of the suite's time is compiling programs that then run for a few steps; processes it starts inherit this.
# With XLA's older emitters of fused loops compiling takes a third of the time, and in one thread per program a quarter
# less: two programs are compiled at a time already.
QUICK = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
jax.config.update("jax_num_cpu_devices", 2)
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # of commands: programs of tests are theirs alone
jax.config.update("jax_enable_compilation_cache", False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=float, default=0.05, metavar="TIMES", help="how many times 10,000 inputs are tried")
    parser.addoption("--kill-seed", type=int, default=0, metavar="SEED", help="kill processes at other points")
    parser.addoption("--fuzz-seed", type=int, default=None, metavar="SEED", help="try other inputs than the usual ones")


def pytest_configure(config: pytest.Config) -> None:
    fuzzing.times, fuzzing.first_seed = config.getoption("--fuzz"), config.getoption("--fuzz-seed")


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a job in the background starts, and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # as for pyright, an int is a float, too
install_import_hook("toy", f"{__name__}.typechecker")
sys.setrecursionlimit(4_000)  # a checked call takes several frames

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=30)
settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """A compiled program keeps a few memory mappings, of which Linux allows a process 65,530: the suite has more."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 inside the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def kill_points(request: pytest.FixtureRequest) -> np.random.Generator:
    """Draws the points where processes are killed: the same each time, unless --kill-seed says others."""
    seed = request.config.getoption("--kill-seed")
    print(f"killed at the points of --kill-seed {seed}")
    return np.random.default_rng(seed)
