"""One process of a run spread over several: `python tests/multihost.py ADDRESS N_PROCESSES PROCESS_ID OUT.npz`.

Every process runs the same program on the same source; process 0 writes the SAE. With one process, the run alone.
"""

import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update("jax_num_cpu_devices", 2)
ADDRESS, N_PROCESSES, PROCESS_ID, OUT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if N_PROCESSES > 1:
    jax.distributed.initialize(ADDRESS, N_PROCESSES, PROCESS_ID)

from toy import prefixes  # noqa: E402  (JAX must know of the other processes before anything uses it)
from toy.data.source import ArraySource  # noqa: E402
from toy.methods import TopKFamily  # noqa: E402
from toy.sae import BatchTopK  # noqa: E402
from toy.training.config import Hypers, TrainConfig  # noqa: E402
from toy.training.run import train  # noqa: E402
from toy.training.state import trained_sae  # noqa: E402

cfg = TrainConfig(256, n_steps=40, batch_size=32, method=TopKFamily(BatchTopK(4)), reinit_every=1_000)
rows = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
hypers = Hypers(prefixes.sampled(256, 5), learning_rate=1e-2)
axes = ("batch", "latents")
mesh = jax.make_mesh((N_PROCESSES, 2), axes, axis_types=(AxisType.Auto,) * 2)
state, history = train(jax.random.key(0), ArraySource(rows), hypers, cfg=cfg, mesh=mesh, chunk=10)  # type: ignore
sae = jax.jit(trained_sae, out_shardings=NamedSharding(mesh, PartitionSpec()))(state)
if PROCESS_ID == 0:
    np.savez(OUT, loss=history.loss, n_devices=jax.device_count(), **jax.device_get(sae)._asdict())
