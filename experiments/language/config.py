"""The options of the TinyStories chain, from text to SAEs."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from experiments.common.cache import user_cache
from experiments.common.seeds import SeedConfig
from experiments.language.models import check_there
from toy.checks import POSITIVE, Real, Whole, check_distinct, check_fields, quoted
from toy.lm.corpus import CONCEPTS
from toy.lm.model import LOCATIONS
from toy.lm.text import clean
from toy.lm.tokens import VOCAB_SIZE
from toy.loss import Sparsity
from toy.methods.method import Method
from toy.methods.named import named
from toy.sae import RELU

BUILT_IN = "built-in"
D_HEAD = 32  # of the models that are trained
SPARSITY_COEF = {"log": 0.3, "l1": 3.0}
_STEPS, _WIDTH = Whole(1, 10**8), Whole(1, 2**20)
NUMBERS: dict[str, Whole | Real] = {  # what the options may be
    "n_stories": Whole(2, 10**8),
    "sampled_stories": Whole(1, 10**8),
    "context": Whole(3, 2**16),
    "vocab_size": VOCAB_SIZE,
    "n_layers": Whole(1, 1_000),
    "d_model": _WIDTH,
    "n_heads": _WIDTH,
    "lm_steps": _STEPS,
    "n_steps": _STEPS,
    "reference_widths": Whole(4, 2**20),
    "n_latents": _WIDTH,
    "n_prefixes": _WIDTH,
    "batch_size": _WIDTH,
    "target_l0": POSITIVE,
    "learning_rate": POSITIVE,
    "tuning_steps": _STEPS,
    "sparsity_coef": POSITIVE,
    "control_rate": Real(above=0, below=1),
    "n_seeds": Whole(1, 10_000),
}


class Sizes(NamedTuple):
    """Sizes of the text, of the language model that is trained, and of the SAEs' training."""

    n_stories: int | None  # None: all
    context: int
    vocab_size: int
    n_layers: int
    d_model: int
    lm_steps: int
    target_l0: tuple[float, ...]
    n_steps: int


OF_BUILT_IN = Sizes(12_000, 112, 640, n_layers=2, d_model=64, lm_steps=500, target_l0=(2.0, 4.0, 8.0), n_steps=2_000)
OF_OTHERS = Sizes(None, 192, 2_048, n_layers=4, d_model=128, lm_steps=400, target_l0=(4.0, 8.0, 16.0), n_steps=1_000)


@dataclass(frozen=True)
class LanguageConfig(SeedConfig):
    """Options from text to SAEs."""

    corpus: str = BUILT_IN
    """Stories: built-in, a text file with a line <|endoftext|> after each, or hub:OWNER/NAME[/FILE] (a dataset)."""
    model: str | None = None
    """A trained model: .pt of tiny_model, .bin of llama2.c, .gguf, a folder or hub:OWNER/NAME; default: train one."""
    tokenizer: Path | None = None
    """Tokenizer: a folder with tokenizer.json (and tiny_model's id tables) or llama2.c's .bin; default: the model's."""
    n_heads: int | None = None
    """Attention heads, where a .pt file does not tell."""
    n_stories: int | None = None
    """Stories taken; default: 12,000 of the built-in corpus, all of another."""
    sampled_stories: int | None = None
    """Number of stories that the model generates to train the SAEs on; the whole corpus is then held out."""
    context: int | None = None
    """Tokens per row; default: 112 for the built-in corpus, else 192."""
    vocab_size: int | None = None
    """Ids of the tokenizer that is trained; default: 640 for the built-in corpus, else 2,048."""
    n_layers: int | None = None
    """Layers of the model that is trained; default: 2 for the built-in corpus, else 4."""
    d_model: int | None = None
    """The width of the model, 32 per head; default: 64 for the built-in corpus, else 128."""
    lm_steps: int | None = None
    """Training steps of the model, of 32 rows; default: 500 for the built-in corpus, else 400."""
    locations: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out")
    """Locations whose activations SAEs are trained on; resid_mid is another."""
    layers: tuple[int, ...] | None = None
    """Layers whose activations SAEs are trained on, the one to tune on first; default: all."""
    stream: bool = False
    """Train SAEs straight from the model's forward pass; otherwise activations are stored first, and read again and
    again."""
    trained: Path | None = None
    """Take the SAEs from this cache, of another machine perhaps, instead of training them. They must be of the same
    options; code and libraries may be others, and are recorded."""
    reference_widths: tuple[int, ...] = (20, 60, 200)
    """Numbers of latents of the reference SAEs, which are vanilla."""
    n_latents: int = 500
    """Number of latents of the large SAEs."""
    target_l0: tuple[float, ...] | None = None
    """L0 of the large SAEs; reference SAEs have the middle one, at most a quarter of their latents. Default: 2, 4 and 8
    for the built-in corpus, else 4, 8 and 16."""
    n_prefixes: int = 10
    """Prefixes per batch of the Matryoshka SAEs, the full one included."""
    n_steps: int | None = None
    """Training steps of every SAE; default: 2,000 for the built-in corpus, else 1,000."""
    batch_size: int = 512
    """Tokens per step."""
    learning_rate: tuple[float, ...] = (1e-2,)
    """Adam's, of the SAEs. If several are given, each kind of large SAE takes the one that has the lowest FVU after
    --tuning-steps, at the middle L0 and the first site, on stories for training; reference SAEs take vanilla's."""
    tuning_steps: int = 1_000
    """Training steps for each learning rate, where several are given."""
    methods: tuple[str, ...] = ()
    """Further methods of the large SAEs, such as held_finish, batchtopk or my_file.py:NAME, at the same L0s."""
    sparsity: Sparsity = "l1"
    """Penalty of vanilla and Matryoshka SAEs: L1, or the post's logarithm."""
    sparsity_coef: float | None = None
    """Sparsity coefficient from which the controller of L0 starts; default: 3 for L1, 0.3 for the logarithm."""
    control_rate: float = 1e-2
    """Relative change of that coefficient per step; runs are shorter than the toy's, so it is quicker."""
    concepts: tuple[str, ...] = ()
    """Concepts whose absorption is measured, as NAME=word,word,...; default: the tree of the built-in corpus."""
    n_seeds: int = 3
    """Number of seeds of the SAEs: of initialisation, prefixes and order of the rows."""
    own_models: bool | None = None
    """Every seed has a language model of its own, and a built-in corpus of its own, too; else the first seed's serve
    all, with one order of the rows. Default: for the built-in corpus."""
    cache: Path = field(default_factory=user_cache)
    """Folder for what the stages make."""

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = OF_BUILT_IN if self.corpus == BUILT_IN else OF_OTHERS
        for name, default in defaults._asdict().items():  # filled in, so that a record says what was run
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.sparsity not in SPARSITY_COEF:
            raise ValueError(f"sparsity: expected {' or '.join(SPARSITY_COEF)}, got {quoted(self.sparsity)}")
        if self.sparsity_coef is None:
            object.__setattr__(self, "sparsity_coef", SPARSITY_COEF[self.sparsity])
        check_fields(self, **NUMBERS)
        self._check_lists()
        self._check_methods()
        if self.model is None and self.sizes.d_model % max(1, self.sizes.d_model // D_HEAD):
            raise ValueError(f"d_model: must be a multiple of {D_HEAD}, a head's width, got {self.sizes.d_model}")
        parse_concepts(self.concepts)
        if self.model is not None:
            check_there("model", self.model)
        if self.own_models is None:
            object.__setattr__(self, "own_models", self.corpus == BUILT_IN and self.model is None)
        if self.own_models and self.model is not None:
            raise ValueError("own_models: there is one model, that of --model")
        for name in ("tokenizer", "n_heads", "sampled_stories", "trained"):
            if getattr(self, name) is not None and self.model is None:
                raise ValueError(f"{name}: applies to a given model only; add --model")

    def _check_lists(self) -> None:
        check_distinct(self, "locations", "reference_widths", "target_l0", "learning_rate")
        if self.layers is not None:
            check_distinct(self, "layers")
        if self.methods:
            check_distinct(self, "methods")
        if unknown := set(self.locations) - set(LOCATIONS):
            raise ValueError(f"locations: expected {', '.join(LOCATIONS)}, got {quoted(', '.join(sorted(unknown)))}")
        if (highest := max(self.sizes.target_l0)) > self.n_latents:
            raise ValueError(f"target_l0: must be at most n_latents = {self.n_latents}, got {highest:g}")

    def _check_methods(self) -> None:
        for text in self.methods:
            method = named(text).method
            if not method.aims_at_l0 or method.inference != RELU:
                raise ValueError(f"methods: {quoted(text)}: the figures compare SAEs that are trained to a target L0")

    def coef_of(self, method: Method) -> float:
        """The sparsity coefficient from which the controller starts."""
        sparsity = getattr(method, "sparsity", self.sparsity)
        assert self.sparsity_coef is not None
        return self.sparsity_coef if sparsity == self.sparsity else SPARSITY_COEF[sparsity]

    @property
    def kinds(self) -> dict[str, str]:
        """The methods of the large SAEs, by the name of the kind."""
        matryoshka = f"matryoshka:sparsity={self.sparsity},weighting=sampled_{self.n_prefixes}"
        return {"vanilla": self.vanilla, "matryoshka": matryoshka} | {text: text for text in self.methods}

    @property
    def vanilla(self) -> str:
        return f"vanilla:sparsity={self.sparsity}"

    @property
    def of_models(self) -> list["LanguageConfig"]:
        """A configuration for each language model: one per seed, or the one of all seeds."""
        return [replace(self, seed=seed, n_seeds=1) for seed in self.seeds] if self.own_models else [self]

    @property
    def sizes(self) -> Sizes:
        """The sizes that are given, and the corpus's defaults for the others."""
        return Sizes(*(getattr(self, name) for name in Sizes._fields))

    @property
    def concept_words(self) -> dict[str, tuple[str, ...]]:
        """The words of each concept, broader concepts first."""
        if not self.concepts:
            return {concept.name: concept.all_words() for root in CONCEPTS for concept in root.walk()}
        return parse_concepts(self.concepts)

    @property
    def reference_l0(self) -> float:
        return sorted(self.sizes.target_l0)[len(self.sizes.target_l0) // 2]


def parse_concepts(texts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Words by concept, cleaned as the text is. Raises: ValueError."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, listed = (part.strip() for part in text.partition("="))
        if not name or not name.isprintable():
            raise ValueError(f"concepts: expected NAME=word,word,..., got {quoted(text)!r}")
        words = tuple(dict.fromkeys(_cleaned(name, word.strip()) for word in listed.split(",")))  # each once
        if len(words) < 2:
            raise ValueError(f"concepts: expected NAME=word,word,... with two words at least, got {quoted(text)!r}")
        if name in found:
            raise ValueError(f"concepts: {quoted(name)} is given twice")
        found[name] = words
    return found


def _cleaned(name: str, word: str) -> str:
    """A word as `clean` makes it in the stories. Raises: ValueError if it cannot be a word there."""
    letters = normalize("NFC", word)
    cleaned = clean(letters).lower() if letters.isalpha() else ""
    if not (cleaned.isascii() and cleaned.isalpha()):
        raise ValueError(f"concepts: {quoted(name)}: a word is of letters alone, got {quoted(word)!r}")
    return cleaned
