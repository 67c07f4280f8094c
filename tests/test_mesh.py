"""A run over several devices or processes is the run on one, and each device holds its share alone."""

import socket
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from processes import finish, start

from toy.data.source import ArraySource
from toy.methods import TopKFamily
from toy.prefixes import sampled
from toy.sae import TopK
from toy.training.config import Hypers, TrainConfig
from toy.training.run import train

RUNS = ["relu sampled", "relu all", "relu hybrid", "topk", "batchtopk auxk restarts", "relu microbatches"]
ON_EVERY_MESH = ["relu sampled", "batchtopk auxk restarts"]
Arrays = dict[str, np.ndarray]


def read(path: Path) -> Arrays:
    with np.load(path) as file:
        return dict(file)


def assert_close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-5) -> None:
    """Relative to the largest entry."""
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1e-30, np.abs(b).max()))


@pytest.fixture(scope="module")
def of_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Arrays]:
    """Returns what tests/sharded.py writes, by run and mesh."""
    out = tmp_path_factory.mktemp("sharded") / "out.npz"
    finish([start("sharded.py", str(out))], timeout=300)
    arrays = read(out)

    def of(run: str, mesh: str) -> Arrays:
        prefix = f"{run}/{mesh}/"
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "mesh"),
    [(run, "both") for run in RUNS] + [(run, mesh) for run in ON_EVERY_MESH for mesh in ("batch", "latents")],
)
def test_on_eight_devices_a_run_is_what_it_is_on_one(
    run: str, mesh: str, of_runs: Callable[[str, str], Arrays]
) -> None:
    one, several = of_runs(run, "one"), of_runs(run, mesh)
    names = {name for name in one if not name.startswith("shape of")}
    assert names >= {"loss", "W_enc", "b_enc", "W_dec", "b_dec"}
    assert ({"threshold", "silent"} <= names) == ("batchtopk" in run)
    assert (one["loss"][-1] > one["loss"][0]) == ("restarts" in run)  # which cost at first; the others learn
    for name in names:
        assert_close(several[name], one[name])


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "n_parts"), [("one", 1), ("batch", 1), ("latents", 8), ("both", 2)])
@pytest.mark.parametrize("run", ON_EVERY_MESH)
def test_every_device_holds_its_share_of_the_latents_and_no_more(
    run: str, mesh: str, n_parts: int, of_runs: Callable[[str, str], Arrays]
) -> None:
    shapes = {
        name.removeprefix("shape of "): tuple(shape)
        for name, shape in of_runs(run, mesh).items()
        if name.startswith("shape of")
    }
    share, d_in = 160 // n_parts, 16
    expected = {"contribution": (share,)}
    for part in ("", "mu ", "nu "):
        expected |= {f"{part}W_enc": (d_in, share), f"{part}b_enc": (share,), f"{part}W_dec": (share, d_in)}
        expected |= {f"{part}b_dec": (d_in,)}
    if "batchtopk" in run:
        expected |= {"silent": (share,)}
    assert shapes == expected


@pytest.mark.slow
def test_two_processes_over_the_network_agree_with_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    alone, together = tmp_path / "alone.npz", tmp_path / "together.npz"
    finish([start("multihost.py", address, "1", "0", str(alone))], timeout=120)
    finish([start("multihost.py", address, "2", str(i), str(together)) for i in range(2)], timeout=120)
    one, two = read(alone), read(together)
    assert (one.pop("n_devices"), two.pop("n_devices")) == (2, 4)
    assert one.keys() == two.keys() >= {"loss", "W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    assert one["loss"][-1] < one["loss"][0]
    for name, array in one.items():
        assert_close(two[name], array)


def mesh_of_two(axis: str) -> Mesh:
    return jax.make_mesh((2,), (axis,), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize(
    ("axis", "fields", "message"),
    [
        ("rows", {}, "mesh: axes are named 'batch' or 'latents', got 'rows'"),
        ("latents", {"n_latents": 9}, "n_latents: 9 cannot be cut evenly over the 2 devices of mesh axis 'latents'"),
        ("batch", {"batch_size": 7}, "batch_size: 7 cannot be cut evenly over the 2 devices of mesh axis 'batch'"),
        ("batch", {"batch_size": 6, "n_microbatches": 2}, "batch_size: 3 cannot be cut evenly"),
    ],
)
def test_a_mesh_that_does_not_fit_the_run_is_refused_by_name(axis: str, fields: dict, message: str) -> None:
    cfg = TrainConfig(**({"n_latents": 8, "n_steps": 1, "batch_size": 8, "method": TopKFamily(TopK(2))} | fields))
    rows = ArraySource(np.ones((3, 4), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{message}"):
        train(jax.random.key(0), rows, Hypers(sampled(cfg.n_latents)), cfg=cfg, mesh=mesh_of_two(axis))
