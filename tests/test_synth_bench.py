"""The benchmark's command, on a small model that SAELens could have saved."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_synthetic import saved

from experiments import synth_bench
from experiments.common import cli
from experiments.common.experiment import Work
from toy.eval.against_features import evaluate_features
from toy.eval.metrics import fvu, shrinkage
from toy.io import plain
from toy.sae import SAE, decode, encode


def config(folder: Path, **fields: object) -> synth_bench.Config:
    small = {"n_latents": 12, "target_l0": 3.0, "n_steps": 20, "batch_size": 32, "n_eval_rows": 1_500, "n_rounds": 0}
    return synth_bench.Config(**{"model": saved(folder), "methods": METHODS, **small, **fields})  # type: ignore[arg-type]


METHODS = ("vanilla", "batchtopk:k=l0,weighting=all", "detached:weighting=levels:4=1,full=1")


@pytest.mark.slow
def test_methods_stand_side_by_side(tmp_path: Path) -> None:
    cfg = config(tmp_path / "model")
    synth_bench.check(cfg)
    done: list[int] = []
    record = {"config": cli.describe(cfg), "seeds": [0], "results": plain(synth_bench.run(cfg, Work(done.append)))}
    assert sum(done) == synth_bench.n_steps(cfg)
    results = record["results"]["methods"]
    assert list(results) == list(METHODS)
    assert all(r["samples"] == 640 and 0 <= r["f1_score"] <= 1 for r in results.values())
    table = {"cases": {"this project": {"seconds": [1e-4, 2e-4, 1e-4]}, "SAELens": {"seconds": [2e-3, 1e-3, 2e-3]}}}
    assert cli.as_png(synth_bench.plot(record))
    record["results"]["generators"] = table
    assert cli.as_png(synth_bench.plot(record))
    assert synth_bench.summary(record)[-1].endswith("this project 10,000, SAELens 500, 20.0 times as many here")
    assert "samples 640" in synth_bench.summary(record)[0]
    assert "12 latents" in synth_bench.caption(record)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"methods": ()}, "methods: need at least one"),
        ({"methods": ("batchtopk:k=99",)}, "k = 99 is more than n_latents = 12"),
        ({"target_l0": 0.0}, "target_l0"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path: Path, fields: dict, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        synth_bench.check(config(tmp_path / "model", **fields))


def test_a_chunk_after_another_measures_what_one_chunk_does() -> None:
    rng = np.random.default_rng(0)
    W_feat, features = rng.normal(size=(9, 6)).astype(np.float32), np.maximum(rng.normal(size=(70, 9)), 0)
    x = (features @ W_feat).astype(np.float32)
    leaves = W_feat[:5].T, np.full(5, -0.5), W_feat[:5], np.zeros(6)
    sae = SAE(*(np.asarray(leaf, np.float32) for leaf in leaves))  # type: ignore[arg-type]
    whole, parts = ([(x[i : i + n], features[i : i + n]) for i in range(0, 70, n)] for n in (70, 23))
    one, many = (evaluate_features(sae, W_feat, chunks) for chunks in (whole, parts))
    assert one[:-1] == pytest.approx(many[:-1], rel=1e-5)
    assert one.classification == pytest.approx(many.classification)
    assert 0 < one.classification.f1_score < 1
    recon = np.asarray(decode(sae, encode(sae, jnp.asarray(x))))
    assert one.explained_variance == pytest.approx(1 - fvu(x, recon), rel=1e-5)
    assert one.shrinkage == pytest.approx(shrinkage(x, recon), rel=1e-5)
    with pytest.raises(ValueError, match="no rows"):
        evaluate_features(sae, W_feat, [])
