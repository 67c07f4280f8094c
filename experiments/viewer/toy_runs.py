"""The toy's part of a page: for runs of `experiments.train` on a tree, the truth beside the latents, step by step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.study import shown_batch
from experiments.viewer.collect import number, packed
from experiments.viewer.runs import TREE, training_of
from toy.eval import metrics
from toy.eval.against_tree import evaluate, feature_sizes
from toy.features.node import feature_names
from toy.features.tree import Tree, build_tree, edges, held_out_key, sample_features
from toy.io import load_tree, read_sae
from toy.sae import SAE, Activation, encode

N_ROWS = 20_000  # held-out rows that every SAE is measured on
N_DRAWN = 200  # rows that are drawn to be shown, of which those with no feature on are left out
FULL = 1.25  # of a feature's size, shown as the strongest shade


def toy_run(run: Path) -> dict[str, Any]:
    """The tree of a run, and every seed's SAE at the steps that were kept. Raises: ValueError naming the folder."""
    root = load_tree(run / TREE)
    tree, seeds = build_tree(root), sorted(int(path.stem.split("_")[1]) for path in run.glob("directions_*.npy"))
    if not seeds:
        raise ValueError(f"{run}: has no directions_SEED.npy: make the run with python -m experiments.train")
    pairs = edges(tree)
    features = np.asarray(sample_features(held_out_key(jax.random.key(seeds[0])), tree, N_ROWS))
    shown = shown_batch(seeds[0], tree, N_DRAWN)
    parent = dict((child, parent) for parent, child in pairs)
    return {
        "name": run.name or str(run),
        "features": list(feature_names(root)),
        "parent": [parent.get(i, -1) for i in range(tree.n_features)],
        "edges": [list(pair) for pair in pairs],
        "density": (features > 0).mean(axis=0).tolist(),
        "n_rows": len(shown),
        "seeds": [_seed(run, seed, tree, features, shown) for seed in seeds],
    }


def _seed(run: Path, seed: int, tree: Tree, features: np.ndarray, shown: np.ndarray) -> dict[str, Any]:
    W_feat = np.load(run / f"directions_{seed}.npy", allow_pickle=False)
    sizes = feature_sizes(tree, W_feat)
    truth = shown * np.linalg.norm(W_feat, axis=1) / sizes
    steps = [
        {"step": step} | _measured(sae, activation, W_feat, tree, features, shown)
        for step, (sae, activation) in _kept(run, seed)
    ]
    return {"seed": seed, "truth": _shades(truth), "steps": steps}


def _kept(run: Path, seed: int) -> Iterator[tuple[int | None, tuple[SAE, Activation]]]:
    """The SAEs of a seed by step; the last is that at the end, whose step is None if it does not say."""
    last = run / f"sae_{seed}"
    n_steps = training_of(last).get("n_steps")
    for folder in sorted((run / f"snapshots_{seed}").glob("step_*")):
        if (step := int(folder.name.split("_")[1])) != n_steps:
            yield step, read_sae(folder)
    yield n_steps, read_sae(last)


def _measured(
    sae: SAE, activation: Activation, W_feat: np.ndarray, tree: Tree, features: np.ndarray, shown: np.ndarray
) -> dict[str, Any]:
    found = evaluate(sae, W_feat, tree, features, activation)
    acts = np.asarray(encode(sae, jnp.asarray(shown @ W_feat, jnp.float32), activation))
    matched = metrics.matched_acts(acts, np.asarray(sae.W_dec, float), found.match) / feature_sizes(tree, W_feat)
    return {
        "latent": found.match.latent.tolist(),
        "cosine": [round(float(cosine), 4) for cosine in found.match.cosine],
        "holes": [number(rate) for rate in found.hole_rates],
        "fvu": number(found.fvu),
        "l0": number(found.l0),
        "recovered": bool(found.recovered),
        "acts": _shades(matched),
    }


def _shades(values: np.ndarray) -> dict[str, str]:
    return packed(np.clip(values / FULL * 255, 0, 255).round(), "u1")
