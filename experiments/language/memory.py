"""The least memory that the options of the TinyStories chain need, estimated before anything is allocated."""

from experiments.common.memory import FLOAT, check_fits
from experiments.language.config import BUILT_IN, D_HEAD, LanguageConfig

COPIES = 4  # in training: parameters, gradients, and Adam's two moments
ROWS = 32  # of a language model's batch
STORY = 1_000  # bytes: its text and ids


def check_memory(cfg: LanguageConfig) -> None:
    """Raises: ValueError naming the options that need more memory than this machine has.

    A given model is left out, as nothing is known of it yet.
    """
    n, v, d, n_layers = cfg.sizes.context, cfg.sizes.vocab_size, cfg.sizes.d_model, cfg.sizes.n_layers
    n_seeds, width = 1 if cfg.own_models else cfg.n_seeds, d if cfg.model is None else 1
    lanes = {"n_latents": n_seeds * len(cfg.sizes.target_l0), "reference_widths": n_seeds}
    least = {"n_stories": STORY * (cfg.sizes.n_stories or 0) if cfg.corpus == BUILT_IN else 0}
    for name, n_latents in {"n_latents": cfg.n_latents, "reference_widths": max(cfg.reference_widths)}.items():
        parameters = COPIES * lanes[name] * 2 * n_latents * width
        least[f"{name}, d_model, batch_size and n_seeds"] = FLOAT * (parameters + cfg.batch_size * n_latents)
    if cfg.model is None:
        parameters = COPIES * (2 * v * d + n * d + 12 * n_layers * d * d)
        activations = ROWS * n * (v + max(1, d // D_HEAD) * n)  # logits, and the attention of one layer
        least["context, vocab_size, n_layers and d_model"] = FLOAT * (parameters + activations)
    check_fits(least)
