"""Two families of small language models, whose activations can be read or replaced during a forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from toy.checks import POSITIVE, Whole, check_fields, quoted

LOCATIONS = ("resid_pre", "attn_out", "resid_mid", "mlp_out")
MAX_SIZE = 2**24  # of any dimension
MAX_LAYERS = 512


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


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Sizes of a language model.

    tiny_model (noanabeshima/tiny_model): no layer norm, ReLU, attention scale 1/√d_head, a head of its own.
    gpt_neo (Transformers' GPTNeoForCausalLM): layer norms, GELU by tanh, attention unscaled, the embedding as head.
    """

    family: Literal["tiny_model", "gpt_neo"] = "tiny_model"
    vocab_size: int
    context: int  # maximal number of tokens
    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int | None = None  # default: 4 · d_model
    window: int = 256  # the number of positions that a local layer sees, up to its own
    attention: tuple[Literal["global", "local"], ...] | None = None  # per layer; gpt_neo alternates by default
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.family not in ("tiny_model", "gpt_neo"):
            raise ValueError(f"family: must be tiny_model or gpt_neo, got {quoted(self.family)}")
        for name in ("vocab_size", "context", "n_layers", "d_model", "n_heads", "d_mlp", "window"):
            check_fields(self, **{name: Whole(1, MAX_LAYERS if name == "n_layers" else MAX_SIZE)})
        check_fields(self, norm_eps=POSITIVE)
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads: must divide d_model = {self.d_model}, got {self.n_heads}")
        if self.attention is None:
            return
        if len(self.attention) != self.n_layers or not all(kind in ("global", "local") for kind in self.attention):
            kinds = quoted(self.attention)
            raise ValueError(f"attention: must be global or local for each of {self.n_layers} layers: {kinds}")
        if self.family == "tiny_model" and "local" in self.attention:
            raise ValueError("attention: tiny_model has no local layers")

    @property
    def n_hidden(self) -> int:
        return 4 * self.d_model if self.d_mlp is None else self.d_mlp

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The number of positions that each layer sees; None for all."""
        default = ("global", "local" if self.family == "gpt_neo" else "global")
        kinds = self.attention or [default[layer % 2] for layer in range(self.n_layers)]
        return tuple(self.window if kind == "local" else None for kind in kinds)


Tap = Callable[[Site, Float[Array, "batch pos d_model"]], Float[Array, "batch pos d_model"]]


def keep(site: Site, acts: Float[Array, "batch pos d_model"]) -> Float[Array, "batch pos d_model"]:
    """The tap that changes nothing."""
    return acts


def _linear(d_in: int, d_out: int, rngs: nnx.Rngs, *, variance: float = 1.0, use_bias: bool = True) -> nnx.Linear:
    """Weights N(0, variance / d_in)."""
    init = nnx.initializers.variance_scaling(variance, "fan_in", "normal")
    return nnx.Linear(d_in, d_out, use_bias=use_bias, kernel_init=init, rngs=rngs)


def _norm(cfg: LMConfig, rngs: nnx.Rngs) -> Callable[[jax.Array], jax.Array]:
    if cfg.family == "tiny_model":
        return _identity
    return nnx.LayerNorm(cfg.d_model, epsilon=cfg.norm_eps, use_fast_variance=False, rngs=rngs)


def _identity(x: jax.Array) -> jax.Array:
    return x


class Attention(nnx.Module):
    """Causal self-attention, in float32 whatever the parameters are."""

    def __init__(self, cfg: LMConfig, window: int | None, *, rngs: nnx.Rngs) -> None:
        d, scaled = cfg.d_model, cfg.family == "tiny_model"
        d_head = d // cfg.n_heads
        self.n_heads, self.window, self.scale = cfg.n_heads, window, d_head**-0.5 if scaled else 1.0
        # Where scores are not scaled, small queries take the place of the scale when training starts.
        self.Q = _linear(d, d, rngs, variance=1.0 if scaled else 1 / d_head, use_bias=False)
        self.K = _linear(d, d, rngs, use_bias=False)
        self.V = _linear(d, d, rngs, use_bias=False)
        self.O = _linear(d, d, rngs, variance=1 / (2 * cfg.n_layers))

    def __call__(self, x: Float[Array, "batch pos d_model"]) -> Float[Array, "batch pos d_model"]:
        q, k, v = (
            layer(x).astype(jnp.float32).reshape(*x.shape[:2], self.n_heads, -1) for layer in (self.Q, self.K, self.V)
        )
        window = None if self.window is None else (self.window - 1, 0)  # positions to the left and to the right
        seen = jax.nn.dot_product_attention(q, k, v, scale=self.scale, is_causal=True, local_window_size=window)
        return self.O(seen.reshape(x.shape).astype(x.dtype))


class MLP(nnx.Module):
    def __init__(self, cfg: LMConfig, *, rngs: nnx.Rngs) -> None:
        self.read_in = _linear(cfg.d_model, cfg.n_hidden, rngs)
        self.write_out = _linear(cfg.n_hidden, cfg.d_model, rngs, variance=1 / (2 * cfg.n_layers))
        self.act = (
            jax.nn.relu if cfg.family == "tiny_model" else jax.nn.gelu
        )  # the tanh approximation, which Transformers calls gelu_new

    def __call__(self, x: Float[Array, "batch pos d_model"]) -> Float[Array, "batch pos d_model"]:
        return self.write_out(self.act(self.read_in(x)))


class Block(nnx.Module):
    def __init__(self, cfg: LMConfig, layer: int, *, rngs: nnx.Rngs) -> None:
        self.layer = layer
        self.ln_1, self.ln_2 = _norm(cfg, rngs), _norm(cfg, rngs)
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
        self.pos_embed = nnx.Param(init(rngs.params(), (cfg.context, cfg.d_model), jnp.float32))
        self.blocks = nnx.List([Block(cfg, layer, rngs=rngs) for layer in range(cfg.n_layers)])
        self.ln_f = _norm(cfg, rngs)
        self.lm_head = _linear(cfg.d_model, cfg.vocab_size, rngs) if cfg.family == "tiny_model" else None

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
        resid = self.embed(tokens) + self.pos_embed[: tokens.shape[1]]
        for block in self.blocks[: self._checked(layer)]:
            resid = block(resid, tap)
        return resid

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
