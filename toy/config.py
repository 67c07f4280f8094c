"""What a run is given: `TrainConfig`, which fixes the compiled program, and `Hypers`, which a sweep may vary."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Array, Float, Int

from toy.loss import Form, Sparsity, choose_form, needs_order
from toy.prefixes import Weighting
from toy.sae import RELU, Activation, ReLU

Number = Float[Array, "*lanes"] | float


@dataclass(frozen=True)
class TrainConfig:
    """What fixes the compiled program. Shares of steps are of `n_steps`."""

    n_latents: int
    n_steps: int = 20_000
    batch_size: int = 200
    activation: Activation = RELU
    sparsity: Sparsity = "l1"  # of ReLU SAEs
    n_lr_warmup_steps: int = 100
    lr_cooldown_share: float = 0.2  # linear, at the end, …
    final_lr_share: float = 0.1  # … down to this share of the learning rate
    sparsity_warmup_share: float = 0.2
    reinit_every: int = 500
    reinit_window: tuple[float, float] = (0.2, 0.6)  # shares of n_steps between which weak latents start anew
    dead_after: int = 1_000  # steps without being on, after which AuxK trains a latent of the TopK family …
    aux_k: int | None = None  # … this many a sample; None: d_in / 2; 0 turns it off
    form: Form | None = None  # of the loss; None: by the number of latents (`toy.loss.choose_form`)
    reorder_every: int = 10  # steps between moves of the latents into the order of their ranks, where a form needs it
    dtype: Literal["float32", "bfloat16"] = "float32"  # of products; parameters, sums and moments stay float32
    n_microbatches: int = 1  # parts of a batch that are held in memory one after the other

    def __post_init__(self) -> None:
        counts = ("n_latents", "n_steps", "batch_size", "n_lr_warmup_steps", "n_microbatches")
        for name in (*counts, "reinit_every", "reorder_every", "dead_after"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.aux_k is not None and self.aux_k < 0:
            raise ValueError(f"aux_k: must not be negative, got {self.aux_k}")
        if self.batch_size % self.n_microbatches:
            raise ValueError(f"n_microbatches: {self.n_microbatches} does not divide batch_size = {self.batch_size}")
        if not isinstance(self.activation, ReLU) and self.activation.k > self.n_latents:
            raise ValueError(f"activation: k = {self.activation.k} is more than n_latents = {self.n_latents}")
        shares = ("lr_cooldown_share", "final_lr_share", "sparsity_warmup_share")
        for name, share in [(name, getattr(self, name)) for name in shares] + [
            ("reinit_window", share) for share in self.reinit_window
        ]:
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: {share} is outside [0, 1]")
        for name, options in (
            ("sparsity", ("l1", "log")),
            ("form", (None, "gram", "wide")),
            ("dtype", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in options:
                listed = " or ".join(repr(option) for option in options)
                raise ValueError(f"{name}: expected {listed}, got {getattr(self, name)!r}")

    @property
    def loss_form(self) -> Form:
        return choose_form(self.n_latents) if self.form is None else self.form

    @property
    def moves_latents(self) -> bool:
        """Whether latents are kept in order by moving them; else their order is the rank of their contribution."""
        return needs_order(self.loss_form, self.activation)

    @property
    def n_sparsity_warmup_steps(self) -> int:
        return round(self.sparsity_warmup_share * self.n_steps)


class Hypers(NamedTuple):
    """What a sweep may vary: traced, any field can have a lane axis."""

    prefixes: Weighting
    target_l0: Number | None = None  # of a ReLU SAE; the TopK family's k stands in its activation
    learning_rate: Number = 2e-2  # the reference code has 3e-2
    b1: Number = 0.5
    b2: Number = 0.9375
    clip_norm: Number = 1.0  # of the global gradient norm
    sparsity_coef: Number = 1.0  # where the L0 controller starts
    control_rate: Number = 3e-4  # per step; 0 keeps the coefficient fixed
    reinit_below: Number = 0.3  # of the median contribution; 0 turns re-initialisation off
    aux_coef: Number = 1 / 32  # of the AuxK loss (Gao et al.)
    n_latents: Int[Array, "*lanes"] | int | None = None  # the first of cfg.n_latents; the others are padding, never on
