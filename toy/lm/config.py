"""The sizes of a language model."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from toy.checks import POSITIVE, Whole, check_fields, check_option, quoted

MAX_SIZE = 2**24  # of any dimension
MAX_LAYERS = 512

Family = Literal["tiny_model", "gpt_neo", "llama"]
Kind = Literal["global", "local"]
_OF_LLAMA = ("n_kv_heads", "d_head", "rope_theta", "tied")  # fields of this family alone
_NOT_OF_LLAMA = ("window", "attention")


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Sizes of a language model.

    tiny_model (noanabeshima/tiny_model): no layer norm, ReLU, attention scale 1/√d_head, a head of its own.
    gpt_neo (Transformers' GPTNeoForCausalLM): layer norms, GELU by tanh, attention unscaled, the embedding as head.
    llama (Transformers' LlamaForCausalLM): RMS norms, rotary positions, SwiGLU, attention scale 1/√d_head, no biases.
    """

    family: Family = "tiny_model"
    vocab_size: int
    context: int  # maximal number of tokens
    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int | None = None  # default: 4 · d_model
    window: int = 256  # the number of positions that a local layer sees, up to its own
    attention: tuple[Kind, ...] | None = None  # per layer; gpt_neo alternates by default
    norm_eps: float = 1e-5
    n_kv_heads: int | None = None  # heads of keys and values, each of which serves several of queries; default: n_heads
    d_head: int | None = None  # default: d_model / n_heads
    rope_theta: float = 1e4  # at position p, pair i of a head's d_head / 2 is turned by p · rope_theta^(−2i / d_head)
    tied: bool = True  # whether a llama has the embedding as head

    def __post_init__(self) -> None:
        check_option("family", self.family, get_args(Family))
        for name in ("vocab_size", "context", "n_layers", "d_model", "n_heads", "d_mlp", "window"):
            check_fields(self, **{name: Whole(1, MAX_LAYERS if name == "n_layers" else MAX_SIZE)})
        check_fields(self, norm_eps=POSITIVE, n_kv_heads=Whole(1, MAX_SIZE), d_head=Whole(1, MAX_SIZE))
        check_fields(self, rope_theta=POSITIVE)
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(f"n_heads: must divide d_model = {self.d_model}, got {self.n_heads}")
        self._check_heads()
        if self.attention is not None:
            self._check_attention(self.attention)

    def _check_heads(self) -> None:
        if self.family != "llama" and (self.n_kv_heads, self.d_head) != (None, None):
            raise ValueError(f"n_kv_heads, d_head: {self.family} has none but n_heads and d_model / n_heads")
        if self.n_heads % self.n_kv:
            raise ValueError(f"n_kv_heads: must divide n_heads = {self.n_heads}, got {self.n_kv}")
        if self.family == "llama" and self.head_size % 2:
            raise ValueError(f"d_head: must be even for rotary positions, got {self.head_size}")

    def _check_attention(self, kinds: tuple[Kind, ...]) -> None:
        if len(kinds) != self.n_layers or not all(kind in get_args(Kind) for kind in kinds):
            raise ValueError(f"attention: must be global or local for each of {self.n_layers} layers: {quoted(kinds)}")
        if self.family != "gpt_neo" and "local" in kinds:
            raise ValueError(f"attention: {self.family} has no local layers")

    @property
    def n_hidden(self) -> int:
        return 4 * self.d_model if self.d_mlp is None else self.d_mlp

    @property
    def n_kv(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_size(self) -> int:
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def has_head(self) -> bool:
        """True where the embedding does not serve as head."""
        return self.family == "tiny_model" or (self.family == "llama" and not self.tied)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The number of positions that each layer sees; None for all."""
        default = ("global", "local" if self.family == "gpt_neo" else "global")
        kinds = self.attention or [default[layer % 2] for layer in range(self.n_layers)]
        return tuple(self.window if kind == "local" else None for kind in kinds)

    def facts(self) -> dict[str, Any]:
        """The fields that describe a model of this family, by name."""
        return {name: getattr(self, name) for name in field_names(self.family)}

    def full_facts(self) -> dict[str, Any]:
        """The same with defaults filled in, so that models that are equal have equal facts."""
        filled = {"d_mlp": self.n_hidden, "attention": self.windows, "n_kv_heads": self.n_kv, "d_head": self.head_size}
        return {name: filled.get(name, value) for name, value in self.facts().items()}


def field_names(family: str) -> list[str]:
    """The names of the fields that describe a model of this family."""
    others = _NOT_OF_LLAMA if family == "llama" else _OF_LLAMA
    return [field.name for field in fields(LMConfig) if field.name not in others]
