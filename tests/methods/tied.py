"""A tied encoder: the SAE that the parameters stand for encodes with its decoder."""

import jax.numpy as jnp

from toy.methods import Matryoshka


class Tied(Matryoshka):
    def sae(self, params, done=1.0):
        W_dec = params.W_dec / jnp.linalg.norm(params.W_dec, axis=1, keepdims=True)
        return params._replace(W_enc=W_dec.T, W_dec=W_dec)


tied = Tied()
