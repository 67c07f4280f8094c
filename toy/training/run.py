"""The trainer: a run is a pure function of a key, a data source and hyperparameters.

`toy.training.advance` moves one run by a chunk of steps, compiled. `train` and `train_grid` loop over chunks on the
host, which is where progress, history and checkpoints live (`toy.training.loop`).
"""

from functools import partial

from jax.sharding import Mesh
from jaxtyping import Array, Key

from toy.data.source import Source, Stream
from toy.training.advance import advance, first_state, no_metrics
from toy.training.config import Hypers, TrainConfig
from toy.training.feed import checked_run, feed_chunk, feeding, run_facts
from toy.training.loop import Checkpoint, Progress, run_chunks
from toy.training.mesh import check_mesh, replicate
from toy.training.state import Metrics, TrainState


def train(
    key: Key[Array, ""],
    source: Source | Stream,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    chunk: int = 1_000,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[TrainState, Metrics]:
    """One run: the final state and its history, one row per chunk of steps. `trained_sae(state)` is the SAE.

    Chunks of a stream are shorter where its batches would not fit in `toy.training.feed.MAX_CHUNK_MB`.

    With a `mesh` the run is spread over its devices, by its axes `batch` and `latents` (`toy.training.mesh`), and is
    the same up to rounding; source and hypers must be the same on every host.

    With a `checkpoint` a run that was killed goes on from where it was last saved, to the same result bit for bit.

    Raises: ValueError if a number of `hypers` is out of range, `cfg`, `hypers` and `mesh` do not fit each other, a row
    of the source has numbers that cannot be computed with, the run needs more memory than there is, or the checkpoint
    is of another run.
    """
    source = checked_run(key, source, hypers, cfg, n_devices=1 if mesh is None else mesh.size)
    if mesh is not None and checkpoint is not None:
        raise ValueError("checkpoint: a run over a mesh cannot be saved; train without one of the two")
    facts = None if checkpoint is None else run_facts(key, source, hypers, cfg)
    place = None if mesh is None else partial(replicate, mesh=mesh)
    if mesh is not None:
        check_mesh(mesh, cfg.n_latents, cfg.batch_size // cfg.n_microbatches)
        key, hypers = replicate((key, hypers), mesh)
    state = first_state(key, hypers, d_in=source.d_in, cfg=cfg, mesh=mesh)
    chunk = feed_chunk(source, chunk, cfg)
    with feeding(source, chunk, cfg, place) as feed:
        return run_chunks(
            lambda state, source, n: advance(state, source, hypers, cfg=cfg, n_steps=n, mesh=mesh),
            state,
            cfg.n_steps,
            feed=feed,
            chunk=chunk,
            progress=progress,
            checkpoint=checkpoint,
            facts=facts,
            empty=no_metrics(state),
        )
