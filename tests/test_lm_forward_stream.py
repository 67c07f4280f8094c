"""Activations straight from the model: every token once an epoch, whatever was asked for, as mixed as stored ones."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_lm_model import a_model
from test_lm_sample import OWN

from toy.data.mixing import mixing
from toy.data.source import Stream
from toy.data.stream import ShardSource
from toy.files.digest import key_numbers
from toy.lm import forward_stream
from toy.lm.corpus import make_stories
from toy.lm.export import export_activations, is_exported
from toy.lm.forward_stream import ForwardStream, forward_streams
from toy.lm.model import Site, acts_at
from toy.lm.tokens import Rows, make_rows
from toy.prefixes import full
from toy.training.checkpoint import FileCheckpoint
from toy.training.config import Hypers, TrainConfig
from toy.training.run import train

LLAMA = a_model("llama", vocab_size=300, context=24)
FEW = make_rows(make_stories(4, 0), OWN, 24)
SITE = Site(1, "attn_out")


def a_stream(tokens: Rows = FEW, **more: Any) -> ForwardStream:
    options: dict[str, Any] = {"pool": 3, "dtype": "float32"} | more
    return forward_streams(LLAMA, tokens, (SITE,), **options)[str(SITE)]


def test_every_epoch_gives_each_token_once_with_what_the_model_computes_there() -> None:
    stream = a_stream()
    assert isinstance(stream, Stream)
    assert stream.n_rows == is_exported(FEW).sum()
    acts, orders = np.asarray(acts_at(LLAMA, jnp.asarray(FEW.ids), (SITE,))[SITE]), []
    by_place = {(d, s): i for i, (d, s) in enumerate(zip(FEW.document.tolist(), FEW.start.tolist(), strict=True))}
    for epoch in range(2):
        at = epoch * stream.n_rows, (epoch + 1) * stream.n_rows
        x, token, document, position = (stream.column(n, *at) for n in (str(SITE), "token", "document", "position"))
        row = np.array([by_place[d, p // 24 * 24] for d, p in zip(document.tolist(), position.tolist(), strict=True)])
        assert len({*zip(document.tolist(), position.tolist(), strict=True)}) == stream.n_rows
        assert 0 not in position
        np.testing.assert_array_equal(token, FEW.ids[row, position % 24])
        np.testing.assert_allclose(x, acts[row, position % 24], rtol=0, atol=1e-5)
        orders.append((document * 1_000 + position).tolist())
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_rows_are_a_function_of_the_step_whatever_was_asked_for_before() -> None:
    n_steps = 2 * a_stream().n_rows // 50 + 3  # into the third epoch
    whole = a_stream().batches(0, n_steps, 50)
    assert whole.x.shape == (n_steps, 50, 8)
    again = a_stream()
    for first, n in ((n_steps - 1, 1), (3, 4), (0, 2), (1, n_steps - 1)):
        part = again.batches(first, n, 50)
        assert int(part.first) == first
        np.testing.assert_array_equal(part.x, whole.x[first : first + n])
    others = [a_stream(seed=1), a_stream(pool=4)]
    assert not any(np.array_equal(other.batches(0, 2, 50).x, whole.x[:2]) for other in others)
    facts = [stream.facts() for stream in (a_stream(), *others, a_stream(dtype="bfloat16"))]
    assert len({str(one) for one in facts}) == 4
    assert a_stream().facts() == facts[0]


def test_sites_share_forward_passes_and_each_has_the_rows_that_it_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = SITE, Site(0, "resid_pre"), Site(1, "resid_mid")
    alone = {str(s): forward_streams(LLAMA, FEW, (s,), pool=3, dtype="float32")[str(s)] for s in sites}
    together, pools = forward_streams(LLAMA, FEW, sites, pool=3, dtype="float32"), []
    made = forward_stream.shuffled_acts
    n_steps = alone[str(SITE)].n_rows // 20
    wanted = {name: np.asarray(one.batches(0, n_steps, 20).x) for name, one in alone.items()}
    monkeypatch.setattr(forward_stream, "shuffled_acts", lambda *given: pools.append(given) or made(*given))
    for first in range(0, n_steps - 1, 2):
        for name, stream in together.items():
            np.testing.assert_allclose(stream.batches(first, 2, 20).x, wanted[name][first : first + 2], atol=1e-5)
    assert len(pools) == -(-len(FEW.ids) // 3)
    assert [one.facts() for one in together.values()] == [one.facts() for one in alone.values()]


@pytest.mark.slow
def test_batches_are_as_well_mixed_as_those_of_a_store(tmp_path: Path) -> None:
    tokens = make_rows(make_stories(1_000, 1), OWN, 24)
    store = export_activations(tmp_path / "s", LLAMA, tokens, (SITE,), facts={}, dtype="float32")
    stream = a_stream(tokens, pool=2_000)
    n_steps = stream.n_rows // 64
    of_stories = np.random.default_rng(0).normal(size=(1_000, 8))  # what all tokens of a story share shows their mixing

    def mixed(stream: Any, stories: np.ndarray) -> float:
        x = np.asarray(stream.batches(0, n_steps, 64).x)
        return mixing(x + of_stories[stories].reshape(x.shape))

    from_store = ShardSource(store.activations(str(SITE)))
    stored = mixed(from_store, store.document[from_store.rows(0, n_steps * 64)])
    straight, narrow = (
        mixed(one, one.column("document", 0, n_steps * 64)) for one in (stream, a_stream(tokens, pool=20))
    )
    assert max(abs(stored - 1), abs(straight - 1)) < 3 * np.sqrt(2 / n_steps / 8)
    assert narrow > 2


def test_mixing_counts_how_many_equal_rows_come_in_a_run() -> None:
    rows = np.random.default_rng(0).normal(size=(40_000, 3))
    assert mixing(rows.reshape(2_000, 20, 3)) == pytest.approx(1, abs=0.1)
    assert mixing(np.repeat(rows[:8_000], 5, axis=0).reshape(2_000, 20, 3)) == pytest.approx(5, rel=0.1)


def test_an_sae_is_trained_on_it_and_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    hypers, kept = Hypers(full(12), target_l0=3.0), FileCheckpoint(tmp_path / "run.safetensors")
    cfg, killed_at = TrainConfig(n_latents=12, n_steps=30, batch_size=40), 20
    whole = train(jax.random.key(0), a_stream(), hypers, cfg=cfg, chunk=10)

    def stop(n: int) -> None:
        nonlocal killed_at
        killed_at -= n
        if not killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(jax.random.key(0), a_stream(), hypers, cfg=cfg, chunk=10, checkpoint=kept, progress=stop)
    resumed = train(jax.random.key(0), a_stream(), hypers, cfg=cfg, chunk=10, checkpoint=kept)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(key_numbers(one), key_numbers(other))
    with pytest.raises(ValueError, match=r"made with source\.seed = 0, which now is 1"):
        train(jax.random.key(0), a_stream(seed=1), hypers, cfg=cfg, chunk=10, checkpoint=kept)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pool": 0}, "pool: must be at least 1"),
        ({"seed": -1}, "seed: must not be negative"),
        (
            {"tokens": Rows(*(column[:1] for column in FEW))._replace(length=np.ones(1, np.int32))},
            "tokens: they hold no",
        ),
    ],
)
def test_a_stream_that_cannot_be_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_stream(**more)
