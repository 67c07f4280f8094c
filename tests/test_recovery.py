"""End to end, in small: on the reference tree a vanilla SAE has a hole for every child, a Matryoshka SAE has none."""

import jax
import numpy as np
import pytest

from toy.dictionary import make_directions
from toy.evaluate import Evaluation, evaluate
from toy.prefixes import Weighting, full, sampled
from toy.source import TreeSource
from toy.train import Hypers, TrainConfig, train_grid, trained_saes
from toy.tree import build_tree, mean_l0, sample_features
from toy.trees import reference_tree

N_SEEDS = 6
CFG = TrainConfig(n_latents=20, n_steps=4_000)


def evaluations(weighting: Weighting) -> list[Evaluation]:
    tree, keys = build_tree(reference_tree()), jax.random.split(jax.random.key(0), N_SEEDS)
    W_feat = make_directions(jax.random.split(jax.random.key(1), N_SEEDS), 20, 20)
    source, h = TreeSource(tree, W_feat), Hypers(weighting, target_l0=mean_l0(tree))
    in_axes = (TreeSource(None, 0), Hypers(*[None] * len(h)))  # type: ignore[arg-type]
    state, _ = train_grid(keys, source, h, cfg=CFG, in_axes=in_axes)
    saes = trained_saes(state)
    features = sample_features(jax.random.key(2), tree, 20_000)
    return [evaluate(jax.tree.map(lambda leaf, i=i: leaf[i], saes), W_feat[i], tree, features) for i in range(N_SEEDS)]


def test_a_vanilla_sae_rebuilds_its_inputs_and_has_a_hole_for_every_child_in_every_seed() -> None:
    for e in evaluations(full(20)):
        assert e.hole_rate >= 0.95
        assert not e.recovered
        assert e.fvu < 0.02
        assert e.mixing.child_to_parent > 0.5  # a child's latent points at child and parent


def test_a_matryoshka_sae_recovers_the_features_in_most_seeds() -> None:
    results = evaluations(sampled(20, 10))
    assert sum(e.recovered for e in results) >= 4
    assert np.median([e.hole_rate for e in results]) < 0.01
    assert [e.l0 for e in results] == pytest.approx([1.12] * N_SEEDS, abs=0.1)
