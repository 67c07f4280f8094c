"""Training of a language model on rows of tokens, as a resumable pure function of a key, in compiled chunks."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from toy.checks import NOT_NEGATIVE, POSITIVE, Whole, check_fields
from toy.compiled import compiled
from toy.lm.model import LM, LMConfig, Tap, keep
from toy.lm.tokens import Rows
from toy.training.config import MAX_STEPS
from toy.training.loop import Checkpoint, Progress, run_chunks


@dataclass(frozen=True)
class LMTrainConfig:
    """The settings with which a language model is trained."""

    n_steps: int = 600
    batch_size: int = 32  # rows
    learning_rate: float = 3e-3  # of AdamW, after a linear warm-up; decays to a tenth along a cosine
    n_warmup_steps: int = 50
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            n_steps=Whole(most=MAX_STEPS),
            batch_size=Whole(most=MAX_STEPS),
            learning_rate=POSITIVE,
            n_warmup_steps=Whole(0),
            weight_decay=NOT_NEGATIVE,
            clip_norm=POSITIVE,
        )


class LMState(NamedTuple):
    """Everything needed to continue a run."""

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree


class LMMetrics(NamedTuple):
    """Means over the steps of a chunk."""

    loss: Float[Array | np.ndarray, "*chunk"]


class _TokenBatches(NamedTuple):
    """The batches of consecutive steps; `real` marks tokens as opposed to padding."""

    ids: Int[np.ndarray | Array, "n_steps batch context"]
    real: Bool[np.ndarray | Array, "n_steps batch context"]


def train_lm(
    key: Key[Array, ""],
    rows: Rows,
    lm_cfg: LMConfig,
    *,
    cfg: LMTrainConfig,
    chunk: int = 50,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[LM, LMMetrics]:
    """Returns the trained model and its history, with one entry per chunk. Each epoch takes every row in a new order.

    Raises: ValueError if the rows do not fit the model.
    """
    if rows.ids.shape[1] > lm_cfg.context or rows.ids.max() >= lm_cfg.vocab_size:
        raise ValueError(
            f"rows: of {rows.ids.shape[1]} ids up to {rows.ids.max()}, but the model has context {lm_cfg.context} and "
            f"vocabulary {lm_cfg.vocab_size}"
        )
    key_model, key_order = jax.random.split(key)
    graph, params = nnx.split(LM(lm_cfg, rngs=nnx.Rngs(key_model)), nnx.Param)
    state = LMState(jnp.int32(0), params, _optimizer(cfg).init(params))
    seed = np.asarray(jax.random.key_data(key_order)).tolist()

    chunk = min(chunk, cfg.n_steps)

    def read(first: int) -> _TokenBatches:
        at = _rows_of_steps(first, chunk, cfg.batch_size, len(rows.ids), seed)
        return _TokenBatches(rows.ids[at], rows.real()[at])

    state, history = run_chunks(
        partial(_advance, graph=graph, cfg=cfg),
        state,
        cfg.n_steps,
        feed=read,
        chunk=chunk,
        empty=LMMetrics(np.zeros(0, np.float32)),
        progress=progress,
        checkpoint=checkpoint,
        facts={"model": lm_cfg.facts(), "training": asdict(cfg), "seed": seed, "rows": rows.digest()},
    )
    return nnx.merge(graph, state.params), history


def _rows_of_steps(
    first: int, n_steps: int, batch_size: int, n_rows: int, seed: list[int]
) -> Int[np.ndarray, "n_steps batch"]:
    """The rows of each step, as a pure function of the step, so that a resumed run sees the same."""
    places = np.arange(first * batch_size, (first + n_steps) * batch_size)
    epochs = {
        epoch: np.random.default_rng([*seed, epoch]).permutation(n_rows) for epoch in set((places // n_rows).tolist())
    }
    taken = np.array([epochs[int(place) // n_rows][place % n_rows] for place in places])
    return taken.reshape(n_steps, batch_size)


def _optimizer(cfg: LMTrainConfig) -> optax.GradientTransformation:
    n_warmup = min(cfg.n_warmup_steps, cfg.n_steps // 2)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, cfg.learning_rate, n_warmup, cfg.n_steps, end_value=cfg.learning_rate / 10
    )
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.adamw(rate, b2=0.98, weight_decay=cfg.weight_decay, mask=_is_matrix),
    )


def _is_matrix(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.ndim == 2, params)  # biases and norms do not decay


@compiled(static_argnames=("graph", "cfg"), donate_argnames="state")
def _advance(
    state: LMState, batches: _TokenBatches, n_steps: Int[Array, ""] | int, *, graph: Any, cfg: LMTrainConfig
) -> tuple[LMState, LMMetrics]:
    """Take `n_steps` steps; a shorter last chunk leaves the rest of its batches, and needs no other program."""

    def step(i: Int[Array, ""], carry: tuple[LMState, Float[Array, ""]]) -> tuple[LMState, Float[Array, ""]]:
        state, sum_of_losses = carry

        def loss(params: PyTree) -> Float[Array, ""]:
            total, n_tokens = summed_loss(nnx.merge(graph, params), batches.ids[i], batches.real[i])
            return total / jnp.maximum(n_tokens, 1)  # rows of one token predict none

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = _optimizer(cfg).update(grads, state.opt_state, state.params)
        return LMState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), sum_of_losses + value

    state, sum_of_losses = jax.lax.fori_loop(0, n_steps, step, (state, jnp.float32(0)))
    return state, LMMetrics(sum_of_losses / n_steps)


def summed_loss(
    lm: LM, ids: Int[Array, "batch context"], real: Bool[Array, "batch context"], tap: Tap = keep
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns Σ −log P(next token) in nats, and the number of predicted tokens: all but the first of each row."""
    losses = optax.softmax_cross_entropy_with_integer_labels(lm(ids, tap)[:, :-1], ids[:, 1:])
    return jnp.sum(losses * real[:, 1:]), jnp.sum(real[:, 1:]).astype(losses.dtype)


@compiled(static_argnames="graph")
def _loss_of(params: PyTree, ids: Array, real: Array, *, graph: Any) -> tuple[Array, Array]:
    return summed_loss(nnx.merge(graph, params), ids, real)


def mean_loss(lm: LM, rows: Rows, batch_size: int = 32) -> float:
    """Mean cross-entropy of the next token over all rows, in nats."""
    graph, params = nnx.split(lm, nnx.Param)
    sums = [_loss_of(params, ids, real, graph=graph) for ids, real in row_batches(rows, batch_size)]
    total, n_tokens = np.sum(np.array(sums, float), axis=0)
    return float(total / n_tokens)


def row_batches(rows: Rows, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches (ids, real) of equal shape; the last is filled up with rows of padding."""
    missing = -len(rows.ids) % batch_size
    ids = np.concatenate([rows.ids, np.repeat(rows.ids[:1], missing, axis=0)])
    real = np.concatenate([rows.real(), np.zeros((missing, rows.ids.shape[1]), bool)])
    n = len(ids) // batch_size
    return list(zip(np.split(ids, n), np.split(real, n), strict=True))


def unigram_entropy(rows: Rows) -> float:
    """Entropy of the predicted tokens' distribution in nats, which is the lowest loss without context."""
    counts = np.bincount(rows.ids[:, 1:][rows.real()[:, 1:]])
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))
