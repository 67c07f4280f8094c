"""How fast the trainer is: one run, many seeds in one program, sampling alone, and the whole toy set from cold.

Claim: on 2 cores a step of one run, sampling included, takes at most 0.2 ms; with 64 seeds in one program at most
0.1 ms a step and seed; `python -m experiments` from cold at most 8 minutes and 3 GB.
Command: python -m experiments.speed (about 6 minutes on 2 cores; 1.5 with --no-whole).
Expected: about 0.17 ms, 0.04 ms, and 5 minutes with 1 GB. Machines are shared: minimum and maximum stand
beside the median.
In the post: "trains in only 1.5x the time of a standard SAE"; here the toy's Gram form makes every prefix cost as one.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import TOY_SET, plots
from experiments.cli import main
from experiments.study import PairConfig, Progress, check_study, make_hypers, make_study, make_weighting, train_config
from toy.source import TreeSource
from toy.train import train, train_grid

CHUNK = 1_000


@dataclass(frozen=True)
class Config(PairConfig):
    """Options of `speed`."""

    n_seeds: int = 64
    """Seeds in one program."""
    whole: bool = True
    """Time `python -m experiments` as a process of its own, too (left out with --no-whole)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_steps < 3 * CHUNK:
            raise ValueError(f"n_steps: needs at least {3 * CHUNK} to time chunks of {CHUNK}, got {self.n_steps}")


check = check_study


def n_steps(cfg: Config) -> int:
    return 2 * cfg.n_steps


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    study = make_study(cfg)
    train_cfg = train_config(cfg, study.tree)
    hypers = make_hypers(cfg, study.tree, make_weighting(f"sampled_{cfg.n_prefixes}", train_cfg.n_latents))
    one, many = (TreeSource(study.tree, W_feat) for W_feat in (study.W_feat[0], study.W_feat))  # type: ignore[arg-type]
    grid = partial(train_grid, study.keys, many, hypers, in_axes=(TreeSource(None, 0), None))  # type: ignore[arg-type]
    results = {
        "one_run": time_chunks(partial(train, study.keys[0], one, hypers, cfg=train_cfg), progress),
        "grid": time_chunks(partial(grid, cfg=train_cfg), progress, n_lanes=cfg.n_seeds),
        "sampling": time_sampling(one, cfg.batch_size),
    }
    return results | ({"whole": time_whole()} if cfg.whole else {})


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


def summary(record: dict[str, Any]) -> list[str]:
    results, n_seeds = record["results"], record["config"]["n_seeds"]
    names = {"one_run": "one run, a step", "grid": f"{n_seeds} seeds, a step and seed", "sampling": "sampling, a batch"}
    lines = [
        "{}: median {median_us:.0f} µs ({min_us:.0f} to {max_us:.0f})".format(label, **results[name])
        for name, label in names.items()
    ]
    if "whole" in results:
        whole = results["whole"]
        lines.append(f"python -m experiments: {whole['seconds']:.0f} s, peak {whole['peak_memory_gb']:.2f} GB")
    return lines


def plot(record: dict[str, Any]) -> Figure:
    results, n_seeds = record["results"], record["config"]["n_seeds"]
    bars = {
        "sampling": "sampling alone,\na batch",
        "one_run": "one run,\na step",
        "grid": f"{n_seeds} seeds,\na step and seed",
    }
    with plots.styled(1.9) as figure:
        ax = figure.subplots()
        for y, name in enumerate(bars):
            timing = results[name]
            error = [[timing["median_us"] - timing["min_us"]], [timing["max_us"] - timing["median_us"]]]
            ax.barh(y, timing["median_us"], xerr=error, color=plots.COLOURS["matryoshka"], height=0.55, capsize=2)
            ax.text(1, y, f"{timing['median_us']:.0f}", color="white", va="center", fontsize=7.5)
        ax.set_yticks(range(len(bars)), list(bars.values()))
        ax.set(xlabel="µs (median; bars from minimum to maximum)", title="Time after compilation")
        devices = record["versions"]["devices"]
        plots.caption(figure, record, f"Reference set-up, {record['config']['n_prefixes']} sampled prefixes, {devices}")
    return figure


if __name__ == "__main__":
    main("speed")
