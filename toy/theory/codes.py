"""Exact codes of a parent and its children, as SAEs: the truth, and those that compete with it.

Feature 0 is the parent, of magnitude 1, and the others are its children, of magnitude `ratio`; each feature's direction
is an axis of the inputs. Decoders have unit rows, and there are no biases.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from toy.sae import SAE, decoder_norms, encode, sae_of_directions
from toy.theory.states import Population

Penalty = str | Callable[[float], float]  # a name of `PENALTIES`, or a rising function of an activation, 0 at 0
PENALTIES: dict[str, Callable[[float], float]] = {"l1": float, "l0": lambda act: float(act > 1e-6)}


def penalty_of(penalty: Penalty) -> Callable[[float], float]:
    """The function of an activation that a name stands for; a function stands for itself."""
    return PENALTIES[penalty] if isinstance(penalty, str) else penalty


def truth(n_children: int) -> SAE:
    """A latent for each feature."""
    return sae_of_directions(np.eye(1 + n_children))


def absorbed(n_children: int, ratio: float = 1.0) -> SAE:
    """A latent for the parent alone, and one for the parent with each of its children, which are mutually exclusive.

    The encoder of the parent's latent subtracts the children, which a tied encoder cannot.
    """
    W_dec, norm = np.eye(1 + n_children), np.sqrt(1 + ratio**2)
    W_dec[1:] = (W_dec[1:] * ratio + W_dec[0]) / norm
    W_enc = np.diag([1.0] + [norm / ratio] * n_children)
    W_enc[1:, 0] = -1 / ratio
    return truth(n_children)._replace(W_enc=jnp.asarray(W_enc), W_dec=jnp.asarray(W_dec))


def turned(n_children: int, angle: float) -> SAE:
    """The tied code in which the latents of the parent and of its first child are turned towards each other.

    It is exact up to arctan(1 / ratio), where it is `staircase(n_children, ratio, 1)`.
    """
    W_dec = np.eye(1 + n_children)
    W_dec[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return sae_of_directions(W_dec)


def staircase(n_children: int, ratio: float = 1.0, n_turned: int | None = None) -> SAE:
    """The tied code by Gram and Schmidt of p + c_1, p + c_2, … up to `n_turned` children (all), and then of p.

    Of exclusive children the first has one latent on, the second two, and so on; the parent alone has all of them.
    """
    n_turned = n_children if n_turned is None else n_turned
    states = np.eye(1 + n_children) * np.append(1.0, [ratio] * n_children)
    states[1 : 1 + n_turned, 0] = 1.0
    columns, scales = np.linalg.qr(np.roll(states[: 1 + n_turned], -1, axis=0).T)
    rows = (columns * np.sign(np.diag(scales))).T
    return sae_of_directions(np.concatenate([rows, np.eye(1 + n_children)[1 + n_turned :]]))


def mean_penalty(sae: SAE, states: Population, penalty: Penalty = "l1") -> float:
    """Σ_i E f(a_i ‖d_i‖) over the states of a tree."""
    sizes = np.asarray(encode(sae, jnp.asarray(states.features)) * decoder_norms(sae))
    return float(states.prob @ np.vectorize(penalty_of(penalty), otypes=[float])(sizes).sum(axis=1))
