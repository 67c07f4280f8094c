"""Any prefixes over the few latents that are on: the TopK family, at any width and in any order of the latents."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from toy.loss.products import scalar_loss


def sparse_mse(
    values: Float[Array, "batch slots"],
    W_dec: Float[Array, "n_latents d_in"],
    error: Float[Array, "batch d_in"],
    latents: Int[Array, "batch slots"],
    inclusion: Float[Array, " n_latents"],
) -> Float[Array, ""]:
    """Σ_k w_k ‖error − Σ_{on, rank < k} a_i d_i‖², summed over d_in, mean over the batch; Σ_k w_k = 1.

    Only latents that are on change the residual, so every prefix costs as much as the full one. `inclusion` holds
    the s_i of `gram_mse`; no gradient reaches them.
    """
    # No prefix with a weight separates latents of equal inclusion, so their order does not matter.
    descending, latents, values = lax.sort((-inclusion[latents], latents, values), num_keys=1, dimension=1)
    return ordered_mse(values, W_dec, error, latents, -descending)


def ordered_mse(
    values: Float[Array, "batch slots"],
    W_dec: Float[Array, "n_latents d_in"],
    error: Float[Array, "batch d_in"],
    latents: Int[Array, "batch slots"],
    inclusion: Float[Array, "batch slots"],
) -> Float[Array, ""]:
    """`sparse_mse` of slots that stand in the order of each row's own prefixes, with the s of each slot."""
    return scalar_loss(_by_slot)(values, W_dec, error, (latents, lax.stop_gradient(inclusion)))


def sparse_decode(
    values: Float[Array, "batch slots"], W_dec: Float[Array, "n_latents d_in"], latents: Int[Array, "batch slots"]
) -> Float[Array, "batch d_in"]:
    """Σ_i a_i d_i over the latents that are on, slot by slot, without an array of (batch, slots, d_in)."""

    def add(recon: Float[Array, "batch d_in"], slot: tuple) -> tuple[Float[Array, "batch d_in"], None]:
        a, rows = slot
        return recon + a[:, None] * W_dec[rows], None

    wide = jnp.promote_types(W_dec.dtype, jnp.float32)
    start = jnp.zeros((values.shape[0], W_dec.shape[1]), wide)
    return lax.scan(add, start, (values.astype(wide).T, latents.T))[0]


def _by_slot(
    values: Float[Array, "batch slots"],
    W_dec: Float[Array, "n_latents d_in"],
    error: Float[Array, "batch d_in"],
    at: tuple[Int[Array, "batch slots"], Float[Array, "batch slots"]],
) -> tuple[Float[Array, ""], tuple[Array, Array, Array]]:
    """Goes back from the last slot to the first, in order of rank.

    With r the residual after slot i and T = Σ_{later} s_j a_j d_j, the prefixes that hold latent i pull it by
    Σ_k w_k r_k = s_i r − T.
    """
    latents, inclusion = at

    def back(carry: tuple[Array, Array, Array], slot: tuple[Array, Array, Array]) -> tuple[tuple, Array]:
        residual, later, d_W_dec = carry
        rows, a, s = slot
        d, a, s = W_dec[rows].astype(residual.dtype), a.astype(residual.dtype)[:, None], s[:, None]
        pull = -2 / residual.shape[0] * (s * residual - later)
        d_W_dec = d_W_dec.at[rows].add(a * pull)
        return (residual + a * d, later + s * a * d, d_W_dec), jnp.sum(d * pull, axis=1)

    residual = error - sparse_decode(values, W_dec, latents)
    carry = residual, jnp.zeros_like(residual), jnp.zeros(W_dec.shape, residual.dtype)
    slots = latents.T, values.T, inclusion.astype(residual.dtype).T
    (_, later, d_W_dec), d_values = lax.scan(back, carry, slots, reverse=True)
    d_error = 2 / error.shape[0] * (error - later)
    loss = (jnp.sum(error * d_error) + jnp.sum(values.T * d_values)) / 2  # quadratic in (values, error) together
    return loss, (d_values.T, d_W_dec, d_error)
