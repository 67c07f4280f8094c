"""Every form of the loss equals the naive cumulative sum and a loop over prefixes, in values and gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles import PARAMETERS, QUICK, as_sae, dense_weights, naive_loss, random_arrays, slow_loss

from toy.loss import (
    Form,
    LossParts,
    Sparsity,
    choose_form,
    log_offset,
    needs_order,
    reconstruct,
    sae_loss,
    sparsity_penalty,
)
from toy.loss.gram import gram_mse
from toy.loss.products import dot
from toy.loss.relu_few_prefixes import few_mse_at_once
from toy.loss.tiled import full_mse, tiled_mse
from toy.prefixes import (
    FixedPrefixes,
    FixedWeights,
    HybridWeights,
    Prefixes,
    all_prefixes,
    balanced,
    draw,
    expected,
    fixed,
    full,
    hybrid,
    sampled,
)
from toy.sae import RELU, SAE, Activation, BatchTopK, TopK, take_latents

# --- every form against autodiff of the naive one ----------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """The static part of a case, compiled once: shapes, form and kind of prefixes; hypothesis draws the values."""

    n_rows: int
    d_in: int
    n_latents: int
    prefixes: str  # a kind below
    n_prefixes: int = 1  # or, of the hybrid, its exact ones
    form: Form = "wide"
    tile: int | None = None
    activation: Activation = RELU
    sparsity: Sparsity = "l1"


CASES = {
    "gram, one latent": Case(1, 1, 1, "every", form="gram"),
    "gram, every": Case(5, 3, 12, "every", form="gram", sparsity="log"),
    "gram, hybrid": Case(6, 5, 37, "hybrid", 5, form="gram", tile=8),
    "gram, BatchTopK": Case(6, 5, 37, "few", 5, form="gram", activation=BatchTopK(2.5)),
    "full": Case(6, 5, 37, "few", 1),
    "few, 2 of 70": Case(7, 3, 70, "few", 2, tile=8),
    "few, one tile": Case(7, 3, 70, "few", 2, tile=500),
    "few, tiles of 1": Case(7, 3, 70, "few", 2, tile=1),
    "few, 12 of 400": Case(3, 4, 400, "few", 12, tile=16, sparsity="log"),
    "few, the tile chosen": Case(3, 4, 400, "few", 10, sparsity="log"),
    "so many that all are": Case(6, 5, 37, "few", 9, tile=8),
    "every": Case(6, 5, 37, "every", tile=8),
    "every, one tile": Case(6, 5, 37, "every", tile=100),
    "every, the tile chosen": Case(3, 4, 400, "every", sparsity="log"),
    "hybrid": Case(6, 5, 37, "hybrid", 6, tile=8),
    "hybrid, 1 exact": Case(6, 5, 37, "hybrid", 1, tile=35),
    "hybrid, 400": Case(3, 4, 400, "hybrid", 71, tile=32, sparsity="log"),
    "TopK, every": Case(6, 5, 37, "every", activation=TopK(3)),
    "TopK, hybrid": Case(6, 5, 37, "hybrid", 5, tile=8, activation=TopK(3)),
    "TopK of all latents": Case(6, 5, 37, "few", 5, activation=TopK(37)),
    "BatchTopK, every": Case(6, 5, 37, "every", activation=BatchTopK(2.5, slots=37)),
    "BatchTopK, few of 400": Case(3, 4, 400, "few", 10, activation=BatchTopK(4.0, slots=12)),
}


@partial(jax.jit, static_argnames="case", compiler_options=QUICK)
def loss_and_grads(
    sae: SAE, x: jax.Array, prefixes: Prefixes, ranks: jax.Array, coef: jax.Array, case: Case
) -> tuple[tuple[jax.Array, LossParts], SAE]:
    static: dict[str, Any] = dict(sparsity=case.sparsity, activation=case.activation, form=case.form, tile=case.tile)
    return jax.value_and_grad(partial(sae_loss, **static), has_aux=True)(sae, x, prefixes, ranks, coef)


naive_loss_and_grads = jax.jit(jax.value_and_grad(naive_loss), static_argnums=(5, 6), compiler_options=QUICK)


def ends_with(n: int, lengths: list[int]) -> list[int]:
    return [*sorted(1 + length % n for length in lengths), n]


def assert_close(ours: jax.Array | np.ndarray, theirs: jax.Array | np.ndarray, zero: float, rtol: float) -> None:
    """Largest error over largest entry; where the entries are all 0, over `zero`."""
    size = float(np.abs(theirs).max()) or zero
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * size)


def some_prefixes(case: Case) -> Prefixes:
    """Returns prefixes of the kind and shape of the case."""
    n, m = case.n_latents, case.n_prefixes
    if case.prefixes == "hybrid":
        return jax.tree.map(jnp.asarray, hybrid(n, n_exact=m, tile=case.tile or 1))
    few = fixed(n, ends_with(n, [3 * i * i for i in range(m - 1)]))
    return jax.tree.map(jnp.asarray, few if case.prefixes == "few" else all_prefixes(n))


@st.composite
def prefixes_of(draw: st.DrawFn, case: Case) -> Prefixes:
    """Weights from 0 to 1 that sum to 1, most of them 0 or none; lengths that repeat, and such as 1 and n_latents."""
    n, m = case.n_latents, case.n_prefixes
    n_tail = -(-(n - m) // (case.tile or 1))
    n_weights = {"every": n, "few": m, "hybrid": m + n_tail}[case.prefixes]
    weights = np.random.default_rng(draw(st.integers(0, 10_000))).uniform(size=n_weights)
    weights *= np.random.default_rng(draw(st.integers(0, 10_000))).uniform(size=n_weights) < draw(
        st.sampled_from([1.0, 0.5, 0.1])
    )
    heavy = draw(st.integers(0, n_weights - 1))
    weights[heavy] = 1.0  # never all 0
    weights /= weights.sum()
    if case.prefixes == "every":
        return FixedWeights(weights)
    if case.prefixes == "few":
        lengths = draw(st.lists(st.integers(0, n - 1), min_size=m - 1, max_size=m - 1))
        return FixedPrefixes(np.array(ends_with(n, lengths)), weights)
    tile = -(-(n - m) // n_tail)
    return HybridWeights(weights[:m], np.append(np.arange(m, n, tile)[1:], n), weights[m:])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=20, phases=[Phase.generate])  # seeds have no smaller ones
@given(data=st.data())
def test_value_and_gradients_are_those_of_the_naive_cumulative_sum(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    prefixes = data.draw(prefixes_of(case))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    arrays = random_arrays(int(rng.integers(10_000)), case.n_rows, case.d_in, case.n_latents)
    share_dead = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    arrays["b_enc"][rng.uniform(size=case.n_latents) < share_dead] = -1e3
    coef = data.draw(st.floats(0, 2))
    n = case.n_latents
    order = np.arange(n) if needs_order(case.form, case.activation) else rng.permutation(n)

    sae, x = as_sae(arrays), jnp.asarray(arrays["x"])
    weights = jnp.asarray(dense_weights(prefixes, n))
    loss, grads = naive_loss_and_grads(sae, x, weights, order, coef, case.sparsity, case.activation)
    given_prefixes = jax.tree.map(jnp.asarray, prefixes)
    (ours, parts), our_grads = loss_and_grads(sae, x, given_prefixes, jnp.argsort(order), jnp.asarray(coef), case)
    assert ours == pytest.approx(float(loss), rel=1e-12)
    for field in PARAMETERS:
        assert_close(getattr(our_grads, field), getattr(grads, field), float(loss), 1e-12)
    mse, _ = naive_loss_and_grads(sae, x, weights, order, 0.0, case.sparsity, case.activation)
    assert parts.mse == pytest.approx(float(mse), rel=1e-12)


AT_ONCE, IN_TILES = (
    jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2))) for of in (few_mse_at_once, partial(tiled_mse, tile=16))
)


@pytest.mark.usefixtures("x64")
@settings(max_examples=20, phases=[Phase.generate])
@given(data=st.data())
def test_a_few_prefixes_at_once_are_what_they_are_in_tiles(data: st.DataObject) -> None:
    case = CASES["few, 12 of 400"]
    prefixes = jax.tree.map(jnp.asarray, data.draw(prefixes_of(case)))
    arrays = random_arrays(data.draw(st.integers(0, 10_000)), case.n_rows, case.d_in, case.n_latents)
    acts = jnp.maximum(jnp.asarray(arrays["x"] @ arrays["W_enc"]), 0)
    args = acts, jnp.asarray(arrays["W_dec"]), jnp.asarray(arrays["x"]), prefixes
    at_once, tiles = AT_ONCE(*args), IN_TILES(*args)
    for ours, theirs in zip(jax.tree.leaves(at_once), jax.tree.leaves(tiles), strict=True):
        assert_close(ours, theirs, 1.0, 1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["few, 2 of 70", "every", "TopK, every"])
def test_a_multiple_of_the_loss_has_that_multiple_of_its_gradients(name: str) -> None:
    case = CASES[name]
    arrays = random_arrays(0, case.n_rows, case.d_in, case.n_latents)
    prefixes = some_prefixes(case)

    @partial(jax.jit, compiler_options=QUICK)
    @jax.grad
    def gradient(sae: SAE, factor: jax.Array) -> jax.Array:
        ranks = jnp.arange(case.n_latents)
        args = sae, jnp.asarray(arrays["x"]), prefixes, ranks
        return factor * sae_loss(*args, form=case.form, tile=case.tile, activation=case.activation)[0]

    once, thrice = (gradient(as_sae(arrays), jnp.array(factor)) for factor in (1.0, -3.0))
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(thrice), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(b, -3 * np.asarray(a), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n_latents", [70, 330])
def test_new_bounds_in_every_batch_take_no_new_compilation(n_latents: int) -> None:
    arrays, weighting = random_arrays(0, 3, 4, n_latents), jax.tree.map(jnp.asarray, sampled(n_latents, 3))
    traces = []

    @jax.jit
    def of_batch(key: jax.Array) -> jax.Array:
        traces.append(key)
        return sae_loss(as_sae(arrays), jnp.asarray(arrays["x"]), draw(key, weighting), jnp.arange(n_latents))[0]

    losses = {float(of_batch(key)) for key in jax.random.split(jax.random.key(0), 5)}
    assert len(losses) == 5
    assert len(traces) == 1


# --- against the loop over prefixes -----------------------------------------------------------------------

SIZES = st.sampled_from([(1, 1, 1), (3, 2, 5), (4, 3, 12)])  # rows, d_in, n_latents


def normalised(n: int, values: list[float]) -> FixedWeights:
    weights = np.array(values[:n]) + 1e-3 * (np.arange(n) == n - 1)  # never all 0
    return FixedWeights(weights / weights.sum())


WEIGHTINGS = st.one_of(
    st.sampled_from([full, all_prefixes, lambda n: expected(n, 3), lambda n: balanced(n, 0.75)]),
    st.lists(st.integers(0, 99), min_size=1, max_size=15).map(
        lambda w: lambda n: fixed(n, [*(1 + i % n for i in w), n])
    ),
    st.lists(st.floats(0, 1), min_size=12, max_size=12).map(lambda values: lambda n: normalised(n, values)),
)


@partial(jax.jit, compiler_options=QUICK)
def fast_loss(
    arrays: dict[str, Any], weights: jax.Array, ranks: jax.Array, coef: float, log: bool
) -> tuple[tuple[jax.Array, LossParts], SAE]:
    def loss(kind: Sparsity) -> tuple:
        of_sae = partial(sae_loss, sparsity=kind)
        args = as_sae(arrays), arrays["x"], FixedWeights(weights), ranks, coef
        return jax.value_and_grad(of_sae, has_aux=True)(*args)

    return jax.tree.map(lambda a, b: jnp.where(log, a, b), loss("log"), loss("l1"))


@pytest.mark.usefixtures("x64")
@given(size=SIZES, weighting=WEIGHTINGS, seed=st.integers(0, 10_000), coef=st.floats(0, 2), log=st.booleans())
def test_value_and_gradients_are_those_of_the_loop_over_prefixes(
    size: tuple[int, int, int], weighting: Callable[[int], Prefixes], seed: int, coef: float, log: bool
) -> None:
    arrays, weights = random_arrays(seed, *size), dense_weights(weighting(size[2]), size[2])
    loss, grads = slow_loss(arrays, enumerate(weights, start=1), coef, "log" if log else "l1")
    (fast, parts), fast_grads = fast_loss(arrays, jnp.array(weights), jnp.arange(size[2]), coef, log)
    assert fast == pytest.approx(loss, rel=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(getattr(fast_grads, name), grad, rtol=0, atol=1e-12 * max(np.abs(grad).max(), loss))
    mse, _ = slow_loss(arrays, enumerate(weights, start=1), 0.0, "l1")
    assert parts.mse == pytest.approx(mse, rel=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sparsity", ["l1", "log"])
def test_the_naive_form_itself_is_the_loop_over_prefixes(sparsity: str) -> None:
    arrays, weights = random_arrays(4, 5, 3, 6), np.array([0.1, 0.2, 0.0, 0.3, 0.0, 0.4])
    loss, grads = slow_loss(arrays, enumerate(weights, start=1), 0.7, sparsity)
    args = as_sae(arrays), jnp.asarray(arrays["x"]), jnp.asarray(weights), jnp.arange(6), 0.7, sparsity, RELU
    naive, naive_grads = naive_loss_and_grads(*args)
    assert naive == pytest.approx(loss, rel=1e-12)
    for name, grad in grads.items():
        assert_close(getattr(naive_grads, name), grad, loss, 1e-12)


# --- ranks, forms and types -------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("form", "activation"),
    [("gram", RELU), ("gram", TopK(2)), ("gram", BatchTopK(2.5)), ("wide", TopK(2)), ("wide", BatchTopK(2.5))],
    ids=str,
)
def test_ranks_are_the_loss_of_the_reordered_sae(form: Form, activation: Activation) -> None:
    arrays = random_arrays(0, 6, 4, 5)
    order = jnp.array([3, 0, 4, 1, 2])  # the latent at each rank
    ranks, here = jnp.argsort(order), jnp.arange(5)
    prefixes = FixedWeights(jnp.array([0.1, 0.2, 0.3, 0.0, 0.4]))
    sae, case = as_sae(arrays), Case(6, 4, 5, "every", form=form, activation=activation)
    of = partial(loss_and_grads, x=jnp.asarray(arrays["x"]), prefixes=prefixes, coef=jnp.asarray(0.7), case=case)
    (loss, parts), grads = of(sae, ranks=ranks)
    (sorted_loss, sorted_parts), sorted_grads = of(take_latents(sae, order), ranks=here)
    assert loss == pytest.approx(float(sorted_loss), rel=1e-12)
    np.testing.assert_allclose(parts.contribution[order], sorted_parts.contribution, rtol=1e-12)
    for a, b in zip(take_latents(grads, order)[:4], sorted_grads[:4], strict=True):
        assert_close(a, b, 1.0, 1e-12)
    (unsorted, _), _ = of(sae, ranks=here)
    assert abs(unsorted - loss) > 1e-3


FORMS: tuple[Form | None, ...] = (None, "gram", "wide")


def test_the_form_is_chosen_from_the_width_alone_and_can_be_overridden() -> None:
    assert [choose_form(n) for n in (1, 20, 128, 129, 25_000)] == ["gram"] * 3 + ["wide"] * 2
    assert needs_order("wide", RELU)
    others: list[tuple[Form, Activation]] = [("gram", RELU), ("gram", TopK(1)), ("wide", TopK(1))]
    assert not any(needs_order(form, activation) for form, activation in [*others, ("wide", BatchTopK(1.0))])
    for n_latents in (128, 129):
        arrays = random_arrays(0, 4, 3, n_latents)
        prefixes = FixedWeights(jnp.full(n_latents, 1 / n_latents))
        args = as_sae(arrays), jnp.asarray(arrays["x"]), prefixes, jnp.arange(n_latents)
        jaxprs = {form: str(jax.make_jaxpr(partial(sae_loss, form=form))(*args)) for form in FORMS}
        assert jaxprs[None] == jaxprs[choose_form(n_latents)]
        assert jaxprs["gram"] != jaxprs["wide"]


def rounded(sae: SAE) -> SAE:
    return sae._replace(W_enc=sae.W_enc.astype(jnp.bfloat16), W_dec=sae.W_dec.astype(jnp.bfloat16))


@pytest.mark.parametrize("name", ["full", "few, 2 of 70", "every", "hybrid", "TopK, every", "gram, every"])
def test_bfloat16_products_give_float32_losses_near_those_of_float32(name: str) -> None:
    """Near: the same parameters, rounded to bfloat16, in the naive form in float32.

    Activations and residuals alone are rounded, each by 2^-9 of itself at most, independently: of a loss that sums
    hundreds of squares less than 1% is left, of a gradient, whose terms cancel more, less than 3%.
    """
    case = CASES[name]
    n, prefixes = case.n_latents, some_prefixes(case)
    arrays = {name: jnp.asarray(a, jnp.float32) for name, a in random_arrays(5, 32, 16, n).items()}
    sae, x = rounded(SAE(*(arrays[name] for name in PARAMETERS))), arrays["x"].astype(jnp.bfloat16)
    (loss, parts), grads = loss_and_grads(sae, x, prefixes, jnp.arange(n), jnp.asarray(0.1), case)
    assert loss.dtype == parts.mse.dtype == jnp.float32
    assert [leaf.dtype for leaf in jax.tree.leaves(grads)] == [leaf.dtype for leaf in jax.tree.leaves(sae)]

    in_float32, *rest = jax.tree.map(lambda a: a.astype(jnp.float32), (sae, x, dense_weights(prefixes, n)))
    args = in_float32, *rest, jnp.arange(n), jnp.asarray(0.1), case.sparsity, case.activation
    naive, naive_grads = naive_loss_and_grads(*args)
    assert loss == pytest.approx(float(naive), rel=1e-2)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(naive_grads), strict=True):
        assert np.linalg.norm(np.asarray(ours, np.float32) - theirs) <= 0.03 * np.linalg.norm(theirs)


def test_products_of_bfloat16_are_summed_in_float32() -> None:
    a = jnp.ones((1, 4097), jnp.bfloat16)
    assert dot("ij,kj->ik", a, a).item() == 4097  # bfloat16 has 8 bits: 4096
    assert dot("ij,kj->ik", a, a).dtype == jnp.float32
    assert dot("ij,kj->ik", a, jnp.ones((1, 4097))).item() == 4097


# --- the rest of the objective ----------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_the_full_prefix_alone_is_the_plain_squared_error() -> None:
    arrays = random_arrays(1, 7, 3, 4)
    acts, error = np.maximum(arrays["x"] @ arrays["W_enc"] + arrays["b_enc"], 0), arrays["x"] - arrays["b_dec"]
    plain = ((error - acts @ arrays["W_dec"]) ** 2).sum(axis=1).mean()
    args = jnp.array(acts), jnp.array(arrays["W_dec"]), jnp.array(error)
    assert gram_mse(*args, jnp.ones(4)) == pytest.approx(plain, rel=1e-12)
    assert full_mse(*args) == pytest.approx(plain, rel=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["gram", "wide"])
@pytest.mark.parametrize("activation", [RELU, TopK(2), BatchTopK(1.5, slots=4)], ids=str)
def test_the_parts_are_l0_and_each_latent_s_mean_squared_contribution(form: Form, activation: Activation) -> None:
    arrays = random_arrays(2, 50, 3, 4)
    sae, x, threshold = as_sae(arrays), jnp.asarray(arrays["x"]), 1.5
    static: dict[str, Any] = dict(activation=activation, form=form, threshold=threshold)
    prefixes = jax.tree.map(jnp.asarray, full(4))
    _, parts = jax.jit(partial(sae_loss, **static), compiler_options=QUICK)(sae, x, prefixes, jnp.arange(4))
    dense = np.maximum(arrays["x"] @ arrays["W_enc"] + arrays["b_enc"], 0)
    sizes = dense * np.linalg.norm(arrays["W_dec"], axis=1)
    counted, acts = sizes > threshold, dense
    if activation == TopK(2):
        acts = np.where(sizes >= np.sort(sizes, axis=1)[:, 2:3], dense, 0)
        if form == "wide":  # only what has a slot is counted
            counted &= acts > 0
    if isinstance(activation, BatchTopK):
        acts = np.where(sizes >= np.sort(sizes, axis=None)[-75], dense, 0)
        assert parts.l0 == 1.5
    assert parts.l0 == pytest.approx((acts > 0).sum(axis=1).mean())
    assert parts.l0_over_threshold == pytest.approx(counted.sum(axis=1).mean())
    vectors = acts[:, :, None] * arrays["W_dec"]
    np.testing.assert_allclose(parts.contribution, (vectors**2).sum(axis=2).mean(axis=0), rtol=1e-12)
    recon = jax.jit(partial(reconstruct, activation=activation, form=form))(sae, x)
    np.testing.assert_allclose(recon, acts @ arrays["W_dec"] + arrays["b_dec"], rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_penalty_counts_a_latent_by_the_weight_of_its_prefixes() -> None:
    arrays = random_arrays(3, 50, 3, 2)
    weights, on_all = jnp.array([0.25, 0.75]), jnp.ones(1)
    first = {name: a[..., :1] if name in ("W_enc", "b_enc") else a for name, a in arrays.items()}
    first["W_dec"] = arrays["W_dec"][:1]

    def penalty(some: dict[str, np.ndarray], weights: jax.Array) -> float:
        ranks = jnp.arange(len(weights))
        with_penalty, without = (fast_loss(some, weights, ranks, coef, True)[0][0] for coef in (1.0, 0.0))
        return float(with_penalty - without)

    alone, both = penalty(first, on_all), penalty(arrays, jnp.array([0.0, 1.0]))
    assert penalty(arrays, weights) == pytest.approx(0.25 * alone + 0.75 * both, rel=1e-9)


def test_the_penalties_are_the_formulas_of_the_post() -> None:
    acts, norms = jnp.array([[0.0, 2.0], [1.0, 0.0]]), jnp.array([0.5, 3.0])
    np.testing.assert_allclose(sparsity_penalty(acts, norms, "l1"), [0.25, 3.0])
    logs = [(np.log(0.6) - np.log(0.1)) / 2, (np.log(6.1) - np.log(0.1)) / 2]
    np.testing.assert_allclose(sparsity_penalty(acts, norms, "log"), logs, rtol=1e-6)


def test_a_logarithm_has_the_offset_of_its_name_and_is_l1_where_that_is_large() -> None:
    acts, norms = jnp.array([[0.0, 2.0], [1.0, 0.0]]), jnp.array([0.5, 3.0])
    np.testing.assert_allclose(sparsity_penalty(acts, norms, "log_2"), np.log([1.25, 4.0]) / 2, rtol=1e-6)
    np.testing.assert_allclose(1e4 * sparsity_penalty(acts, norms, "log_1e4"), [0.25, 3.0], rtol=1e-3)


@pytest.mark.parametrize("kind", ["log_", "log_0", "log_-1", "log_nan", "log_1e999", "log_x", "L1"])
def test_an_offset_that_cannot_be_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"^sparsity: expected l1, log or log_O with an offset O > 0, got"):
        log_offset(kind)


def test_an_unknown_penalty_is_refused_by_name() -> None:
    kind: Any = "l2"
    with pytest.raises(Exception, match="l2"):
        sparsity_penalty(jnp.ones((1, 1)), jnp.ones(1), kind)
