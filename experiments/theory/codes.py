"""Codes with a corrector in the place of a child's latent, as optima of the exact objective beside the truth."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from experiments.sweeps import cell
from experiments.theory.correctors import correctors, families
from experiments.theory.family_limits import Family
from toy import prefixes
from toy.features.directions import cosine_matrix
from toy.features.named import forest, reference_tree
from toy.features.tree import Tree, build_tree
from toy.prefixes import FixedWeights, inclusion
from toy.sae import SAE, decode, encode, sae_of_directions
from toy.theory import Population, enumerate_states, minimised

D_IN, N_LATENTS = 30, 20  # of the reference tree's SAEs
N_STARTS, NOISE = 16, 0.05  # of descents; the standard deviation is that of every parameter's noise


class Problem(NamedTuple):
    """An exact objective but for its L1 coefficient, in the trainer's units."""

    tree: Tree
    states: Population
    scale: float  # of the inputs
    weights: FixedWeights  # of the prefixes


class Code(NamedTuple):
    """Latents in the order of their ranks, before the objective is minimised."""

    directions: Float[np.ndarray, "n_latents n_features"]
    support: Bool[np.ndarray, "n_states n_latents"]


class Optimum(NamedTuple):
    loss: float
    sae: SAE  # on the features, as magnitudes along the axes


def two_subtrees() -> Problem:
    """Two of the reference tree's three subtrees and a lone feature, with their latents' places in the whole tree.

    The parents' come first, the lone feature's (10th of 20) has the median contribution, and the children's come last.
    The rest of the tree adds the same to every code's objective, since no latent serves both.
    """
    root = reference_tree()
    tree = build_tree(forest(*root.children[:2], root.children[-1]))
    places = [0, 1, 9, *range(N_LATENTS - 6, N_LATENTS)]
    s = inclusion(prefixes.expected(N_LATENTS), jnp.asarray(places))
    scale = enumerate_states(build_tree(root)).input_scale(D_IN)
    return Problem(tree, enumerate_states(tree), scale, prefixes.of_inclusion(s))


def pair(edge_prob: float) -> Problem:
    """A parent and one child among lone features, as in `identifiability`."""
    tree = build_tree(Family(ratio=1.0, n_children=1, exclusive=True).tree(edge_prob))
    states, n = enumerate_states(tree), tree.n_features
    return Problem(tree, states, states.input_scale(cell.D_IN), prefixes.expected(n))


def code(problem: Problem, features: Sequence[int], corrected: int | None = None, place: int | None = None) -> Code:
    """Latents of these features in turn, and at a place, by default the last, one that corrects a parent."""
    on, axes = problem.states.features > 0, np.eye(problem.tree.n_features)
    latents = [(axes[i], on[:, i]) for i in features]
    if corrected is not None:
        children = families(problem.tree)[corrected]
        one = axes[corrected] - axes[children].sum(axis=0), on[:, corrected] & ~on[:, children].any(axis=1)
        latents.insert(len(latents) if place is None else place, one)
    directions, support = zip(*latents, strict=True)
    return Code(np.array(directions), np.array(support).T)


def optimum(problem: Problem, of: Code, coef: float, n_steps: int) -> Optimum:
    """The best SAE that is on in the code's states alone."""
    starts = jax.tree.map(lambda leaf: leaf[None], sae_of_directions(of.directions))
    return _minima(problem, starts, coef, n_steps, jnp.asarray(of.support))[0]


def descents(problem: Problem, sae: SAE, coef: float, n_steps: int, n_starts: int = N_STARTS) -> list[Optimum]:
    """Descends from an SAE to ReLU SAEs, with noise on every parameter but where there is one start."""
    sae = sae._replace(b_enc=sae.b_enc * problem.scale, b_dec=sae.b_dec * problem.scale)
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(sae)))
    noise = [NOISE * jax.random.normal(key, (n_starts, *leaf.shape)) for key, leaf in zip(keys, sae[:4], strict=True)]
    starts = jax.tree.map(lambda leaf, one: leaf + (n_starts > 1) * one, sae, SAE(*noise))
    return _minima(problem, starts, coef, n_steps, None)


def _minima(problem: Problem, starts: SAE, coef: float, n_steps: int, support: Array | None) -> list[Optimum]:
    x, prob = (jnp.asarray(v, jnp.float32) for v in (problem.states.features * problem.scale, problem.states.prob))
    weights = jax.tree.map(jnp.asarray, problem.weights)
    saes, losses = minimised(starts, x, prob, weights, sparsity_coef=coef, support=support, n_steps=n_steps)
    saes = jax.device_get(saes._replace(b_enc=saes.b_enc / problem.scale, b_dec=saes.b_dec / problem.scale))
    return [Optimum(float(loss), jax.tree.map(lambda leaf, i=i: leaf[i], saes)) for i, loss in enumerate(losses)]


def has_corrector(problem: Problem, sae: SAE, parent: int) -> bool:
    return any(one.parent == parent for one in correctors(sae, np.eye(problem.tree.n_features), problem.tree))


def strengths(problem: Problem, sae: SAE) -> Float[np.ndarray, " n_latents"]:
    """The mean squared size of every latent over that of the lone feature's in two subtrees, the median one.

    Restarts compare these numbers with `reinit_below`.
    """
    sizes = np.asarray(encode(sae, jnp.asarray(problem.states.features))) * np.linalg.norm(sae.W_dec, axis=1)
    energies = problem.states.prob @ sizes**2
    return energies / energies[2]


def aimed(problem: Problem, sae: SAE, feature: int) -> float:
    """The probability that a restart takes a sample with this feature, ∝ (squared error)²."""
    x = problem.states.features
    errors = np.sum((x - np.asarray(decode(sae, encode(sae, jnp.asarray(x))))) ** 2, axis=1)
    weights = problem.states.prob * errors**2
    return float(weights[x[:, feature] > 0].sum() / weights.sum())


def of_subtrees(coefs: Sequence[float], n_steps: int) -> list[dict[str, Any]]:
    """By coefficient, the truth's objective in two subtrees, and those of codes that have lost a child to a corrector.

    The child is the corrected parent's own (`same`) or the other parent's (`other`). A code has `earned` what it takes
    off the objective without any latent for the child, as a share of what the child's latent takes off; `kept` is the
    share of descents from it that keep a corrector.
    """
    problem = two_subtrees()
    (a, of_a), (b, of_b) = families(problem.tree).items()
    first = [a, b, problem.tree.n_features - 1]
    truth = code(problem, [*first, *of_a, *of_b])
    silent = truth._replace(support=truth.support & (np.arange(truth.support.shape[1]) < truth.support.shape[1] - 1))
    wrong = {
        "other": code(problem, [*first, *of_a, *of_b[:-1]], corrected=a),
        "same": code(problem, [*first, *of_a[:-1], *of_b], corrected=a),
    }
    rows: list[dict[str, Any]] = []
    for coef in coefs:
        (best,) = descents(problem, optimum(problem, truth, coef, n_steps).sae, coef, n_steps, 1)
        without = optimum(problem, silent, coef, n_steps).loss
        row: dict[str, Any] = {"coef": coef, "child_strength": float(strengths(problem, best.sae)[len(first) :].min())}
        for name, of in wrong.items():
            pure = optimum(problem, of, coef, n_steps)
            ends = descents(problem, pure.sae, coef, n_steps)
            cosines = cosine_matrix(np.asarray(pure.sae.W_dec)[-1:], np.eye(problem.tree.n_features))[0]
            row[name] = {
                "earned": (without - pure.loss) / (without - best.loss),
                "earned_at_best": (without - min(end.loss for end in ends)) / (without - best.loss),
                "kept": sum(has_corrector(problem, end.sae, a) for end in ends) / len(ends),
                "to_parent": float(cosines[a]),
                "to_children": float(cosines[of_a].mean()),
                "strength": float(strengths(problem, pure.sae)[-1]),
                "aimed": aimed(problem, pure.sae, of_b[-1] if name == "other" else of_a[-1]),
            }
        rows.append(row)
    return rows


def of_pairs(edge_probs: Sequence[float], coef: float, n_steps: int) -> list[float]:
    """By P(child | parent), how much more the code with a latent for "parent without child" costs than the truth.

    It is a share of the truth's objective. The two latents of either code come before those of the lone features.
    """
    found = []
    for edge_prob in edge_probs:
        problem = pair(edge_prob)
        features = list(range(problem.tree.n_features))
        truth = optimum(problem, code(problem, features), coef, n_steps).loss
        alone = code(problem, [0, *features[2:]], corrected=0, place=1)
        found.append(optimum(problem, alone, coef, n_steps).loss / truth - 1)
    return found
