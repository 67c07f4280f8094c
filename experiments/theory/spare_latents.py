"""Spare latents: those that repeat a parent's direction, and their places in the order."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.measured import lane
from experiments.sweeps.cell import D_IN
from toy import prefixes
from toy.data.source import TreeSource
from toy.eval.against_tree import evaluate
from toy.eval.metrics import cosine_matrix
from toy.features.directions import make_directions
from toy.features.named import reference_tree
from toy.features.tree import Tree, build_tree, edges, held_out_key, mean_l0, sample_features
from toy.methods import named
from toy.sae import SAE, encode
from toy.training.config import Hypers, TrainConfig
from toy.training.grid import train_grid, trained_saes

SPARE_COSINE = 0.8  # of two latents with a parent, of which the one that is less often on is spare
N_ROWS = 10_000


def spare_latents(order: str, seed: int, n_seeds: int, n_steps: int) -> dict[str, Any]:
    """Counts Matryoshka SAEs that fail on the reference tree without restarts, and lists their spare latents."""
    tree = build_tree(reference_tree())
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(np.arange(seed, seed + n_seeds))
    W_feat = make_directions(keys[:, 0], tree.n_features, D_IN)
    cfg = TrainConfig(tree.n_features, n_steps=n_steps, method=named(f"matryoshka:order={order}").method)
    hypers = Hypers(prefixes.named("sampled_10", tree.n_features), target_l0=mean_l0(tree), reinit_below=0.0)
    state, _ = train_grid(keys[:, 1], TreeSource(tree, W_feat), hypers, cfg=cfg, in_axes=(TreeSource(None, 0), None))  # type: ignore[arg-type]
    saes = jax.device_get(trained_saes(state))
    features = np.asarray(sample_features(held_out_key(jax.random.key(seed)), tree, N_ROWS))
    failed, found = 0, []
    for i in range(n_seeds):
        sae = lane(saes, i)
        if not evaluate(sae, np.asarray(W_feat[i]), tree, features).recovered:
            failed += 1
            found += spare_of(sae, np.asarray(W_feat[i]), tree, features)
    columns = list(zip(*found, strict=True)) or [(), ()]
    return {"n": n_seeds, "n_failed": failed, "place": list(columns[0]), "frequency": list(columns[1])}


def spare_of(sae: SAE, W_feat: np.ndarray, tree: Tree, features: np.ndarray) -> list[tuple[int, float]]:
    """The place of each spare latent of an SAE, and how often it is on."""
    cosines = cosine_matrix(np.asarray(sae.W_dec), W_feat)
    frequency = np.mean(np.asarray(encode(sae, jnp.asarray(features @ W_feat))) > 0, axis=0)
    spare = []
    for parent in sorted({parent for parent, _ in edges(tree)}):
        near = np.flatnonzero(cosines[:, parent] >= SPARE_COSINE)
        spare += list(near[np.argsort(-frequency[near])][1:])
    return [(int(latent), float(frequency[latent])) for latent in spare]
