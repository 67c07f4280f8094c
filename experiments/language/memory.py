"""The least memory that the options of the TinyStories chain need, estimated before anything is allocated."""

from experiments.common.memory import check_fits
from experiments.language.config import BUILT_IN, D_HEAD, LanguageConfig

FLOAT = 4  # bytes
COPIES = 4  # in training: parameters, gradients, and Adam's two moments
ROWS = 32  # of a language model's batch
STORY = 1_000  # bytes: its text and ids


def least_bytes(cfg: LanguageConfig) -> dict[str, int]:
    """Bytes, by the options that decide them. A given model is left out, as nothing is known of it yet."""
    sizes = cfg.sizes
    n_seeds = 1 if cfg.own_models else cfg.n_seeds
    width = sizes.d_model if cfg.model is None else 1
    found = {"n_stories": STORY * (sizes.n_stories or 0) if cfg.corpus == BUILT_IN else 0}
    for name, n_latents, n_lanes in (
        ("n_latents", cfg.n_latents, n_seeds * len(sizes.target_l0)),
        ("reference_widths", max(cfg.reference_widths), n_seeds),
    ):
        parameters = COPIES * n_lanes * 2 * n_latents * width
        found[f"{name}, d_model, batch_size and n_seeds"] = FLOAT * (parameters + cfg.batch_size * n_latents)
    if cfg.model is None:
        n, v, d = sizes.context, sizes.vocab_size, sizes.d_model
        parameters = COPIES * (2 * v * d + n * d + 12 * sizes.n_layers * d * d)
        activations = ROWS * n * (v + max(1, d // D_HEAD) * n)  # logits, and the attention of one layer
        found["context, vocab_size, n_layers and d_model"] = FLOAT * (parameters + activations)
    return found


def check_memory(cfg: LanguageConfig) -> None:
    """Raises: ValueError naming the options that need more memory than this machine has."""
    check_fits(least_bytes(cfg))
