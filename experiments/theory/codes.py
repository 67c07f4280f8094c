"""Codes with a corrector in the place of a child's latent, as optima of the exact objective beside the truth."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from experiments.theory.correctors import Corrector, correctors, families
from toy import prefixes
from toy.features.directions import cosine_matrix
from toy.features.named import forest, reference_tree
from toy.features.node import Node
from toy.features.tree import Tree, build_tree
from toy.prefixes import FixedWeights, inclusion
from toy.sae import SAE, decode, encode, sae_of_directions
from toy.theory import Population, enumerate_states, minimised

D_IN, N_LATENTS = 30, 20  # of the reference tree's SAEs


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
    s = np.asarray(inclusion(prefixes.expected(N_LATENTS), jnp.asarray(places)))
    scale = np.sqrt(D_IN) / enumerate_states(build_tree(root)).mean_norm(np.eye(N_LATENTS))
    return Problem(tree, enumerate_states(tree), scale, FixedWeights(s - np.append(s[1:], 0)))


def pair(edge_prob: float, n_lone: int = 8) -> Problem:
    """A parent (.3) and one child among lone features (.05), as in `identifiability`."""
    tree = build_tree(forest(Node(0.3, (Node(edge_prob),)), *(Node(0.05) for _ in range(n_lone))))
    states, n = enumerate_states(tree), tree.n_features
    return Problem(tree, states, np.sqrt(32) / states.mean_norm(np.eye(n)), prefixes.expected(n))


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


def optimum(problem: Problem, of: Code, coef: float, n_steps: int) -> tuple[Optimum, Optimum]:
    """The best SAE that is on in the code's states alone, and where a ReLU SAE gets to from there by descent."""
    starts = jax.tree.map(lambda leaf: leaf[None], sae_of_directions(of.directions))
    x = jnp.asarray(problem.states.features * problem.scale, jnp.float32)
    prob, weights = jnp.asarray(problem.states.prob, jnp.float32), jax.tree.map(jnp.asarray, problem.weights)
    found = []
    for support in (jnp.asarray(of.support), None):
        starts, losses = minimised(starts, x, prob, weights, sparsity_coef=coef, support=support, n_steps=n_steps)
        sae = jax.tree.map(lambda leaf: np.asarray(leaf[0]), starts)
        own_units = sae._replace(b_enc=sae.b_enc / problem.scale, b_dec=sae.b_dec / problem.scale)
        found.append(Optimum(float(losses[0]), own_units))
    return found[0], found[1]


def corrected(problem: Problem, sae: SAE, parent: int) -> Corrector | None:
    """The SAE's latent that corrects a parent."""
    axes = np.eye(problem.tree.n_features)
    return next((one for one in correctors(sae, axes, problem.tree) if one.parent == parent), None)


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
    off the objective without any latent for the child, as a share of what the child's latent takes off.
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
        best, true = optimum(problem, truth, coef, n_steps)[1]
        without = optimum(problem, silent, coef, n_steps)[0].loss
        child = float(strengths(problem, true)[len(first) :].min())
        rows.append({"coef": coef, "truth": best, "without": without, "child_strength": child})
        for name, of in wrong.items():
            kept, descended = optimum(problem, of, coef, n_steps)
            one = corrected(problem, descended.sae, a)
            cosines = cosine_matrix(np.asarray(kept.sae.W_dec[-1:]), np.eye(problem.tree.n_features))[0]
            rows[-1][name] = {
                "loss": descended.loss,
                "earned": (without - descended.loss) / (without - best),
                "has_corrector": one is not None,
                "to_parent": float(cosines[a]),
                "to_children": float(cosines[of_a].mean()),
                "strength": one and float(strengths(problem, descended.sae)[one.rank]),
                "aimed": one and aimed(problem, descended.sae, of_b[-1] if name == "other" else of_a[-1]),
            }
    return rows


def of_pairs(edge_probs: Sequence[float], coef: float, n_steps: int) -> list[float]:
    """By P(child | parent), how much more the code with a latent for "parent without child" costs than the truth.

    It is a share of the truth's objective. The two latents of either code come before those of the lone features.
    """
    found = []
    for edge_prob in edge_probs:
        problem = pair(edge_prob)
        features = list(range(problem.tree.n_features))
        truth = optimum(problem, code(problem, features), coef, n_steps)[1].loss
        alone = code(problem, [0, *features[2:]], corrected=0, place=1)
        found.append(optimum(problem, alone, coef, n_steps)[1].loss / truth - 1)
    return found
