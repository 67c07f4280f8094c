"""SAEs of users against the truth: a folder of SAELens is measured as SAELens does, and as this project does."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate
from experiments.common import cli
from experiments.common.experiment import Work
from toy.eval.classification import classification
from toy.features.directions import make_directions
from toy.features.named import reference_tree
from toy.features.tree import build_tree
from toy.io import plain, write_sae
from toy.sae import SAE, encode

TREE = build_tree(reference_tree())
W_FEAT = np.asarray(make_directions(jax.random.key(0)[None], 20, 30)[0])


def an_sae(noise: float = 0.0, bias: np.ndarray | float = 0.0) -> SAE:
    """Finds every feature, up to noise; `bias` is taken from its inputs and added to its outputs."""
    rows = W_FEAT + noise * np.random.default_rng(0).normal(size=W_FEAT.shape)
    bias = np.broadcast_to(bias, 30)
    b_enc = np.full(20, -0.01) - bias @ rows.T
    return SAE(*(np.asarray(leaf, np.float32) for leaf in (rows.T, b_enc, rows, bias)))  # type: ignore[arg-type]


def measured(tmp_path: Path, saes: dict[str, SAE], **fields: Any) -> dict[str, Any]:
    np.save(tmp_path / "W.npy", W_FEAT)
    for name, sae in saes.items():
        write_sae(tmp_path / name, sae)
    folders = tuple(tmp_path / name for name in saes)
    cfg = evaluate.Config(sae=folders, directions=tmp_path / "W.npy", n_eval_rows=2_000, **fields)
    evaluate.check(cfg)
    results = plain(evaluate.run(cfg, Work()))
    return {"name": "evaluate", "config": cli.describe(cfg), "seeds": cfg.seeds, "results": results}


def test_saes_stand_side_by_side_with_holes_for_every_edge(tmp_path: Path) -> None:
    record = measured(tmp_path, {"good": an_sae(), "bad": an_sae(0.5)})
    good, bad = record["results"].values()
    assert good["recovered"]
    assert not bad["recovered"]
    assert good["hole_rates"] == [0.0] * 9
    assert (good["precision"], good["recall"], good["f1_score"]) == pytest.approx((1, 1, 1))
    assert bad["f1_score"] < 0.9
    assert cli.as_png(evaluate.plot(record))
    assert "recovered yes" in evaluate.summary(record)[0]
    assert "2,000 held-out rows" in evaluate.caption(record)


def test_activations_alone_are_measured_with_the_decoder_that_fits_them_best(tmp_path: Path) -> None:
    sae = an_sae(0.05)
    record = measured(tmp_path, {"sae": sae})
    x = evaluate.held_out(reference_tree(), W_FEAT, n_rows=2_000)
    np.save(tmp_path / "acts.npy", 3 * np.asarray(encode(sae, jnp.asarray(x))))
    given: dict[str, Any] = {"acts": (tmp_path / "acts.npy",), "directions": tmp_path / "W.npy"}
    cfg = evaluate.Config(**given, n_eval_rows=2_000)
    evaluate.check(cfg)
    (alone,), (whole,) = evaluate.run(cfg, lambda n: None).values(), record["results"].values()
    assert alone["l0"] == whole["l0"]
    np.testing.assert_array_equal(alone["hole_rates"], whole["hole_rates"])
    assert alone["recovered"] == whole["recovered"]
    assert alone["fvu"] < whole["fvu"]
    with pytest.raises(ValueError, match=r"acts\.npy: expected n_eval_rows = 500 rows"):
        evaluate.check(evaluate.Config(**given, n_eval_rows=500))


def test_a_bias_of_the_inputs_is_taken_out_of_the_sae(tmp_path: Path) -> None:
    bias = np.linspace(-1, 1, 30)
    np.save(tmp_path / "bias.npy", bias)
    without, given = (
        measured(tmp_path, {"a": an_sae()}),
        measured(tmp_path, {"b": an_sae(bias=bias)}, bias=tmp_path / "bias.npy"),
    )
    for name in ("fvu", "l0", "hole_rate", "f1_score"):
        assert given["results"][str(tmp_path / "b")][name] == pytest.approx(
            without["results"][str(tmp_path / "a")][name]
        )


def test_latents_as_classifiers_by_hand() -> None:
    """Three latents: one is right, one is on once too often and misses once, one is never on."""
    W = np.eye(3)
    present = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], bool)
    acts = np.array([[0.3, 0, 0], [0.2, 2, 0], [0, 0, 0], [0, -1, 0]])
    found = classification(acts, present, W, W)
    assert found.precision == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found.recall == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found.f1_score == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found.accuracy == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sae": ()}, r"^sae: give at least one folder or file"),
        ({"directions": Path("missing.npy")}, r"^'?missing\.npy'?: No such file"),
        ({"tree_of": 3}, r"^directions: .*W\.npy: expected 20 rows, one for each feature, got shape \(3, 30\)"),
        ({"d_of": 7}, r"^sae: .*a: has d_in = 30, and the directions 7"),
        ({"n_seeds": 2}, r"^n_seeds: must be at most 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(fields: dict, told: str, tmp_path: Path) -> None:
    write_sae(tmp_path / "a", an_sae())
    np.save(tmp_path / "W.npy", W_FEAT[: fields.pop("tree_of", 20), : fields.pop("d_of", 30)])
    with pytest.raises(ValueError, match=told):
        evaluate.check(evaluate.Config(**({"sae": (tmp_path / "a",), "directions": tmp_path / "W.npy"} | fields)))


def write_empty(path: Path) -> None:
    path.touch()


def write_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=W_FEAT, b=W_FEAT)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (write_empty, "No data left in file"),
        (write_archive, "holds several arrays; give an .npy file"),
        (lambda path: np.save(path, np.ones((20, 30), int)), "expected floating-point numbers, got int64"),
        (lambda path: np.save(path, np.full((20, 30), np.nan)), "holds numbers that are not finite"),
    ],
)
def test_a_file_that_holds_no_matrix_is_told_by_name(write: Any, told: str, tmp_path: Path) -> None:
    write(tmp_path / "W.npy")
    write_sae(tmp_path / "a", an_sae())
    with pytest.raises(ValueError, match=rf"W\.npy'?: {told}"):
        evaluate.check(evaluate.Config(sae=(tmp_path / "a",), directions=tmp_path / "W.npy"))
