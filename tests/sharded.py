"""One run on every mesh of 8 devices and on one alone: `python tests/sharded.py OUT.npz`, started by test_mesh.py.

Arrays are written as RUN/MESH/NAME. A process of its own, since the number of devices is fixed once JAX is used.
"""

import sys
from dataclasses import replace

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402
import optax  # noqa: E402
from conftest import typechecker  # noqa: E402, F401  (installs the checks of shapes and types; 8 devices are set after)
from jax.sharding import AxisType, Mesh  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

from toy.data.source import ArraySource  # noqa: E402
from toy.methods import TopKFamily  # noqa: E402
from toy.prefixes import all_prefixes, hybrid, sampled  # noqa: E402
from toy.sae import BatchTopK, TopK  # noqa: E402
from toy.training.config import Hypers, TrainConfig  # noqa: E402
from toy.training.run import train  # noqa: E402
from toy.training.state import TrainState, trained_sae  # noqa: E402

N, D_IN = 160, 16
MESHES = {"one": None, "batch": {"batch": 8}, "latents": {"latents": 8}, "both": {"batch": 4, "latents": 2}}

SHORT = TrainConfig(N, n_steps=16, batch_size=64, n_lr_warmup_steps=4, reinit_every=1_000, reorder_every=5, form="wide")
BATCHTOPK = replace(SHORT, method=TopKFamily(BatchTopK(3), aux_k=8, dead_after=4), reinit_every=6, reinit_window=(0, 1))
FEW = sampled(N, 5)
RUNS = {
    "relu sampled": (FEW, SHORT),
    "relu all": (all_prefixes(N), SHORT),
    "relu hybrid": (hybrid(N, 5, n_exact=48, tile=56), SHORT),
    "topk": (FEW, replace(SHORT, method=TopKFamily(TopK(3), aux_k=0))),
    "batchtopk auxk restarts": (FEW, BATCHTOPK),
    "relu microbatches": (FEW, replace(SHORT, n_microbatches=2)),
}
ON_EVERY_MESH = ("relu sampled", "batchtopk auxk restarts")  # the others on the mesh that has both axes: time


def mesh_of(axes: dict[str, int] | None) -> Mesh | None:
    if axes is None:
        return None
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def shard_shapes(state: TrainState) -> dict[str, tuple[int, ...]]:
    """The part of each array that one device holds."""
    parts = {
        "": state.params,
        "mu ": optax.tree.get(state.opt_state, "mu"),
        "nu ": optax.tree.get(state.opt_state, "nu"),
    }
    arrays = {prefix + name: leaf for prefix, sae in parts.items() for name, leaf in sae._asdict().items()}
    arrays |= {"contribution": state.contribution, "silent": getattr(state.memory, "silent", None)}
    return {name: leaf.addressable_shards[-1].data.shape for name, leaf in arrays.items() if leaf is not None}


def main(out: str) -> None:
    assert jax.device_count() == 8
    rng = np.random.default_rng(0)
    rows = ((rng.random((500, 40)) < 0.1) * rng.gamma(4, 0.5, (500, 40))) @ rng.normal(size=(40, D_IN))
    arrays = {}
    for run, (weighting, cfg) in RUNS.items():
        target_l0 = 4.0 if cfg.method.aims_at_l0 else None  # of the TopK family k says it
        hypers = Hypers(weighting, target_l0=target_l0, learning_rate=1e-3)
        for mesh, axes in MESHES.items():
            if mesh in ("batch", "latents") and run not in ON_EVERY_MESH:
                continue
            source = ArraySource(rows.astype(np.float32))  # type: ignore[arg-type]
            state, history = train(jax.random.key(0), source, hypers, cfg=cfg, chunk=8, mesh=mesh_of(axes))
            sae = trained_sae(jax.device_put(state, jax.devices()[0]))
            results = {"loss": history.loss, **sae._asdict(), "silent": getattr(state.memory, "silent", None)}
            results |= {f"shape of {name}": shape for name, shape in shard_shapes(state).items()}
            arrays |= {f"{run}/{mesh}/{name}": value for name, value in results.items() if value is not None}
    np.savez(out, **jax.device_get(arrays))


if __name__ == "__main__":
    main(sys.argv[1])
