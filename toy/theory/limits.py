"""Closed forms of where a hierarchy can be found: P(child | parent) at which another code becomes the better one.

The parent has magnitude 1, and its k children, with a probability of q each given the parent, have magnitude r. A tied
encoder with an orthonormal decoder codes their states without an error wherever no activation is negative. What such
codes have in common are the products of states: 1 for p and any p + r c_i, and for two of these. Hence, by L0:

**Exclusive children.** Let m latents be on for p alone and n_i for p + r c_i. If m = 1 the code is the truth, since
then the other latents hold children alone, without negative weights and at right angles. A rival needs m − 1 <
q (k (m + 1) − Σ n_i), so that Σ n_i < 2k, as q ≤ 1 / k. No two states are at right angles, so that n_i = 1 is possible
for one i alone, and the others have n_j = 2, this latent and another one. On it they have the activation
x = 1 / √(1 + r²). Two of them need the same second latent, or their product would be x² and not 1; then they would be
equal. So there is a rival for k = 1 and k = 2 only, which is `toy.theory.staircase`, better from 1/2 and 2/5 on.

**Independent children.** A latent is w_0 p + Σ w_i c_i. If w_0 = 0, no w_i is negative, and it is off with probability
1 − q at most. If w_0 > 0, it is off in a part of the states only if w_0 = r Σ |w_i| over the negative w_i: with
probability q if it is r p − c_i, and else, at q < 1/2, with q (1 − q) at most. Of the former there is one at most,
since two have a product above 0. With s latents of w_0 > 0, where s = 1 is the truth, they are off for a sum of at most
q + (s − 1) q (1 − q), or 2 q (1 − q) if s = 2, or q if s = 2 and one is r p − c_i, whose other is r c_i + p. The truth
has (s − 1)(1 − q) in their place, which is more at q < 1/2. So the limit is that of a single child, 1/2.

By L1 and penalties between the two the same codes are the best rivals by brute force (tests/test_theory_limits.py).
"""

import numpy as np
from jaxtyping import Float

from toy.theory.codes import Penalty, penalty_of


def edge_limit(ratio: float = 1.0, penalty: Penalty = "l1", n_exclusive: int = 1) -> float:
    """The P(child | parent) from which on a penalty no longer prefers the truth in a tied code of a parent.

    `n_exclusive` counts its mutually exclusive children; independent ones count as 1. The best rivals of the truth are
    the staircases of j ≤ k of the children, and the limit is the least q at which one of them has the truth's mean
    penalty: with h_i = r / √((r² + i − 1)(r² + i)), d_i = r √((r² + i) / (r² + i − 1)) and e = r / √(r² + j), which are
    the activations (h_1 … h_{i−1} and d_i of p + r c_i, h_1 … h_j and e of p),

        q = (f(h_1) + … + f(h_j) + f(e) − f(1)) / (j (f(e) + f(r)) + Σ_{i≤j} (i f(h_i) − f(d_i))),

    where f is the penalty of an activation. If that is more than 1 / k, the greatest q of k exclusive children, the
    truth is the sparsest at every q, and 1 / k is returned. L0: 2 / (j + 3) at any ratio.
    """
    f, r2 = penalty_of(penalty), ratio**2
    found = [1.0 / n_exclusive]
    alone = left = 0.0  # Σ f(h_i) and Σ (i f(h_i) − f(d_i))
    for j in range(1, n_exclusive + 1):
        h, d = f(ratio / np.sqrt((r2 + j - 1) * (r2 + j))), f(ratio * np.sqrt((r2 + j) / (r2 + j - 1)))
        alone, left = alone + h, left + j * h - d
        e = f(ratio / np.sqrt(r2 + j))
        found.append((alone + e - f(1.0)) / (j * (e + f(ratio)) + left))
    return float(min(found))


def absorption_gain(edge_prob: float, ratio: float = 1.0, penalty: Penalty = "l1", n_exclusive: int = 1) -> float:
    """By how much the mean penalty where the parent is on falls if each of k exclusive children absorbs it.

    k q (f(1) + f(r) − f(√(1 + r²))), which is above 0 at every q > 0 for every penalty f that rises and is concave. So
    an untied encoder, for which `toy.theory.absorbed` is exact, never prefers the truth.
    """
    f = penalty_of(penalty)
    return n_exclusive * edge_prob * (f(1.0) + f(ratio) - f(float(np.sqrt(1 + ratio**2))))


def first_latent_angle(
    edge_prob: Float[np.ndarray, "*probs"] | float, ratio: float = 1.0, n_children: int = 1, *, exclusive: bool = False
) -> Float[np.ndarray, "*probs"] | float:
    """The angle in radians from the parent towards its children of the direction that a lone latent takes.

    Without a penalty the best direction of a prefix of one latent is the principal axis of E[x xᵀ | parent on]; within
    the plane of the parent and the mean of its children, tan 2θ = 2 q r √k / (1 − v) with v = E[(mean direction · x)²],
    which is r² q of exclusive children and r² q (1 − q + k q) of independent ones. Beyond 45° the latent is the
    children's.
    """
    q, r, k = edge_prob, ratio, n_children
    of_children = r**2 * q * (1 if exclusive else 1 - q + k * q)
    return np.arctan2(2 * q * r * np.sqrt(k), 1 - of_children) / 2
