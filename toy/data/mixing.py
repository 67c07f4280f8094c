"""A measure of how well the batches of a stream are mixed."""

import numpy as np
from jaxtyping import Float


def mixing(batches: Float[np.ndarray, "n_steps batch d_in"]) -> float:
    """Variance of the batches' means, over that of the means of as many independent rows.

    1 for perfectly mixed batches, and above where rows of a batch resemble each other: rows that come in runs of n
    equal ones give n, and so do batches that see n times fewer stories than they have rows. Its standard error is
    below √(2 / n_steps).
    """
    x = np.asarray(batches, np.float64)
    n_steps, batch_size, _ = x.shape
    of_rows = x.reshape(n_steps * batch_size, -1).var(axis=0).sum()
    of_means = x.mean(axis=1).var(axis=0, ddof=1).sum()
    return float(batch_size * of_means / of_rows)
