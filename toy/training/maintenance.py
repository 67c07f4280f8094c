"""Maintenance between steps: weak latents start anew, and latents are moved into the order of their ranks."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from toy.data.source import Batches, Source, draw_batch
from toy.methods.method import Params
from toy.sae import SAE, map_parts, take_latents
from toy.training.config import MAX_STEPS, Hypers, TrainConfig
from toy.training.state import TrainState, input_scale, latent_ranks, step_keys

MOST_RESTARTS = 32
MIN_MEDIAN = 1e-6


def next_maintenance(step: Int[Array, ""], cfg: TrainConfig) -> Int[Array, ""]:
    """The first step after this one before which maintenance is due."""
    periods = (cfg.reinit_every, cfg.reorder_every) if cfg.moves_latents else (cfg.reinit_every,)
    due = [(step // period + 1) * period for period in periods]
    if cfg.search_step is not None:
        due.append(jnp.where(step < cfg.search_step, cfg.search_step, MAX_STEPS))
    return jnp.stack(due).min()


def maintain(state: TrainState, source: Source | Batches, hypers: Hypers, *, cfg: TrainConfig) -> TrainState:
    """Restarts weak latents and reorders latents before a step, where that is due.

    This is no part of the step, because a branch that may change the parameters costs a copy of them even when it is
    not taken. The predicates have no lane axis, so that they stay branches under vmap.
    """
    first, last = (round(share * cfg.n_steps) for share in cfg.reinit_window)
    due = (state.step % cfg.reinit_every == 0) & (state.step >= max(first, 1)) & (state.step <= last)
    state = jax.lax.cond(due, partial(_restart, source=source, hypers=hypers, cfg=cfg), lambda state: state, state)
    if cfg.moves_latents:
        due = state.step % cfg.reorder_every == 0
        state = jax.lax.cond(due, lambda s: moved(s, jnp.argsort(-s.contribution)), lambda state: state, state)
    if cfg.search_step is not None:
        due = state.step == cfg.search_step
        state = jax.lax.cond(due, partial(_search, source=source, hypers=hypers, cfg=cfg), lambda state: state, state)
    return state


def _search(state: TrainState, *, source: Source | Batches, hypers: Hypers, cfg: TrainConfig) -> TrainState:
    sample = partial(_scaled_batch, source, state)
    params = cfg.method.search(jax.random.fold_in(step_keys(state.key, state.step)[2], 2), state.params, sample)
    moments = {name: jax.tree.map(jnp.zeros_like, optax.tree.get(state.opt_state, name)) for name in ("mu", "nu")}
    return state._replace(params=params, opt_state=optax.tree.set(state.opt_state, **moments))


def _scaled_batch(
    source: Source | Batches, state: TrainState, key: Key[Array, ""], n_rows: int
) -> Float[Array, "rows d_in"]:
    x = draw_batch(source, key, n_rows, state.step)
    return x * input_scale(state, x.shape[1])


def moved(state: TrainState, order: Int[Array, " n_latents"]) -> TrainState:
    """The same run with latent `order[i]` at place i: everything with a latent axis moves together.

    That is every SAE (parameters and both of Adam's moments), and every other leaf that leads with the latents.
    """
    n_latents = order.shape

    def of_leaf(leaf: Array) -> Array:
        return leaf[order] if leaf.shape[:1] == n_latents else leaf

    return map_parts(lambda sae: take_latents(sae, order), of_leaf, state)


def _restart(state: TrainState, *, source: Source | Batches, hypers: Hypers, cfg: TrainConfig) -> TrainState:
    key_data, key_rows = jax.random.split(step_keys(state.key, state.step)[2])
    return reinit_weak(key_rows, state, _scaled_batch(source, state, key_data, cfg.batch_size), hypers, cfg=cfg)


def reinit_weak(
    key: Key[Array, ""],
    state: TrainState,
    x: Float[Array, "batch d_in"],
    hypers: Hypers,
    *,
    cfg: TrainConfig,
) -> TrainState:
    """Points latents that contribute less than `reinit_below` · median at residuals of badly reconstructed samples.

    Where most latents are dead and the median is near 0, `MIN_MEDIAN` of a latent's share of the mean ‖x‖² replaces it.
    At most the weakest MOST_RESTARTS latents start anew, since each reconstructs a whole residual and many at once
    overshoot. Samples are drawn with probability ∝ (squared error)². The first moments are cleared; the second moments
    stay, so that Adam's next steps are small. Latents after the first `n_latents` are padding and stay as they are.
    """
    place = jnp.arange(cfg.n_latents)
    n = cfg.n_latents if hypers.n_latents is None else hypers.n_latents
    contribution = jnp.where(place < n, state.contribution, jnp.inf)
    ordered = jnp.sort(contribution)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    least = MIN_MEDIAN * jnp.mean(jnp.sum(x**2, axis=1)) / n
    weak = contribution < hypers.reinit_below * jnp.maximum(median, least)
    if cfg.n_latents > MOST_RESTARTS:
        weak &= latent_ranks(state.contribution) >= n - MOST_RESTARTS
    residual = x - cfg.method.reconstruct(state.params, x, state.step / cfg.n_steps, cfg.loss_form, hypers.target_l0)
    log_odds = 2 * jnp.log(jnp.sum(residual**2, axis=1) + 1e-12)
    d = residual[jax.random.categorical(key, log_odds, shape=weak.shape)]

    aligned = (d / (jnp.sum(d**2, axis=1, keepdims=True) + 1e-12)).T  # so that the latent reconstructs its sample
    # Latents that never were on have no second moments yet, and a small encoder would not outlive Adam's first steps.
    norms = jnp.where(median < least, jnp.linalg.norm(d, axis=1) + 1e-12, 1.0)

    def restarted(new: SAE, old: SAE) -> SAE:
        return SAE(aligned * norms, jnp.zeros_like(old.b_enc), d / norms[:, None], old.b_dec, new.threshold)

    # Thresholds, and whatever else a method has, begin again as they did.
    start = cfg.method.init(jax.random.fold_in(key, 1), x.shape[1], cfg.n_latents)
    new = map_parts(restarted, lambda new, old: new, start, state.params)
    moments = optax.tree.get(state.opt_state, "mu")
    cleared = jax.tree.map(jnp.zeros_like, moments)
    return state._replace(
        params=_where(weak, new, state.params),
        opt_state=optax.tree.set(state.opt_state, mu=_where(weak, cleared, moments)),
    )


def _where(weak: Bool[Array, " n_latents"], new: Params, old: Params) -> Params:
    """The parameters with the weak latents' own replaced."""

    def of_sae(new: SAE, old: SAE) -> SAE:
        threshold = jax.tree.map(lambda new, old: jnp.where(weak, new, old), new.threshold, old.threshold)
        return SAE(
            jnp.where(weak, new.W_enc, old.W_enc),
            jnp.where(weak, new.b_enc, old.b_enc),
            jnp.where(weak[:, None], new.W_dec, old.W_dec),
            old.b_dec,
            threshold,
        )

    def of_leaf(new: Array, old: Array) -> Array:
        return jnp.where(weak.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return map_parts(of_sae, of_leaf, new, old)
