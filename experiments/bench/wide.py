"""Cases at language-model width: losses and gradients of every weighting, whole training steps, and SAELens' steps."""

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.worker import Case, timed
from toy import prefixes
from toy.data.source import ArraySource
from toy.loss import sae_loss
from toy.methods import Standard, TopKFamily
from toy.sae import RELU, SAE, Activation, BatchTopK, TopK, decoder_norms, init_sae
from toy.training.advance import advance
from toy.training.config import Hypers, TrainConfig
from toy.training.state import init_state

K, N_PREFIXES = 32, 10
KINDS: dict[str, Activation] = {"ReLU": RELU, "TopK": TopK(K), "BatchTopK": BatchTopK(K)}
DENSE = ("full prefix", "fixed", "sampled", "hybrid", "expected", "every prefix")  # of ReLU SAEs
SPARSE = (
    "TopK, full prefix",
    "TopK, sampled",
    "TopK, every prefix",
    "BatchTopK, full prefix",
    "BatchTopK, every prefix",
)
STEPS = ("ReLU, sampled", "TopK, every prefix", "BatchTopK, every prefix")
PEER = "step of SAELens, {}"


def cases(job: dict[str, Any]) -> dict[str, Case]:
    """Cases of the job's n_latents, d_in, batch_size and dtype (float32, bfloat16 or tf32)."""
    if job["dtype"] == "tf32":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")
    return {**product_case(job), **loss_cases(job), **step_cases(job), **(peer_cases(job) if job["peers"] else {})}


def compiled(function: Callable, *args: Any) -> tuple[Callable, dict[str, Any]]:
    """The compiled function, how long compiling took, and what memory it needs beside its arguments."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    seconds, memory = time.perf_counter() - start, program.memory_analysis()
    assert memory is not None, "this backend does not say what memory a program needs"
    extra = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return program, {"compile_s": seconds, "memory_mb": extra / 1e6}


def product_case(job: dict[str, Any]) -> dict[str, Case]:
    """One dense product of the job's shape: the rate of the machine that the others are measured against."""
    dtype = jnp.bfloat16 if job["dtype"] == "bfloat16" else jnp.float32
    a, b = jnp.ones((job["batch_size"], job["d_in"]), dtype), jnp.ones((job["d_in"], job["n_latents"]), dtype)
    return {"one dense product": Case(timed(partial(compiled(jnp.matmul, a, b)[0], a, b)))}


def make_weighting(name: str, n_latents: int) -> prefixes.Weighting:
    geometric = sorted({round(width) for width in np.geomspace(1, n_latents, N_PREFIXES)})
    weighting = {
        "full prefix": prefixes.full,
        "fixed": partial(prefixes.fixed, widths=geometric),
        "sampled": partial(prefixes.sampled, n_prefixes=N_PREFIXES),
        "hybrid": partial(prefixes.hybrid, n_prefixes=N_PREFIXES),
        "expected": partial(prefixes.expected, n_prefixes=N_PREFIXES),
        "every prefix": prefixes.all_prefixes,
    }[name](n_latents)
    return jax.tree.map(jnp.asarray, weighting)


def loss_cases(job: dict[str, Any]) -> dict[str, Case]:
    """Value and gradient of the loss on one batch, sampled prefixes drawn anew each call."""
    key_sae, key_x = jax.random.split(jax.random.key(0))
    sae = init_sae(key_sae, job["d_in"], job["n_latents"])
    x, ranks = jax.random.normal(key_x, (job["batch_size"], job["d_in"])), jnp.arange(job["n_latents"])

    def loss(sae: SAE, x: jax.Array, key: jax.Array, weighting: prefixes.Weighting, *, activation: Activation) -> Any:
        if job["dtype"] == "bfloat16":
            sae = sae._replace(W_enc=sae.W_enc.astype(jnp.bfloat16), W_dec=sae.W_dec.astype(jnp.bfloat16))
        return sae_loss(sae, x, prefixes.draw(key, weighting), ranks, activation=activation, form="wide")[0]

    def case(loss: Callable, *args: Any, **facts: Any) -> Case:
        program, measured = compiled(jax.value_and_grad(loss), sae, x, jax.random.key(0), *args)
        keys = itertools.cycle(list(jax.random.split(jax.random.key(1), 32)))
        return Case(timed(lambda: program(sae, x, next(keys), *args)), facts | measured)

    found = {"TopK as first written": case(plain_topk, to="TopK, full prefix")}
    for name in (*(f"ReLU, {prefix}" for prefix in DENSE), *SPARSE):
        kind, _, prefix = name.partition(", ")
        to = "ReLU, full prefix" if kind == "ReLU" else "TopK, full prefix"
        of_kind = partial(loss, activation=KINDS[kind])
        found[name] = case(of_kind, make_weighting(prefix, job["n_latents"]), to=to)
    return found


def plain_topk(sae: SAE, x: jax.Array, key: jax.Array) -> jax.Array:
    """TopK as one writes it first: gather the chosen rows of the decoder, and let JAX differentiate it all."""
    pre_acts = jax.nn.relu(x @ sae.W_enc + sae.b_enc)
    _, latents = jax.lax.top_k(pre_acts * decoder_norms(sae), K)
    recon = jnp.einsum("bk,bkd->bd", jnp.take_along_axis(pre_acts, latents, axis=1), sae.W_dec[latents]) + sae.b_dec
    return jnp.mean(jnp.sum((x - recon) ** 2, axis=1))


def step_cases(job: dict[str, Any]) -> dict[str, Case]:
    """Whole training steps: batch from memory, loss, clipping, Adam, ranks of the latents, bookkeeping."""
    source = ArraySource(jax.random.normal(jax.random.key(2), (4 * job["batch_size"], job["d_in"])))
    dtype = "bfloat16" if job["dtype"] == "bfloat16" else "float32"
    found = {}
    for name in STEPS:
        kind, _, prefix = name.partition(", ")
        shape = {"batch_size": job["batch_size"], "form": "wide", "dtype": dtype}
        method = Standard() if kind == "ReLU" else TopKFamily(KINDS[kind])  # type: ignore[arg-type]
        cfg = TrainConfig(job["n_latents"], method=method, **shape)
        hypers = Hypers(make_weighting(prefix, job["n_latents"]), target_l0=float(K))
        n_steps = cfg.reorder_every if cfg.moves_latents else 3
        step = partial(_steps, [init_state(jax.random.key(3), hypers, d_in=job["d_in"], cfg=cfg)])
        call = partial(step, source, jax.tree.map(jnp.asarray, hypers), cfg, n_steps)
        found[f"step of {name}"] = Case(timed(call, n_steps), {"to": PEER.format("matryoshka_batchtopk")})
    return found


def _steps(state: list[Any], source: ArraySource, hypers: Hypers, cfg: TrainConfig, n_steps: int) -> Any:
    """Goes on from the one state in the list, which is given up to the compiled program."""
    state[0], metrics = advance(state[0], source, hypers, cfg=cfg, n_steps=n_steps)
    return metrics, state[0]


def peer_cases(job: dict[str, Any]) -> dict[str, Case]:
    """SAELens' training steps on the same shape."""
    from experiments.bench import peers  # an optional extra, slow to import

    if job["threads"] is not None:
        peers.set_threads(job["threads"])
    shape = {name: job[name] for name in ("d_in", "n_latents", "batch_size")}
    return {PEER.format(name): Case(timed(peers.training_step(name, k=K, **shape))) for name in peers.ARCHITECTURES}
