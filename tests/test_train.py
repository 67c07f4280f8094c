"""The trainer: steps are laws of the state alone, chunks and lanes change nothing, permuting latents neither."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from toy.data.source import ArraySource, TreeSource
from toy.features.directions import make_directions
from toy.features.named import reference_tree
from toy.features.tree import Tree, build_tree
from toy.methods import TopKFamily
from toy.prefixes import FixedWeights, Weighting, all_prefixes, full, sampled
from toy.sae import BatchTopK, TopK, decode, encode, take_latents
from toy.training import state as state_module
from toy.training.advance import advance, many_steps
from toy.training.config import Hypers, TrainConfig
from toy.training.grid import hyper_axes, train_grid, trained_saes
from toy.training.maintenance import maintain, moved, reinit_weak
from toy.training.run import train
from toy.training.state import Metrics, TrainState, init_state, input_scale, latent_ranks, trained_sae
from toy.training.step import draw_steps, train_step

KEY, KEY_W = jax.random.key(0), jax.random.key(100)  # the same key would tie the first encoder to the directions
TREE = build_tree(reference_tree())
CFG = TrainConfig(n_latents=20, n_steps=60, batch_size=32, n_lr_warmup_steps=10, reinit_every=10)
SHARED = hyper_axes()


@partial(jax.jit, static_argnames="cfg")
def one_step(state: TrainState, source: TreeSource, hypers: Hypers, cfg: TrainConfig) -> tuple[TrainState, Metrics]:
    batches, prefixes = draw_steps(state, source, hypers, 1, cfg=cfg)
    return train_step(state, batches.at(state.step), jax.tree.map(lambda leaf: leaf[0], prefixes), hypers, cfg=cfg)


restart = jax.jit(partial(reinit_weak, cfg=CFG))
keep_up = jax.jit(maintain, static_argnames="cfg")


def tree_source(key: jax.Array = KEY_W) -> TreeSource:
    return TreeSource(TREE, make_directions(key[None], 20, 20)[0])


def hypers(prefixes: Weighting | None = None, **fields: Any) -> Hypers:
    given: dict[str, Any] = {"target_l0": 1.12} | fields
    return Hypers(sampled(20) if prefixes is None else prefixes, **given)


def leaves(tree: Any) -> list[np.ndarray]:
    """Every number of a state, keys as the numbers they are."""
    data = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(data)]


def equal(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def assert_close(a: Any, b: Any, tolerance: float) -> None:
    """Relative to each array's largest entry."""
    for x, y in zip(leaves(a), leaves(b), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1e-30, np.abs(y).max()))


def copied(state: TrainState) -> TrainState:
    """A state to give to `advance`, which takes its memory, while the first is kept."""
    return jax.tree.map(jnp.copy, state)


def lane(grid: Any, i: int) -> Any:
    """One lane of a final state or history; the step is common to all."""
    if isinstance(grid, TrainState):
        return TrainState(grid.step, *jax.tree.map(lambda leaf: leaf[i], tuple(grid[1:])))
    return jax.tree.map(lambda leaf: leaf[i], grid)


# --- one run ------------------------------------------------------------------------------------------------


def test_two_halves_are_the_whole_bit_for_bit() -> None:
    source, h = tree_source(), jax.tree.map(jnp.asarray, hypers())
    start = init_state(KEY, h, d_in=20, cfg=CFG)
    whole, _ = advance(copied(start), source, h, cfg=CFG, n_steps=40)
    half, first = advance(start, source, h, cfg=CFG, n_steps=20)
    both, second = advance(copied(half), source, h, cfg=CFG, n_steps=20)
    assert equal(both, whole)
    assert int(both.step) == 40
    assert not equal(half.params, both.params)
    assert not equal(first, second)


def test_the_same_key_gives_the_same_numbers_and_another_key_others() -> None:
    source = tree_source()
    once, again, other = (train(key, source, hypers(), cfg=CFG) for key in (KEY, KEY, jax.random.key(1)))
    assert equal(once, again)
    assert not equal(once[0].params, other[0].params)


def test_every_step_draws_new_rows_and_new_prefixes() -> None:
    still = hypers(learning_rate=0.0, reinit_below=0.0)  # nothing is learnt, so only what is drawn differs
    for source, h in (
        (tree_source(), still._replace(prefixes=full(20))),
        (ArraySource(tree_source().W_feat[:1]), still),
    ):
        _, history = train(KEY, source, h, cfg=CFG, chunk=1)
        assert len(np.unique(np.round(history.mse[1:], 5))) > 20


def test_chunks_change_neither_the_result_nor_the_number_of_steps() -> None:
    told: list[int] = []
    state, history = train(KEY, tree_source(), hypers(), cfg=CFG, chunk=25, progress=told.append)
    whole, means = train(KEY, tree_source(), hypers(), cfg=CFG)
    assert equal(state, whole)
    assert told == [25, 25, 10]
    assert all(leaf.shape == (3,) for leaf in history)
    np.testing.assert_allclose(np.average(history.mse, weights=told), means.mse[0], rtol=1e-5)


@pytest.mark.slow
def test_batches_that_are_drawn_at_once_are_those_that_are_drawn_one_by_one() -> None:
    source = ArraySource(jax.random.normal(KEY_W, (50, 20)))
    start = init_state(KEY, hypers(), d_in=20, cfg=CFG)
    drawn, prefixes = draw_steps(start, source, hypers(), 3, cfg=CFG)
    for i in range(3):
        one, own = draw_steps(start._replace(step=start.step + i), source, hypers(), 1, cfg=CFG)
        assert equal(drawn.at(i), one.at(i))
        assert equal(jax.tree.map(lambda leaf, i=i: leaf[i], prefixes), jax.tree.map(lambda leaf: leaf[0], own))
    found = []
    for n in (1, 4, 10):  # 60 steps, in stretches of 10
        found.append(jax.jit(partial(many_steps, cfg=CFG, n_drawn=n))(start, source, hypers(), 60)[0])
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])


def test_chunks_and_other_numbers_of_the_same_kind_compile_nothing_new(caplog: pytest.LogCaptureFixture) -> None:
    cfg = TrainConfig(20, n_steps=40, batch_size=8)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        train(KEY, tree_source(), hypers(), cfg=cfg, chunk=10)
        train(KEY_W, tree_source(KEY), hypers(sampled(20, power=0.9), learning_rate=1e-2), cfg=cfg, chunk=13)
        for seed in (0, 5):
            keys = jax.random.split(jax.random.key(seed), 3)
            train_grid(keys, tree_source(), hypers(target_l0=1.0 + seed), cfg=cfg, in_axes=(None, SHARED), chunk=10)
    compiled = [message for message in caplog.messages if "Finished XLA compilation" in message]
    assert sum("jit(advance)" in message for message in compiled) == 1
    assert sum("jit(_advance_grid)" in message for message in compiled) == 1


def test_the_learning_rate_warms_up_stays_and_cools_down() -> None:
    cfg = TrainConfig(1, n_steps=100, n_lr_warmup_steps=10, lr_cooldown_share=0.2, final_lr_share=0.1)
    optimizer = state_module.optimizer(hypers(full(1), learning_rate=0.5, clip_norm=1e9), cfg)
    steady = jnp.ones(1)

    def one(opt_state: optax.OptState, _: None) -> tuple[optax.OptState, optax.Updates]:
        updates, opt_state = optimizer.update(steady, opt_state)
        return opt_state, updates  # Adam turns a steady gradient into the negative learning rate

    _, updates = jax.lax.scan(one, optimizer.init(steady), length=100)
    expected = np.concatenate([np.arange(10) / 10, np.ones(70), 1 - 0.9 * np.arange(20) / 20])
    np.testing.assert_allclose(-np.ravel(np.asarray(updates)), 0.5 * expected, atol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.01, 1.0])
def test_the_global_gradient_norm_is_clipped(clip_norm: float) -> None:
    start = init_state(KEY, hypers(), d_in=20, cfg=CFG)
    state, _ = one_step(start, tree_source(), hypers(clip_norm=clip_norm, b1=0.75), cfg=CFG)
    assert optax.tree.norm(optax.tree.get(state.opt_state, "mu")) == pytest.approx(0.25 * clip_norm, rel=1e-4)


@pytest.mark.parametrize("size", [1.0, 0.2])
def test_inputs_are_scaled_to_size_times_root_d_from_the_first_step(size: float) -> None:
    rows = 7.0 * jnp.eye(20)[:4]
    for n_steps in (1, 5):
        h = hypers(full(20), learning_rate=0.0, input_size=size)
        start = init_state(KEY, h, d_in=20, cfg=CFG)
        silent = start._replace(params=start.params._replace(W_enc=jnp.zeros((20, 20)), b_enc=jnp.full(20, -1.0)))
        state, metrics = advance(silent, ArraySource(rows), h, cfg=CFG, n_steps=n_steps)
        assert input_scale(state, 20) == pytest.approx(size * np.sqrt(20) / 7, rel=1e-5)
        assert metrics.mse == pytest.approx(size**2 * 20, rel=1e-5)  # an SAE that says 0 misses all of ‖scaled x‖²


def test_the_trained_sae_acts_on_unscaled_inputs_with_its_latents_in_order_of_contribution() -> None:
    state, _ = train(KEY, tree_source(), hypers(), cfg=CFG)
    sae, x = trained_sae(state), tree_source().sample(KEY, 10)
    scale, order = input_scale(state, 20), np.argsort(-np.asarray(state.contribution), kind="stable")
    inside = encode(state.params, x * scale)
    np.testing.assert_allclose(encode(sae, x), inside[:, order] / scale, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decode(sae, encode(sae, x)), decode(state.params, inside) / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("target_l0", "direction"), [(1e-6, 1), (20.0, -1)])
def test_the_controller_is_still_in_the_warm_up_and_then_moves_against_l0(target_l0: float, direction: int) -> None:
    h = hypers(target_l0=target_l0, sparsity_coef=0.5, control_rate=0.01)
    _, history = train(KEY, tree_source(), h, cfg=CFG, chunk=1)
    n = CFG.n_sparsity_warmup_steps
    assert n == 12
    np.testing.assert_allclose(history.sparsity_coef[:n], 0.5 * np.arange(1, n + 1) / n, rtol=1e-5)
    after = history.sparsity_coef[n:]
    np.testing.assert_allclose(after, 0.5 * (1 + direction * 0.01) ** np.arange(len(after)), rtol=1e-4)


def test_the_contribution_is_a_running_mean_and_ranks_sort_it() -> None:
    assert latent_ranks(jnp.array([1.0, 5.0, 0.0, 5.0, 0.0])).tolist() == [2, 0, 3, 1, 4]
    start = init_state(KEY, hypers(), d_in=20, cfg=CFG)._replace(contribution=jnp.full(20, 100.0))
    state, _ = one_step(start, tree_source(), hypers(reinit_below=0.0), cfg=CFG)
    fresh, _ = one_step(start._replace(contribution=jnp.zeros(20)), tree_source(), hypers(), cfg=CFG)
    np.testing.assert_allclose(state.contribution, 95 + np.asarray(fresh.contribution), rtol=1e-6)
    assert fresh.contribution.any()


def permuted(state: TrainState, order: jax.Array) -> TrainState:
    """The same run with its latents in other places: parameters, both Adam moments, contribution, silence."""
    moments = {name: take_latents(optax.tree.get(state.opt_state, name), order) for name in ("mu", "nu")}
    return state._replace(
        params=take_latents(state.params, order),
        memory=jax.tree.map(lambda leaf: leaf[order] if leaf.shape else leaf, state.memory),
        opt_state=optax.tree.set(state.opt_state, **moments),
        contribution=state.contribution[order],
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weighting", [full(20), all_prefixes(20), sampled(20)], ids=["full", "all", "sampled"])
def test_permuting_the_latents_changes_neither_the_output_nor_the_next_updates(weighting: Weighting) -> None:
    h, source, order = hypers(weighting), tree_source(), jax.random.permutation(KEY, 20)
    start = init_state(KEY, h, d_in=20, cfg=CFG)
    state, _ = advance(start, source, h, cfg=CFG, n_steps=5)
    other = moved(state, order)
    assert equal(other, permuted(state, order))
    assert_close(trained_sae(other), trained_sae(state), 1e-9)
    after, metrics = advance(copied(state), source, h, cfg=CFG, n_steps=4)
    after_moved, metrics_moved = advance(copied(other), source, h, cfg=CFG, n_steps=4)
    assert_close(metrics_moved, metrics, 1e-9)
    assert_close(after_moved, permuted(after, order), 1e-9)


def weak_state(weak: tuple[int, ...]) -> tuple[TrainState, jax.Array]:
    """A state some steps on, in which only these latents contribute next to nothing, and a batch."""
    h, source = hypers(), tree_source()
    state, _ = advance(init_state(KEY, h, d_in=20, cfg=CFG), source, h, cfg=CFG, n_steps=8)
    contribution = jnp.ones(20).at[jnp.array(weak)].set(0.29)
    return state._replace(contribution=contribution.at[9].set(0.31)), source.sample(KEY, 32)


def test_weak_latents_start_anew_on_a_residual_and_the_others_stay_as_they_are() -> None:
    state, x = weak_state((3, 7))
    new = restart(KEY, state, x, hypers(reinit_below=0.3))
    weak = np.isin(np.arange(20), (3, 7))
    strong_places, weak_places = jnp.array(np.flatnonzero(~weak)), jnp.array(np.flatnonzero(weak))
    old_mu, mu = (optax.tree.get(s.opt_state, "mu") for s in (state, new))
    for before, after in ((state.params, new.params), (old_mu, mu)):
        assert equal(take_latents(before, strong_places), take_latents(after, strong_places))
        assert equal(before.b_dec, after.b_dec)
        assert not np.isclose(before.W_dec[weak], after.W_dec[weak]).any()
    assert old_mu.W_dec[weak].any()
    assert not any(leaf.any() for leaf in take_latents(mu, weak_places)[:3])
    assert equal(optax.tree.get(new.opt_state, "nu"), optax.tree.get(state.opt_state, "nu"))
    assert equal(new._replace(params=state.params, opt_state=state.opt_state), state)

    residual = np.asarray(x - decode(state.params, encode(state.params, x)))
    for latent in (3, 7):
        d = np.asarray(new.params.W_dec[latent])
        assert np.isclose(residual, d, atol=1e-5).all(axis=1).any()
        assert d @ new.params.W_enc[:, latent] == pytest.approx(1, rel=1e-4)  # so that a · d is the residual
        assert new.params.b_enc[latent] == 0


def test_restarted_latents_take_the_samples_that_are_rebuilt_worst() -> None:
    state, x = weak_state((3, 7))
    x = x.at[jnp.linalg.norm(x, axis=1).argmax()].multiply(100.0)
    new = restart(KEY, state, x, hypers(reinit_below=0.3))
    residual = x - decode(state.params, encode(state.params, x))
    worst = residual[jnp.linalg.norm(residual, axis=1).argmax()]
    np.testing.assert_allclose(new.params.W_dec[jnp.array([3, 7])], jnp.stack([worst, worst]), rtol=1e-4, atol=1e-3)


def test_re_initialisation_can_be_turned_off() -> None:
    state, x = weak_state((3, 7))
    assert equal(restart(KEY, state, x, hypers(reinit_below=0.0)), state)


@pytest.mark.parametrize(
    ("at", "due"), [(0, False), (110, False), (120, True), (125, False), (240, True), (360, True), (400, False)]
)
def test_weak_latents_start_anew_only_when_due_and_inside_the_window(at: int, due: bool) -> None:
    cfg = TrainConfig(20, n_steps=600, batch_size=32, reinit_every=40, reinit_window=(0.2, 0.6))
    state, _ = weak_state((3,))
    state = state._replace(step=jnp.int32(at), contribution=jnp.full(20, 1e6).at[3].set(0.0))
    state = state._replace(
        params=state.params._replace(b_enc=state.params.b_enc.at[3].set(1.0))
    )  # on, so it has a gradient
    assert optax.tree.get(state.opt_state, "mu").W_dec[3].any()
    after = keep_up(state, tree_source(), hypers(), cfg=cfg)
    assert (not optax.tree.get(after.opt_state, "mu").W_dec[3].any()) == due
    assert equal(after, state) != due


# --- many runs ----------------------------------------------------------------------------------------------

LONG = TrainConfig(20, n_steps=300, batch_size=32, n_lr_warmup_steps=20, reinit_every=30, reinit_window=(0.1, 0.9))
LANE_WEIGHTS = TreeSource(None, 0)  # type: ignore[arg-type]  # in_axes: one tree for all, W_feat has lanes


def grid(
    n_lanes: int, cfg: TrainConfig, **fields: Any
) -> tuple[tuple[TrainState, Metrics], list[tuple[jax.Array, TreeSource, Hypers]]]:
    """A grid with a dictionary and a target a lane, and the arguments of its lanes alone."""
    keys, W_feat = jax.random.split(KEY, 5)[:n_lanes], make_directions(jax.random.split(KEY_W, 5), 20, 20)[:n_lanes]
    targets = jnp.linspace(0.5, 3.0, 5)[:n_lanes]
    h = hypers(target_l0=targets, control_rate=3e-3, **fields)
    axes = (LANE_WEIGHTS, SHARED._replace(target_l0=0))
    result = train_grid(keys, TreeSource(TREE, W_feat), h, cfg=cfg, in_axes=axes, chunk=100)
    return result, [(keys[i], TreeSource(TREE, W_feat[i]), h._replace(target_l0=targets[i])) for i in range(n_lanes)]


# A lane is the run alone up to rounding: batched kernels sum in another order, and training amplifies differences
# (each step of Adam turns the sign of a tiny gradient into a whole step). Hence few steps in float32, and float64 for
# many, where a difference of 1e-16 is still far from 1e-9 at the end.


@pytest.mark.slow
def test_a_lane_is_the_run_alone_over_50_steps_in_float32() -> None:
    cfg = TrainConfig(20, n_steps=50, batch_size=32, reinit_every=20)
    (state, history), alone = grid(3, cfg)
    for i, args in enumerate(alone):
        single, single_history = train(*args, cfg=cfg, chunk=100)
        assert_close(lane(state, i), single, 2e-3)  # 1e-4 was seen
        assert_close(lane(history, i), single_history, 1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_lane_is_the_run_alone_over_300_steps_with_restarts_in_float64() -> None:
    (state, history), alone = grid(3, LONG)
    for i, args in enumerate(alone):
        single, single_history = train(*args, cfg=LONG, chunk=100)
        assert single.params.W_enc.dtype == jnp.float64
        assert_close(lane(state, i), single, 1e-9)
        assert_close(lane(history, i), single_history, 1e-9)
        assert_close(lane(trained_saes(state), i), trained_sae(single), 1e-9)
        if i == 0:
            key, source, h = args
            off, _ = train(key, source, h._replace(reinit_below=0.0), cfg=LONG, chunk=100)
            assert np.abs(off.params.W_dec - single.params.W_dec).max() > 1e-2  # so there were restarts


@pytest.mark.usefixtures("x64")
def test_a_lane_does_not_depend_on_the_number_of_lanes_or_devices() -> None:
    assert jax.local_device_count() == 2
    (three, history), _ = grid(3, LONG)  # odd: a device has a lane to spare
    (one, history_of_one), _ = grid(1, LONG)
    assert three.contribution.shape == (3, 20)
    assert history.mse.shape == (3, 3)
    assert one.contribution.shape == (1, 20)
    assert history_of_one.mse.shape == (1, 3)
    assert_close(lane(one, 0), lane(three, 0), 1e-9)
    assert_close(lane(history_of_one, 0), lane(history, 0), 1e-9)
    assert not np.isclose(three.sparsity_coef[0], three.sparsity_coef[2])


def test_lanes_are_spread_over_the_devices() -> None:
    calls = []
    original = state_module.jax.device_put

    def spy(leaf: Any, target: Any) -> Any:
        placed = original(leaf, target)
        calls.append(placed)
        return placed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_put", spy)
        train_grid(jax.random.split(KEY, 3), tree_source(), hypers(), cfg=CFG, in_axes=(None, SHARED), chunk=60)
    arrays = (placed for placed in calls if isinstance(placed, jax.Array))
    (keys,) = (array for array in arrays if jnp.issubdtype(array.dtype, jax.dtypes.prng_key))
    assert [shard.data.shape for shard in keys.addressable_shards] == [(2,), (2,)]
    assert len(keys.sharding.device_set) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_any_hyperparameter_weighting_and_tree_can_have_lanes() -> None:
    cfg, keys = TrainConfig(20, n_steps=40, batch_size=16), jax.random.split(KEY, 2)
    magnitudes = jnp.stack([jnp.asarray(TREE.magnitude_mean), 2.0 * jnp.asarray(TREE.magnitude_mean)])
    weights = jnp.stack([jnp.eye(20)[-1], jnp.full(20, 1 / 20)])  # the full prefix, all prefixes
    numbers = (1.12, 1e-2, 0.5, 0.6, 1, 1, 3e-4, 0.3, 1 / 32)
    sizes = jnp.array([1.0, 0.5])
    lanes = Hypers(FixedWeights(weights), *(jnp.array([v, 1.5 * v]) for v in numbers), input_size=sizes)
    source = tree_source()._replace(tree=TREE._replace(magnitude_mean=magnitudes))
    axes = TreeSource(Tree(*[None] * len(Tree._fields))._replace(magnitude_mean=0), None)  # type: ignore[arg-type]
    state, _ = train_grid(keys, source, lanes, cfg=cfg, in_axes=(axes, 0))
    for i in range(2):
        own = TreeSource(TREE._replace(magnitude_mean=magnitudes[i]), source.W_feat)
        single, _ = train(keys[i], own, lane(lanes, i), cfg=cfg)
        assert_close(lane(state, i), single, 1e-9)
    assert not np.allclose(state.input_norm[0], state.input_norm[1], rtol=0.1)


# --- arguments that cannot be -------------------------------------------------------------------------------


def test_weights_for_another_number_of_latents_are_refused() -> None:
    for weighting in (full(19), sampled(21)):
        n = weighting.n_latents
        with pytest.raises(ValueError, match=f"hypers.prefixes is for {n} latents, but cfg.n_latents is 20"):
            train(KEY, tree_source(), hypers(weighting), cfg=CFG)
        with pytest.raises(ValueError, match=f"hypers.prefixes is for {n} latents"):
            train_grid(KEY[None], tree_source(), hypers(weighting), cfg=CFG, in_axes=(None, SHARED))


@pytest.mark.parametrize(
    ("fields", "in_axes", "message"),
    [
        ({}, (None, SHARED._replace(target_l0=0)), r"hypers: a leaf of shape \(\) has no lane axis of 3"),
        ({"target_l0": np.ones(2)}, (None, SHARED._replace(target_l0=0)), r"hypers: a leaf of shape \(2,\) has no"),
        ({}, (TreeSource(None, 0), SHARED), r"source: a leaf of shape \(20, 20\) has no lane axis of 3"),  # type: ignore
    ],
)
def test_leaves_without_the_lane_axis_they_should_have_are_refused(fields: dict, in_axes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_grid(jax.random.split(KEY, 3), tree_source(), hypers(**fields), cfg=CFG, in_axes=in_axes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_latents": 0}, "n_latents: must be at least 1, got 0"),
        ({"n_steps": 0}, "n_steps: must be at least 1"),
        ({"batch_size": -1}, "batch_size: must be at least 1"),
        ({"reinit_every": 0}, "reinit_every: must be at least 1"),
        ({"lr_cooldown_share": 1.5}, r"lr_cooldown_share: must be at most 1, got 1.5"),
        ({"final_lr_share": -0.5}, "final_lr_share: must not be negative, got -0.5"),
        ({"sparsity_warmup_share": float("nan")}, "sparsity_warmup_share: must be finite, got nan"),
        ({"reinit_window": (0.2, 1.2)}, "reinit_window: must be at most 1, got 1.2"),
        ({"n_lr_warmup_steps": 0}, "n_lr_warmup_steps: must be at least 1"),
        ({"reorder_every": 0}, "reorder_every: must be at least 1, got 0"),
        ({"n_microbatches": 0}, "n_microbatches: must be at least 1, got 0"),
        ({"n_microbatches": 3}, "n_microbatches: 3 does not divide batch_size = 200"),
        ({"method": TopKFamily(TopK(5))}, "method: k = 5 is more than n_latents = 4"),
        ({"method": TopKFamily(BatchTopK(4.5))}, "method: k = 4.5 is more than n_latents = 4"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainConfig(**{"n_latents": 4, **fields})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("form", "dense", "form: expected None or 'gram' or 'wide', got 'dense'"),
        ("dtype", "float16", "dtype: expected 'float32' or 'bfloat16', got 'float16'"),
    ],
)
def test_a_choice_that_is_none_is_refused_also_where_types_are_not_checked(name: str, value: str, message: str) -> None:
    cfg = TrainConfig(4)
    object.__setattr__(cfg, name, value)  # past the type checks of the tests
    with pytest.raises(ValueError, match=f"^{message}$"):
        cfg.__post_init__()


def test_a_relu_sae_without_a_target_l0_is_refused_and_one_of_the_topk_family_needs_none() -> None:
    with pytest.raises(ValueError, match=r"^hypers\.target_l0: Standard\(.* needs a target L0"):
        train(KEY, tree_source(), Hypers(sampled(20)), cfg=CFG)
    with pytest.raises(ValueError, match=r"^hypers\.target_l0: Standard\(.* needs a target L0"):
        train_grid(KEY[None], tree_source(), Hypers(sampled(20)), cfg=CFG, in_axes=(None, SHARED))
    cfg = TrainConfig(20, n_steps=2, batch_size=8, method=TopKFamily(TopK(2)))
    state, history = train(KEY, tree_source(), Hypers(sampled(20)), cfg=cfg)
    assert history.sparsity_coef == state.sparsity_coef == 1


def test_the_axes_of_hypers_are_of_known_names() -> None:
    assert hyper_axes(learning_rate=0).learning_rate == 0
    assert hyper_axes(learning_rate=0).target_l0 is None
    with pytest.raises(TypeError, match="lerning_rate"):
        hyper_axes(lerning_rate=0)
