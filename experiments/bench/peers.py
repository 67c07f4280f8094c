"""The same work in SAELens, for a comparison of speed: one training step, and a run on a feature tree.

Needs the extra `peers`. Everything is SAELens' own code at its own defaults: float32 on the CPU, eager PyTorch, dense
activations, Adam at 3e-4, no autocast, no wandb, no evaluation, no checkpoints. Seeds leave torch's global one alone.
"""

# pyright: reportMissingImports=false
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from sae_lens import SAETrainer, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    HierarchyNode,
    LinearMagnitudeConfig,
    ZipfianFiringProbabilityConfig,
    hierarchy_modifier,
    train_toy_sae,
)
from sae_lens.synthetic.synthetic_model import (
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
)
from sae_lens.training import sae_trainer

from experiments.bench.worker import Case, timed
from toy.features.node import Node, features
from toy.features.synthsaebench import SynthSAEBench
from toy.features.tree import build_tree, mean_l0

ARCHITECTURES = ("standard", "topk", "batchtopk", "matryoshka_batchtopk")
N_BATCHES, N_PREFIXES = 4, 10


def training_step(
    architecture: str, *, d_in: int, n_latents: int, batch_size: int, k: int, seed: int = 0
) -> Callable[[], None]:
    """A function that takes one full step of `SAETrainer.fit` on the next of a few fixed batches of N(0, 1) in memory.

    A step has the forward pass, the loss, the backward pass, the clipping of the gradient's norm, Adam, the schedules,
    and the bookkeeping of dead latents and firing rates; making the batches and the progress bar are left out. The
    auxiliary loss of the three TopK kinds costs time only while latents have not fired for over 1000 steps: never in
    the first 1001 calls. `standard` has an L1 penalty and no k.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae = make_sae(architecture, d_in=d_in, n_latents=n_latents, k=k)
        batches = [torch.randn(batch_size, d_in) for _ in range(N_BATCHES)]
    cfg = SAETrainerConfig(
        total_training_samples=10_000_000,  # of no effect on a constant learning rate
        train_batch_size_samples=batch_size,
        lr_end=SAETrainerConfig.lr,  # of no effect, either, but the trainer refuses the default, None
    )
    trainer = SAETrainer(cfg, sae, data_provider=cycle(batches))

    def step() -> None:
        trainer.maybe_reset_sparsity()
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1

    return step


def toy_run(
    architecture: str, *, tree: Node, n_steps: int, d_in: int = 30, batch_size: int = 200, seed: int = 0
) -> float:
    """Seconds of SAELens' `train_toy_sae` on a feature tree: `n_steps` steps, each with a fresh batch.

    Drawing the batches and all of `training_step`'s work are in it; imports, the directions, which SAELens makes
    orthogonal by 200 steps of its own, and the initialisation are not. There are as many latents as features, and k is
    the tree's exact mean L0.
    """
    n_features = len(features(tree))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae = make_sae(architecture, d_in=d_in, n_latents=n_features, k=mean_l0(build_tree(tree)))
        directions = FeatureDictionary(n_features, d_in)
        generator = make_generator(tree)
        with patch.object(sae_trainer, "tqdm", partial(sae_trainer.tqdm, disable=True)):  # there is no option for it
            start = time.perf_counter()
            train_toy_sae(sae, directions, generator, training_samples=n_steps * batch_size, batch_size=batch_size)
            return time.perf_counter() - start


def make_sae(architecture: str, *, d_in: int, n_latents: int, k: float) -> TrainingSAE[Any]:
    """An SAE to train, of SAELens' defaults but for its shape, k (`topk`: rounded) and its Matryoshka widths."""
    options: dict[str, Any] = {"architecture": architecture, "d_in": d_in, "d_sae": n_latents}
    if architecture != "standard":
        options["k"] = max(1, round(k)) if architecture == "topk" else k
    if architecture == "matryoshka_batchtopk":
        options["matryoshka_widths"] = prefix_widths(n_latents)
    return TrainingSAE.from_dict(options)


def prefix_widths(n_latents: int) -> list[int]:
    """At most 10 widths in geometric progression from 1 to n_latents, rounded, each at least one above the last.

    SAELens keeps its widths fixed, and decodes only the latents that each adds: what that costs grows with the width
    before the last, which this choice keeps small.
    """
    widths: list[int] = []
    for width in np.geomspace(1, n_latents, min(N_PREFIXES, n_latents)):
        widths.append(max(round(float(width)), widths[-1] + 1 if widths else 1))
    return widths


def make_generator(tree: Node) -> ActivationGenerator:
    """SAELens' generator of a tree's features, with the tree's own statistics.

    SAELens draws every feature by itself, turns off those without their parent, and of exclusive siblings that are
    still on keeps one at random. So n such siblings of P(on | parent on) = p are each drawn with
    1 − (1 − n p)^(1/n). Raises: ValueError for what it cannot express.
    """
    nodes = features(tree)
    column = {id(node): i for i, node in enumerate(nodes)}
    drawn = {}

    def convert(node: Node, prob: float) -> HierarchyNode:
        if node.is_feature:
            drawn[column[id(node)]] = prob
        elif prob != 1 or node.scale_children_by_parent:
            raise ValueError("tree: in SAELens a node that is no feature must be on always, and cannot scale children")
        n, probs = len(node.children), [child.active_prob for child in node.children]
        exclusive = node.exclusive and n > 1
        if exclusive:
            if len(set(probs)) > 1 or not all(child.is_feature for child in node.children):
                raise ValueError("tree: in SAELens exclusive siblings must be features, here of equal probability")
            probs = [1 - max(0.0, 1 - n * p) ** (1 / n) for p in probs]
        return HierarchyNode(
            column.get(id(node)),
            [convert(child, p) for child, p in zip(node.children, probs, strict=True)],
            mutually_exclusive_children=exclusive,
            scale_children_by_parent=node.scale_children_by_parent,
        )

    modifier = hierarchy_modifier(convert(tree, tree.active_prob))
    return ActivationGenerator(
        len(nodes),
        torch.tensor([drawn[i] for i in range(len(nodes))]),
        std_firing_magnitudes=torch.tensor([float(node.magnitude_std) for node in nodes]),
        mean_firing_magnitudes=torch.tensor([float(node.magnitude_mean) for node in nodes]),
        modify_activations=modifier,
    )


def generator(job: dict[str, Any]) -> dict[str, Case]:
    """A case of SAELens' generator of SynthSAEBench, `SyntheticModel.sample` at its defaults, whose unit is a row."""
    model, n = synthetic_model(SynthSAEBench(**job["benchmark"] | {"n_orthogonal_steps": 0})), job["n_rows"]
    return {"SAELens": Case(timed(lambda: model.sample(n), n))}


def synthetic_model(cfg: SynthSAEBench) -> SyntheticModel:
    """SAELens' model of the same settings."""
    steps = OrthogonalizationConfig(cfg.n_orthogonal_steps, cfg.orthogonal_rate) if cfg.n_orthogonal_steps else None
    return SyntheticModel(
        SyntheticModelConfig(
            num_features=cfg.n_features,
            hidden_dim=cfg.d_in,
            firing_probability=ZipfianFiringProbabilityConfig(cfg.exponent, cfg.max_prob, cfg.min_prob),
            hierarchy=HierarchyConfig(
                total_root_nodes=cfg.n_roots,
                branching_factor=cfg.n_branches,
                max_depth=cfg.depth,
                mutually_exclusive_portion=1.0,
                compensate_probabilities=True,
                scale_children_by_parent=cfg.scale_children,
            ),
            mean_firing_magnitudes=LinearMagnitudeConfig(*cfg.magnitudes),
            std_firing_magnitudes=FoldedNormalMagnitudeConfig(*cfg.spread),
            correlation=LowRankCorrelationConfig(cfg.rank, cfg.correlation),
            orthogonalization=steps,
            bias=cfg.bias,
            seed=cfg.seed,
        )
    )


def set_threads(n: int) -> None:
    """Threads that PyTorch uses inside an operation; by default one per core. Holds for the whole process."""
    torch.set_num_threads(n)
