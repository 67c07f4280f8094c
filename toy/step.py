"""One training step and the state it moves: the pure core that `toy.train` compiles."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from toy.loss import Sparsity, sae_loss
from toy.prefixes import Weighting, draw_weights, inclusion
from toy.sae import SAE, decode, encode, fold_input_scale, init_sae, reorder
from toy.source import Source
from toy.sparsity import control, ramped

CONTRIBUTION_DECAY = 0.95
INPUT_NORM_DECAY = 0.99

Number = Float[Array, "*lanes"] | float


@dataclass(frozen=True)
class TrainConfig:
    """What fixes the compiled program. Shares of steps are of `n_steps`."""

    n_latents: int
    n_steps: int = 20_000
    batch_size: int = 200
    sparsity: Sparsity = "l1"
    n_lr_warmup_steps: int = 100
    lr_cooldown_share: float = 0.2  # linear, at the end, …
    final_lr_share: float = 0.1  # … down to this share of the learning rate
    sparsity_warmup_share: float = 0.2
    reinit_every: int = 500
    reinit_window: tuple[float, float] = (0.2, 0.6)  # shares of n_steps between which weak latents start anew

    def __post_init__(self) -> None:
        for name in ("n_latents", "n_steps", "batch_size", "n_lr_warmup_steps", "reinit_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        shares = ("lr_cooldown_share", "final_lr_share", "sparsity_warmup_share")
        for name, share in [(name, getattr(self, name)) for name in shares] + [
            ("reinit_window", share) for share in self.reinit_window
        ]:
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: {share} is outside [0, 1]")
        if self.sparsity not in ("l1", "log"):
            raise ValueError(f"sparsity: expected 'l1' or 'log', got {self.sparsity!r}")

    @property
    def n_sparsity_warmup_steps(self) -> int:
        return round(self.sparsity_warmup_share * self.n_steps)


class Hypers(NamedTuple):
    """What a sweep may vary: traced, any field can have a lane axis."""

    prefixes: Weighting
    target_l0: Number
    learning_rate: Number = 2e-2  # the reference code has 3e-2
    b1: Number = 0.5
    b2: Number = 0.9375
    clip_norm: Number = 1.0  # of the global gradient norm
    sparsity_coef: Number = 1.0  # where the L0 controller starts
    control_rate: Number = 3e-4  # per step; 0 keeps the coefficient fixed
    reinit_below: Number = 0.3  # of the median contribution; 0 turns re-initialisation off


class TrainState(NamedTuple):
    """Everything a run needs to go on. Latents keep their places: their order is the rank of `contribution`."""

    step: Int[Array, ""]
    key: Key[Array, "*lanes"]
    sae: SAE  # acts on inputs scaled to mean norm √d_in
    opt_state: PyTree
    sparsity_coef: Float[Array, "*lanes"]
    contribution: Float[Array, "*lanes n_latents"]  # running mean of squared activation · squared decoder norm
    input_norm: Float[Array, "*lanes"]  # running mean of ‖x‖, still to be divided by 1 − decay^step


class Metrics(NamedTuple):
    """Means over the steps of a chunk."""

    loss: Float[Array, "*chunk"]
    mse: Float[Array, "*chunk"]  # weighted over prefixes, inputs scaled to mean norm √d_in
    l0: Float[Array, "*chunk"]
    sparsity_coef: Float[Array, "*chunk"]


def init_state(key: Key[Array, ""], hypers: Hypers, *, d_in: int, cfg: TrainConfig) -> TrainState:
    key_sae, key_steps = jax.random.split(key)
    sae = init_sae(key_sae, d_in, cfg.n_latents)
    return TrainState(
        step=jnp.int32(0),
        key=key_steps,
        sae=sae,
        opt_state=_optimizer(hypers, cfg).init(sae),
        sparsity_coef=jnp.asarray(hypers.sparsity_coef, sae.W_enc.dtype),
        contribution=jnp.zeros(cfg.n_latents),
        input_norm=jnp.zeros(()),
    )


def _optimizer(hypers: Hypers, cfg: TrainConfig) -> optax.GradientTransformation:
    """Clip by global norm, then Adam: linear warm-up, constant, linear cool-down (reference code)."""
    n_cooldown = round(cfg.lr_cooldown_share * cfg.n_steps)
    shape = optax.join_schedules(
        [
            optax.linear_schedule(0.0, 1.0, cfg.n_lr_warmup_steps),
            optax.linear_schedule(1.0, cfg.final_lr_share, n_cooldown),
        ],
        [cfg.n_steps - n_cooldown],
    )
    return optax.chain(
        optax.clip_by_global_norm(hypers.clip_norm),  # type: ignore[arg-type]
        optax.scale_by_adam(hypers.b1, hypers.b2),  # type: ignore[arg-type]
        optax.scale_by_learning_rate(lambda count: hypers.learning_rate * shape(count)),
    )


def ranks(contribution: Float[Array, " n_latents"]) -> Int[Array, " n_latents"]:
    """Each latent's place, from 0, when sorted by descending contribution; ties keep their order."""
    place = jnp.arange(contribution.shape[0])
    ahead = (contribution > contribution[:, None]) | (
        (contribution == contribution[:, None]) & (place < place[:, None])
    )
    return ahead.sum(axis=1)


def input_scale(state: TrainState, d_in: int) -> Float[Array, ""]:
    """What scales inputs to mean norm √d_in; the running mean is rid of its start at 0 as Adam's are."""
    mean_norm = state.input_norm / (1 - INPUT_NORM_DECAY**state.step)
    return jnp.sqrt(d_in) / jnp.maximum(mean_norm, 1e-12)


def train_step(state: TrainState, source: Source, hypers: Hypers, *, cfg: TrainConfig) -> tuple[TrainState, Metrics]:
    """Sample, scale, weigh prefixes by rank, descend, control L0, update ranks, restart weak latents."""
    key_data, key_prefixes, key_reinit = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
    step = state.step
    x = source.sample(key_data, cfg.batch_size)
    mean_norm = jnp.mean(jnp.linalg.norm(x, axis=1))
    state = state._replace(
        step=step + 1,
        input_norm=INPUT_NORM_DECAY * state.input_norm + (1 - INPUT_NORM_DECAY) * mean_norm,
    )
    x = x * input_scale(state, x.shape[1])

    weights = draw_weights(key_prefixes, hypers.prefixes)
    coef = ramped(state.sparsity_coef, step, cfg.n_sparsity_warmup_steps)
    loss_fn = partial(sae_loss, sparsity=cfg.sparsity)
    (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.sae, x, inclusion(weights, ranks(state.contribution)), coef
    )
    updates, opt_state = _optimizer(hypers, cfg).update(grads, state.opt_state)
    state = state._replace(
        sae=optax.apply_updates(state.sae, updates),
        opt_state=opt_state,
        sparsity_coef=control(
            state.sparsity_coef, parts.l0, hypers.target_l0, hypers.control_rate, step, cfg.n_sparsity_warmup_steps
        ),
        contribution=CONTRIBUTION_DECAY * state.contribution + (1 - CONTRIBUTION_DECAY) * parts.contribution,
    )
    first, last = (round(share * cfg.n_steps) for share in cfg.reinit_window)
    due = (step % cfg.reinit_every == 0) & (step >= first) & (step <= last)
    # The predicate has no lane axis, so that under vmap this stays a branch and costs nothing when not due.
    state = jax.lax.cond(due, lambda s: reinit_weak(key_reinit, s, x, hypers.reinit_below), lambda s: s, state)
    return state, Metrics(loss, parts.mse, parts.l0, coef)


def reinit_weak(key: Key[Array, ""], state: TrainState, x: Float[Array, "batch d_in"], below: Number) -> TrainState:
    """Point each latent whose contribution is under `below` · median at the residual of a badly rebuilt sample.

    Samples are drawn with probability ∝ (squared error)². The latent's first moments are cleared with it; the
    second stay, so that Adam does not leap.
    """
    sae = state.sae
    weak = state.contribution < below * jnp.median(state.contribution)
    residual = x - decode(sae, encode(sae, x))
    log_odds = 2 * jnp.log(jnp.sum(residual**2, axis=1) + 1e-12)
    d = residual[jax.random.categorical(key, log_odds, shape=weak.shape)]

    def where_weak(new: SAE, old: SAE) -> SAE:
        return SAE(
            jnp.where(weak, new.W_enc, old.W_enc),
            jnp.where(weak, new.b_enc, old.b_enc),
            jnp.where(weak[:, None], new.W_dec, old.W_dec),
            old.b_dec,
        )

    aligned = (d / (jnp.sum(d**2, axis=1, keepdims=True) + 1e-12)).T  # so that the latent rebuilds its sample
    restarted = SAE(aligned, jnp.zeros_like(sae.b_enc), d, sae.b_dec)
    moments = optax.tree.get(state.opt_state, "mu")
    cleared = jax.tree.map(jnp.zeros_like, moments)
    return state._replace(
        sae=where_weak(restarted, sae),
        opt_state=optax.tree.set(state.opt_state, mu=where_weak(cleared, moments)),
    )


def trained_sae(state: TrainState) -> SAE:
    """The SAE of a run, on unscaled inputs, its latents sorted by contribution."""
    order = jnp.argsort(ranks(state.contribution))
    return reorder(fold_input_scale(state.sae, input_scale(state, state.sae.b_dec.shape[0])), order)
