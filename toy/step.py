"""One training step, the upkeep between steps, and the state they move: the pure core that `toy.train` compiles."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from toy.loss import Form, LossParts, Sparsity, auxk_mse, choose_form, needs_order, reconstruct, sae_loss
from toy.prefixes import Prefixes, Weighting, draw
from toy.sae import (
    MOST_PAIRS,
    RELU,
    SAE,
    Activation,
    BatchTopK,
    ReLU,
    decoder_norms,
    fold_input_scale,
    init_sae,
    reorder,
)
from toy.shard import batch_sharding
from toy.source import Source
from toy.sparsity import control, control_threshold, ramped

CONTRIBUTION_DECAY = 0.95
INPUT_NORM_DECAY = 0.99
THRESHOLD_RATE = 0.02

Number = Float[Array, "*lanes"] | float


@dataclass(frozen=True)
class TrainConfig:
    """What fixes the compiled program. Shares of steps are of `n_steps`."""

    n_latents: int
    n_steps: int = 20_000
    batch_size: int = 200
    activation: Activation = RELU
    sparsity: Sparsity = "l1"  # of ReLU SAEs
    n_lr_warmup_steps: int = 100
    lr_cooldown_share: float = 0.2  # linear, at the end, …
    final_lr_share: float = 0.1  # … down to this share of the learning rate
    sparsity_warmup_share: float = 0.2
    reinit_every: int = 500
    reinit_window: tuple[float, float] = (0.2, 0.6)  # shares of n_steps between which weak latents start anew
    dead_after: int = 1_000  # steps without being on, after which AuxK trains a latent of the TopK family …
    aux_k: int | None = None  # … this many a sample; None: d_in / 2; 0 turns it off
    form: Form | None = None  # of the loss; None: by the number of latents (`toy.loss.choose_form`)
    reorder_every: int = 10  # steps between moves of the latents into the order of their ranks, where a form needs it
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products; parameters, sums and moments stay float32
    n_microbatches: int = 1  # parts of a batch that are held in memory one after the other

    def __post_init__(self) -> None:
        counts = ("n_latents", "n_steps", "batch_size", "n_lr_warmup_steps", "n_microbatches")
        for name in (*counts, "reinit_every", "reorder_every", "dead_after"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.aux_k is not None and self.aux_k < 0:
            raise ValueError(f"aux_k: must not be negative, got {self.aux_k}")
        if self.batch_size % self.n_microbatches:
            raise ValueError(f"n_microbatches: {self.n_microbatches} does not divide batch_size = {self.batch_size}")
        if not isinstance(self.activation, ReLU) and self.activation.k > self.n_latents:
            raise ValueError(f"activation: k = {self.activation.k} is more than n_latents = {self.n_latents}")
        shares = ("lr_cooldown_share", "final_lr_share", "sparsity_warmup_share")
        for name, share in [(name, getattr(self, name)) for name in shares] + [
            ("reinit_window", share) for share in self.reinit_window
        ]:
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: {share} is outside [0, 1]")
        for name, options in (
            ("sparsity", ("l1", "log")),
            ("form", (None, "gram", "wide")),
            ("dtype", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in options:
                listed = " or ".join(repr(option) for option in options)
                raise ValueError(f"{name}: expected {listed}, got {getattr(self, name)!r}")

    @property
    def loss_form(self) -> Form:
        return choose_form(self.n_latents) if self.form is None else self.form

    @property
    def moves_latents(self) -> bool:
        """Whether latents are kept in order by moving them; else their order is the rank of their contribution."""
        return needs_order(self.loss_form, self.activation)

    @property
    def n_sparsity_warmup_steps(self) -> int:
        return round(self.sparsity_warmup_share * self.n_steps)


class Hypers(NamedTuple):
    """What a sweep may vary: traced, any field can have a lane axis."""

    prefixes: Weighting
    target_l0: Number | None = None  # of a ReLU SAE; the TopK family's k stands in its activation
    learning_rate: Number = 2e-2  # the reference code has 3e-2
    b1: Number = 0.5
    b2: Number = 0.9375
    clip_norm: Number = 1.0  # of the global gradient norm
    sparsity_coef: Number = 1.0  # where the L0 controller starts
    control_rate: Number = 3e-4  # per step; 0 keeps the coefficient fixed
    reinit_below: Number = 0.3  # of the median contribution; 0 turns re-initialisation off
    aux_coef: Number = 1 / 32  # of the AuxK loss (Gao et al.)


class TrainState(NamedTuple):
    """Everything a run needs to go on."""

    step: Int[Array, ""]
    key: Key[Array, "*lanes"]
    sae: SAE  # acts on inputs scaled to mean norm √d_in
    opt_state: PyTree
    sparsity_coef: Float[Array, "*lanes"]
    contribution: Float[Array, "*lanes n_latents"]  # running mean of squared activation · squared decoder norm
    input_norm: Float[Array, "*lanes"]  # running mean of ‖x‖, still to be divided by 1 − decay^step
    threshold: Float[Array, "*lanes"] | None = None  # of BatchTopK: of activation · decoder norm, once trained
    silent: Int[Array, "*lanes n_latents"] | None = None  # with AuxK: steps since a latent was on


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
        threshold=jnp.ones(()) if isinstance(cfg.activation, BatchTopK) else None,
        silent=jnp.zeros(cfg.n_latents, jnp.int32) if _aux_k(cfg, d_in) else None,
    )


def _aux_k(cfg: TrainConfig, d_in: int) -> int:
    """Dead latents that AuxK trains a sample; 0 where there is no AuxK."""
    if isinstance(cfg.activation, ReLU):
        return 0
    return min(cfg.n_latents, max(1, d_in // 2) if cfg.aux_k is None else cfg.aux_k)


def _lr_share(cfg: TrainConfig) -> optax.Schedule:
    """Of the learning rate at a step: linear warm-up, constant, linear cool-down (reference code)."""
    n_cooldown = round(cfg.lr_cooldown_share * cfg.n_steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, 1.0, cfg.n_lr_warmup_steps),
            optax.linear_schedule(1.0, cfg.final_lr_share, n_cooldown),
        ],
        [cfg.n_steps - n_cooldown],
    )


def _optimizer(hypers: Hypers, cfg: TrainConfig) -> optax.GradientTransformation:
    """Clip by global norm, then Adam (reference code). XLA folds the clipping into Adam's passes."""
    lr_share = _lr_share(cfg)
    return optax.chain(
        optax.clip_by_global_norm(hypers.clip_norm),  # type: ignore[arg-type]
        optax.scale_by_adam(hypers.b1, hypers.b2),  # type: ignore[arg-type]
        optax.scale_by_learning_rate(lambda count: hypers.learning_rate * lr_share(count)),
    )


def ranks(contribution: Float[Array, " n_latents"]) -> Int[Array, " n_latents"]:
    """Each latent's place, from 0, when sorted by descending contribution; ties keep their order."""
    n_latents = contribution.shape[0]
    place = jnp.arange(n_latents)
    if n_latents > MOST_PAIRS:
        return jnp.zeros_like(place).at[jnp.argsort(-contribution, stable=True)].set(place, unique_indices=True)
    ahead = (contribution > contribution[:, None]) | (
        (contribution == contribution[:, None]) & (place < place[:, None])
    )
    return ahead.sum(axis=1)


def input_scale(state: TrainState, d_in: int) -> Float[Array, ""]:
    """What scales inputs to mean norm √d_in; the running mean is rid of its start at 0 as Adam's are."""
    mean_norm = state.input_norm / (1 - INPUT_NORM_DECAY**state.step)
    return jnp.sqrt(d_in) / jnp.maximum(mean_norm, 1e-12)


def train_step(
    state: TrainState, source: Source, hypers: Hypers, *, cfg: TrainConfig, mesh: Mesh | None = None
) -> tuple[TrainState, Metrics]:
    """Sample, scale, weigh prefixes by rank, descend, and follow what the batch shows."""
    key_data, key_prefixes, _ = _step_keys(state)
    step = state.step
    x = source.sample(key_data, cfg.batch_size)
    if mesh is not None:
        x = jax.lax.with_sharding_constraint(x, batch_sharding(mesh))
    mean_norm = jnp.mean(jnp.linalg.norm(x, axis=1))
    state = state._replace(
        step=step + 1,
        input_norm=INPUT_NORM_DECAY * state.input_norm + (1 - INPUT_NORM_DECAY) * mean_norm,
    )
    x = x * input_scale(state, x.shape[1])

    order = jnp.arange(cfg.n_latents) if cfg.moves_latents else ranks(state.contribution)
    coef = ramped(state.sparsity_coef, step, cfg.n_sparsity_warmup_steps)
    of_batch = partial(
        _loss,
        prefixes=draw(key_prefixes, hypers.prefixes),
        order=order,
        coef=coef,
        dead=None if state.silent is None else state.silent >= cfg.dead_after,
        aux_coef=hypers.aux_coef,
        threshold=0.0 if state.threshold is None else state.threshold,
        cfg=cfg,
    )
    (loss, parts), grads = _mean_over_microbatches(of_batch, state.sae, x, cfg.n_microbatches)
    updates, opt_state = _optimizer(hypers, cfg).update(grads, state.opt_state)
    state = state._replace(sae=optax.apply_updates(state.sae, updates), opt_state=opt_state)
    return _follow(state, parts, hypers, step, cfg), Metrics(loss, parts.mse, parts.l0, coef)


def _step_keys(state: TrainState) -> tuple[Key[Array, ""], ...]:
    """Of this step's data, its prefixes and the upkeep before it."""
    return tuple(jax.random.split(jax.random.fold_in(state.key, state.step), 3))


def _loss(
    sae: SAE,
    x: Float[Array, "batch d_in"],
    *,
    prefixes: Prefixes,
    order: Int[Array, " n_latents"],
    coef: Float[Array, ""],
    dead: Bool[Array, " n_latents"] | None,
    aux_coef: Number,
    threshold: Number,
    cfg: TrainConfig,
) -> tuple[Float[Array, ""], LossParts]:
    if cfg.dtype == "bfloat16":
        sae = sae._replace(W_enc=sae.W_enc.astype(jnp.bfloat16), W_dec=sae.W_dec.astype(jnp.bfloat16))
    loss, parts = sae_loss(
        sae,
        x,
        prefixes,
        order,
        coef,
        sparsity=cfg.sparsity,
        activation=cfg.activation,
        form=cfg.loss_form,
        threshold=threshold,
    )
    if dead is not None:
        loss += aux_coef * auxk_mse(
            sae, x, dead, activation=cfg.activation, form=cfg.loss_form, k=_aux_k(cfg, x.shape[1])
        )
    return loss, parts


def _mean_over_microbatches(
    loss: Callable, sae: SAE, x: Float[Array, "batch d_in"], n_parts: int
) -> tuple[tuple[Float[Array, ""], LossParts], SAE]:
    """Value and gradient of the mean of `loss` over equal parts of the batch, one part in memory at a time."""
    value_and_grad = partial(jax.value_and_grad(loss, has_aux=True), sae)
    if n_parts == 1:
        return value_and_grad(x)
    parts = x.reshape(-1, n_parts, x.shape[1]).swapaxes(0, 1)  # so that a part has rows of every device's share
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(value_and_grad, parts[0]))
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, value_and_grad(part)), None), total, parts
    )
    return jax.tree.map(lambda leaf: leaf / n_parts, total)


def _follow(state: TrainState, parts: LossParts, hypers: Hypers, step: Int[Array, ""], cfg: TrainConfig) -> TrainState:
    """Move the L0 controller and the running means by what a batch showed."""
    if state.silent is not None:
        state = state._replace(silent=jnp.where(parts.contribution > 0, 0, state.silent + 1))
    if state.threshold is not None:
        rate = THRESHOLD_RATE * _lr_share(cfg)(step)  # settles with the SAE
        state = state._replace(threshold=control_threshold(state.threshold, parts.l0_over_threshold, parts.l0, rate))
    if isinstance(cfg.activation, ReLU):
        warmup = cfg.n_sparsity_warmup_steps
        coef = control(state.sparsity_coef, parts.l0, hypers.target_l0, hypers.control_rate, step, warmup)
        state = state._replace(sparsity_coef=coef)
    return state._replace(
        contribution=CONTRIBUTION_DECAY * state.contribution + (1 - CONTRIBUTION_DECAY) * parts.contribution
    )


# --- between steps ----------------------------------------------------------------------------------------


def next_upkeep(step: Int[Array, ""], cfg: TrainConfig) -> Int[Array, ""]:
    """The first step after this one that `upkeep` is due before."""
    periods = (cfg.reinit_every, cfg.reorder_every) if cfg.moves_latents else (cfg.reinit_every,)
    return jnp.stack([(step // period + 1) * period for period in periods]).min()


def upkeep(state: TrainState, source: Source, hypers: Hypers, *, cfg: TrainConfig) -> TrainState:
    """Before a step: restart weak latents and put latents in order, where that is due.

    Not part of the step because a branch that may change the parameters costs a copy of them even when not taken.
    The predicates have no lane axis, so that under vmap they stay branches.
    """
    first, last = (round(share * cfg.n_steps) for share in cfg.reinit_window)
    due = (state.step % cfg.reinit_every == 0) & (state.step >= max(first, 1)) & (state.step <= last)
    state = jax.lax.cond(due, partial(_restart, source=source, hypers=hypers, cfg=cfg), lambda state: state, state)
    if cfg.moves_latents:
        due = state.step % cfg.reorder_every == 0
        state = jax.lax.cond(due, lambda s: moved(s, jnp.argsort(-s.contribution)), lambda state: state, state)
    return state


def moved(state: TrainState, order: Int[Array, " n_latents"]) -> TrainState:
    """The same run with latent `order[i]` at place i: all that has a latent axis moves together.

    Parameters and both of Adam's moments are SAEs, wherever they stand in the state.
    """
    state = jax.tree.map(
        lambda part: reorder(part, order) if isinstance(part, SAE) else part,
        state,
        is_leaf=lambda part: isinstance(part, SAE),
    )
    silent = None if state.silent is None else state.silent[order]
    return state._replace(contribution=state.contribution[order], silent=silent)


def _restart(state: TrainState, *, source: Source, hypers: Hypers, cfg: TrainConfig) -> TrainState:
    key_data, key_rows = jax.random.split(_step_keys(state)[2])
    x = source.sample(key_data, cfg.batch_size)
    return reinit_weak(key_rows, state, x * input_scale(state, x.shape[1]), hypers.reinit_below, cfg=cfg)


def reinit_weak(
    key: Key[Array, ""], state: TrainState, x: Float[Array, "batch d_in"], below: Number, *, cfg: TrainConfig
) -> TrainState:
    """Point each latent whose contribution is under `below` · median at the residual of a badly rebuilt sample.

    Samples are drawn with probability ∝ (squared error)². The latent's first moments are cleared with it; the
    second stay, so that Adam does not leap.
    """
    sae = state.sae
    weak = state.contribution < below * jnp.median(state.contribution)
    residual = x - reconstruct(sae, x, cfg.activation, cfg.loss_form)
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
    """The SAE of a run, on unscaled inputs, its latents sorted by contribution; of BatchTopK with its threshold."""
    sae = state.sae
    if state.threshold is not None:
        sae = sae._replace(threshold=state.threshold / jnp.maximum(decoder_norms(sae), 1e-12))
    order = jnp.argsort(-state.contribution, stable=True)
    return reorder(fold_input_scale(sae, input_scale(state, sae.b_dec.shape[0])), order)
