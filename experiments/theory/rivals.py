"""The codes that compete for a family among lone features, and which of them the exact objective prefers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sweeps.cell import D_IN
from toy.eval.against_tree import evaluate
from toy.features.named import forest
from toy.features.node import Node
from toy.features.tree import build_tree
from toy.prefixes import Prefixes, inclusion, of_inclusion
from toy.sae import SAE, encode, sae_of_directions
from toy.theory import enumerate_states, minimised

N_NEAR, N_RANDOM, NOISE = 8, 16, 0.3  # starts near the truth, and at random; the noise of the former's directions
N_STEPS = 2_000  # of each descent
SLACK = 0.01  # by which a latent's energy may be above that of the one before it, as between equal siblings


class Lone(NamedTuple):
    """The best latent of a feature that is on by itself."""

    loss: float
    act: float  # where the feature is on
    bias: float  # of the decoder, along the feature


class Rival(NamedTuple):
    """A local minimum of the objective."""

    loss: float  # of the whole tree, in the trainer's units
    sae: SAE  # of the family, whose features are the axes; its latents are in the order of their ranks
    n_before: int  # of its latents that come before those of the lone features
    is_recovery: bool  # by `toy.eval.metrics.recovered`, in the family's states


def rivals(root: Node, prefixes: Prefixes, sparsity_coef: float) -> list[Rival]:
    """The minima whose latents stand in the order of their energy, as they do in training.

    The root's first child is the parent of the family, whose largest latent comes before every lone feature's; its
    other children are lone features, equal to each other. A latent serves the family or one lone feature, whose
    directions are orthogonal, so that the objective is a sum of the family's and the lone features'. Descents start at
    the truth, near it, and at random, once for each number of the family's latents that come first.
    """
    whole, family, lone = build_tree(root), build_tree(forest(root.children[0])), root.children[1:]
    states = enumerate_states(family)
    n, n_lone = states.features.shape[1], len(lone)
    scale = enumerate_states(whole).input_scale(D_IN)
    s = np.asarray(inclusion(prefixes, jnp.arange(n + n_lone)))
    x, prob = jnp.asarray(states.features * scale, jnp.float32), jnp.asarray(states.prob, jnp.float32)
    x_lone = lone[0].magnitude_mean * scale
    found = []
    for n_before in range(1, n + 1):
        of_lone = [
            lone_optimum(float(s[rank]), float(s[0]), x_lone, lone[0].active_prob, sparsity_coef)
            for rank in range(n_before, n_before + n_lone)
        ]
        ranks = [*range(n_before), *range(n_before + n_lone, n + n_lone)]
        weights = of_inclusion(jnp.asarray(s[ranks]))
        minima = minimised(_starts(n), x, prob, weights, sparsity_coef=sparsity_coef, n_steps=N_STEPS)
        saes, losses = jax.device_get(minima)  # to take one after the other on a device costs more than to find them
        for i, loss in enumerate(losses):
            sae = jax.tree.map(lambda leaf, i=i: leaf[i], saes)
            of_family = states.prob @ (np.asarray(encode(sae, x)) * np.linalg.norm(sae.W_dec, axis=1)) ** 2
            energies = np.insert(of_family, n_before, [lone[0].active_prob * one.act**2 for one in of_lone])
            if np.all(energies[1:] <= energies[:-1] * (1 + SLACK)):
                sae = sae._replace(b_enc=sae.b_enc / scale, b_dec=sae.b_dec / scale)
                measured = evaluate(sae, np.eye(n), family, states.features)
                whole_loss = float(loss) + sum(one.loss for one in of_lone)
                found.append(Rival(whole_loss, sae, n_before, measured.recovered))
    return found


def outdone_from(
    tree_of: Callable[[float], Node], prefixes: Prefixes, sparsity_coef: float, most: float, tolerance: float = 0.005
) -> float:
    """The P(child | parent), up to the most, from which on the least of the minima is no recovery; else the most.

    It is found by bisection, which takes a truth that is best at the most to be best at every lower probability.
    """

    def is_outdone(prob: float) -> bool:
        return not min(rivals(tree_of(prob), prefixes, sparsity_coef), key=lambda rival: rival.loss).is_recovery

    low, high = 0.0, most
    if not is_outdone(most):
        return most
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (low, middle) if is_outdone(middle) else (middle, high)
    return high


def lone_optimum(s: float, total: float, x: float, prob: float, sparsity_coef: float) -> Lone:
    """The least objective of a lone feature whose latent is in prefixes of the weight `s` of a total.

    With the decoder's bias b along the feature the activation is best at x − b − coefficient / 2, and the objective of
    that is quadratic in b.
    """
    b = prob * (s * sparsity_coef + 2 * (total - s) * x) / (2 * (total - prob * s))
    act = x - b - sparsity_coef / 2
    held = s * (sparsity_coef**2 / 4 + sparsity_coef * act)
    return Lone(prob * (held + (total - s) * (x - b) ** 2) + (1 - prob) * total * b**2, act, b)


def _starts(n: int) -> SAE:
    rng = np.random.default_rng(0)
    near = np.eye(n) + NOISE * rng.standard_normal((N_NEAR, n, n))
    return sae_of_directions(np.concatenate([np.eye(n)[None], near, rng.standard_normal((N_RANDOM, n, n))]))
