"""The trainer at width and with the TopK family: the same laws, whatever form the loss takes."""

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train import KEY, SHARED, assert_close, copied, equal, keep_up, lane, leaves, one_step, permuted

from toy.data.source import ArraySource
from toy.eval.against_tree import inference_gap
from toy.loss import sae_loss
from toy.methods import STANDARD, Method, TopKFamily
from toy.methods.topk import THRESHOLD_RATE
from toy.prefixes import Weighting, all_prefixes, draw, expected, hybrid, sampled
from toy.sae import RELU, Activation, BatchTopK, TopK, decode, decoder_norms, encode, init_sae
from toy.training.advance import advance
from toy.training.config import Hypers, TrainConfig
from toy.training.grid import train_grid
from toy.training.maintenance import moved
from toy.training.run import train
from toy.training.state import TrainState, init_state, input_scale, trained_sae

N, D_IN = 160, 16  # more latents than are compared by pairs; a few tiles, the last one short
BATCH, DEAD_AFTER = 32, 4
FAMILY: dict[str, Activation] = {"relu": RELU, "topk": TopK(3), "batchtopk": BatchTopK(3)}
FAMILIES = pytest.mark.parametrize("activation", FAMILY.values(), ids=FAMILY)


def sparse_rows(n_rows: int, d_in: int = D_IN, n_features: int = 40, seed: int = 0) -> np.ndarray:
    """Random combinations of a few random directions: magnitudes without gaps."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(0).normal(size=(n_features, d_in)) / np.sqrt(d_in)
    present = rng.random((n_rows, n_features)) < 3 / n_features
    return (present * rng.gamma(4, 0.5, present.shape)) @ directions


def source(n_rows: int = 2_000) -> ArraySource:
    return ArraySource(jnp.asarray(sparse_rows(n_rows)))


def wide(activation: Activation = RELU, **fields: Any) -> TrainConfig:
    """Mostly as it stands, since compiling a program takes longer than running it: tests share the compiled ones."""
    defaults: dict[str, Any] = dict(n_steps=60, batch_size=BATCH, n_lr_warmup_steps=5, form="wide")
    defaults |= dict(reinit_every=6, reinit_window=(0.0, 1.0))
    return TrainConfig(N, method=method_of(activation), **(defaults | fields))


def method_of(activation: Activation, aux_k: int | None = 6) -> Method:
    if not isinstance(activation, TopK | BatchTopK):
        return STANDARD
    return TopKFamily(activation, aux_k=aux_k, dead_after=DEAD_AFTER)


def hypers(weighting: Weighting | None = None, **fields: Any) -> Hypers:
    given: dict[str, Any] = {"target_l0": 4.0} | fields
    h = Hypers(sampled(N, 5) if weighting is None else weighting, **given)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float if np.ndim(leaf) == 0 else None), h)


def target_of(activation: Activation) -> float | None:
    """Returns None for the TopK family, whose k says how many latents are on."""
    return 4.0 if activation == RELU else None


def start_of(h: Hypers, cfg: TrainConfig) -> TrainState:
    return copied(init_state(KEY, h, d_in=D_IN, cfg=cfg))


# --- one program, whole runs ----------------------------------------------------------------------------------


@pytest.mark.slow
@FAMILIES
def test_at_width_steps_chunks_and_other_bounds_compile_nothing_new(
    activation: Activation, caplog: pytest.LogCaptureFixture
) -> None:
    cfg, target_l0 = wide(activation), target_of(activation)
    other = hypers(sampled(N, 5, power=0.9), learning_rate=1e-2, target_l0=target_l0)

    def n_compiled(key: jax.Array, h: Hypers, chunk: int) -> int:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            train(key, source(), h, cfg=cfg, chunk=chunk)
        # test_train sees that a program that is new is counted so.
        compiled = [message for message in caplog.messages if "Finished XLA compilation of jit(advance)" in message]
        return len(compiled)

    assert n_compiled(KEY, hypers(target_l0=target_l0), 20) <= 1  # 0 where another test was first
    assert n_compiled(jax.random.key(1), other, 13) == 0


@pytest.mark.slow
@FAMILIES
def test_at_width_two_halves_are_the_whole_bit_for_bit(activation: Activation) -> None:
    cfg, h = wide(activation), hypers()
    whole, _ = advance(start_of(h, cfg), source(), h, cfg=cfg, n_steps=29)
    half, _ = advance(given := start_of(h, cfg), source(), h, cfg=cfg, n_steps=17)  # between two reorderings
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((given.params, given.opt_state, given.contribution)))
    middle = copied(half)
    both, _ = advance(half, source(), h, cfg=cfg, n_steps=12)
    assert equal(both, whole)
    assert int(both.step) == 29
    assert not equal(middle.params, both.params)
    if activation != RELU:
        assert int(middle.memory.silent.max()) >= DEAD_AFTER  # so that AuxK had a part in it


@pytest.mark.usefixtures("x64")
def test_a_run_is_upkeep_and_step_in_turn() -> None:
    cfg, h = wide(), hypers(reinit_below=0.9)
    state = start_of(h, cfg)
    whole, means = advance(copied(state), source(), h, cfg=cfg, n_steps=27)
    losses, changes = [], []
    for _ in range(27):
        before, state = state, keep_up(state, source(), h, cfg=cfg)
        if not equal(before, state):
            changes.append(int(state.step))
        state, metrics = one_step(state, source(), h, cfg=cfg)
        losses.append(float(metrics.loss))
    assert changes == [6, 10, 12, 18, 20, 24]  # multiples of 6 and of 10
    assert_close(whole, state, 1e-9)
    assert means.loss == pytest.approx(np.mean(losses), rel=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_lane_of_a_batchtopk_grid_is_the_run_alone() -> None:
    cfg = TrainConfig(20, n_steps=25, batch_size=BATCH, method=method_of(BatchTopK(3)))
    rates, keys = jnp.array([1e-2, 2e-2, 3e-2]), jax.random.split(KEY, 3)
    h, axes = hypers(sampled(20), target_l0=None), (None, SHARED._replace(learning_rate=0))
    state, history = train_grid(keys, source(), h._replace(learning_rate=rates), cfg=cfg, in_axes=axes)
    assert len(np.unique(state.memory.threshold)) == 3
    single, single_history = train(keys[1], source(), h._replace(learning_rate=rates[1]), cfg=cfg)
    assert_close(lane(state, 1), single, 1e-9)
    assert_close(lane(history, 1), single_history, 1e-9)


# --- moving latents -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", [TopK(3), BatchTopK(3)], ids=["topk", "batchtopk"])
def test_moving_the_latents_of_the_topk_family_changes_neither_the_output_nor_the_next_updates(
    activation: Activation,
) -> None:
    cfg, h = wide(activation), hypers(reinit_below=0.0)  # samples for restarts are drawn by place
    state, _ = advance(start_of(h, cfg), source(), h, cfg=cfg, n_steps=6)
    # Latents that were never on tie, and ties are settled by place: give each its own contribution.
    state = state._replace(contribution=state.contribution + 1e-6 * jax.random.uniform(KEY, (N,)))
    order = jax.random.permutation(KEY, N)
    other = moved(state, order)
    assert 3 < jnp.sum(state.memory.silent >= DEAD_AFTER) < N - 3  # AuxK trains some and not others
    assert equal(other, permuted(state, order))
    assert not equal(other, state)
    assert_close(trained_sae(other), trained_sae(state), 1e-12)
    after, metrics = advance(copied(state), source(), h, cfg=cfg, n_steps=4)
    after_moved, metrics_moved = advance(copied(other), source(), h, cfg=cfg, n_steps=4)
    assert_close(metrics_moved, metrics, 1e-9)
    assert_close(after_moved, permuted(after, order), 1e-9)


@pytest.mark.parametrize(("step", "due"), [(0, True), (9, False), (10, True), (11, False), (20, True)])
def test_when_due_everything_with_a_latent_axis_moves_into_the_order_of_contributions(step: int, due: bool) -> None:
    """Every such array, wherever it stands in the state, is marked with the numbers of the latents."""

    def on_latents(tree: Any) -> list[np.ndarray]:
        return [np.moveaxis(leaf, leaf.shape.index(N), 0).reshape(N, -1) for leaf in leaves(tree) if N in leaf.shape]

    cfg, h = wide(), hypers(reinit_below=0.0)
    start = start_of(h, cfg)
    marks = jnp.arange(N, dtype=jnp.float32)

    def mark(leaf: jax.Array) -> jax.Array:
        if N not in leaf.shape:
            return leaf
        axis = leaf.shape.index(N)
        return jnp.broadcast_to(jnp.expand_dims(marks, tuple(i for i in range(leaf.ndim) if i != axis)), leaf.shape)

    contribution = jax.random.permutation(KEY, N).astype(jnp.float32)
    state = jax.tree.map(mark, start)._replace(contribution=contribution, step=jnp.int32(step))
    after = keep_up(state, source(), h, cfg=cfg)
    order = np.argsort(-np.asarray(contribution)) if due else np.arange(N)
    np.testing.assert_array_equal(after.contribution, contribution[order])
    found = on_latents(after._replace(contribution=None))  # type: ignore[arg-type]
    assert len(found) == 9  # W_enc, b_enc and W_dec of parameters and both moments
    for array in found:
        np.testing.assert_array_equal(array, np.broadcast_to(order[:, None], array.shape))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_tiles_reordered_every_step_train_as_the_gram_form_does() -> None:
    h, cfg = hypers(all_prefixes(N), sparsity_coef=0.1, reinit_below=0.0), wide(n_steps=30, reorder_every=1)
    tiles, tiles_history = train(KEY, source(), h, cfg=cfg, chunk=1)
    gram, gram_history = train(KEY, source(), h, cfg=replace(cfg, form="gram"), chunk=1)
    assert_close(tiles_history, gram_history, 1e-9)
    order, back = jnp.argsort(-gram.contribution), jnp.argsort(-tiles.contribution)
    assert not (order == jnp.arange(N)).all()
    assert_close(moved(tiles, back), moved(gram, order), 1e-9)


# --- parts of a batch, bfloat16, memory -----------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", [RELU, TopK(3)], ids=["relu", "topk"])
def test_a_batch_in_parts_is_the_whole_batch(activation: Activation) -> None:
    h, cfg, in_parts = hypers(), wide(activation), wide(activation, n_microbatches=4)
    (whole, metrics), (parts, metrics_of_parts) = (
        advance(start_of(h, cfg), source(), h, cfg=how, n_steps=12) for how in (cfg, in_parts)
    )
    assert_close(parts, whole, 1e-9)
    assert_close(metrics_of_parts, metrics, 1e-9)


@pytest.mark.parametrize("activation", [RELU, BatchTopK(3)], ids=["relu", "batchtopk"])
def test_products_in_bfloat16_train_like_float32_and_keep_the_state_in_it(activation: Activation) -> None:
    # Without restarts: which latents start anew, and on which sample, hangs on the last bits.
    h, cfg, low = hypers(reinit_below=0.0), wide(activation), wide(activation, dtype="bfloat16")
    (state, metrics), (low_state, low_metrics) = (
        advance(start_of(h, cfg), source(), h, cfg=how, n_steps=15) for how in (cfg, low)
    )
    assert [leaf.dtype for leaf in jax.tree.leaves(low_state)] == [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert low_state.params.W_enc.dtype == jnp.float32
    assert not equal(low_metrics.loss, metrics.loss)
    np.testing.assert_allclose(low_metrics.loss, metrics.loss, rtol=0.02)  # 8 bits of mantissa: 0.4% an entry


def loop_bodies(text: str) -> dict[str, str]:
    """The computations of a compiled program that are the body of a while loop, by name."""
    computations = {
        match[1]: match[0]
        for match in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?^\}", text, re.MULTILINE | re.DOTALL)
    }
    return {name: computations[name] for name in re.findall(r" while\(.*?body=%?([\w.\-]+)", text)}


def test_the_state_s_memory_is_taken_over_and_no_array_of_its_size_copied_in_the_loop_over_steps() -> None:
    n, d = 1_432, 92  # as nothing else here is
    cfg, h = TrainConfig(n, n_steps=60, batch_size=BATCH), Hypers(sampled(n, 5), target_l0=4.0)
    state = init_state(KEY, h, d_in=d, cfg=cfg)
    rows = ArraySource(jnp.asarray(sparse_rows(100, d), jnp.float32))
    compiled = advance.lower(state, rows, h, cfg=cfg, n_steps=3).compile()  # type: ignore[attr-defined]
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    assert memory.alias_size_in_bytes >= 0.99 * sum(leaf.nbytes for leaf in leaves(state))

    of_size = re.compile(rf" f32\[(?:{n},{d}|{d},{n})\]\S* ([\w\-]+)\(")
    assert "copy" in of_size.findall(text)  # those of the branch that moves latents
    # The loops over steps and over blocks of them turn parameters and both moments into new ones, without a branch.
    steps = [
        body for body in loop_bodies(text).values() if len(of_size.findall(body)) > 6 and "conditional(" not in body
    ]
    assert len(steps) == 2
    assert not any("copy" in of_size.findall(body) for body in steps)


def test_a_run_leaves_the_hyperparameters_it_is_given_as_they_are() -> None:
    h = hypers()
    train(KEY, source(), h, cfg=wide())
    advance(init_state(KEY, h, d_in=D_IN, cfg=wide()), source(), h, cfg=wide(), n_steps=1)
    assert not [leaf for leaf in jax.tree.leaves(h) if leaf.is_deleted()]


# --- the TopK family ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trained_batchtopk_sae_does_with_its_threshold_what_training_does() -> None:
    activation, batch = BatchTopK(3), 64
    cfg = TrainConfig(64, n_steps=1_500, batch_size=batch, method=TopKFamily(activation, aux_k=0), reinit_every=100)
    h = Hypers(sampled(64, 5), learning_rate=5e-3)
    state, _ = train(KEY, source(20_000), h, cfg=cfg)
    sae, held_out = trained_sae(state), jnp.asarray(sparse_rows(200 * batch, seed=1), jnp.float32)
    gap = inference_gap(sae, held_out, activation, batch)
    assert abs(gap.l0) < 0.01
    assert abs(gap.fvu) < 0.01
    assert sae.threshold is not None
    off = inference_gap(sae._replace(threshold=1.05 * sae.threshold), held_out, activation, batch)
    assert abs(off.l0) > 0.01  # 5% off would be seen

    scale, order = input_scale(state, D_IN), jnp.argsort(-state.contribution)
    acts = encode(state.params, held_out * scale)
    inside = jnp.where(acts * decoder_norms(state.params) > state.memory.threshold, acts, 0)
    outside = encode(sae, held_out)
    np.testing.assert_allclose(outside, inside[:, order] / scale, rtol=1e-3, atol=1e-4)
    recon = decode(state.params, inside) / scale
    np.testing.assert_allclose(decode(sae, outside), recon, rtol=1e-3, atol=1e-4)


def with_faint(state: TrainState, latent: int) -> TrainState:
    """The same but for one latent, which is on nowhere: its activations are as ever, and too small to be chosen."""
    W_dec = state.params.W_dec.at[latent].multiply(1e-5)
    return state._replace(params=state.params._replace(W_dec=W_dec))


@pytest.mark.parametrize("activation", [TopK(3), BatchTopK(3)], ids=["topk", "batchtopk"])
def test_a_latent_that_is_never_on_is_trained_by_auxk_once_it_has_been_silent_for_dead_after_steps(
    activation: Activation,
) -> None:
    cfg, h, latent = wide(activation), hypers(reinit_below=0.0), 7
    state = with_faint(start_of(h, cfg), latent)
    for n_silent in range(1, 8):
        state, _ = advance(state, source(), h, cfg=cfg, n_steps=1)
        silent, gradient = state.memory.silent, optax.tree.get(state.opt_state, "mu")
        assert int(silent[latent]) == n_silent
        assert int(silent.min()) == 0  # others are on
        assert bool(gradient.W_dec[latent].any()) == (n_silent > DEAD_AFTER)
        assert bool(gradient.W_enc[:, latent].any()) == (n_silent > DEAD_AFTER)
        alone = jnp.where(jnp.arange(N) == latent, silent, 0)  # the only one that may be dead, so AuxK takes it
        state = state._replace(memory=state.memory._replace(silent=alone))


def test_auxk_can_be_turned_off_and_takes_half_of_d_in_by_default() -> None:
    h, latent, cfg = hypers(reinit_below=0.0), 7, replace(wide(), method=method_of(TopK(3), aux_k=0))
    state = with_faint(start_of(h, cfg), latent)
    before = np.asarray(state.params.W_dec[latent])
    assert state.memory.silent is None
    state, _ = advance(state, source(), h, cfg=cfg, n_steps=10)
    np.testing.assert_array_equal(state.params.W_dec[latent], before)
    assert [TopKFamily(TopK(3), aux_k=k).n_aux(D_IN, N) for k in (None, 0, 5, 1_000)] == [8, 0, 5, N]


def test_the_threshold_goes_up_where_more_is_above_it_than_training_has_on_and_down_where_less() -> None:
    cfg, h = wide(BatchTopK(3)), hypers(reinit_below=0.0)
    for start, direction in ((1e-3, 1), (1e3, -1)):
        state = start_of(h, cfg)
        memory = state.memory._replace(threshold=jnp.float32(start))
        state = state._replace(memory=memory, step=jnp.int32(20))
        after, _ = advance(state, source(), h, cfg=cfg, n_steps=1)
        assert after.memory.threshold == pytest.approx(start * (1 + direction * THRESHOLD_RATE), rel=1e-5)


@pytest.mark.slow
def test_the_hybrid_s_gradient_is_near_the_expectation_s_and_nearer_with_smaller_tiles() -> None:
    n = 1_024
    x, sae = jnp.asarray(sparse_rows(64)), init_sae(KEY, D_IN, n)

    @jax.jit
    def gradient(weighting: Weighting, key: jax.Array) -> jax.Array:
        grads = jax.grad(lambda sae: sae_loss(sae, x, draw(key, weighting), jnp.arange(n), form="wide")[0])(sae)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    exact = gradient(expected(n), KEY)
    errors = [jnp.linalg.norm(gradient(hybrid(n, n_exact=128, tile=tile), KEY) - exact) for tile in (32, 128)]
    keys = jax.random.split(KEY, 20)
    draws = [jnp.linalg.norm(gradient(sampled(n), key) - exact) for key in keys]
    assert errors[0] < 0.5 * errors[1]
    assert errors[1] < 0.8 * jnp.mean(jnp.stack(draws))


@pytest.mark.slow
@FAMILIES
def test_at_width_lanes_are_taken_in_turn_and_each_is_the_run_alone(activation: Activation) -> None:
    cfg, rates = wide(activation), np.array([1e-2, 2e-2, 1e-3], np.float32)
    keys, axes = jax.random.split(KEY, 3), (None, SHARED._replace(learning_rate=0))
    shared: dict[str, Any] = {"target_l0": target_of(activation)}
    many = hypers(**shared)._replace(learning_rate=jnp.asarray(rates))
    state, history = train_grid(keys, source(), many, cfg=cfg, in_axes=axes, chunk=25)
    assert state.step.shape == ()
    for i in (0, 2):
        single, single_history = train(keys[i], source(), hypers(learning_rate=rates[i], **shared), cfg=cfg, chunk=25)
        assert_close(lane(history, i), single_history, 1e-4)
        assert_close(lane(state, i), single, 1e-3)
