"""What a job of `experiments.bench.jobs` times: `python -m experiments.bench.cases JOB.json` prints one line of JSON.

Within a job everything is interleaved: a round calls every case, so that a machine's slow minute falls on all.
"""

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.jobs import Job
from toy import prefixes
from toy.data.source import ArraySource
from toy.loss import sae_loss
from toy.sae import RELU, SAE, Activation, BatchTopK, TopK, decoder_norms, init_sae
from toy.training.advance import advance
from toy.training.config import Hypers, TrainConfig
from toy.training.state import init_state

DENSE = ("full", "fixed", "sampled", "hybrid", "expected", "all")  # prefixes of ReLU SAEs
SPARSE = ("topk_plain", "topk_full", "topk_sampled", "topk_all", "batchtopk_full", "batchtopk_all")
LOSS_CALLS = 2  # a round: their ratios are close to 1, and calls on a shared machine differ by a tenth
STEPS = ("step_relu_sampled", "step_topk_all", "step_batchtopk_all")
PRODUCTS = {
    **dict.fromkeys(DENSE, 5),
    "expected": 8,
    "all": 8,
}  # dense ones a case needs: batch x n_latents x d_in each


class Case:
    """Something to time: call it, wait for it, count its seconds for each unit of work."""

    def __init__(self, call: Callable[[], Any], *, units: int = 1, **facts: Any) -> None:
        self.call, self.units, self.facts = call, units, facts
        self.seconds: list[float] = []

    def time(self) -> None:
        start = time.perf_counter()
        jax.block_until_ready(self.call())
        self.seconds.append((time.perf_counter() - start) / self.units)

    def report(self) -> dict[str, Any]:
        ms = 1e3 * np.array(self.seconds)
        spread = {"median_ms": float(np.median(ms)), "min_ms": float(ms.min()), "max_ms": float(ms.max())}
        return spread | {"ms": ms.tolist()} | self.facts


def main(path: str) -> None:
    job = Job(**json.loads(Path(path).read_text(encoding="utf-8")))
    if job.dtype == "tf32":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")
    losses = {**matmul_case(job), **loss_cases(job)}
    steps = {**step_cases(job), **(peer_cases(job) if job.peers else {})}
    for _ in range(job.n_rounds):
        for case in (*(LOSS_CALLS * list(losses.values())), *steps.values()):
            case.time()
    device = jax.devices()[0]
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    reports = {name: case.report() for name, case in (losses | steps).items()}
    print(
        json.dumps({"job": dataclasses.asdict(job), "device": device.device_kind, "cores": n_cores, "cases": reports})
    )


def compiled(function: Callable, *args: Any, **jit: Any) -> tuple[Callable, dict[str, Any]]:
    """The compiled function, and what compiling took and what it needs beside its arguments and shared outputs."""
    start = time.perf_counter()
    program = jax.jit(function, **jit).lower(*args).compile()
    seconds, memory = time.perf_counter() - start, program.memory_analysis()
    assert memory is not None, "this backend does not say what memory a program needs"
    extra = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    jax.block_until_ready(program(*jax.tree.map(jnp.copy, args)))  # the first call of a program is slower
    return program, {"compile_s": seconds, "memory_mb": extra / 1e6}


def matmul_case(job: Job) -> dict[str, Case]:
    """One dense product of the job's shape: the rate of the machine that the others are measured against."""
    dtype = jnp.bfloat16 if job.dtype == "bfloat16" else jnp.float32
    a, b = jnp.ones((job.batch_size, job.d_in), dtype), jnp.ones((job.d_in, job.n_latents), dtype)
    program, facts = compiled(jnp.matmul, a, b)
    return {"matmul": Case(partial(program, a, b), products=1, **facts)}


def make_weighting(name: str, job: Job) -> prefixes.Weighting:
    n = job.n_latents
    geometric = sorted({round(width) for width in np.geomspace(1, n, job.n_prefixes)})
    weighting = {
        "full": lambda: prefixes.full(n),
        "fixed": lambda: prefixes.fixed(n, geometric),
        "sampled": lambda: prefixes.sampled(n, job.n_prefixes),
        "hybrid": lambda: prefixes.hybrid(n, job.n_prefixes),
        "expected": lambda: prefixes.expected(n, job.n_prefixes),
        "all": lambda: prefixes.all_prefixes(n),
    }[name]()
    return jax.tree.map(jnp.asarray, weighting)


def loss_cases(job: Job) -> dict[str, Case]:
    """Value and gradient of the loss on one batch, sampled prefixes drawn anew each call."""
    key_sae, key_x = jax.random.split(jax.random.key(0))
    sae = init_sae(key_sae, job.d_in, job.n_latents)
    x, ranks = jax.random.normal(key_x, (job.batch_size, job.d_in)), jnp.arange(job.n_latents)

    def value_and_grad(
        sae: SAE, x: jax.Array, key: jax.Array, weighting: prefixes.Weighting, activation: Activation
    ) -> Any:
        def loss(sae: SAE) -> jax.Array:
            if job.dtype == "bfloat16":
                sae = sae._replace(W_enc=sae.W_enc.astype(jnp.bfloat16), W_dec=sae.W_dec.astype(jnp.bfloat16))
            drawn = prefixes.draw(key, weighting)
            return sae_loss(sae, x, drawn, ranks, activation=activation, form="wide")[0]

        return jax.value_and_grad(loss)(sae)

    def case(function: Callable, *args: Any, **facts: Any) -> Case:
        program, measured = compiled(function, sae, x, jax.random.key(0), *args)
        keys = itertools.cycle(list(jax.random.split(jax.random.key(1), 32)))
        return Case(lambda: program(sae, x, next(keys), *args), **facts, **measured)

    cases = {
        name: case(partial(value_and_grad, activation=RELU), make_weighting(name, job), products=PRODUCTS[name])
        for name in DENSE
    }
    for name in SPARSE:
        kind, _, prefix = name.partition("_")
        if prefix == "plain":
            cases[name] = case(partial(plain_topk, k=job.k), products=2)
            continue
        activation = {"topk": TopK(job.k), "batchtopk": BatchTopK(job.k)}[kind]
        cases[name] = case(partial(value_and_grad, activation=activation), make_weighting(prefix, job), products=1)
    return cases


def plain_topk(sae: SAE, x: jax.Array, key: jax.Array, *, k: int) -> Any:
    """TopK as one writes it first: gather the chosen rows of the decoder, and let JAX differentiate it all."""

    def loss(sae: SAE) -> jax.Array:
        pre_acts = jax.nn.relu(x @ sae.W_enc + sae.b_enc)
        _, latents = jax.lax.top_k(pre_acts * decoder_norms(sae), k)
        values = jnp.take_along_axis(pre_acts, latents, axis=1)
        recon = jnp.einsum("bk,bkd->bd", values, sae.W_dec[latents]) + sae.b_dec
        return jnp.mean(jnp.sum((x - recon) ** 2, axis=1))

    return jax.value_and_grad(loss)(sae)


def step_cases(job: Job) -> dict[str, Case]:
    """Whole training steps: batch from memory, loss, clipping, Adam, order of the latents, bookkeeping."""
    x = jax.random.normal(jax.random.key(2), (4 * job.batch_size, job.d_in))
    cases = {}
    for name in STEPS:
        kind, prefix = name.split("_")[1:]
        activation = {"relu": RELU, "topk": TopK(job.k), "batchtopk": BatchTopK(job.k)}[kind]
        cfg = TrainConfig(
            job.n_latents,
            batch_size=job.batch_size,
            activation=activation,
            form="wide",
            dtype="bfloat16" if job.dtype == "bfloat16" else "float32",
        )
        hypers = jax.tree.map(jnp.asarray, Hypers(make_weighting(prefix, job), target_l0=float(job.k)))
        n_steps = cfg.reorder_every if cfg.moves_latents else 3
        cases[name] = Case(training(job, cfg, hypers, ArraySource(x), n_steps), units=n_steps)
    return cases


def training(job: Job, cfg: TrainConfig, hypers: Hypers, source: ArraySource, n_steps: int) -> Callable[[], Any]:
    state = [init_state(jax.random.key(3), hypers, d_in=job.d_in, cfg=cfg)]

    def steps() -> Any:
        state[0], metrics = advance(state[0], source, hypers, cfg=cfg, n_steps=n_steps)
        return metrics, state[0]

    jax.block_until_ready(steps())  # compile
    return steps


def peer_cases(job: Job) -> dict[str, Case]:
    """SAELens' training steps on the same shape."""
    from experiments.bench import peers  # an optional extra, slow to import

    if job.threads is not None:
        peers.set_threads(job.threads)
    cases = {}
    for architecture in peers.ARCHITECTURES:
        step = peers.training_step(
            architecture, d_in=job.d_in, n_latents=job.n_latents, batch_size=job.batch_size, k=job.k
        )
        step()  # memory for gradients and moments
        cases[f"sae_lens_{architecture}"] = Case(step)
    return cases


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.bench.cases JOB.json (experiments.speed writes it and reads the answer)")
    main(sys.argv[1])
