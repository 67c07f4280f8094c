"""The interface of a training method: all that the trainer, sweeps, checkpoints and figures know of one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from toy.checks import check_option
from toy.loss import Form, LossParts, acts_mse, choose_form, needs_order, reconstruct, sae_loss
from toy.prefixes import Prefixes
from toy.sae import RELU, SAE, Activation, init_sae

Params = PyTree  # an SAE, or a pytree that holds one; other leaves lead with the axis of latents
Order = Literal["energy", "frequency", "normalised", "fixed"]
Sample = Callable[[Key[Array, ""], int], Float[Array, "rows d_in"]]
Memory = PyTree  # what a method keeps between steps beside its parameters; None where it keeps nothing


class Batch(NamedTuple):
    """The arguments of a loss beside the parameters."""

    x: Float[Array, "batch d_in"]  # scaled to a mean norm of √d_in, or input_size · √d_in
    prefixes: Prefixes  # of this step
    ranks: Int[Array, " n_latents"]  # the place of each latent by its contribution
    sparsity_coef: Float[Array, ""]
    target_l0: Float[Array, ""] | float | None
    done: Float[Array, ""]  # the share of the run that is done
    key: Key[Array, ""]  # of this step, for a loss that draws
    memory: Memory
    form: Form
    aux_coef: Float[Array, ""] | float = 0.0


@dataclass(frozen=True)
class Method:
    """A way to train an SAE: here a ReLU SAE without a penalty. Subclasses override what differs.

    A method is static: a frozen dataclass, whose fields a compiled program is made for. What varies within a sweep is
    in `Hypers`. The methods of this package and those of users' files have no other interface.
    """

    order: Order = field(default="energy", kw_only=True)  # what puts a latent before others, and so into prefixes

    weighting: ClassVar[str] = "vanilla"  # of prefixes, where a command is not given another
    aims_at_l0: ClassVar[bool] = False  # whether it needs a target L0
    controls_l0: ClassVar[bool] = False  # whether the sparsity coefficient is moved to reach the target

    def __post_init__(self) -> None:
        check_option("order", self.order, get_args(Order))

    @property
    def allows_padding(self) -> bool:
        """True where latents without an encoder never matter, so that SAEs of several widths can share a program.

        A class has to say so itself, by `pads = True`: a subclass that does not is trained at its own width.
        """
        return vars(type(self)).get("pads", False)

    @property
    def activation(self) -> Activation:
        """The rule by which latents of `sae(params)` are on."""
        return RELU

    @property
    def inference(self) -> Activation:
        """The same of the exported SAE, where it differs."""
        return self.activation

    def init(self, key: Key[Array, ""], d_in: int, n_latents: int) -> Params:
        """The parameters before the first step. The weights of a latent must not depend on how many there are."""
        return init_sae(key, d_in, n_latents)

    def sae(self, params: Params, done: Float[Array, ""] | float = 1.0) -> SAE:
        """The SAE that the parameters stand for, which is what is exported. A method of phases looks at `done`."""
        return params

    def loss(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], LossParts]:
        """The loss (mean over the batch) and the quantities that the trainer tracks."""
        return self.reconstruction_loss(self.sae(params, batch.done), batch)

    def reconstruction_loss(self, sae: SAE, batch: Batch, **options: Any) -> tuple[Float[Array, ""], LossParts]:
        """The squared error averaged over weighted prefixes (`toy.loss.sae_loss`), with its options."""
        options = {"form": batch.form, "activation": self.activation, "sparsity_coef": 0.0} | options
        return sae_loss(sae, batch.x, batch.prefixes, batch.ranks, **options)

    def acts_loss(
        self, sae: SAE, acts: Float[Array, "batch n_latents"], batch: Batch
    ) -> tuple[Float[Array, ""], LossParts]:
        """`reconstruction_loss` of activations from an encoder of the method's own."""
        return acts_mse(sae, acts, batch.x, batch.prefixes, batch.ranks, form=batch.form)

    def project(self, params: Params, done: Float[Array, ""]) -> Params:
        """The parameters after an update and before the next step."""
        return params

    @property
    def search_at(self) -> float | None:
        """The share of the run after which `search` is called, once; None: never."""
        return None

    def search(self, key: Key[Array, ""], params: Params, sample: Sample) -> Params:
        """The parameters with which the run goes on at `search_at`; `sample(key, n_rows)` draws scaled inputs.

        A stream's run has only the rows of the step. Adam starts anew.
        """
        return params

    def init_memory(self, d_in: int, n_latents: int) -> Memory:
        """Returns what is kept between steps."""
        return None

    def remember(self, memory: Memory, parts: LossParts, lr_share: Float[Array, ""]) -> Memory:
        """Returns what is kept after a step; `lr_share` is the schedule's multiplier of the learning rate."""
        return memory

    def importance(self, parts: LossParts) -> Float[Array, " n_latents"]:
        """Returns what latents are ordered by, the largest running mean first.

        By `order`: the energy; the frequency; their geometric mean, which is frequency × root-mean-square size while
        on; or a constant. With the constant all contributions are equal, so that no latent is weak and none starts
        anew.
        """
        return {
            "energy": parts.contribution,
            "frequency": parts.frequency,
            "normalised": jnp.sqrt(parts.contribution * parts.frequency),
            "fixed": jnp.ones_like(parts.contribution),
        }[self.order]

    def export(self, params: Params, memory: Memory) -> SAE:
        """The trained SAE, on inputs scaled as in training."""
        return self.sae(params)

    def reconstruct(
        self,
        params: Params,
        x: Float[Array, "batch d_in"],
        done: Float[Array, ""],
        form: Form,
        target_l0: Float[Array, ""] | float | None = None,
    ) -> Float[Array, "batch d_in"]:
        """The reconstruction from all latents as in training, by whose errors weak latents start anew."""
        return reconstruct(self.sae(params, done), x, self.activation, form)

    def form(self, n_latents: int, given: Form | None) -> Form:
        """The form of the loss, which follows from the number of latents unless it is given.

        Raises: ValueError if the method cannot be trained in that form.
        """
        return choose_form(n_latents) if given is None else given

    def moves_latents(self, form: Form) -> bool:
        """Returns whether a form needs latents in the order of their ranks, so that they are moved."""
        return needs_order(form, self.activation)

    def check(self, n_latents: int) -> None:
        """Raises: ValueError if the method cannot train this many latents."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_static(cls)


jax.tree_util.register_static(Method)  # a leafless pytree, so that a state can hold its method
