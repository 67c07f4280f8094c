"""A penalty of one's own: the squared cosines of all pairs of decoder directions."""

from dataclasses import dataclass

import jax.numpy as jnp

from toy.methods import Standard


@dataclass(frozen=True)
class Orthogonality(Standard):
    coef: float = 0.1

    def loss(self, params, batch):
        loss, parts = super().loss(params, batch)
        directions = params.W_dec / jnp.linalg.norm(params.W_dec, axis=1, keepdims=True)
        cosines = directions @ directions.T - jnp.eye(len(directions))
        return loss + self.coef * jnp.sum(cosines**2), parts


orthogonality = Orthogonality()
without = Orthogonality(coef=0.0)
