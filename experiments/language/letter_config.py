"""The options of first-letter absorption."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from experiments.common.cache import user_cache
from experiments.common.seeds import SeedConfig
from experiments.language.models import check_there, read_model
from toy.checks import POSITIVE, Real, Whole, check_distinct, check_fields, quoted
from toy.lm.first_letter import Task, make_task
from toy.lm.hub import is_hub_name
from toy.lm.model import LM, Site, parse_site
from toy.lm.tokens import Tokenizer
from toy.methods.named import named
from toy.sae import RELU


@dataclass(frozen=True)
class LetterConfig(SeedConfig):
    """Options of `first_letter`."""

    model: str = "smollm2"
    """A model with its tokenizer: smollm2 (an extra), a .gguf, or a folder."""
    sites: tuple[str, ...] = ("resid_pre.2", "resid_pre.10")
    """Where activations are read; only the layers before the last one are computed."""
    corpus: str | None = None
    """Real stories: a text file with a line <|endoftext|> after each, or hub:OWNER/NAME[/FILE]; default: none."""
    sampled: Path | None = None
    """A text file, likewise, of what the whole model has written before; default: it writes anew."""
    n_sampled: int = 1_024
    """The number of texts that it writes, of a row each, unless --sampled is given."""
    context: int = 256
    """Tokens per row."""
    n_words: int = 10_000
    """Number of words whose first letters are read; a fifth of them test the probes and the SAEs."""
    n_examples: int = 10
    """Number of example words, each with its letter, in front of every word."""
    min_f1: float = 0.6
    """Letters that the probe reads with a lower F1 are skipped."""
    n_latents: int = 4_096
    """Number of latents of every SAE."""
    target_l0: tuple[float, ...] = (20.0, 60.0)
    """L0 of the SAEs."""
    methods: tuple[str, ...] = ("vanilla", "batchtopk:k=l0,aux_k=256,dead_after=100", "matryoshka", "held_finish")
    """How they are trained: names of `toy.methods`, in which l0 stands for the L0."""
    n_steps: int = 1_000
    """Training steps of every SAE."""
    batch_size: int = 1_024
    """Tokens per step."""
    learning_rate: float = 3e-3
    """Adam's learning rate."""
    sparsity_coef: float = 3.0
    """Coefficient of the L1 penalty from which the controller of L0 starts."""
    control_rate: float = 1e-2
    """Relative change of that coefficient per step."""
    n_seeds: int = 2
    """Number of seeds of the SAEs: of initialisation and prefixes."""
    cache: Path = field(default_factory=lambda: user_cache("first_letter"))
    """Folder for what the stages make."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, **{name: Whole(1, 2**24) for name in ("n_latents", "n_steps", "batch_size")})
        check_fields(self, n_sampled=Whole(0), context=Whole(3, 2**16), n_words=Whole(), n_examples=Whole(0, 1_000))
        check_fields(self, target_l0=POSITIVE, learning_rate=POSITIVE, sparsity_coef=POSITIVE)
        check_fields(self, control_rate=Real(above=0, below=1), min_f1=Real(least=0, most=1))
        check_distinct(self, "sites", "target_l0", "methods")
        for method in (named(text, l0).method for text in self.methods for l0 in self.target_l0):
            if method.inference != RELU:
                raise ValueError(f"methods: {quoted(method)}: only SAEs that are used with ReLU can be compared")
        if self.corpus is None and self.sampled is None and not self.n_sampled:
            raise ValueError("corpus, sampled and n_sampled: there is no text; give one of them")
        self._check_files()

    def _check_files(self) -> None:
        check_there("model", self.model)
        for name in ("corpus", "sampled"):
            value = getattr(self, name)
            if value is not None and not is_hub_name(str(value)) and not Path(value).exists():
                raise ValueError(f"{name}: {quoted(str(value))} does not exist")

    @cached_property
    def given(self) -> tuple[LM, Tokenizer]:
        """The model and its tokenizer, read when they are first asked for. Raises: ValueError naming the file."""
        return read_model(self.model)

    @cached_property
    def task(self) -> Task:
        """The words and prompts. Raises: ValueError where the tokenizer has too few words."""
        return make_task(self.given[1], self.n_words, self.n_examples, self.seed)

    @cached_property
    def at(self) -> tuple[Site, ...]:
        """The sites. Raises: ValueError for one that the model does not have."""
        return tuple(parse_site(site, self.given[0].cfg.n_layers) for site in self.sites)
