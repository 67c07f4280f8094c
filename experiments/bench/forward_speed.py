"""How fast is training straight from a language model? Tokens per second of the forward pass, of training, of both.

Claim: on two cores, with a model of the shape of stories260K (5 layers, d_model 64, contexts of 512 tokens), a
Matryoshka SAE of 4,096 latents with 10 sampled prefixes learns from more than 15,000 tokens per second before the
last layer, in batches of 512 to 2,048 tokens, the forward pass included, which another thread computes meanwhile.
Command: python -m experiments.bench.forward_speed; about 4 minutes on two cores.
Needs: a machine with nothing else to do.
In the post: nothing.
"""

from dataclasses import asdict, dataclass
from typing import Any

from experiments.bench.report import caption, plot, summary
from experiments.bench.timing import MOST_ROUNDS, Job, Table
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from toy.checks import POSITIVE, Whole, check_fields
from toy.lm.model import LMConfig, parse_site
from toy.training.config import TrainConfig, check_memory
from toy.training.loop import Progress

STORIES260K = LMConfig(
    family="llama", vocab_size=512, context=512, n_layers=5, d_model=64, n_heads=8, n_kv_heads=4, d_mlp=172
)


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    site: str = "resid_pre.4"
    """The site; only the layers up to it are computed."""
    n_latents: int = 4_096
    """Number of latents."""
    n_prefixes: int = 10
    """Prefixes per batch, the full one included."""
    target_l0: float = 16.0
    """Target L0 of the training."""
    batch_sizes: tuple[int, ...] = (512, 1_024, 2_048)
    """Tokens per step."""
    n_tokens: int = 131_072
    """Tokens of a call."""
    n_rounds: int = 5
    """Rounds, in each of which every case has its turn."""

    def __post_init__(self) -> None:
        check_fields(self, n_latents=Whole(), n_prefixes=Whole(), batch_sizes=Whole(), target_l0=POSITIVE)
        check_fields(self, n_rounds=Whole(most=MOST_ROUNDS), n_tokens=Whole(max(self.batch_sizes, default=1), 2**20))

    @property
    def seeds(self) -> list[int]:
        return [0]


def check(cfg: Config) -> None:
    """Raises: ValueError if there is no such site, or the work needs more memory than there is."""
    parse_site(cfg.site, STORIES260K.n_layers)
    for batch_size in cfg.batch_sizes:
        check_memory(STORIES260K.d_model, TrainConfig(cfg.n_latents, batch_size=batch_size))


def n_steps(cfg: Config) -> int:
    return cfg.n_rounds


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    title = f"{cfg.site}, {cfg.n_latents:,} latents"
    table = Table(title, "tokens per second", (Job("forward.cases", asdict(cfg)),), per_second=True)
    return {"tables": [table.measure(cfg.n_rounds, progress)], "not_measured": []}


EXPERIMENT = Experiment("forward_speed", Config, run, summary, plot, check, n_steps, caption, folder="bench.")

if __name__ == "__main__":
    main(EXPERIMENT)
