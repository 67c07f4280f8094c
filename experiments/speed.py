"""How fast the trainer is, at toy and at language-model width, and beside SAELens.

Claim: one run of the reference set-up takes at most 120 µs per step, sampling included, and 64 seeds at once 45 µs per
step and seed; at toy width every prefix costs as much as one. At (25,000 latents, 768 inputs, batch 512) 10 sampled
prefixes cost at most 1.15 times a vanilla SAE's loss and gradient, the hybrid 1.2, every prefix of a ReLU SAE 2.1 and
of a TopK SAE 1.1 times plain TopK; a whole step of a BatchTopK SAE with every prefix is at least 4 times faster than
SAELens' Matryoshka one.
Command: python -m experiments.speed; about 20 minutes on 2 cores, 3 with --no-width.
Needs: 4 GB of memory; SAELens' rows need the extra `peers`, --device gpu a GPU of 20 GB and a jaxlib for it, --against
a git checkout with the revision in it. What is compared takes turns, round by round, since machines are shared.
In the post: "trains in only 1.5x the time of a standard SAE".
"""

import contextlib
from dataclasses import dataclass, replace
from typing import Any, Literal

from experiments.bench.report import caption, plot, summary
from experiments.bench.timing import MOST_ROUNDS, Job, Table, checkout, find_revision, has_peers
from experiments.common.cli import main
from experiments.common.exits import n_cpu_devices
from experiments.common.experiment import Experiment
from toy.checks import Whole, check_fields
from toy.training.loop import Progress

WIDTHS = ((4_096, 256, 1_024), (25_000, 768, 512))  # n_latents, d_in, batch
GPU_WIDTHS = ((25_000, 768, 4_096), (25_000, 768, 16_384))
CHUNK = 1_000  # steps of a training that are timed together
N_FEATURES = (20, 200, 2_000, 20_000)


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    n_seeds: int = 64
    """Seeds that are trained at once."""
    n_rounds: int = 5
    """Rounds, in each of which every case has its turn."""
    against: str | None = None
    """A git revision: time the reference set-up on the code as it was there, too."""
    width: bool = True
    """Measure at language-model width, too (left out with --no-width)."""
    peers: bool = True
    """Measure SAELens beside it where it is installed (left out with --no-peers)."""
    device: Literal["cpu", "gpu"] = "cpu"
    """gpu: add tables of this machine's GPU."""

    def __post_init__(self) -> None:
        check_fields(self, n_seeds=Whole(most=100_000), n_rounds=Whole(most=MOST_ROUNDS))

    @property
    def seeds(self) -> list[int]:
        return list(range(self.n_seeds))


def check(cfg: Config) -> None:
    """Raises: ValueError if there is no such revision."""
    if cfg.against is not None:
        find_revision(cfg.against)


def n_steps(cfg: Config) -> int:
    return cfg.n_rounds * len(make_tables(cfg, []))


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        here = Job("reference", {"n_seeds": cfg.n_seeds, "chunk": CHUNK}, devices=n_cpu_devices())
        code = [here]
        if cfg.against is not None:
            old = stack.enter_context(checkout(cfg.against))
            code.append(replace(here, code=old, suffix=f" as of {cfg.against}"))
        tables = [table.measure(cfg.n_rounds, progress) for table in make_tables(cfg, code)]
    missing = ["GPU (python -m experiments.speed --device gpu)"] if cfg.device == "cpu" else []
    missing += [] if cfg.peers and has_peers() else ["SAELens (install the extra peers)"]
    return {"tables": tables, "not_measured": missing}


def make_tables(cfg: Config, reference: list[Job]) -> list[Table]:
    """The tables in the order they are measured, the GPU's first: where there is none, nothing else is done."""
    peers = cfg.peers and has_peers()
    tables = []
    if cfg.device == "gpu":
        tables += [wide_table(shape, "GPU", dtype=dtype) for shape in GPU_WIDTHS for dtype in ("tf32", "bfloat16")]
    toy = Job("small.weightings", {"chunk": CHUNK // 2, "peers": peers})
    generator = Job("small.generator", {"n_features": N_FEATURES})
    tables += [
        Table("Reference set-up, sampling included", "µs per step and seed", tuple(reference), 1e6),
        Table("Toy width (20 latents, 30 inputs, batch 200)", "µs per step", (toy,), 1e6),
        Table("Generator of features", "million rows per second", (generator,), 1e-6, per_second=True),
    ]
    if cfg.width:
        tables += [wide_table(shape, on, peers=peers) for shape in WIDTHS for on in ("one thread", "all threads")]
    return tables


def wide_table(shape: tuple[int, int, int], on: str, *, dtype: str = "float32", peers: bool = False) -> Table:
    n_latents, d_in, batch_size = shape
    options = {"n_latents": n_latents, "d_in": d_in, "batch_size": batch_size, "dtype": dtype, "peers": peers}
    threads = 1 if on == "one thread" else None
    job = Job("wide.cases", options, threads=threads, device="gpu" if on == "GPU" else "cpu")
    title = f"{n_latents:,} latents, {d_in} inputs, batch {batch_size:,}, {dtype}, {on}"
    return Table(title, "ms per call or step", (job,), 1e3)


EXPERIMENT = Experiment("speed", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
