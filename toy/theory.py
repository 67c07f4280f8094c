"""The objective over all states of a finite tree, exactly: nothing is sampled."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from toy.compiled import compiled
from toy.features.tree import Tree
from toy.loss import gram_mse, sparsity_penalty
from toy.prefixes import Prefixes, inclusion
from toy.sae import SAE, decoder_norms, encode

MOST_STATES = 2**16


class Population(NamedTuple):
    """Every combination of features that can be on, and its probability."""

    features: Float[np.ndarray, "n_states n_features"]  # the magnitudes of those that are on
    prob: Float[np.ndarray, " n_states"]

    def mean_norm(self, W_feat: Float[np.ndarray, "n_features d_in"]) -> float:
        """E‖x‖, by which the trainer scales inputs."""
        return float(self.prob @ np.linalg.norm(self.features @ W_feat, axis=1))


def enumerate_states(tree: Tree) -> Population:
    """The states of a tree whose features have magnitudes without noise.

    Raises: ValueError if magnitudes are random, or if there are more than `MOST_STATES` states.
    """
    if tree.magnitude_std is not None:
        raise ValueError("tree: states are finitely many only where no magnitude has a standard deviation")
    on, prob = np.zeros((1, len(tree.parent)), bool), np.ones(1)
    for i, parent in enumerate(tree.parent):
        siblings = [i] if tree.group[i] < 0 else np.flatnonzero(tree.group == tree.group[i]).tolist()
        if siblings[0] != i:
            continue
        possible = np.ones(len(on), bool) if parent < 0 else on[:, parent]
        rest = max(0.0, 1 - float(tree.prob[siblings].sum()))
        states, probs = [on], [prob * np.where(possible, rest, 1.0)]
        for j in siblings:
            states.append(on[possible] | (np.arange(on.shape[1]) == j))
            probs.append(prob[possible] * tree.prob[j])
        on, prob = np.concatenate(states), np.concatenate(probs)
        on, prob = on[prob > 0], prob[prob > 0]
        if len(on) > MOST_STATES:
            raise ValueError(f"tree: it has more than {MOST_STATES:,} states, which are too many to enumerate")
    features = on * tree.magnitude_mean
    return Population(features if tree.readout is None else features[:, tree.readout], prob)


def population_loss(
    sae: SAE,
    acts: Float[Array, "n_states n_latents"],
    x: Float[Array, "n_states d_in"],
    prob: Float[Array, " n_states"],
    prefixes: Prefixes,
    *,
    sparsity_coef: Float[Array, ""] | float,
    sparsity: str = "l1",
) -> Float[Array, ""]:
    """`toy.loss.sae_loss` of any code with latents in their places, as a mean over states in place of a batch's rows.

    The squared error is quadratic in acts and errors, so that scaling a state's by √(p · n_states) weighs it by p.
    """
    weights = jnp.sqrt(prob * len(prob))[:, None]
    s = inclusion(prefixes, jnp.arange(acts.shape[1])).astype(x.dtype)
    mse = gram_mse(weights * acts, sae.W_dec, weights * (x - sae.b_dec), s)
    norms = decoder_norms(sae)
    penalties = jax.vmap(lambda row: sparsity_penalty(row[None], norms, sparsity))(acts)
    return mse + sparsity_coef * jnp.sum(s * (prob @ penalties))


@compiled(static_argnames=("sparsity", "n_steps", "learning_rate"))
def minimised(
    starts: SAE,
    x: Float[Array, "n_states d_in"],
    prob: Float[Array, " n_states"],
    prefixes: Prefixes,
    *,
    sparsity_coef: Float[Array, ""] | float,
    sparsity: str = "l1",
    support: Bool[Array, "n_states n_latents"] | None = None,
    n_steps: int = 20_000,
    learning_rate: float = 1e-2,
) -> tuple[SAE, Float[Array, " starts"]]:
    """The ReLU SAEs at local minima of `population_loss`, by Adam from starts along a leading axis, and the losses.

    With a `support` latents are on in those states alone, with the activations x W_enc + b_enc: the optimum of SAEs
    that already tell when a feature is on. The learning rate falls to 0 along a cosine, so that a kink of a ReLU does
    not keep the parameters moving.
    """

    def loss(sae: SAE) -> Float[Array, ""]:
        acts = encode(sae, x) if support is None else support * (x @ sae.W_enc + sae.b_enc)
        return population_loss(sae, acts, x, prob, prefixes, sparsity_coef=sparsity_coef, sparsity=sparsity)

    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, n_steps))

    def step(_: Array, carry: tuple[SAE, optax.OptState]) -> tuple[SAE, optax.OptState]:
        sae, state = carry
        updates, state = adam.update(jax.grad(loss)(sae), state)
        return optax.apply_updates(sae, updates), state  # type: ignore[return-value]

    def one(start: SAE) -> tuple[SAE, Float[Array, ""]]:
        sae, _ = jax.lax.fori_loop(0, n_steps, step, (start, adam.init(start)))  # type: ignore[arg-type]
        return sae, loss(sae)

    return jax.vmap(one)(starts)


PENALTIES: dict[str, Callable[[float], float]] = {"l1": float, "l0": lambda act: float(act > 1e-9)}


def edge_limit(ratio: float, penalty: str | Callable[[float], float] = "l1") -> float:
    """The P(child | parent) from which on a penalty no longer prefers the truth in a tied code of a pair.

    For two orthonormal latents that reconstruct a parent of magnitude 1 and a child of magnitude `ratio` exactly, and a
    penalty f of an activation that rises, is concave, and is 0 at 0. With the two turned by φ the mean penalty where
    the parent is on is, with q = P(child | parent) and r = ratio,

        (1 − q) (f(cos φ) + f(sin φ)) + q (f(cos φ + r sin φ) + f(r cos φ − sin φ)),   0 ≤ φ ≤ arctan(1 / r),

    since no activation may be negative. It is concave in φ, so that its least value is at one of the ends: at the
    truth, or at the code in which p + c has a latent to itself and p alone has two. L0 prefers the truth below 1/2 at
    any ratio, L1 below √2 − 1 at ratio 1 and less beyond it.
    """
    f = PENALTIES[penalty] if isinstance(penalty, str) else penalty
    norm = float(np.sqrt(1 + ratio**2))
    alone = f(ratio / norm) + f(1 / norm)
    return (alone - f(1.0)) / (f(ratio) + alone - f(norm))


def first_latent_angle(edge_prob: float, ratio: float = 1.0, n_children: int = 1) -> float:
    """The angle in radians from the parent towards its independent children of the direction that a lone latent takes.

    Without a penalty the best direction of a prefix of one latent is the principal axis of E[x xᵀ | parent on]; within
    the plane of the parent and the mean of its children, with q = edge_prob, r = ratio and k children,
    tan 2θ = 2 q r √k / (1 − r² q (1 − q) − k q² r²). Beyond 45° the latent is the children's.
    """
    q, r, k = edge_prob, ratio, n_children
    return float(np.arctan2(2 * q * r * np.sqrt(k), 1 - r**2 * q * (1 - q) - k * (q * r) ** 2) / 2)
