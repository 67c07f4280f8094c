"""Three families of language models, whose activations can be read or replaced during a forward pass."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from toy.lm.config import LMConfig
from toy.lm.layers import MLP, Attention, linear, norm

LOCATIONS = ("resid_pre", "attn_out", "resid_mid", "mlp_out")


class Site(NamedTuple):
    """A place where activations are read: `resid_pre.0` is the residual stream before the attention of layer 0."""

    layer: int
    location: str  # of LOCATIONS; attn_out and mlp_out are what a block adds to the residual stream

    def __str__(self) -> str:
        return f"{self.location}.{self.layer}"


def parse_site(text: str, n_layers: int) -> Site:
    """The site with this name. Raises: ValueError."""
    sites = {str(site): site for layer in range(n_layers) for site in (Site(layer, name) for name in LOCATIONS)}
    if text not in sites:
        raise ValueError(
            f"site: {text!r} is not one of {', '.join(LOCATIONS)} followed by a point and a layer, 0 to {n_layers - 1}"
        )
    return sites[text]


Tap = Callable[[Site, Float[Array, "batch pos d_model"]], Float[Array, "batch pos d_model"]]


def keep(site: Site, acts: Float[Array, "batch pos d_model"]) -> Float[Array, "batch pos d_model"]:
    """The tap that changes nothing."""
    return acts


class Block(nnx.Module):
    def __init__(self, cfg: LMConfig, layer: int, *, rngs: nnx.Rngs) -> None:
        self.layer = layer
        self.ln_1, self.ln_2 = norm(cfg, rngs), norm(cfg, rngs)
        self.attn = Attention(cfg, cfg.windows[layer], rngs=rngs)
        self.mlp = MLP(cfg, rngs=rngs)

    def __call__(self, resid: Float[Array, "batch pos d_model"], tap: Tap) -> Float[Array, "batch pos d_model"]:
        resid_pre = tap(Site(self.layer, "resid_pre"), resid)
        attn_out = tap(Site(self.layer, "attn_out"), self.attn(self.ln_1(resid_pre)))
        resid_mid = tap(Site(self.layer, "resid_mid"), resid_pre + attn_out)
        return resid_mid + tap(Site(self.layer, "mlp_out"), self.mlp(self.ln_2(resid_mid)))


class LM(nnx.Module):
    """A language model.

    Initial values: embeddings N(0, 0.02²), weights N(0, 1 / fan-in), those that write to the residual stream smaller by
    √(2 n_layers), biases 0.
    """

    def __init__(self, cfg: LMConfig, *, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        init = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(cfg.vocab_size, cfg.d_model, embedding_init=init, rngs=rngs)
        rotary = cfg.family == "llama"
        self.pos_embed = None if rotary else nnx.Param(init(rngs.params(), (cfg.context, cfg.d_model), jnp.float32))
        self.blocks = nnx.List([Block(cfg, layer, rngs=rngs) for layer in range(cfg.n_layers)])
        self.ln_f = norm(cfg, rngs)
        use_bias = cfg.family == "tiny_model"
        self.lm_head = linear(cfg.d_model, cfg.vocab_size, rngs, use_bias=use_bias) if cfg.has_head else None

    def __call__(self, tokens: Int[Array, "batch pos"], tap: Tap = keep) -> Float[Array, "batch pos vocab_size"]:
        """Logits of the next token. `tap` gets the activations at every site and returns those to continue with.

        An id outside the vocabulary gives NaN. Raises: ValueError for more tokens than the context.
        """
        return self.logits_from(self.resid_at(tokens, 0), 0, tap)

    def resid_at(
        self, tokens: Int[Array, "batch pos"], layer: int, tap: Tap = keep
    ) -> Float[Array, "batch pos d_model"]:
        """The untapped residual stream before the attention of `layer`; for n_layers, after the last layer."""
        if tokens.shape[1] > self.cfg.context:
            raise ValueError(f"tokens: {tokens.shape[1]} positions are more than the context of {self.cfg.context}")
        resid = self.embedded(tokens, jnp.arange(tokens.shape[1]))
        for block in self.blocks[: self._checked(layer)]:
            resid = block(resid, tap)
        return resid

    def embedded(
        self, tokens: Int[Array, "batch pos"], positions: Int[Array, " pos"]
    ) -> Float[Array, "batch pos d_model"]:
        """Returns what the first layer reads of tokens at these positions."""
        embedding = self.embed(tokens)
        return embedding if self.pos_embed is None else embedding + self.pos_embed[positions]

    def logits_from(
        self, resid: Float[Array, "batch pos d_model"], layer: int, tap: Tap = keep
    ) -> Float[Array, "batch pos vocab_size"]:
        """The logits that follow from the residual stream: logits_from(resid_at(tokens, layer), layer) = lm(tokens)."""
        for block in self.blocks[self._checked(layer) :]:
            resid = block(resid, tap)
        normed = self.ln_f(resid)
        return self.embed.attend(normed) if self.lm_head is None else self.lm_head(normed)

    def _checked(self, layer: int) -> int:
        if not 0 <= layer <= self.cfg.n_layers:
            raise ValueError(f"layer: must be between 0 and {self.cfg.n_layers}, got {layer}")
        return layer


def acts_at(
    lm: LM, tokens: Int[Array, "batch pos"], sites: Sequence[Site]
) -> dict[Site, Float[Array, "batch pos d_model"]]:
    """Activations at all the sites, from one pass that ends at the last of them."""
    seen: dict[Site, jax.Array] = {}

    def record(site: Site, acts: jax.Array) -> jax.Array:
        seen[site] = acts
        return acts

    for site in sites:
        parse_site(str(site), lm.cfg.n_layers)
    n_needed = max((site.layer + (site.location != "resid_pre") for site in sites), default=0)
    record(Site(n_needed, "resid_pre"), lm.resid_at(tokens, n_needed, record))
    return {site: seen[site] for site in sites}
