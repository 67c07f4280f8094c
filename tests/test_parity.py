"""`parity.py` agrees with the reference files where they are, and with slow oracles of any size; else it exits 1."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
from oracles import random_arrays, slow_inclusion, slow_loss, slow_tiny_model, tiny_model_state

from toy.loss import objective
from toy.prefixes import pareto_rates

ROOT = Path(__file__).resolve().parents[1]
REFERENCE_FILES = sorted(
    path for folder in ("parity", "tinystories") for path in (ROOT.parent / "shared" / folder).glob("*.npz")
)


def loss_file(
    path: Path,
    *,
    size: tuple[int, int, int] = (16, 5, 4),
    lengths: tuple[int, ...] = (1, 2, 4),
    sparsity: str = "l1",
    **changes: Any,
) -> Path:
    """A file of the loss kind whose values are the slow oracle's; `changes` replace or, if None, drop keys."""
    arrays = random_arrays(0, *size)
    loss, grads = slow_loss(arrays, [(k, 1 / len(lengths)) for k in lengths], 0.3, sparsity)
    data: dict[str, Any] = arrays | {f"grad_{name}": grad for name, grad in grads.items()}
    data |= {"loss": loss, "prefix_lengths": lengths, "sparsity_type": sparsity, "sparsity_scale": 0.3}
    data = {key: value for key, value in (data | changes).items() if value is not None}
    np.savez(path, **data)
    return path


def inclusion_file(path: Path, *, n_latents: int = 6, n_prefixes: int = 3, power: float = 0.5, **changes: Any) -> Path:
    """A file of the inclusion kind: frequencies of 200,000 draws, from the list of all orders of drawing."""
    n_draws, n_drawn = 200_000, min(n_prefixes, n_latents) - 1
    exact = np.concatenate([[0.0], slow_inclusion(pareto_rates(n_latents, power), n_drawn), [1.0]])
    data = {
        "n_latents": n_latents,
        "n_prefixes": n_prefixes,
        "min_prefix_length": 1,
        "pareto_power": power,
        "draws": n_draws,
        "inclusion_frequency": np.random.default_rng(0).binomial(n_draws, np.clip(exact, 0, 1)) / n_draws,
    }
    np.savez(path, **(data | changes))
    return path


def tiny_model_file(path: Path, *, n_layers: int = 2, d: int = 12, n_heads: int = 3, **changes: Any) -> Path:
    """A file of the tiny_model kind whose values are the slow oracle's; `changes` replace or, if None, drop keys."""
    rng = np.random.default_rng(0)
    state, tokens = tiny_model_state(rng, n_layers, d, vocab=11, context=6), rng.integers(0, 11, (2, 5))
    data: dict[str, Any] = state | slow_tiny_model(state, tokens, n_heads) | {"tok_ids": tokens}
    np.savez(path, **{key: value for key, value in (data | changes).items() if value is not None})
    return path


@pytest.mark.skipif(not REFERENCE_FILES, reason="the reference files are not beside this checkout")
def test_the_reference_files_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main(list(map(str, REFERENCE_FILES))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(REFERENCE_FILES)
    assert all(line.endswith("ok") for line in lines)


@pytest.mark.skipif(not REFERENCE_FILES, reason="the reference files are not beside this checkout")
def test_the_slow_oracle_itself_agrees_with_the_reference_files() -> None:
    for path in REFERENCE_FILES:
        data = dict(np.load(path))
        if "loss" not in data:
            continue
        lengths = data["prefix_lengths"].tolist()
        weights = [(k, 1 / len(lengths)) for k in lengths]
        loss, grads = slow_loss(data, weights, float(data["sparsity_scale"]), str(data["sparsity_type"]))
        assert loss == pytest.approx(float(data["loss"]), rel=1e-12)
        for name, grad in grads.items():
            np.testing.assert_allclose(grad, data[f"grad_{name}"], rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", ["l1", "log"])
@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        ((1, 1, 1), (1,)),
        ((64, 30, 20), (20,)),
        ((7, 3, 12), tuple(range(1, 13))),  # every prefix, more latents than inputs
        ((8, 9, 5), (1, 3, 3, 3, 5, 5)),  # lengths repeated
        ((8, 4, 6), (2, 3)),  # none of full length
        ((6, 4, 70), (5, 70)),  # so few that tiles end at bounds
        ((6, 4, 150), tuple(range(1, 151))),  # every prefix, in more than one tile
    ],
)
def test_files_of_the_slow_oracle_agree_in_any_size(
    size: tuple[int, int, int], lengths: tuple[int, ...], sparsity: str, tmp_path: Path
) -> None:
    assert parity.main([str(loss_file(tmp_path / "a.npz", size=size, lengths=lengths, sparsity=sparsity))]) == 0


@pytest.mark.parametrize(("n_latents", "n_prefixes", "power"), [(6, 3, 0.5), (7, 6, 1.5), (5, 9, 0.5), (4, 1, 0.5)])
def test_inclusion_files_of_the_slow_oracle_agree_in_any_size(
    n_latents: int, n_prefixes: int, power: float, tmp_path: Path
) -> None:
    file = inclusion_file(tmp_path / "a.npz", n_latents=n_latents, n_prefixes=n_prefixes, power=power)
    assert parity.main([str(file)]) == 0


@pytest.mark.parametrize("key", ["loss", "grad_W_enc", "grad_b_enc", "grad_W_dec", "grad_b_dec"])
def test_a_loss_file_that_is_off_by_a_billionth_exits_1(key: str, tmp_path: Path) -> None:
    data = dict(np.load(loss_file(tmp_path / "good.npz")))
    value = np.array(data[key])
    value.flat[np.abs(value).argmax()] *= 1 + 1e-9
    changes: dict[str, Any] = {key: value}
    good, bad = loss_file(tmp_path / "good.npz"), loss_file(tmp_path / "bad.npz", **changes)
    assert parity.main([str(bad), str(good)]) == 1
    value.flat[0] = np.nan
    assert parity.main([str(loss_file(tmp_path / "bad.npz", **changes))]) == 1


@pytest.mark.parametrize(("form", "n_latents"), [("gram_mse", 7), ("tiled_mse", 8)])  # sizes of no other test:
def test_a_form_that_is_off_by_a_billionth_alone_exits_1(  # none is compiled already
    form: str, n_latents: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(objective, form)
    monkeypatch.setattr(objective, form, lambda *args, **options: (1 + 1e-9) * right(*args, **options))
    assert parity.main([str(loss_file(tmp_path / "a.npz", size=(5, 2, n_latents), lengths=(1, 3, n_latents)))]) == 1


@pytest.mark.parametrize(
    "changes", [{"sparsity_scale": 0.31}, {"sparsity_type": "log"}, {"prefix_lengths": (1, 2, 3)}], ids=str
)
def test_a_loss_file_of_another_objective_exits_1(changes: dict[str, Any], tmp_path: Path) -> None:
    assert parity.main([str(loss_file(tmp_path / "a.npz", **changes))]) == 1


@pytest.mark.parametrize("length", range(7))
def test_an_inclusion_file_that_is_off_at_one_length_exits_1(length: int, tmp_path: Path) -> None:
    frequency = np.load(inclusion_file(tmp_path / "a.npz"))["inclusion_frequency"].copy()
    frequency[length] += 0.01 if frequency[length] < 0.9 else -0.01
    assert parity.main([str(inclusion_file(tmp_path / "a.npz", inclusion_frequency=frequency))]) == 1


def test_an_inclusion_file_of_another_power_exits_1(tmp_path: Path) -> None:
    assert parity.main([str(inclusion_file(tmp_path / "a.npz", pareto_power=0.6))]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("n_layers", "d", "n_heads"), [(1, 6, 6), (3, 8, 2), (2, 5, 1)])
def test_tiny_model_files_of_the_slow_oracle_agree_in_any_size(
    n_layers: int, d: int, n_heads: int, tmp_path: Path
) -> None:
    file = tiny_model_file(tmp_path / "a.npz", n_layers=n_layers, d=d, n_heads=n_heads)
    assert parity.main([str(file)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    ["out.resid_pre.0", "out.attn_out.1", "out.resid_mid.0", "out.mlp_out.1", "out.resid_post.1", "out.logprobs"],
)
def test_a_tiny_model_file_that_is_off_at_one_place_exits_1(key: str, tmp_path: Path) -> None:
    value = np.load(tiny_model_file(tmp_path / "good.npz"))[key].copy()
    value.flat[7] += 2e-4
    changes: dict[str, Any] = {key: value}
    assert parity.main([str(tiny_model_file(tmp_path / "bad.npz", **changes))]) == 1
    value.flat[7] = np.nan
    assert parity.main([str(tiny_model_file(tmp_path / "bad.npz", **changes))]) == 1


def test_a_tiny_model_file_may_say_its_number_of_heads(tmp_path: Path) -> None:
    assert parity.main([str(tiny_model_file(tmp_path / "right.npz", n_heads=4, d=8))]) == 0
    right = dict(np.load(tmp_path / "right.npz"))
    for n_heads, code in ((4, 0), (2, 1), (3, 2)):
        np.savez(tmp_path / "a.npz", **right, n_heads=n_heads)
        assert parity.main([str(tmp_path / "a.npz")]) == code


def test_a_file_that_cannot_be_compared_exits_2_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(name: str, key: str, value: np.ndarray | None) -> Path:
        changes: dict[str, Any] = {key: value}
        return tiny_model_file(tmp_path / name, **changes)

    def replaced(name: str, key: str, value: np.ndarray) -> Path:
        """A file as it was made, but for one array."""
        whole: dict[str, Any] = {**np.load(tiny_model_file(tmp_path / name)), key: value}
        np.savez(tmp_path / name, **whole)
        return tmp_path / name

    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "foreign.npz", y=1)
    np.save(tmp_path / "array.npy", np.ones(3))
    bad = {
        tmp_path / "none.npz": "No such file",
        tmp_path / "text.npz": "not an .npz file",
        tmp_path / "empty.npz": "not an .npz file",
        tmp_path / "array.npy": "not an .npz file",
        tmp_path / "foreign.npz": "none of the kinds loss, prefix inclusion, tiny_model has just the keys y",
        loss_file(tmp_path / "few.npz", grad_b_dec=None): "none of the kinds",
        loss_file(tmp_path / "wide.npz", grad_b_dec=np.ones(9)): "should have shape",
        loss_file(tmp_path / "long.npz", prefix_lengths=(1, 5)): "need lengths between 1 and n_latents = 4",
        inclusion_file(tmp_path / "min.npz", min_prefix_length=2): "min_prefix_length is 2",
        inclusion_file(tmp_path / "short.npz", inclusion_frequency=np.ones(6)): "should have 7 entries",
        changed("more.npz", "out.resid_pre.2", np.ones(3)): "no location of a model of 2 layers: resid_pre.2",
        changed("less.npz", "out.logprobs", np.ones(3)): "should have shape (2, 5, 11)",
        changed("lost.npz", "torso.0.attn.Q.weight", None): "missing torso.0.attn.Q.weight",
        tiny_model_file(tmp_path / "odd.npz", y=np.ones(3)): "unknown y",
        replaced("flat.npz", "tok_ids", np.array([1, 2])): "tok_ids should be whole numbers (rows, positions)",
        replaced("none_of_them.npz", "tok_ids", np.zeros((0, 5), int)): "tok_ids should be whole numbers",
        replaced("half.npz", "tok_ids", np.full((2, 5), 0.5)): "tok_ids should be whole numbers",
        replaced("beyond.npz", "tok_ids", np.full((2, 5), 11)): "tok_ids are 11 to 11, of a vocabulary of 11",
        replaced("negative.npz", "tok_ids", np.full((2, 5), -1)): "tok_ids are -1 to -1",
        replaced("scalar.npz", "embed.weight", np.array(1.0)): "embed.weight should have shape (vocabulary, d_model)",
        replaced("nothing.npz", "embed.weight", np.ones((11, 0))): "embed.weight should have shape",
        replaced("heads.npz", "n_heads", np.array(2.5)): "n_heads should be one whole number",
    }
    for path, message in bad.items():
        assert parity.main([str(path), str(loss_file(tmp_path / "good.npz"))]) == 2
        output = capsys.readouterr()
        assert output.err.count("\n") == 1
        assert f"{path}: error: " in output.err
        assert message in output.err
        assert "ok" in output.out  # the others are compared nevertheless


@pytest.mark.slow
def test_the_command_line_runs_by_itself_in_float64(tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ROOT / "tests" / "parity.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    good, bad = loss_file(tmp_path / "good.npz"), loss_file(tmp_path / "bad.npz", loss=1.0)
    compared = run(good, bad)
    assert compared.returncode == 1
    assert [line.split()[-1] for line in compared.stdout.splitlines()] == ["ok", "DIFFERS"]
    assert compared.stderr == ""
    helped = run("--help")
    assert helped.returncode == 0
    assert "inclusion_frequency" in helped.stdout
    assert run().returncode == 2
