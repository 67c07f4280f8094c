"""Language models that are trained, read at their sites, and run on with something else in a site's place."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from toy.data.store import Store, StoreError, open_store
from toy.lm import export, train_lm
from toy.lm.corpus import make_stories
from toy.lm.export import export_activations
from toy.lm.model import LM, LMConfig, Site, acts_at
from toy.lm.sample import tell
from toy.lm.splice import loss_recovered, spliced_loss
from toy.lm.tokens import Rows, make_rows, train_tokenizer
from toy.lm.train_lm import LMState, LMTrainConfig, mean_loss, row_batches, summed_loss, unigram_entropy
from toy.lm.weights import model_digest
from toy.sae import SAE, TopK
from toy.training.checkpoint import FileCheckpoint

STORIES = make_stories(60, seed=0)
TOKENIZER = train_tokenizer(STORIES, 300)
ROWS = make_rows(STORIES, TOKENIZER, 32)
SMALL = make_rows(STORIES[:4], TOKENIZER, 32)
LM_CFG = LMConfig(vocab_size=300, context=32, n_layers=1, d_model=16, n_heads=2)
CFG = LMTrainConfig(n_steps=150, batch_size=16, learning_rate=2e-2, n_warmup_steps=10)
SHORT = replace(CFG, n_steps=11, batch_size=4)
KEY = jax.random.key(0)
SITES = (Site(0, "resid_mid"), Site(0, "mlp_out"))


def train(rows: Rows = SMALL, cfg: LMTrainConfig = SHORT, key: Any = KEY, **more: Any) -> tuple[LM, Any]:
    return train_lm.train_lm(key, rows, LM_CFG, cfg=cfg, **cast(Any, {"chunk": 3} | more))


def leaves(lm: LM) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.split(lm, nnx.Param)[1])]


def same(one: LM, other: LM) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


def some_rows(n: int, length: int = 32) -> Rows:
    ids = np.random.default_rng(1).integers(4, 300, (n, 32)).astype(np.int32)
    column = np.arange(n, dtype=np.int32)
    return Rows(ids, np.full(n, length, np.int32), column, np.zeros(n, np.int32))


@pytest.fixture(scope="module")
def trained() -> tuple[LM, Any]:
    return train(ROWS, CFG, chunk=50)


# --- training -----------------------------------------------------------------------------------------------


def test_a_model_of_the_built_in_corpus_knows_more_than_how_frequent_tokens_are(trained: tuple[LM, Any]) -> None:
    lm, history = trained
    held_out = make_rows(make_stories(80, seed=0)[60:], TOKENIZER, 32)
    assert mean_loss(lm, held_out) < 0.6 * unigram_entropy(held_out)
    assert history.loss.shape == (3,)
    assert (np.diff(history.loss) < 0).all()
    assert history.loss[-1] == pytest.approx(mean_loss(lm, ROWS), rel=0.15)


def test_the_same_key_gives_the_same_bits_and_another_key_others() -> None:
    lm, history = train()
    again, history_again = train()
    assert same(lm, again)
    np.testing.assert_array_equal(history.loss, history_again.loss)
    assert not same(lm, train(key=jax.random.key(1))[0])


def test_the_size_of_chunks_changes_nothing_but_the_history() -> None:
    lm, history = train(chunk=1)
    for chunk, ends in ((3, (0, 3, 6, 9, 11)), (100, (0, 11))):
        other, coarse = train(chunk=chunk)
        for a, b in zip(leaves(lm), leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        means = [history.loss[a:b].mean() for a, b in pairwise(ends)]
        np.testing.assert_allclose(coarse.loss, means, rtol=1e-5)


class StoppedError(Exception):
    """Stands in for a kill."""


def test_a_run_that_was_stopped_ends_as_the_whole_bit_for_bit(tmp_path: Path) -> None:
    whole, history = train()
    kept = FileCheckpoint(tmp_path / "run", every_s=0)
    told: list[int] = []

    def stop(n: int) -> None:
        told.append(n)
        if len(told) == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(checkpoint=kept, progress=stop)
    later: list[int] = []
    lm, resumed = train(checkpoint=kept, progress=later.append)
    assert told == [3, 3, 3]
    assert later == [6, 3, 2]  # what was saved, and the rest; the third chunk was told of and not kept
    assert same(lm, whole)
    np.testing.assert_array_equal(resumed.loss, history.loss)
    others: dict[str, Any] = {"key": jax.random.key(1), "rows": some_rows(9), "cfg": replace(SHORT, weight_decay=1e-3)}
    for (name, other), told_as in zip(others.items(), ("seed", "rows", "training"), strict=True):
        with pytest.raises(ValueError, match=f"made with {told_as} = "):
            train(checkpoint=kept, **{name: other})


@pytest.mark.parametrize(("n_rows", "batch_size", "chunk"), [(7, 3, 4), (5, 8, 2), (6, 6, 1)])
def test_every_epoch_takes_each_row_once_in_an_order_of_its_own(n_rows: int, batch_size: int, chunk: int) -> None:
    n_steps = 12
    taken = np.concatenate(
        [
            train_lm._rows_of_steps(first, chunk, batch_size, n_rows, [1, 2]).ravel()
            for first in range(0, n_steps, chunk)
        ]
    )
    epochs = taken[: len(taken) // n_rows * n_rows].reshape(-1, n_rows)
    assert len(epochs) >= 5
    assert (np.sort(epochs) == np.arange(n_rows)).all()
    assert len({tuple(epoch) for epoch in epochs}) > len(epochs) / 2


def test_rows_that_do_not_fit_the_model_and_numbers_out_of_range_are_refused() -> None:
    for cfg in (replace(LM_CFG, context=31), replace(LM_CFG, vocab_size=int(SMALL.ids.max()))):
        with pytest.raises(ValueError, match=rf"rows: of 32 ids up to {SMALL.ids.max()}, but the model has context"):
            train_lm.train_lm(KEY, SMALL, cfg, cfg=SHORT)
    for wrong in ({"n_steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: must be"):
            LMTrainConfig(**cast(Any, wrong))


def test_rows_of_one_token_leave_the_model_finite() -> None:
    lm, history = train(some_rows(4, length=1))
    assert (history.loss == 0).all()
    assert all(np.isfinite(leaf).all() for leaf in leaves(lm))


# --- losses -------------------------------------------------------------------------------------------------


def slow_loss(lm: LM, rows: Rows) -> float:
    logits, losses = np.asarray(lm(jnp.asarray(rows.ids)), float), []
    for i, length in enumerate(rows.length):
        for place in range(1, length):
            row = logits[i, place - 1]
            losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[rows.ids[i, place]])
    return float(np.mean(losses))


def test_the_mean_loss_is_that_of_every_predicted_token_in_any_batches(trained: tuple[LM, Any]) -> None:
    expected = slow_loss(trained[0], SMALL)
    assert len(SMALL.ids) % 32
    for batch_size in (5, 32):
        assert mean_loss(trained[0], SMALL, batch_size) == pytest.approx(expected, rel=1e-5)


def test_padding_gives_neither_loss_nor_gradient(trained: tuple[LM, Any]) -> None:
    graph, params = nnx.split(trained[0], nnx.Param)
    ids, real = SMALL.ids, SMALL.real()
    assert not real.all()

    @jax.jit
    def loss_and_grads(ids: jax.Array, real: jax.Array) -> Any:
        return jax.value_and_grad(lambda params: summed_loss(nnx.merge(graph, params), ids, real)[0])(params)

    others = np.where(real, ids, np.random.default_rng(0).integers(0, 300, ids.shape))
    assert (others != ids).any()
    for a, b in zip(
        jax.tree.leaves(loss_and_grads(ids, real)), jax.tree.leaves(loss_and_grads(others, real)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    nothing = loss_and_grads(ids, np.zeros_like(real))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(nothing))


def test_batches_are_of_one_shape_and_hold_every_row_once() -> None:
    batches = row_batches(SMALL, 5)
    assert {(ids.shape, real.shape) for ids, real in batches} == {((5, 32), (5, 32))}
    n = len(SMALL.ids)
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in batches])[:n], SMALL.ids)
    real = np.concatenate([real for _, real in batches])
    np.testing.assert_array_equal(real[:n], SMALL.real())
    assert len(real) > n
    assert not real[n:].any()


def test_the_unigram_entropy_is_that_of_the_predicted_tokens() -> None:
    ids = np.array([[9, 1, 1, 2], [9, 1, 3, 0]], np.int32)
    rows = Rows(ids, np.array([4, 3], np.int32), np.array([0, 1], np.int32), np.zeros(2, np.int32))
    shares = np.array([3, 1, 1]) / 5  # neither the 9 at the beginning nor the 0 of the padding
    assert unigram_entropy(rows) == pytest.approx(-(shares * np.log(shares)).sum())


# --- generating ---------------------------------------------------------------------------------------------


def test_a_generated_story_is_repeatable_goes_on_from_the_prompt_and_looks_like_the_corpus(
    trained: tuple[LM, Any],
) -> None:
    lm, prompt = trained[0], "Once upon a time, there was"
    stories = [tell(jax.random.key(i), lm, TOKENIZER, prompt) for i in (0, 1, 0)]
    assert stories[0] == stories[2] != stories[1]
    assert all(story.startswith(prompt) and len(story) > len(prompt) for story in stories)
    assert " a little " in tell(KEY, lm, TOKENIZER, prompt, temperature=0.01)
    short = tell(KEY, lm, TOKENIZER, prompt, n_tokens=2, temperature=0.01)
    assert len(TOKENIZER.encode([short])[0]) == len(TOKENIZER.encode([prompt])[0]) + 2
    with pytest.raises(ValueError, match=r"prompt: .* tokens leave no room in a context of 32"):
        tell(KEY, lm, TOKENIZER, STORIES[0])


def test_a_generated_story_ends_where_the_model_ends_it(trained: tuple[LM, Any]) -> None:
    graph, params = nnx.split(trained[0], nnx.Param)
    lm = nnx.merge(graph, jax.tree.map(jnp.zeros_like, params))
    assert lm.lm_head is not None
    lm.lm_head.bias = nnx.Param(jnp.zeros(300).at[TOKENIZER.end].set(50))
    assert tell(KEY, lm, TOKENIZER, "One day") == "One day"


def test_gradients_are_clipped_and_only_matrices_decay() -> None:
    cfg = replace(SHORT, n_steps=1, n_warmup_steps=1, learning_rate=1.0, weight_decay=0.5, clip_norm=1e-30)
    graph, params = nnx.split(LM(LM_CFG, rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda leaf: leaf + 1.0, params)
    before = jax.tree.map(np.asarray, params)
    optimizer = train_lm._optimizer(cfg)
    state = LMState(jnp.int32(0), params, optimizer.init(params))
    ids = SMALL.ids[None, :4], SMALL.real()[None, :4]
    after = train_lm._advance(state, train_lm._TokenBatches(*ids), 1, graph=graph, cfg=cfg)[0].params
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        decayed = old * (1 - 0.5) if old.ndim == 2 else old  # a gradient of nothing moves nothing
        np.testing.assert_allclose(new, decayed, rtol=1e-5)


# --- activations --------------------------------------------------------------------------------------------


def exported(folder: Path, lm: LM, **more: Any) -> Store:
    """A row a shard, unless told otherwise."""
    options: dict[str, Any] = {"facts": {"model": "m"}, "dtype": "float32", "seed": 3, "shard_mb": 0} | more
    return export_activations(folder, lm, SMALL, SITES, **options)


def test_a_store_has_every_token_but_a_storys_begin_once_with_what_the_model_computes_there(
    tmp_path: Path, trained: tuple[LM, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BATCH", 10)
    lm = trained[0]
    before = export._acts.n_compiled
    for shard_mb, n_shards in ((1, 1), (0, len(SMALL.ids))):
        progress: list[int] = []
        store = exported(tmp_path / str(shard_mb), lm, shard_mb=shard_mb, progress=progress.append)
        assert len(progress) == n_shards
        check_rows(store, lm)
    assert len(SMALL.ids) % 10
    assert export._acts.n_compiled == before + 1  # whatever is left for the last batch


def check_rows(store: Store, lm: LM) -> None:
    whole = acts_at(lm, jnp.asarray(SMALL.ids), SITES)
    expected = {}
    for row, (ids, length, document, start) in enumerate(zip(*SMALL, strict=True)):
        for place in range(0 if start else 1, length):
            expected[int(document), int(start) + place] = (int(ids[place]), row, place)
    places = list(zip(store.document.tolist(), store.position.tolist(), strict=True))
    assert sorted(places) == sorted(expected)
    assert store.token.tolist() == [expected[place][0] for place in places]
    rows, within = (np.array([expected[place][i] for place in places]) for i in (1, 2))
    for site in SITES:
        acts = store.activations(str(site)).take(np.arange(store.n_rows))
        np.testing.assert_allclose(acts, np.asarray(whole[site])[rows, within], rtol=1e-4, atol=1e-5)
    told = {"model": "m", "seed": 3, "dtype": "float32", "sites": ["resid_mid.0", "mlp_out.0"]}
    told |= {"model_sha256": model_digest(lm), "rows_sha256": SMALL.digest()}
    assert {name: store.facts[name] for name in told} == told


def test_rows_go_to_shards_and_tokens_within_them_in_a_random_order_that_the_seed_decides(
    tmp_path: Path, trained: tuple[LM, Any]
) -> None:
    def order(folder: str, **more: Any) -> list[tuple[int, int]]:
        store = exported(tmp_path / folder, trained[0], **more)
        return list(zip(store.document.tolist(), store.position.tolist(), strict=True))

    one = order("a")
    assert one == order("b") != order("c", seed=4)
    for name in sorted(path.name for path in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    of_first = SMALL.length[np.random.default_rng(3).permutation(len(SMALL.ids))[0]]
    assert one[: of_first - 1] != sorted(one[: of_first - 1])  # within a shard
    full = [row for row in np.random.default_rng(3).permutation(len(SMALL.ids)) if SMALL.length[row] == 32]
    orders = [
        [position % 32 for document, position in one if (document, position // 32 * 32) == place]
        for place in zip(SMALL.document[full].tolist(), SMALL.start[full].tolist(), strict=True)
        if place[1]  # the first row of a story lacks the begin
    ]
    assert len({tuple(places) for places in orders}) == len(orders) > 1  # each in an order of its own
    starts = list(dict.fromkeys((document, position // 32) for document, position in one))
    assert starts != sorted(starts)  # and of the shards, a row each
    assert len(starts) == len(SMALL.ids)


def test_a_larger_shard_holds_many_rows_and_bfloat16_is_half_as_large(tmp_path: Path, trained: tuple[LM, Any]) -> None:
    shards = {
        dtype: list((exported(tmp_path / dtype, trained[0], shard_mb=1, dtype=dtype).folder).glob("shard-*"))
        for dtype in ("float32", "bfloat16")
    }
    assert {len(files) for files in shards.values()} == {1}
    n = open_store(tmp_path / "float32").n_rows
    sizes = [files[0].stat().st_size for files in shards.values()]
    assert sizes[0] - sizes[1] == pytest.approx(n * 2 * 16 * 2, abs=64)
    stores = [open_store(tmp_path / dtype).activations("mlp_out.0").take(np.arange(n)) for dtype in shards]
    np.testing.assert_allclose(*stores, rtol=2**-8)


def test_a_store_of_other_facts_and_no_site_are_refused(tmp_path: Path, trained: tuple[LM, Any]) -> None:
    exported(tmp_path / "s", trained[0])
    with pytest.raises(StoreError, match="made with model = m, which now is n"):
        exported(tmp_path / "s", trained[0], facts={"model": "n"})
    with pytest.raises(StoreError, match="seed = 3, which now is 5"):
        exported(tmp_path / "s", trained[0], seed=5)
    with pytest.raises(StoreError, match=r"made with model_sha256 = .*, which now is "):
        exported(tmp_path / "s", LM(LM_CFG, rngs=nnx.Rngs(1)))
    fewer = Rows(*(column[:3] for column in SMALL))
    begins = SMALL._replace(length=np.ones_like(SMALL.length), start=np.zeros_like(SMALL.start))
    for rows, sites, message in (
        (SMALL, (), "sites: none is given"),
        (Rows(*(column[:0] for column in SMALL)), SITES, "rows: they hold no token but the begins"),
        (begins, SITES, "rows: they hold no token but the begins"),
    ):
        with pytest.raises(ValueError, match=message):
            export_activations(tmp_path / "t", trained[0], rows, sites, facts={})
    assert not (tmp_path / "t").exists()
    export_activations(tmp_path / "t", trained[0], fewer, SITES, facts={})
    with pytest.raises(StoreError, match="made with rows_sha256 ="):
        export_activations(tmp_path / "t", trained[0], Rows(*(column[1:4] for column in SMALL)), SITES, facts={})


# --- in the place of activations ----------------------------------------------------------------------------


def identity(b_dec: float = 0.0) -> SAE:
    eye = jnp.eye(16)
    W = jnp.concatenate([eye, -eye], axis=1)
    return SAE(W, jnp.zeros(32), W.T, jnp.full(16, b_dec))


def test_what_loses_nothing_costs_nothing(trained: tuple[LM, Any]) -> None:
    site = SITES[0]
    loss = mean_loss(trained[0], SMALL)
    assert spliced_loss(trained[0], SMALL, site) == pytest.approx(loss, rel=1e-6)
    assert spliced_loss(trained[0], SMALL, site, identity()) == pytest.approx(loss, rel=1e-5)
    assert spliced_loss(trained[0], SMALL, site, identity(1.0)) > loss + 0.01
    high = identity()._replace(threshold=jnp.full(32, 1e9))
    zero = spliced_loss(trained[0], SMALL, site, np.zeros(16, np.float32))
    assert spliced_loss(trained[0], SMALL, site, high) == pytest.approx(zero, rel=1e-6)
    assert zero > loss + 0.01


def of_logits(logits: jax.Array, rows: Rows) -> float:
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), jnp.asarray(rows.ids[:, 1:, None]), axis=2)
    return float(losses[:, :, 0][rows.real()[:, 1:]].mean())


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_vector_stands_for_the_mlp_everywhere_but_at_the_begin_of_stories(
    value: float, trained: tuple[LM, Any]
) -> None:
    lm, ids = trained[0], jnp.asarray(SMALL.ids)
    acts = acts_at(lm, ids, SITES)
    mid, mlp = (acts[site] for site in SITES)
    begin = jnp.asarray(SMALL.start == 0)
    assert not begin.all()
    resid = (mid + value).at[begin, 0].set((mid + mlp)[begin, 0])
    expected = of_logits(lm.logits_from(resid, 1), SMALL)
    everywhere = of_logits(lm.logits_from(mid + value, 1), SMALL)
    found = spliced_loss(lm, SMALL, SITES[1], np.full(16, value, np.float32))
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(found - everywhere) > 1e-3


def test_a_vector_stands_at_its_own_layer_and_no_other() -> None:
    lm = LM(replace(LM_CFG, n_layers=2), rngs=nnx.Rngs(0))
    ids, site = jnp.asarray(SMALL.ids), Site(0, "mlp_out")
    mid, mlp = acts_at(lm, ids, (Site(0, "resid_mid"), site)).values()
    begin = jnp.asarray(SMALL.start == 0)
    resid = (mid + 3.0).at[begin, 0].set((mid + mlp)[begin, 0])
    expected = of_logits(lm.logits_from(resid, 1), SMALL)
    assert spliced_loss(lm, SMALL, site, np.full(16, 3.0, np.float32)) == pytest.approx(expected, rel=1e-5)


def test_the_activation_of_the_sae_decides_what_is_put_in(trained: tuple[LM, Any]) -> None:
    whole, one = (spliced_loss(trained[0], SMALL, SITES[0], identity(), TopK(k)) for k in (16, 1))
    assert whole == pytest.approx(mean_loss(trained[0], SMALL), rel=1e-5)
    assert one > whole + 0.01


def test_what_cannot_be_spliced_is_refused(trained: tuple[LM, Any]) -> None:
    for site in (Site(1, "mlp_out"), Site(0, "resid_post")):
        with pytest.raises(ValueError, match=f"site: '{site}' is not one of"):
            spliced_loss(trained[0], SMALL, site)
    narrow = SAE(jnp.ones((8, 2)), jnp.zeros(2), jnp.ones((2, 8)), jnp.zeros(8))
    for put in (np.zeros(1, np.float32), np.zeros(8, np.float32), narrow):
        with pytest.raises(ValueError, match=r"put: of width \d, but the model's is 16"):
            spliced_loss(trained[0], SMALL, SITES[0], put)


def test_the_share_of_the_loss_that_is_recovered() -> None:
    assert loss_recovered(2.0, 2.0, 6.0) == 1
    assert loss_recovered(2.0, 6.0, 6.0) == 0
    assert loss_recovered(2.0, 3.0, 6.0) == pytest.approx(0.75)
    assert loss_recovered(2.0, 8.0, 6.0) == pytest.approx(-0.5)
    assert np.isnan([loss_recovered(2.0, 3.0, zero) for zero in (2.0, 1.9)]).all()
