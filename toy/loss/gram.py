"""Any prefixes at toy width, from two Gram matrices: latents in any order, no array of (batch, n_latents, d_in)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def gram_mse(
    acts: Float[Array, "batch n_latents"],
    W_dec: Float[Array, "n_latents d_in"],
    error: Float[Array, "batch d_in"],
    inclusion: Float[Array, " n_latents"],
) -> Float[Array, ""]:
    """Σ_k w_k ‖error − Σ_{rank(i) < k} a_i d_i‖², summed over d_in, mean over the batch; Σ_k w_k = 1.

    With s the `inclusion` weights (s_i = Σ_{k > rank(i)} w_k) a pair of latents shares the prefixes of the later
    one, which is min(s_i, s_j), and the sum over prefixes is exactly

        ‖e‖² − 2 Σ_i s_i a_i d_i·e + Σ_ij min(s_i, s_j) a_i a_j d_i·d_j.

    Its cost grows with n_latents²: `toy.loss.tiled` is for width.
    """
    n_rows = error.shape[0]
    acts_error = acts.T @ error / n_rows
    acts_gram = acts.T @ acts / n_rows
    shared = jnp.minimum(inclusion[:, None], inclusion)
    return (
        jnp.mean(jnp.sum(error**2, axis=1))
        - 2 * jnp.sum(inclusion[:, None] * acts_error * W_dec)
        + jnp.sum(shared * acts_gram * (W_dec @ W_dec.T))
    )
