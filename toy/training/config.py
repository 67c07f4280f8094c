"""The settings of a run: `TrainConfig` fixes the compiled program, `Hypers` may vary within a sweep."""

import math
import os
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from toy.checks import NOT_NEGATIVE, POSITIVE, SHARE, Real, Whole, check_fields, check_numbers, check_option, quoted
from toy.loss import Form
from toy.methods.method import Method
from toy.methods.standard import STANDARD
from toy.prefixes import Weighting, check_total
from toy.sae import SAE

MAX_STEPS = 2**31 - 1  # a step is an int32
MAX_LATENTS = 2**24
Number = Float[Array, "*lanes"] | float


@dataclass(frozen=True)
class TrainConfig:
    """The settings that fix the compiled program. Shares of steps are shares of `n_steps`."""

    n_latents: int
    n_steps: int = 8_000
    batch_size: int = 200
    method: Method = STANDARD  # what is trained, and by which loss (`toy.methods`)
    n_lr_warmup_steps: int = 100
    lr_cooldown_share: float = 0.2  # linear, at the end, …
    final_lr_share: float = 0.1  # … down to this share of the learning rate
    sparsity_warmup_share: float = 0.2
    reinit_every: int = 500
    reinit_window: tuple[float, float] = (0.2, 0.6)  # shares of n_steps between which weak latents start anew
    form: Form | None = None  # the form of the loss; None: chosen by the number of latents (`toy.loss.choose_form`)
    reorder_every: int = 10  # steps between moves of the latents into the order of their ranks, where a form needs it
    dtype: Literal["float32", "bfloat16"] = "float32"  # the type of products; parameters, sums, moments stay float32
    n_microbatches: int = 1  # parts of a batch that are held in memory one after the other

    def __post_init__(self) -> None:
        check_fields(
            self,
            n_latents=Whole(most=MAX_LATENTS),
            n_steps=Whole(most=MAX_STEPS),
            batch_size=Whole(most=MAX_STEPS),
            n_lr_warmup_steps=Whole(most=MAX_STEPS),
            lr_cooldown_share=SHARE,
            final_lr_share=SHARE,
            sparsity_warmup_share=SHARE,
            reinit_every=Whole(most=MAX_STEPS),
            reinit_window=SHARE,
            reorder_every=Whole(most=MAX_STEPS),
            n_microbatches=Whole(),
        )
        window = self.reinit_window
        if not isinstance(window, tuple) or len(window) != 2 or window[0] > window[1]:
            raise ValueError(f"reinit_window: expected (first, last) with first <= last, got {quoted(window)}")
        if self.batch_size % self.n_microbatches:
            raise ValueError(f"n_microbatches: {self.n_microbatches} does not divide batch_size = {self.batch_size}")
        if not isinstance(self.method, Method):
            raise ValueError(f"method: expected a toy.methods.Method, got {quoted(self.method)}")
        self.method.check(self.n_latents)
        check_option("form", self.form, (None, "gram", "wide"))
        check_option("dtype", self.dtype, ("float32", "bfloat16"))
        self.method.form(self.n_latents, self.form)  # raises for one that the method lacks

    @property
    def loss_form(self) -> Form:
        return self.method.form(self.n_latents, self.form)

    @property
    def moves_latents(self) -> bool:
        """True where latents are kept in order by moving them; otherwise only their ranks change."""
        return self.method.moves_latents(self.loss_form)

    @property
    def search_step(self) -> int | None:
        """The step before which the method searches, once."""
        share = self.method.search_at
        return None if share is None else max(1, math.ceil(share * self.n_steps))

    @property
    def n_sparsity_warmup_steps(self) -> int:
        return round(self.sparsity_warmup_share * self.n_steps)


class Hypers(NamedTuple):
    """The settings that a sweep may vary: they are traced, and any field can have a lane axis."""

    prefixes: Weighting
    target_l0: Number | None = None  # for methods that aim at an L0, and for no others
    learning_rate: Number = 1e-2  # this and the next defaults follow from the study `experiments.defaults`
    b1: Number = 0.5
    b2: Number = 0.9375
    clip_norm: Number = 1.0  # the largest global norm of the gradient
    sparsity_coef: Number = 1.0  # the coefficient from which the L0 controller starts
    control_rate: Number = 7.5e-4  # the relative change of the coefficient per step; 0 keeps it fixed
    reinit_below: Number = 0.2  # latents below this share of the median contribution start anew; 0 turns it off
    aux_coef: Number = 1 / 32  # the weight of the AuxK loss (Gao et al.)
    n_latents: Int[Array, "*lanes"] | int | None = None  # the first of cfg.n_latents; the others are padding, never on
    input_size: Number | None = None  # inputs are scaled to a mean norm of input_size · √d_in; None: 1
    start: SAE | None = None  # the first latents before the first step, on inputs scaled so; others start as usual


HYPERS = {
    "target_l0": POSITIVE,
    "learning_rate": NOT_NEGATIVE,
    "b1": Real(least=0, below=1),
    "b2": Real(least=0, below=1),
    "clip_norm": POSITIVE,
    "sparsity_coef": NOT_NEGATIVE,
    "control_rate": Real(least=0, below=1),
    "reinit_below": NOT_NEGATIVE,
    "aux_coef": NOT_NEGATIVE,
    "n_latents": Whole(0),
    "input_size": POSITIVE,
}  # the range of every number of `Hypers`, in every lane


def check_hypers(hypers: Hypers, cfg: TrainConfig, d_in: int | None = None) -> None:
    """Raises: ValueError naming a number out of range, or if `cfg`, `hypers` and `d_in` do not fit each other."""
    check_numbers(hypers._asdict(), HYPERS)
    if not isinstance(hypers.prefixes, Weighting):
        raise ValueError(
            "hypers.prefixes: expected a weighting, such as prefixes.named('sampled_10', n_latents), got "
            f"{quoted(hypers.prefixes)}"
        )
    check_numbers({"hypers.prefixes": jax.tree.leaves(hypers.prefixes)}, {"hypers.prefixes": NOT_NEGATIVE})
    check_total(hypers.prefixes)
    n_latents = hypers.prefixes.n_latents
    if n_latents != cfg.n_latents:
        raise ValueError(f"hypers.prefixes is for {n_latents} latents, but cfg.n_latents is {cfg.n_latents}")
    if hypers.n_latents is not None and not 1 <= np.min(hypers.n_latents) <= np.max(hypers.n_latents) <= n_latents:
        raise ValueError(f"hypers.n_latents: must be from 1 to cfg.n_latents = {n_latents}, got {hypers.n_latents}")
    if hypers.start is not None:
        _check_start(hypers.start, n_latents, d_in)
    if cfg.method.aims_at_l0 and hypers.target_l0 is None:
        raise ValueError(f"hypers.target_l0: {cfg.method} needs a target L0: give target_l0")
    if not cfg.method.aims_at_l0 and hypers.target_l0 is not None:
        raise ValueError(f"hypers.target_l0: {cfg.method} aims at no L0: leave target_l0 out")


def _check_start(start: SAE, n_latents: int, d_in: int | None) -> None:
    if start.b_enc.shape[-1] > n_latents:
        raise ValueError(f"hypers.start has {start.b_enc.shape[-1]} latents, more than n_latents = {n_latents}")
    if d_in is not None and start.W_enc.shape[-2] != d_in:
        raise ValueError(f"hypers.start has d_in = {start.W_enc.shape[-2]}, and the source {d_in}")
    check_numbers({"hypers.start": jax.tree.leaves(start)}, {"hypers.start": Real()})


def check_memory(d_in: int, cfg: TrainConfig, n_lanes: int = 1, n_devices: int = 1) -> None:
    """Raises: ValueError if training needs more memory than the machine has, by a lower estimate.

    The estimate counts parameters, gradients and both moments of every lane, and a batch with its activations, for
    every lane where lanes are computed side by side and else for one. CPU devices share the machine's memory.
    """
    n, batch = cfg.n_latents, cfg.batch_size // cfg.n_microbatches
    n_batches = n_lanes if cfg.loss_form == "gram" else 1
    n_values = n_lanes * 4 * (2 * d_in * n + n + d_in) + n_batches * batch * (d_in + n)
    shares = 1 if jax.default_backend() == "cpu" else n_devices
    n_bytes, there = 4 * n_values / shares, memory()
    if there is not None and n_bytes > there:
        raise ValueError(
            f"n_latents = {n:,}, d_in = {d_in:,}, batch_size = {cfg.batch_size:,} and {n_lanes:,} runs at once take at "
            f"least {n_bytes / 2**30:,.0f} GB of the {there / 2**30:,.0f} GB there are: lower one of them"
        )


def memory() -> int | None:
    """The bytes of a device's memory; for a CPU those of the machine. None where that is unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
