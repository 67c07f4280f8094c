"""Cases at toy width: weightings and activations beside SAELens, and the generator of features."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.worker import Case, timed, timed_chunks
from toy import prefixes
from toy.data.source import TreeSource
from toy.features.directions import make_directions
from toy.features.named import forest, reference_tree
from toy.features.node import Node
from toy.features.tree import build_tree, mean_l0, sample_features
from toy.methods import Method, Standard, TopKFamily
from toy.sae import BatchTopK, TopK
from toy.training.config import Hypers, TrainConfig
from toy.training.run import train

D_IN, BATCH, N_PREFIXES, N_PEER_STEPS = 30, 200, 10, 100


def weightings(job: dict[str, Any]) -> dict[str, Case]:
    """A step on the reference tree, and the drawing of its batch alone; with `peers` also SAELens' steps."""
    tree = build_tree(reference_tree())
    n, key = tree.n_features, jax.random.key(0)
    source = TreeSource(tree, make_directions(key[None], n, D_IN)[0])

    def case(method: Method, weighting: Any, to: str) -> Case:
        cfg = TrainConfig(n, n_steps=2 * job["chunk"], batch_size=BATCH, method=method)
        hypers = Hypers(weighting, target_l0=mean_l0(tree) if method.aims_at_l0 else None)
        return Case(timed_chunks(partial(train, key, source, hypers, cfg=cfg), job["chunk"]), {"to": to})

    kinds = {
        "full prefix": prefixes.full(n),
        "sampled": prefixes.sampled(n, N_PREFIXES),
        "expected": prefixes.expected(n, N_PREFIXES),
        "every prefix": prefixes.all_prefixes(n),
    }
    cases = {f"ReLU, {name}": case(Standard(), weighting, "ReLU, full prefix") for name, weighting in kinds.items()}
    for label, kept in (("TopK", TopK(2)), ("BatchTopK", BatchTopK(2))):
        for name in ("full prefix", "every prefix"):
            cases[f"{label}, {name}"] = case(TopKFamily(kept, aux_k=0), kinds[name], f"{label}, full prefix")
    cases["drawing a batch"] = Case(timed(partial(_draw, key, source, job["chunk"]), units=job["chunk"]))
    return cases | (_peers() if job["peers"] else {})


@partial(jax.jit, static_argnums=2)
def _draw(key: jax.Array, source: TreeSource, n_batches: int) -> jax.Array:
    """Draws batches of activations one after the other inside one program."""

    def one(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return total + source.sample(jax.random.fold_in(key, i), BATCH).sum(), None

    return jax.lax.scan(one, jnp.zeros(()), jnp.arange(n_batches))[0]


def _peers() -> dict[str, Case]:
    from experiments.bench import peers  # an optional extra, slow to import

    def seconds(architecture: str) -> list[float]:
        shape = {"d_in": D_IN, "batch_size": BATCH}
        return [peers.toy_run(architecture, tree=reference_tree(), n_steps=N_PEER_STEPS, **shape) / N_PEER_STEPS]

    return {f"SAELens, {name}": Case(partial(seconds, name)) for name in peers.ARCHITECTURES}


def generator(job: dict[str, Any]) -> dict[str, Case]:
    """Rows of features of trees that are groups of a parent and three exclusive children."""

    def case(n_features: int) -> Case:
        groups = (Node(0.15, tuple(Node(0.2) for _ in range(3)), exclusive=True) for _ in range(n_features // 4))
        tree, n_rows = build_tree(forest(*groups)), min(10_000, 20_000_000 // n_features)
        draw = jax.jit(partial(sample_features, batch_size=n_rows))
        return Case(timed(partial(draw, jax.random.key(0), tree), n_rows, n_calls=max(1, 20_000 // n_features)))

    return {f"{n_features:,} features": case(n_features) for n_features in job["n_features"]}
