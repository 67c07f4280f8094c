"""How fast the trainer is, at toy and at language-model width, and beside SAELens.

Claim: at toy width a step of one run, sampling included, takes 0.2 to 0.3 ms and every prefix costs as much as one; at
(25000 latents, 768 inputs, batch 512) 10 sampled prefixes cost at most 1.15 times a vanilla SAE's loss and gradient,
the hybrid 1.2, every prefix of a ReLU SAE 2.1, every prefix of a TopK SAE 1.1 times plain TopK; a full training step of
a BatchTopK SAE with every prefix is at least 4 times faster than SAELens' Matryoshka one.
Command: python -m experiments.speed (about 35 minutes on 2 cores; 23 with --no-whole, as the committed record is).
SAELens is measured, too, where the extra `peers` is installed; --device gpu adds the table of a GPU.
Expected, one thread, (25000, 768, 512), medians: sampled 1.14, hybrid 1.09, every prefix 2.08, of TopK 0.95; BatchTopK
step 0.93 s, SAELens' Matryoshka 5.5 s; a step at toy width 0.27 ms. Machines are shared: minimum and maximum stand
beside each median, and what is compared is interleaved call by call.
In the post: "trains in only 1.5x the time of a standard SAE".
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import TOY_SET
from experiments.bench.jobs import MOST_ROUNDS, Job, has_peers, run_job
from experiments.bench.speed_report import plot, summary
from experiments.common.cli import main
from experiments.common.study import PairConfig, Progress, check_study, make_hypers, make_study, train_config
from toy import prefixes
from toy.checks import Whole, check_fields
from toy.data.source import TreeSource
from toy.features.named import forest
from toy.features.node import Node
from toy.features.tree import build_tree, sample_features
from toy.sae import RELU, Activation, BatchTopK, TopK
from toy.training.config import Hypers, TrainConfig
from toy.training.grid import train_grid
from toy.training.run import train

__all__ = ["Config", "check", "n_steps", "plot", "run", "summary"]

CHUNK = 1_000
WIDTHS = ((4_096, 256, 1_024), (25_000, 768, 512))  # n_latents, d_in, batch
THREADS = (1, None)  # None: all
GPU_WIDTHS = ((25_000, 768, 4_096), (25_000, 768, 16_384))
GPU_TYPES = ("tf32", "bfloat16")
N_FEATURES = (20, 200, 2_000, 20_000)


@dataclass(frozen=True)
class Config(PairConfig):
    """Options of `speed`."""

    n_seeds: int = 64
    """Seeds in one program."""
    n_rounds: int = 5
    """Interleaved rounds of the tables; losses are called twice a round."""
    whole: bool = True
    """Time `python -m experiments` as a process of its own, too (left out with --no-whole)."""
    width: bool = True
    """Measure at language-model width, too (left out with --no-width)."""
    peers: bool = True
    """Measure SAELens beside it where it is installed (left out with --no-peers)."""
    device: Literal["cpu", "gpu"] = "cpu"
    """gpu: add the table of this machine's GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_steps < 3 * CHUNK:
            raise ValueError(f"n_steps: needs at least {3 * CHUNK} to time chunks of {CHUNK}, got {self.n_steps}")
        check_fields(self, n_rounds=Whole(most=MOST_ROUNDS))


check = check_study


def n_steps(cfg: Config) -> int:
    return 2 * cfg.n_steps


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    peers = cfg.peers and has_peers()
    gpu = None
    if cfg.device == "gpu":  # first: where there is none, nothing else is done before saying so
        gpu = [
            run_job(Job(*shape, n_rounds=cfg.n_rounds, device="gpu", dtype=dtype))
            for shape in GPU_WIDTHS
            for dtype in GPU_TYPES
        ]
    study = make_study(cfg)
    train_cfg = train_config(cfg, study.tree)
    hypers = make_hypers(cfg, study.tree, prefixes.named(f"sampled_{cfg.n_prefixes}", train_cfg.n_latents))
    one, many = (TreeSource(study.tree, W_feat) for W_feat in (study.W_feat[0], study.W_feat))  # type: ignore[arg-type]
    grid = partial(train_grid, study.keys, many, hypers, in_axes=(TreeSource(None, 0), None))  # type: ignore[arg-type]
    results = {
        "one_run": time_chunks(partial(train, study.keys[0], one, hypers, cfg=train_cfg), progress),
        "grid": time_chunks(partial(grid, cfg=train_cfg), progress, n_lanes=cfg.n_seeds),
        "sampling": time_sampling(one, cfg.batch_size),
        "generator": time_generator(cfg),
        "toy": time_toy(cfg, study.keys[0], one, study.root if peers else None),
        "width": [],
        "gpu": gpu,
        "peers": peers,
    }
    if cfg.width:
        results["width"] = [
            run_job(Job(*shape, n_prefixes=cfg.n_prefixes, n_rounds=cfg.n_rounds, threads=threads, peers=peers))
            for shape in WIDTHS
            for threads in THREADS
        ]
    return results | ({"whole": time_whole()} if cfg.whole else {})


def time_toy(cfg: Config, key: jax.Array, source: TreeSource, root: Node | None) -> dict[str, Any]:
    """µs a training step of weightings and activations, batches included, call by call; with `root` also SAELens'."""
    n_latents, n_steps = source.tree.n_features, 500

    def run_of(weighting: str, activation: Activation) -> Callable[[], None]:
        train_cfg = TrainConfig(n_latents, n_steps=n_steps, batch_size=cfg.batch_size, activation=activation)
        hypers = Hypers(prefixes.named(weighting, n_latents), target_l0=1.0 if activation == RELU else None)
        return lambda: train(key, source, hypers, cfg=train_cfg, chunk=n_steps) and None

    sampled = f"sampled_{cfg.n_prefixes}"
    cases = {name: run_of(name, RELU) for name in ("vanilla", sampled, f"expected_{cfg.n_prefixes}", "all")}
    cases |= {f"topk_{name}": run_of(name, TopK(2)) for name in ("vanilla", "all")}
    cases |= {f"batchtopk_{name}": run_of(name, BatchTopK(2)) for name in ("vanilla", "all")}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for call in cases.values():
        call()  # compile
    peer_runs = {} if root is None else peer_toy_runs(cfg, root)
    seconds |= {name: [] for name in peer_runs}
    for _ in range(cfg.n_rounds):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            seconds[name].append((time.perf_counter() - start) / n_steps)
        for name, seconds_a_step in peer_runs.items():
            seconds[name].append(seconds_a_step())
    return {name: _spread(np.array(times) * 1e6) for name, times in seconds.items()}


def peer_toy_runs(cfg: Config, root: Node) -> dict[str, Callable[[], float]]:
    """Seconds a step of SAELens' `train_toy_sae` on the same tree, by architecture."""
    from experiments.bench import peers  # an optional extra, slow to import

    n_steps, shape = 100, {"d_in": cfg.d_in, "batch_size": cfg.batch_size}
    return {
        f"sae_lens_{name}": lambda name=name: peers.toy_run(name, tree=root, n_steps=n_steps, **shape) / n_steps
        for name in peers.ARCHITECTURES
    }


def time_generator(cfg: Config) -> dict[str, Any]:
    """Million rows of tree features a second, by their number: groups of a parent and 3 exclusive children."""
    rates = {}
    for n_features in N_FEATURES:
        groups = (Node(0.15, tuple(Node(0.2) for _ in range(3)), exclusive=True) for _ in range(n_features // 4))
        tree = build_tree(forest(*groups))
        n_rows = min(10_000, 20_000_000 // n_features)
        sample = jax.jit(partial(sample_features, batch_size=n_rows))
        times = []
        for i in range(1 + cfg.n_rounds):
            start = time.perf_counter()
            sample(jax.random.key(i), tree).block_until_ready()
            times.append(time.perf_counter() - start)
        rows = n_rows / np.array(times[1:]) / 1e6  # the first compiled
        rates[n_features] = {"median": float(np.median(rows)), "min": float(rows.min()), "max": float(rows.max())}
    return rates


def time_chunks(run: Callable[..., Any], progress: Progress, n_lanes: int = 1) -> dict[str, Any]:
    """µs a step and lane of every chunk after the first, which compiles, and the seconds that one took."""
    marks = [time.perf_counter()]

    def mark(n_steps: int) -> None:
        marks.append(time.perf_counter())
        progress(n_steps)

    run(chunk=CHUNK, progress=mark)
    seconds = np.diff(marks)
    return _spread(seconds[1:] / CHUNK / n_lanes * 1e6) | {"first_chunk_seconds": seconds[0]}


def time_sampling(source: TreeSource, batch_size: int) -> dict[str, Any]:
    """µs a batch of activations, drawn one after the other inside one program."""

    @jax.jit
    def batches(key: jax.Array, source: TreeSource) -> jax.Array:
        def one(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            return total + source.sample(jax.random.fold_in(key, i), batch_size).sum(), None

        return jax.lax.scan(one, jnp.zeros(()), jnp.arange(CHUNK))[0]

    batches(jax.random.key(0), source).block_until_ready()
    times = []
    for i in range(10):
        start = time.perf_counter()
        batches(jax.random.key(i), source).block_until_ready()
        times.append((time.perf_counter() - start) / CHUNK * 1e6)
    return _spread(np.array(times))


def _spread(us: np.ndarray) -> dict[str, Any]:
    return {"median_us": float(np.median(us)), "min_us": float(us.min()), "max_us": float(us.max())}


def time_whole() -> dict[str, float]:
    """`python -m experiments` in a process of its own: seconds from start to end, and its peak memory."""
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments", "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        n_figures = len([name for name in os.listdir(out) if name.endswith(".png")])
    if status != 0 or n_figures != len(TOY_SET):
        raise ValueError("python -m experiments failed; run it by itself to see why")
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_memory_gb": usage.ru_maxrss * kilobyte / 1e9}


if __name__ == "__main__":
    main("speed")
