"""Train SAEs by any method, on a tree or on activations of yours, and keep them as SAELens loads them.

Claim: none; it makes SAEs.
Command: python -m experiments.train --method tied --n-seeds 2 (seconds). In --folder each seed has `sae_SEED`, which
SAELens loads, and `history_SEED.jsonl`; with a tree also `tree.json` and `directions_SEED.npy`, which
`experiments.evaluate` takes. A run that was killed goes on where it was last saved.
Expected: loss, L0 and sparsity coefficient over the steps, and with a tree what the SAE has learnt of it.
In the post: its training.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import evaluate_seeds, mean_text, outcome_text, summarise
from experiments.common.seeds import seeds_text
from experiments.common.study import (
    MethodConfig,
    Study,
    check_study,
    held_out_features,
    make_hypers,
    target_l0,
    train_config,
)
from experiments.common.track import Tracker, package, track
from toy import prefixes
from toy.checks import Whole, check_fields
from toy.data.activations import open_matrix
from toy.data.source import Source, Stream, TreeSource, synthsaebench
from toy.data.stream import ShardSource
from toy.features.synthsaebench import SynthSAEBench
from toy.io import load_synthetic, read_sae, save_tree, write_sae, writing
from toy.methods import Named, method_facts, named
from toy.sae import SAE, fold_input_scale, is_finite, sae_of_directions
from toy.training.checkpoint import FileCheckpoint
from toy.training.config import check_hypers, check_memory
from toy.training.loop import Facts, Run
from toy.training.run import train
from toy.training.state import Metrics, input_scale, trained_sae

CURVES = {"loss": "Loss", "mse": "Squared error", "l0": "L0", "sparsity_coef": "Sparsity coefficient"}
ROWS_PER_CURVE = 100
BENCHMARK = "synthsaebench-16k"
RANDOM, FEATURES = "random", "features"


@dataclass
class Snapshots(FileCheckpoint):
    """A checkpoint that also keeps the SAE of every so many steps, as `folder/step_00001200`."""

    folder: Path = Path()
    every: int = 0  # steps, whole chunks of them; 0: none is kept

    def save(self, run: Run, facts: Facts, *, last: bool) -> None:
        if self.every and run.n_done % self.every == 0:
            sae = jax.device_get(trained_sae(run.state))
            write_sae(self.folder / f"step_{run.n_done:08d}", sae, run.state.method.activation)
        super().save(run, facts, last=last)


@dataclass(frozen=True)
class Config(MethodConfig):
    """Options of `train`."""

    n_seeds: int = 1
    data: Path | None = None
    """Activations to train on in place of a tree: .npy, .npz, .safetensors or .pt, a row per sample; the folder of a
    synthetic model of SAELens; or synthsaebench-16k."""
    start: str = "random"
    """What training starts from: random, features (the tree's, one per latent), or the folder or file of an SAE."""
    snapshots: int = 0
    """Approximate number of evenly spaced SAEs that each seed keeps for experiments.viewer."""
    track: Tracker | None = None
    """Show the history of each seed in this program, too, once the seed is trained."""
    folder: Path = Path("runs/train")
    """Where the SAEs are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, snapshots=Whole(0, ROWS_PER_CURVE))
        if self.start == FEATURES and self.data is not None:
            raise ValueError("start: the features of --data are not known: give an SAE, or random")
        if self.data is not None and (self.n_latents is None or self.target_l0 is None):
            raise ValueError("n_latents and target_l0: with --data, say how many latents and which L0 there are to be")

    @property
    def own_out(self) -> Path:
        """The record and the figure lie beside the SAEs."""
        return self.folder

    @property
    def named(self) -> Named:
        text = self.method
        if text in self.weightings:  # the penalty and the prefixes are options of their own
            text += f":sparsity={self.sparsity},weighting={self.weightings[text]}"
        return named(text, self.target_l0 if self.data is not None else target_l0(self, self.tree.tree))  # type: ignore[arg-type]


def check(cfg: Config) -> None:
    """Raises: ValueError saying what is wrong with the options, before any work."""
    tree, (_, method, weighting) = cfg.tree.tree, cfg.named
    if cfg.data is None:
        check_study(cfg)
    if cfg.track is not None:
        package(cfg.track)
    if cfg.start not in (RANDOM, FEATURES):
        read_sae(Path(cfg.start))
    train_cfg = train_config(cfg, tree, method)
    check_hypers(make_hypers(cfg, tree, prefixes.named(weighting, train_cfg.n_latents), method), train_cfg)
    if cfg.data is not None:
        d_in = SynthSAEBench.d_in if str(cfg.data) == BENCHMARK else _source(cfg, cfg.seed).d_in
        check_memory(d_in, train_cfg)


def _source(cfg: Config, seed: int) -> Source | Stream:
    """Returns the activations or the model that --data names."""
    assert cfg.data is not None
    if str(cfg.data) == BENCHMARK:
        return synthsaebench(SynthSAEBench())
    if (cfg.data / "synthetic_model_config.json").exists():
        return load_synthetic(cfg.data)
    return ShardSource(open_matrix(cfg.data), seed=seed)


def n_steps(cfg: Config) -> int:
    return cfg.n_seeds * cfg.n_steps


def run(cfg: Config, work: Work) -> dict[str, Any]:
    """Trains one seed after the other and keeps each; the results are curves, and measures where there is a tree."""
    study = cfg.study if cfg.data is None else None
    if study is not None:
        save_tree(cfg.folder / "tree.json", cfg.tree.root)
    saes, curves = [], []
    for i, seed in enumerate(cfg.seeds):
        sae, history = _one(cfg, study, i, seed, work)
        saes.append(sae)
        curves.append({name: np.asarray(values) for name, values in history._asdict().items()})
    results: dict[str, Any] = {"curves": curves}
    if study is not None:
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *saes)
        features = held_out_features(cfg, study.tree)
        evaluations = evaluate_seeds(stacked, study.W_feat, study.tree, features, cfg.named.method.inference)
        results["measured"] = summarise(evaluations)
    return results


def _one(cfg: Config, study: Study | None, i: int, seed: int, work: Work) -> tuple[SAE, Metrics]:
    _, method, weighting = cfg.named
    source: Source | Stream
    if study is None:
        key, source = jax.random.key(seed), _source(cfg, seed)
    else:
        key, source = study.keys[i], TreeSource(study.tree, study.W_feat[i])  # type: ignore[arg-type]
        with writing(cfg.folder / f"directions_{seed}.npy") as file:
            np.save(file, study.W_feat[i])
    train_cfg = train_config(cfg, cfg.tree.tree, method)
    hypers = make_hypers(cfg, cfg.tree.tree, prefixes.named(weighting, train_cfg.n_latents), method)
    if study is not None and cfg.start == FEATURES:
        hypers = hypers._replace(start=sae_of_directions(study.W_feat[i, : train_cfg.n_latents]))
    elif cfg.start != RANDOM:
        hypers = hypers._replace(start=_scaled(Path(cfg.start), source, cfg.batch_size))
    chunk = max(1, cfg.n_steps // ROWS_PER_CURVE)
    checkpoint = Snapshots(cfg.folder / f"checkpoint_{seed}.npz", folder=cfg.folder / f"snapshots_{seed}")
    if cfg.snapshots:
        n_chunks = -(-cfg.n_steps // chunk)
        checkpoint.every = chunk * max(1, round(n_chunks / cfg.snapshots))
    work.compiling()
    state, history = train(key, source, hypers, cfg=train_cfg, chunk=chunk, progress=work, checkpoint=checkpoint)
    sae = jax.device_get(trained_sae(state))
    if not is_finite(sae):
        raise ValueError(f"training diverged with seed {seed}; lower learning_rate = {cfg.learning_rate:g}")
    told = method_facts(method) | {"weighting": weighting, "n_steps": cfg.n_steps, "seed": seed}
    if isinstance(hypers.prefixes, prefixes.FixedPrefixes):
        told["prefix_lengths"] = np.asarray(hypers.prefixes.lengths).tolist()
    if method.controls_l0:  # in units of the data, whose squared error is smaller by the square of the scale
        told["sparsity_coef"] = float(state.sparsity_coef / input_scale(state, sae.b_dec.shape[0]))
    write_sae(cfg.folder / f"sae_{seed}", sae, method.activation, metadata={"training": told})
    rows = [
        {"step": min((row + 1) * chunk, cfg.n_steps)} | dict(zip(history._fields, map(float, values), strict=True))
        for row, values in enumerate(zip(*history, strict=True))
    ]
    with writing(cfg.folder / f"history_{seed}.jsonl") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    if cfg.track is not None:
        track(cfg.track, cfg.folder, f"seed_{seed}", told, rows)
    return sae, history


def _scaled(path: Path, source: Source | Stream, batch_size: int) -> SAE:
    """The saved SAE on inputs scaled as in training, by their mean norm in a batch."""
    if isinstance(source, Stream):
        x = source.batches(0, 1, batch_size).x[0]
    else:
        x = source.sample(jax.random.key(0), batch_size)
    scale = np.sqrt(source.d_in) / np.linalg.norm(x, axis=1).mean()
    return fold_input_scale(read_sae(path)[0], jnp.asarray(1 / scale))


def summary(record: dict[str, Any]) -> list[str]:
    config, results = record["config"], record["results"]
    last = [curve["l0"][-1] for curve in results["curves"]]
    lines = [
        f"{config['method']}: {len(last)} SAEs, L0 {mean_text(last, '.3f')} at the end of training: {config['folder']}"
    ]
    return lines + ([outcome_text(results["measured"])] if "measured" in results else [])


def caption(record: dict[str, Any]) -> str:
    n_parts = len(record["results"]["curves"][0]["l0"])
    return f"{record['config']['method']}: means of {n_parts} parts of the training; {seeds_text(record['seeds'])}."


def plot(record: dict[str, Any]) -> Figure:
    config, curves = record["config"], record["results"]["curves"]
    with plots.styled(1.9) as figure:
        for ax, letter, (name, title) in zip(figure.subplots(1, 4), "abcd", CURVES.items(), strict=True):
            for curve in curves:
                steps = np.linspace(0, config["n_steps"], len(curve[name]) + 1)[1:]
                ax.plot(steps, curve[name], color=plots.colour(config["method"]), linewidth=0.8)
            ax.set(title=f"{letter}  {title}", xlabel="step")
            if name in ("loss", "mse") and min(min(curve[name]) for curve in curves) > 0:
                plots.log_scale(ax, "y")
    return figure


EXPERIMENT = Experiment("train", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
