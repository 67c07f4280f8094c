"""Cases of SAEs trained straight from a language model's forward pass, beside the pass alone and the training alone.

The model has the shape of stories260K and random weights, and rows of tokens are as full as TinyStories fill them:
either takes as long as the real one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.bench.forward_speed import STORIES260K
from experiments.bench.worker import Case, timed
from toy.data.source import ArraySource, Source, Stream
from toy.lm.forward_stream import ForwardStream, Pools
from toy.lm.model import LM, parse_site
from toy.lm.tokens import Rows
from toy.prefixes import sampled
from toy.training.config import Hypers, TrainConfig
from toy.training.run import train

SHORTEST = 172  # tokens of a row; as lengths spread evenly up to the context, 67% of the places hold a token
N_ROWS, POOL = 1_024, 128  # rows of tokens: in an epoch, and computed at once
N_CHUNKS = 8  # of a training: what is read and what is trained on overlap


def cases(job: dict[str, Any]) -> dict[str, Case]:
    """Cases whose unit is a token. Every call computes its activations anew."""
    lm, site, rows = LM(STORIES260K, rngs=nnx.Rngs(0)), parse_site(job["site"], STORIES260K.n_layers), random_rows()

    def stream() -> ForwardStream:
        return ForwardStream(Pools(lm, rows, (site,), pool=POOL), site)

    in_memory = ArraySource(stream().batches(0, 1, job["n_tokens"]).x[0].astype(jnp.float32))
    alone = timed(lambda: stream().batches(0, 1, job["n_tokens"]).x, job["n_tokens"])
    found = {"forward pass alone": Case(alone)}
    for batch_size in job["batch_sizes"]:
        name = f"batch {batch_size:,}"
        found[f"training alone, {name}"] = Case(timed_training(lambda: in_memory, batch_size, job))
        found[f"both, {name}"] = Case(timed_training(stream, batch_size, job))
    return found


def random_rows() -> Rows:
    rng = np.random.default_rng(0)
    length = rng.permutation(np.linspace(SHORTEST, STORIES260K.context, N_ROWS).round().astype(np.int32))
    ids = rng.integers(0, STORIES260K.vocab_size, (N_ROWS, STORIES260K.context)).astype(np.int32)
    return Rows(ids, length, np.arange(N_ROWS, dtype=np.int32), np.zeros(N_ROWS, np.int32))


def timed_training(
    source: Callable[[], Source | Stream], batch_size: int, job: dict[str, Any]
) -> Callable[[], list[float]]:
    """A whole training, within which every activation that it needs is computed."""
    n_steps = job["n_tokens"] // batch_size
    cfg = TrainConfig(job["n_latents"], n_steps=n_steps, batch_size=batch_size)
    hypers = Hypers(sampled(job["n_latents"], job["n_prefixes"]), target_l0=job["target_l0"])
    run = partial(train, jax.random.key(0), hypers=hypers, cfg=cfg, chunk=max(1, n_steps // N_CHUNKS))
    return timed(lambda: run(source())[0], n_steps * batch_size)
