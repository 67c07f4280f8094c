"""Times the cases of a table: `python worker.py JOB` prints a line for every line that it reads.

It is run as a script on the checkout that PYTHONPATH names, so that the reference set-up is also timed on older code.
The first line it prints is JSON with what it runs on and each case's facts, a further one a round's seconds per unit.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Case:
    """Something to time: `seconds()` does the work and returns how long each unit of it took."""

    seconds: Callable[[], list[float]]
    facts: dict[str, Any] = field(default_factory=dict)


def timed(call: Callable[[], Any], units: int = 1, n_calls: int = 1) -> Callable[[], list[float]]:
    """Times one call, or several in a row where one is too short to time, in units of a `units`-th of a call."""

    def seconds() -> list[float]:
        start = time.perf_counter()
        for _ in range(n_calls):
            jax.block_until_ready(call())
        return [(time.perf_counter() - start) / units / n_calls]

    return seconds


def timed_chunks(run: Callable[..., Any], chunk: int, per_step: int = 1) -> Callable[[], list[float]]:
    """Times every chunk of a training but its first, which holds the start; a unit is a `per_step`-th of a step."""

    def seconds() -> list[float]:
        marks: list[float] = []
        run(chunk=chunk, progress=lambda _: marks.append(time.perf_counter()))
        return (np.diff(marks) / chunk / per_step).tolist()

    return seconds


def reference(job: dict[str, Any]) -> dict[str, Case]:
    """The reference set-up, on this code and on revisions from before the modules were put in folders."""
    homes = ["toy.train", "toy.source", "toy.tree", "toy.trees", "toy.dictionary"]
    if hasattr(import_module("toy"), "TreeSource"):
        homes = ["toy"]
    names = {name: value for home in homes for name, value in vars(import_module(home)).items()}
    n_seeds, chunk, source = job["n_seeds"], job["chunk"], names["TreeSource"]
    tree = names["build_tree"](names["reference_tree"]())
    keys = jax.random.split(jax.random.key(0), n_seeds)
    W_feat = names["make_directions"](keys, tree.n_features, 30)
    sampled = import_module("toy.prefixes").sampled(tree.n_features, 10)
    hypers = names["Hypers"](sampled, target_l0=names["mean_l0"](tree))
    options = {"cfg": names["TrainConfig"](tree.n_features, n_steps=3 * chunk)}
    one = partial(names["train"], keys[0], source(tree, W_feat[0]), hypers, **options)
    axes = (source(None, 0), None)
    many = partial(names["train_grid"], keys, source(tree, W_feat), hypers, in_axes=axes, **options)
    return {
        "one run": Case(timed_chunks(one, chunk)),
        f"{n_seeds} seeds at once": Case(timed_chunks(many, chunk, per_step=n_seeds)),
    }


def make_cases(job: dict[str, Any]) -> dict[str, Case]:
    if job["what"] == "reference":
        return reference(job)
    module, _, function = job["what"].partition(".")
    return getattr(import_module(f"experiments.bench.{module}"), function)(job)


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    job = json.loads(sys.argv[1])
    if job["devices"]:
        jax.config.update("jax_num_cpu_devices", job["devices"])
    cases = make_cases(job)
    for case in cases.values():
        case.seconds()  # compiles
    facts = {name: case.facts for name, case in cases.items()}
    answer: dict[str, Any] = {"device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}", "facts": facts}
    for _ in sys.stdin:
        print(json.dumps(answer or {name: case.seconds() for name, case in cases.items()}), file=answers, flush=True)
        answer = {}


if __name__ == "__main__":
    main()
