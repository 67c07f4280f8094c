"""SynthSAEBench-16k on a CPU: which of 16,384 features SAEs of 4,096 latents find in some minutes of training.

Claim: after a million samples, half a percent of what published SAEs had, vanilla and detached levels have nearly
twice the F1 of BatchTopK with any prefixes, and none has much.
Command: python -m experiments.synth_bench (about 35 minutes on one core, 16 of them for detached levels, whose steps
take four times as long); --model takes the folder of a synthetic model that SAELens saved in its place.
Needs: 4 GB of memory; SAELens' samples per second need the extra `peers`.
Expected: F1 .30 (vanilla, detached levels) and .16 to .18 (BatchTopK). With 200 million samples, at an L0 of 25, the
best of the benchmark's paper, a Matryoshka SAE, has an F1 of .88, and the best that its author tells of .97.
In the post: nothing; its trees have 20 features.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.bench.generators import OURS, THEIRS
from experiments.bench.timing import Job, Table, has_peers
from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from toy import prefixes
from toy.checks import POSITIVE, SEED, Whole, check_fields, check_some
from toy.data.source import SyntheticSource, synthsaebench
from toy.eval.against_features import evaluate_features
from toy.features.synthsaebench import SynthSAEBench
from toy.features.tree import held_out_key
from toy.io import load_synthetic
from toy.methods import named
from toy.sae import is_finite
from toy.training.config import MAX_STEPS, Hypers, TrainConfig, check_hypers, check_memory
from toy.training.run import train
from toy.training.state import trained_sae

LEVELS = "weighting=levels:128=1,512=1,2048=1,full=1"
METHODS = (
    "vanilla",
    "batchtopk:k=l0,aux_k=0",
    f"batchtopk:k=l0,aux_k=0,{LEVELS}",
    "batchtopk:k=l0,aux_k=0,weighting=all",
    f"detached:{LEVELS}",
)
TABLE = {
    "f1_score": "F1",
    "mcc": "MCC",
    "sae_l0": "L0",
    "explained_variance": "explained variance",
    "dead_latents": "dead",
    "samples": "samples",
    "seconds": "seconds",
}
CHUNK = 50  # steps of a compiled program, and rows of the history
N_ROWS = 1_024  # that are drawn at once for measuring


@dataclass(frozen=True)
class Config:
    """Options of `synth_bench`."""

    methods: tuple[str, ...] = METHODS
    """Methods by name (`toy.methods.named`); l0 is the target L0."""
    model: Path | None = None
    """Folder of a synthetic model that SAELens saved, in place of the benchmark."""
    n_latents: int = 4_096
    """Number of latents."""
    target_l0: float = 25.0
    """L0 of the SAEs."""
    n_steps: int = 1_000
    """Training steps of every method."""
    batch_size: int = 1_024
    """Samples per step."""
    learning_rate: float = 3e-3
    """Adam's learning rate, between warm-up and cool-down."""
    n_eval_rows: int = 50_000
    """Held-out samples that every SAE is measured on, rounded up to a multiple of 1,024."""
    n_rounds: int = 5
    """Rounds in which the generators take turns; 0 leaves them out."""
    seed: int = 0
    """Seed of training; that of the benchmark is its own."""

    def __post_init__(self) -> None:
        check_fields(self, n_latents=Whole(), n_steps=Whole(most=MAX_STEPS), batch_size=Whole(), seed=SEED)
        check_fields(self, target_l0=POSITIVE, learning_rate=POSITIVE, n_eval_rows=Whole(), n_rounds=Whole(0, 1_000))
        check_some(self, "methods")

    @property
    def seeds(self) -> list[int]:
        return [self.seed]

    @cached_property
    def source(self) -> SyntheticSource:
        return synthsaebench(SynthSAEBench()) if self.model is None else load_synthetic(self.model)

    def settings(self, name: str) -> tuple[TrainConfig, Hypers]:
        _, method, weighting = named(name, self.target_l0)
        train_cfg = TrainConfig(self.n_latents, self.n_steps, self.batch_size, method)
        target = self.target_l0 if method.aims_at_l0 else None
        weights = prefixes.named(weighting, self.n_latents)
        # The averages of language-model SAEs, and a controller that is fast enough for so few steps.
        return train_cfg, Hypers(weights, target, self.learning_rate, b1=0.9, b2=0.999, control_rate=1e-2)


def check(cfg: Config) -> None:
    """Raises: ValueError naming the method that cannot be trained, before any work."""
    for name in cfg.methods:
        train_cfg, hypers = cfg.settings(name)
        check_hypers(hypers, train_cfg)
        check_memory(SynthSAEBench.d_in if cfg.model is None else cfg.source.d_in, train_cfg)


def n_steps(cfg: Config) -> int:
    return len(cfg.methods) * cfg.n_steps + cfg.n_rounds


def run(cfg: Config, work: Work) -> dict[str, Any]:
    generators = speeds(cfg, work) if cfg.n_rounds else None
    return {"generators": generators, "methods": {name: _one(cfg, name, work) for name in cfg.methods}}


def speeds(cfg: Config, work: Work) -> dict[str, Any]:
    """Rows per second of the generators of the benchmark, here and in SAELens, which take turns."""
    job = {"benchmark": asdict(SynthSAEBench()), "n_rows": 1_024, "n_calls": 5, "peers": has_peers()}
    jobs = [Job("generators.cases", job)] + ([Job("peers.generator", job)] if has_peers() else [])
    return Table("SynthSAEBench-16k", "rows per second", tuple(jobs), per_second=True).measure(cfg.n_rounds, work)


def _one(cfg: Config, name: str, work: Work) -> dict[str, Any]:
    train_cfg, hypers = cfg.settings(name)
    source, start = cfg.source, time.monotonic()
    work.compiling()
    state, history = train(jax.random.key(cfg.seed), source, hypers, cfg=train_cfg, chunk=CHUNK, progress=work)
    sae = jax.device_get(trained_sae(state))
    seconds = time.monotonic() - start
    if not is_finite(sae):
        raise ValueError(f"methods: {name} diverged; lower learning_rate = {cfg.learning_rate:g}")
    found = evaluate_features(sae, np.asarray(source.W_feat), held_out(cfg), train_cfg.method.inference)
    measured = found._asdict() | found.classification._asdict()
    del measured["classification"]
    return measured | {"samples": cfg.n_steps * cfg.batch_size, "seconds": seconds, "l0_curve": history.l0}


def held_out(cfg: Config) -> Iterator[tuple[Any, Any]]:
    """Rows and their features, the same for every SAE."""
    for i in range(-(-cfg.n_eval_rows // N_ROWS)):
        yield _rows_and_features(cfg.source, jax.random.fold_in(held_out_key(jax.random.key(cfg.seed)), i))


@jax.jit
def _rows_and_features(source: SyntheticSource, key: Any) -> tuple[Any, Any]:
    return source.sample(key, N_ROWS), source.sample_features(key, N_ROWS)


def summary(record: dict[str, Any]) -> list[str]:
    results = record["results"]
    lines = [
        f"{name}: " + ", ".join(f"{title} {_text(r[key])}" for key, title in TABLE.items())
        for name, r in results["methods"].items()
    ]
    if results["generators"] is not None:
        told = {name: np.median(rates(results["generators"], name)) for name in results["generators"]["cases"]}
        lines.append("samples per second: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in told.items()))
        if THEIRS in told:
            lines[-1] += f", {told[OURS] / told[THEIRS]:.1f} times as many here"
    return lines


def rates(table: dict[str, Any], name: str) -> np.ndarray:
    return 1 / np.array(table["cases"][name]["seconds"])


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.3f}"


def caption(record: dict[str, Any]) -> str:
    config, methods = record["config"], record["results"]["methods"]
    true_l0 = next(iter(methods.values()))["true_l0"]
    return (
        f"SAEs of {config['n_latents']:,} latents, on {-(-config['n_eval_rows'] // N_ROWS) * N_ROWS:,} held-out "
        f"samples with {true_l0:.1f} features on; F1: mean over latents, MCC: over matched pairs, as in SAELens; "
        f"seed {config['seed']}."
    )


def plot(record: dict[str, Any]) -> Figure:
    results = record["results"]
    methods, table = results["methods"], results["generators"]
    height = 1.0 + 0.17 * len(methods)
    with plots.styled(height + 1.4) as figure:
        top, bottom = plots.stacked(figure, height, 1.4)
        text = [[_text(r[key]) for key in TABLE] for r in methods.values()]
        shade = [
            [r[key] if key in ("f1_score", "mcc", "explained_variance") else np.nan for key in TABLE]
            for r in methods.values()
        ]
        names = [plots.shown_name(name, 36) for name in methods]
        plots.table(top.subplots(), "a  Measures", shade, text, names, list(TABLE.values()), high=1)
        ax = bottom.subplots()
        ax.set(title="b  Samples per second that are drawn", xlabel="samples per second (log scale)")
        if table is None:
            plots.nothing(ax, "not measured")
            return figure
        for y, name in enumerate(table["cases"]):
            found = rates(table, name)
            ax.plot(found, [y] * len(found), "o", markersize=3, alpha=0.5)
            ax.plot(np.median(found), y, "|", color="black", markersize=9)
        ax.set_yticks(range(len(table["cases"])), list(table["cases"]))
        ax.set_ylim(-0.5, len(table["cases"]) - 0.5)
        plots.log_scale(ax, "x")
    return figure


EXPERIMENT = Experiment("synth_bench", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
