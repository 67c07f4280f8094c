"""When a hierarchy can be found, in theory: exact objectives of finite trees, codes that compete, and their limits."""

from toy.theory.codes import Penalty, absorbed, mean_penalty, staircase, truth, turned
from toy.theory.limits import absorption_gain, edge_limit, first_latent_angle
from toy.theory.objective import minimised, minimum, population_loss
from toy.theory.states import MOST_STATES, Population, enumerate_states

__all__ = [
    "MOST_STATES",
    "Penalty",
    "Population",
    "absorbed",
    "absorption_gain",
    "edge_limit",
    "enumerate_states",
    "first_latent_angle",
    "mean_penalty",
    "minimised",
    "minimum",
    "population_loss",
    "staircase",
    "truth",
    "turned",
]
