"""Methods: one interface for those of the package and those of users' files, and what each of them promises."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import absorption
from experiments.common import cli
from experiments.common.experiment import Work
from toy import prefixes
from toy.data.source import TreeSource
from toy.features.directions import make_directions
from toy.features.named import reference_tree
from toy.features.tree import build_tree, mean_l0
from toy.io import plain
from toy.loss import Form, LossParts
from toy.methods import METHODS, Batch, Detached, HierarchicalTopK, Matryoshka, Method, Standard, named
from toy.methods.gated import Gated, GatedParams
from toy.methods.jumprelu import is_on, jump
from toy.methods.tied_finish import HeldFinish
from toy.methods.topk import Kept, TopKFamily
from toy.sae import SAE, MatchingPursuit, TopK, encode, init_sae
from toy.training.config import Hypers, TrainConfig
from toy.training.feed import run_facts
from toy.training.maintenance import moved
from toy.training.run import train
from toy.training.state import TrainState, trained_sae

HERE = Path(__file__).parent / "methods"
TREE = build_tree(reference_tree())
SOURCE = TreeSource(TREE, make_directions(jax.random.key(0)[None], 20, 30)[0])
KEY = jax.random.key(1)
NEED_K = ("topk", "hierarchical_topk")
SHIPPED = [*(name + (":k=2" if name in NEED_K else "") for name in METHODS), "batchtopk:k=1.12"]
OF_USERS = [f"{HERE}/{name}.py:{name}" for name in ("orthogonality", "tied", "jumprelu")]


def trained(text: str, n_steps: int = 60, **hypers: float) -> TrainState:
    method, weighting = named(text)[1:]
    target_l0 = mean_l0(TREE) if method.aims_at_l0 else None
    h = Hypers(prefixes.named(weighting, 20), target_l0=target_l0)._replace(**hypers)
    return train(KEY, SOURCE, h, cfg=TrainConfig(20, n_steps=n_steps, method=method, reinit_every=20))[0]


def largest_cosine(sae: SAE) -> float:
    directions = np.asarray(sae.W_dec) / np.linalg.norm(sae.W_dec, axis=1, keepdims=True)
    return float(np.abs(directions @ directions.T - np.eye(len(directions))).max())


@pytest.mark.parametrize(
    "text",
    [*(pytest.param(text, marks=pytest.mark.slow) for text in SHIPPED), *OF_USERS],
    ids=lambda text: Path(text).name,
)
def test_every_method_learns(text: str) -> None:
    method, x = named(text).method, SOURCE.sample(KEY, 500)
    state = trained(text, 300)
    errors = []
    for sae in (trained_sae(trained(text, 1, learning_rate=0.0)), trained_sae(state)):
        acts = encode(sae, x, method.inference)
        errors.append(float(jnp.mean(jnp.sum((x - acts @ sae.W_dec - sae.b_dec) ** 2, axis=1))))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("text", SHIPPED + OF_USERS, ids=lambda text: Path(text).name)
def test_latents_move_with_all_that_they_have(text: str) -> None:
    """The SAE of a run does not depend on the places of its latents."""
    state = trained(text)
    state = state._replace(contribution=state.contribution + 1e-6 * jax.random.uniform(KEY, (20,)))
    other = moved(state, jax.random.permutation(KEY, 20))
    for a, b in zip(jax.tree.leaves(trained_sae(state)), jax.tree.leaves(trained_sae(other)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("text", ["tied", OF_USERS[1]], ids=["shipped", "of a user"])
def test_a_tied_sae_s_encoder_is_its_decoder(text: str) -> None:
    sae = trained_sae(trained(text))
    np.testing.assert_allclose(sae.W_enc, sae.W_dec.T, rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(sae.W_dec, axis=1), 1, rtol=1e-5)


def test_a_tied_finish_ends_with_a_tied_sae_on_the_features_themselves() -> None:
    state = trained("tied_finish", 3_000)
    sae = trained_sae(state)
    np.testing.assert_allclose(sae.W_enc, sae.W_dec.T, rtol=1e-6)
    directions = SOURCE.W_feat / jnp.linalg.norm(SOURCE.W_feat, axis=1, keepdims=True)
    cosines = np.sort(np.abs(sae.W_dec @ directions.T), axis=1)
    assert cosines[:, -1].min() > 0.999  # the largest of each latent
    assert cosines[:, -2].max() < 0.02
    assert not np.allclose(state.params.sae.W_enc, state.params.sae.W_dec.T, atol=0.1)  # of the first phase


@pytest.mark.slow
def test_a_held_finish_ends_at_the_target_l0() -> None:
    for text, is_held in (("held_finish", True), ("tied_finish", False)):
        acts = encode(trained_sae(trained(text, 3_000, target_l0=0.8, control_rate=3e-3)), SOURCE.sample(KEY, 5_000))
        l0 = float(jnp.mean(jnp.sum(acts > 0, axis=1)))
        assert (abs(l0 - 0.8) < 0.08) == is_held, f"{text}: {l0:.2f}"


def test_a_held_finish_does_not_see_where_the_inputs_have_their_zero() -> None:
    method, x = HeldFinish(), SOURCE.sample(KEY, 50)
    params = method.init(KEY, 30, 20)
    shift = jax.random.normal(KEY, (30,))
    moved = params._replace(sae=params.sae._replace(b_dec=params.sae.b_dec + shift))
    acts, of_moved = encode(method.sae(params), x), encode(method.sae(moved), x + shift)
    np.testing.assert_allclose(acts, of_moved, atol=1e-5)
    assert acts.max() > 0.1


def test_an_aligned_latent_gives_back_its_own_direction() -> None:
    sae = trained_sae(trained("aligned"))
    np.testing.assert_allclose(jnp.sum(sae.W_enc * sae.W_dec.T, axis=0), 1, rtol=1e-4)


@pytest.mark.parametrize(
    ("with_penalty", "without"),
    [("orthogonal:coef=1", "orthogonal:coef=0"), (OF_USERS[0], f"{HERE}/orthogonality.py:without")],
    ids=["shipped", "of a user"],
)
def test_a_penalty_lowers_the_cosine(with_penalty: str, without: str) -> None:
    assert largest_cosine(trained_sae(trained(with_penalty, 400))) < 0.8 * largest_cosine(
        trained_sae(trained(without, 400))
    )


@pytest.mark.slow
def test_a_penalty_of_nothing_changes_nothing() -> None:
    for a, b in zip(jax.tree.leaves(trained("vanilla")), jax.tree.leaves(trained("orthogonal:coef=0")), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_groups_of_latents_cover_all_and_cost_linearly() -> None:
    """With two groups of the whole width the penalty is that of one group, whichever order is drawn."""
    whole, parts = (trained_sae(trained(f"orthogonal:coef=1,group={n}")) for n in (20, 10))
    assert largest_cosine(whole) < largest_cosine(trained_sae(trained("vanilla")))
    assert np.isfinite(parts.W_dec).all()


@pytest.mark.usefixtures("x64")
def test_a_latent_of_detached_levels_learns_from_its_own_prefix_alone() -> None:
    """Against the definition: earlier levels are held fixed in the error of each level."""
    sae = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), init_sae(KEY, 30, 20))
    x, ranks = SOURCE.sample(KEY, 50).astype(jnp.float64), jax.random.permutation(KEY, 20)
    weighting = prefixes.named("levels:3=1,50%=2,full=1", 20)
    given: dict[str, Any] = dict(
        x=x, prefixes=weighting, ranks=ranks, sparsity_coef=jnp.zeros(()), target_l0=1.0, done=jnp.zeros(())
    )
    batch = Batch(**given, key=KEY, memory=None, form="gram")

    def slow(sae: SAE) -> jax.Array:
        acts, before, total = encode(sae, x), jnp.zeros_like(x), jnp.zeros(())
        for first, end, weight in ((0, 3, 0.25), (3, 10, 0.5), (10, 20, 0.25)):
            own = jnp.where((ranks >= first) & (ranks < end), acts, 0) @ sae.W_dec
            bias = sae.b_dec if end == 20 else jax.lax.stop_gradient(sae.b_dec)
            total += weight * jnp.mean(jnp.sum((x - bias - before - own) ** 2, axis=1))
            before = jax.lax.stop_gradient(before + own)
        return total

    loss, gradient = jax.jit(jax.value_and_grad(lambda sae: Detached().loss(sae, batch)[0]))(sae)
    expected_loss, expected = jax.jit(jax.value_and_grad(slow))(sae)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-9)
    for name in ("W_enc", "b_enc", "W_dec"):
        np.testing.assert_allclose(getattr(gradient, name), getattr(expected, name), rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["gram", "wide"])
@pytest.mark.parametrize("fields", ["k=3", "k=2.5,levels=2", "k=1.5,levels=5"])
def test_hierarchical_topk_averages_over_the_largest_latents_of_each_row(fields: str, form: Form) -> None:
    """Against the definition: a row at a time, and one latent more at a time."""
    method = named(f"hierarchical_topk:{fields}").method
    assert isinstance(method, HierarchicalTopK)
    sae = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), init_sae(KEY, 30, 20))
    sae = sae._replace(b_dec=jnp.full(30, 0.01), W_dec=sae.W_dec * jnp.arange(1.0, 21.0)[:, None])
    x = SOURCE.sample(KEY, 12).astype(jnp.float64)
    given: dict[str, Any] = dict(
        x=x, prefixes=prefixes.full(20), ranks=jnp.arange(20), sparsity_coef=0.0, target_l0=None, done=jnp.zeros(())
    )
    batch = Batch(**given, key=KEY, memory=Kept(jnp.ones(()), None), form=form)

    def slow(sae: SAE) -> jax.Array:
        acts, total = encode(sae, x, method.kept), jnp.zeros(())
        for row, of_row, places in zip(x, acts, order, strict=True):
            left = row - sae.b_dec
            for level in range(1, method.levels + 1):
                taken = places[level - 1 : None if level == method.levels else level]
                left -= of_row[taken] @ sae.W_dec[taken]
                total += jnp.sum(left**2) / method.levels
        return total / len(x)

    order = np.argsort(-np.asarray(encode(sae, x, method.kept)) * np.linalg.norm(sae.W_dec, axis=1), axis=1)
    loss, gradient = jax.jit(jax.value_and_grad(lambda sae: method.loss(sae, batch)[0]))(sae)
    expected_loss, expected = jax.value_and_grad(slow)(sae)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-9)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_allclose(getattr(gradient, name), getattr(expected, name), rtol=1e-7, atol=1e-9)


def test_the_order_of_activations_charges_the_hierarchy_and_not_the_code_that_absorbs() -> None:
    """By hand: a row with a parent of magnitude 1 and a child of 2. Of the child alone the parent's 1 is left over."""
    method = named("hierarchical_topk:k=2").method
    both = jnp.array([[1.0, 2.0]])
    given: dict[str, Any] = dict(prefixes=prefixes.full(2), ranks=jnp.arange(2), sparsity_coef=0.0, target_l0=None)
    batch = Batch(both, **given, done=jnp.zeros(()), key=KEY, memory=Kept(None, None), form="gram")
    zeros = jnp.zeros(2)
    hierarchy = SAE(jnp.eye(2), zeros, jnp.eye(2), zeros)
    absorbs = SAE(jnp.array([[1.0, 0.0], [-1.0, 1.0]]), zeros, jnp.array([[1.0, 0.0], [0.5, 1.0]]), zeros)
    assert [float(method.loss(sae, batch)[0]) for sae in (hierarchy, absorbs)] == [0.5, 0.0]


def test_a_gated_sae_is_the_jumprelu_sae_that_it_is_exported_as() -> None:
    rng = np.random.default_rng(0)
    sae = init_sae(KEY, 30, 20)._replace(b_enc=jnp.asarray(rng.normal(size=20), jnp.float32) / 4)
    log_scale, b_gate = (jnp.asarray(rng.normal(size=20), jnp.float32) / 2 for _ in range(2))
    params, x = GatedParams(sae, log_scale, b_gate), SOURCE.sample(KEY, 200)
    products = x @ sae.W_enc
    expected = jnp.where(products + b_gate > 0, jax.nn.relu(products * jnp.exp(log_scale) + sae.b_enc), 0)
    np.testing.assert_allclose(encode(Gated().sae(params), x), expected, rtol=1e-4, atol=1e-5)
    assert 0.1 < jnp.mean(expected > 0) < 0.9


def test_straight_through_gradients_are_those_of_the_paper() -> None:
    """Rajamanoharan et al. (arXiv 2407.14435), by hand: pre-activations 0.9, 1.02, 1.5; threshold 1."""
    pre_acts, threshold = jnp.array([[0.9], [1.02], [1.5]]), jnp.array([1.0])
    np.testing.assert_allclose(jump(pre_acts, threshold, 0.1), [[0.0], [1.02], [1.5]])
    of_acts, of_threshold = jax.grad(lambda p, t: jnp.sum(jump(p, t, 0.1)), argnums=(0, 1))(pre_acts, threshold)
    np.testing.assert_allclose(of_acts, [[0.0], [1.0], [1.0]])
    np.testing.assert_allclose(of_threshold, [-1.0 / 0.1])  # 1.02 alone lies within 0.05 of the threshold
    of_acts, of_threshold = jax.grad(lambda p, t: jnp.sum(is_on(p, t, 0.1)), argnums=(0, 1))(pre_acts, threshold)
    np.testing.assert_allclose(of_acts, 0.0)
    np.testing.assert_allclose(of_threshold, [-1 / 0.1])


def test_a_name_gives_fields_and_a_weighting() -> None:
    assert named("vanilla")[1:] == (Standard(), "vanilla")
    assert named("matryoshka")[1:] == (Matryoshka(), "sampled_10")
    assert named("vanilla:sparsity=log,weighting=all")[1:] == (Standard("log"), "all")
    assert named("orthogonal:coef=0.5,group=7").method.group == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("matrioshka", r"^method: expected vanilla, matryoshka, .*, or FILE\.py:NAME, got 'matrioshka'"),
        ("topk", r"^topk: give the number of latents that are on, as in topk:k=2"),
        ("hierarchical_topk", r"^hierarchical_topk: give k, as in hierarchical_topk:k=2"),
        ("vanilla:sparsity=l2", r"sparsity"),
        ("vanilla:coef=1", r"^method vanilla:coef=1: .*unexpected keyword argument 'coef'"),
        ("tied:weighting=most", r"^weighting: expected vanilla, all"),
        ("tied_finish:share=1", r"^share: must be below 1"),
        ("tied_finish:bias=0.1", r"^bias: must be at most 0"),
        ("jumprelu:bandwidth=1.2", r"^bandwidth: must be at most 2 × first_threshold = 1"),
        ("missing.py:tied", r"^method missing\.py: No such file"),
        (f"{HERE}/tied.py:tide", r"tied\.py: has no toy\.methods\.Method called 'tide'"),
    ],
)
def test_a_name_that_is_none_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        named(text)


def test_a_file_that_fails_is_named_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=r"^method .*mine\.py: ZeroDivisionError: division by zero"):
        named(f"{tmp_path}/mine.py:x")


def test_a_file_that_has_changed_is_another_method_with_other_facts(tmp_path: Path) -> None:
    file, text = tmp_path / "mine.py", (HERE / "tied.py").read_text()
    found: list[Method] = []
    for source in (text, text.replace("class Tied", "#\nclass Tied"), text):
        file.write_text(source)
        found.append(named(f"{file}:tied").method)
    assert named(f"{file}:tied").method == found[0]
    h = Hypers(prefixes.full(4), target_l0=1.0)
    facts = [run_facts(KEY, SOURCE, h, TrainConfig(4, method=method)) for method in found]
    assert facts[0] == facts[2] != facts[1]


@pytest.mark.slow
@pytest.mark.parametrize("text", OF_USERS, ids=lambda text: Path(text).name)
def test_an_experiment_takes_a_method_by_its_name(text: str) -> None:
    cfg = absorption.Config(n_seeds=2, n_steps=30, n_eval_rows=300, method=text)
    absorption.check(cfg)
    results = absorption.run(cfg, Work())
    assert list(results) == ["vanilla", text, "features"]
    record = {"name": "absorption", "config": cli.describe(cfg), "seeds": cfg.seeds, "results": plain(results)}
    assert cli.as_png(absorption.plot(record))
    assert text in absorption.summary(record)[1]
    assert absorption.n_steps(cfg) == 60


@pytest.mark.usefixtures("x64")
def test_matching_pursuit_takes_one_latent_after_the_other() -> None:
    """Against the definition: the residual itself is kept, and ends where little of it is left."""
    sae = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), init_sae(KEY, 30, 20))
    sae = sae._replace(b_dec=jnp.full(30, 0.01), W_dec=sae.W_dec * jnp.arange(1.0, 21.0)[:, None])
    x = np.asarray(SOURCE.sample(KEY, 40), np.float64)
    norms = np.linalg.norm(sae.W_dec, axis=1)
    directions, expected = np.asarray(sae.W_dec) / norms[:, None], np.zeros((40, 20))
    for row, acts in zip(x - 0.01, expected, strict=True):
        left = row.copy()
        for _ in range(5):
            best = np.argmax(directions @ left)
            if left @ left <= 0.3 * (row @ row) or directions[best] @ left <= 0:
                break
            acts[best] += directions[best] @ left / norms[best]
            left -= directions[best] @ left * directions[best]
    found = encode(sae, jnp.asarray(x), MatchingPursuit(5, 0.3))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert len(set(np.count_nonzero(expected, axis=1))) > 1  # rows end after different numbers of latents


@pytest.mark.slow
def test_batchtopk_with_the_target_as_its_k_is_batchtopk() -> None:
    def run(text: str, target_l0: float | None) -> SAE:
        cfg = TrainConfig(20, n_steps=60, method=named(text).method, reinit_every=20)
        hypers = Hypers(prefixes.named("sampled_10", 20), target_l0=target_l0)
        return trained_sae(train(KEY, SOURCE, hypers, cfg=cfg)[0])

    for a, b in zip(
        map(np.asarray, run("batchtopk", 1.12)), map(np.asarray, run("batchtopk:k=1.12", None)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_latents_are_ordered_by_what_the_method_says() -> None:
    def ranks(order: str) -> tuple[np.ndarray, np.ndarray]:
        sae = trained_sae(trained(f"vanilla:order={order}", 400))
        acts = encode(sae, SOURCE.sample(KEY, 4_000))
        energy = jnp.mean(acts**2, axis=0) * jnp.sum(sae.W_dec**2, axis=1)
        places = (jnp.argsort(jnp.argsort(-values)) for values in (energy, jnp.mean(acts > 0, axis=0)))
        return tuple(abs(np.asarray(of) - np.arange(20)).mean() for of in places)  # type: ignore[return-value]

    by_energy, by_frequency, fixed = map(ranks, ("energy", "frequency", "fixed"))
    assert 1.2 * by_energy[0] < by_energy[1]
    assert 1.2 * by_frequency[1] < by_frequency[0]
    assert min(fixed) > max(by_energy[0], by_frequency[1]) + 1


def test_the_normalised_order_is_how_often_a_latent_is_on_times_its_root_mean_square_where_it_is() -> None:
    """By hand: on in a quarter of the rows with 3 and 5 for rows of 1: √(mean square) is √17."""
    mean_square = np.array([(3**2 + 5**2) / 8, 1.0])
    parts = LossParts(jnp.zeros(()), jnp.zeros(()), jnp.asarray(mean_square), jnp.zeros(()), jnp.asarray([0.25, 1.0]))
    found = named("vanilla:order=normalised").method.importance(parts)
    np.testing.assert_allclose(found, [0.25 * 17**0.5, 1.0], rtol=1e-6)


def test_an_order_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        named("tied:order=size")


@pytest.mark.slow
def test_padding_is_no_dead_latent_of_auxk() -> None:
    own = init_sae(KEY, 30, 6)
    method = TopKFamily(TopK(2), aux_k=4, dead_after=5)

    def loss(n_padding: int) -> float:
        sae = SAE(
            jnp.pad(own.W_enc, ((0, 0), (0, n_padding))),
            jnp.pad(own.b_enc, (0, n_padding)),
            jnp.pad(own.W_dec, ((0, n_padding), (0, 0)), constant_values=0.1),
            own.b_dec,
        )
        n, silent = 6 + n_padding, jnp.array([9, *[0] * 5, *[9] * n_padding])  # the first latent is dead
        batch = Batch(
            x=SOURCE.sample(KEY, 50),
            prefixes=prefixes.full(n),
            ranks=jnp.arange(n),
            sparsity_coef=jnp.zeros(()),
            target_l0=None,
            done=jnp.zeros(()),
            key=KEY,
            memory=Kept(None, silent),
            form="gram",
            aux_coef=1.0,
        )
        return float(jax.jit(lambda sae: method.loss(sae, batch)[0])(sae))

    assert loss(4) == pytest.approx(loss(0), rel=1e-5)
