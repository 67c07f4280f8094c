"""SAEs from the command line: any method, a tree or activations of one's own, kept as SAELens loads them."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from experiments import train
from experiments.common import cli
from experiments.common.experiment import Work
from toy.io import load_tree, plain, read_sae
from toy.sae import TopK

MINE = f"{Path(__file__).parent}/methods/tied.py:tied"


def ran(folder: Path, progress: Any = lambda n: None, **fields: Any) -> dict[str, Any]:
    cfg = train.Config(**({"n_steps": 60, "n_eval_rows": 300, "folder": folder} | fields))
    train.check(cfg)
    results = plain(train.run(cfg, Work(progress=progress)))
    return {"name": "train", "config": plain(cli.describe(cfg)), "seeds": cfg.seeds, "results": results}


@pytest.mark.slow
def test_a_run_of_a_users_method_is_a_folder_that_evaluate_takes(tmp_path: Path) -> None:
    record = ran(tmp_path, method=MINE, n_seeds=2)
    saes = [read_sae(tmp_path / f"sae_{seed}")[0] for seed in (0, 1)]
    np.testing.assert_allclose(saes[0].W_enc, saes[0].W_dec.T, rtol=1e-6)
    assert not np.allclose(saes[0].W_dec, saes[1].W_dec)
    assert np.load(tmp_path / "directions_1.npy").shape == (20, 30)
    assert load_tree(tmp_path / "tree.json").children
    history = [json.loads(line) for line in (tmp_path / "history_0.jsonl").read_text().splitlines()]
    assert history[-1]["step"] == 60
    assert history[-1]["l0"] == pytest.approx(record["results"]["curves"][0]["l0"][-1])
    metadata = json.loads((tmp_path / "sae_0" / "cfg.json").read_text())["metadata"]
    assert metadata["training"]["weighting"] == "sampled_10"
    assert any(name.startswith("source of") for name in metadata["training"])
    assert cli.as_png(train.plot(record))
    assert "2 SAEs" in train.summary(record)[0]
    assert len(record["results"]["measured"]["fvu"]) == 2


@pytest.mark.slow
def test_activations_of_ones_own_need_no_tree(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(500, 12)).astype(np.float32))
    given = {"data": tmp_path / "x.npy", "n_latents": 24, "target_l0": 3.0, "batch_size": 32}
    record = ran(tmp_path / "out", method="topk:k=l0", **given)
    sae, activation = read_sae(tmp_path / "out" / "sae_0")
    assert activation == TopK(3)
    assert sae.W_dec.shape == (24, 12)
    assert "measured" not in record["results"]
    assert not (tmp_path / "out" / "tree.json").exists()


@pytest.mark.slow
def test_a_run_that_is_done_is_not_run_again_and_another_is_refused(tmp_path: Path) -> None:
    steps: list[int] = []
    first = ran(tmp_path)["results"]
    assert ran(tmp_path, progress=steps.append)["results"] == first
    assert steps == [60]
    with pytest.raises(ValueError, match=r"cfg\.method"):
        ran(tmp_path, method="tied")


@pytest.mark.parametrize("method", ["vanilla", "matryoshka"])
def test_penalty_and_prefixes_are_options_of_vanilla_and_matryoshka(method: str) -> None:
    cfg = train.Config(method=method, sparsity="log", n_prefixes=3)
    assert cfg.named.method.sparsity == "log"  # type: ignore[attr-defined]
    assert cfg.named.weighting == {"vanilla": "vanilla", "matryoshka": "sampled_3"}[method]


@pytest.mark.parametrize("given", [{"sparsity": "log"}, {"n_prefixes": 3}])
def test_penalty_and_prefixes_of_another_method_are_in_its_name(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^sparsity and n_prefixes: apply to vanilla and matryoshka alone"):
        train.Config(method="tied", **given)


def test_activations_need_a_number_of_latents_and_an_l0(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^n_latents and target_l0: with --data"):
        ran(tmp_path, data=tmp_path / "x.npy", n_latents=24)


def test_training_starts_from_the_features_or_from_a_saved_sae(tmp_path: Path) -> None:
    still = {"learning_rate": 0.0, "reinit_below": 0.0, "n_steps": 3}
    ran(tmp_path / "first", start="features", **still)
    W_feat, (sae, _) = np.load(tmp_path / "first" / "directions_0.npy"), read_sae(tmp_path / "first" / "sae_0")
    cosines = np.asarray(sae.W_dec) @ (W_feat / np.linalg.norm(W_feat, axis=1, keepdims=True)).T
    np.testing.assert_allclose(np.sort(cosines, axis=1)[:, -1], 1, rtol=1e-5)
    ran(tmp_path / "kept")
    ran(tmp_path / "again", start=str(tmp_path / "kept" / "sae_0"), **still)
    kept, again = (read_sae(tmp_path / name / "sae_0")[0] for name in ("kept", "again"))
    order = np.argmax(np.asarray(again.W_dec) @ np.asarray(kept.W_dec).T, axis=1)
    np.testing.assert_allclose(again.W_enc, np.asarray(kept.W_enc)[:, order], rtol=1e-5)
    scale = np.asarray(again.b_enc)[kept.b_enc[order] != 0] / kept.b_enc[order][kept.b_enc[order] != 0]
    np.testing.assert_allclose(scale, scale.mean(), rtol=1e-4)  # inputs' mean norm in another batch
    assert scale.mean() == pytest.approx(1, abs=0.2)


def test_a_start_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        ran(tmp_path, start=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="start: the features of --data are not known"):
        ran(tmp_path, start="features", data=tmp_path / "x.npy", n_latents=24, target_l0=3.0)


def test_a_tracker_is_given_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard" / "seed_0")

        def __enter__(self) -> "Writer":
            return self

        def __exit__(self, *error: object) -> None:
            told.append(("closed", 0.0, 0))

        def add_scalar(self, *row: Any) -> None:
            told.append(row)

    package = ModuleType("tensorboardX")
    package.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboardX", package)
    record = ran(tmp_path, track="tensorboard")
    losses = [value for name, value, _ in told if name == "loss"]
    assert losses == pytest.approx(record["results"]["curves"][0]["loss"], rel=1e-3)
    assert told[-1][0] == "closed"


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"--track wandb: needs the package wandb; install the extra"):
        ran(tmp_path, track="wandb")


def test_saes_along_the_way_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    ran(tmp_path, snapshots=4)
    kept = sorted((tmp_path / "snapshots_0").iterdir())
    assert [folder.name for folder in kept] == [f"step_{step:08d}" for step in (15, 30, 45, 60)]
    first, last = (np.asarray(read_sae(folder)[0].W_dec) for folder in (kept[0], tmp_path / "sae_0"))
    assert first.shape == last.shape
    assert not np.allclose(first, last)
    assert not (tmp_path / "snapshots_1").exists()
