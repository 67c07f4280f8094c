"""SAEs in the files of SAELens, sparsify, dictionary_learning, tiny_model and the reference code."""

from pathlib import Path
from typing import Any

from toy.checks import check_option, quoted
from toy.interop import saelens, sparsify, torch_saes
from toy.sae import RELU, SAE, Activation, BatchTopK, MatchingPursuit

_READERS = {
    saelens.WEIGHTS: saelens.read,
    sparsify.WEIGHTS: sparsify.read,
    torch_saes.AE: torch_saes.read_dictionary,
}
_WRITERS = {"saelens": saelens.write, "sparsify": sparsify.write, "dictionary_learning": torch_saes.write_dictionary}


def read_sae(path: Path) -> tuple[SAE, Activation]:
    """Returns the SAE of a folder or file in float32, and the activation with which it computes the same.

    The folder may be one of SAELens (`sae_weights.safetensors`), sparsify (`sae.safetensors`) or dictionary_learning
    (`ae.pt`). Any other file is a state dict of `torch.save`, by tiny_model or the reference code. What is subtracted
    from inputs and how activations are scaled is folded into the weights.

    Raises: ValueError naming the file, the key or tensor that cannot be read, and the remedy.
    """
    if path.name in (*_READERS, saelens.CFG, torch_saes.CONFIG) and not path.is_dir():
        path = path.parent
    if path.is_file():
        return torch_saes.read_state(path)
    found = [name for name in _READERS if (path / name).exists()]
    if len(found) != 1:
        names = " or ".join(_READERS)
        got = f"holds {' and '.join(found)}" if found else "no SAE is there"
        raise ValueError(f"{quoted(str(path))}: {got}, expected a folder with {names}, or a file of torch.save")
    return _READERS[found[0]](path)


def write_sae(
    folder: Path,
    sae: SAE,
    activation: Activation = RELU,
    *,
    to: str = "saelens",
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write an SAE as the folder that a library loads, with notes (`metadata`) in its configuration.

    `to` is "saelens", "dictionary_learning", or "sparsify" for SAEs without a threshold. `sae` must act on unscaled
    inputs, as those of `trained_sae` do. Decoder norms of a TopK SAE are folded into the encoder, since other libraries
    compare activations and not their sizes.

    Raises: ValueError naming a tensor that is not finite or has a wrong shape, before anything is written; OSError.
    """
    check_option("to", to, tuple(_WRITERS))
    if isinstance(activation, BatchTopK) and sae.threshold is None:
        raise ValueError("sae: a BatchTopK SAE is saved with its threshold; trained_sae gives it")
    if isinstance(activation, MatchingPursuit) and to != "saelens":
        raise ValueError(f"to: {to} has no matching pursuit: write it to saelens")
    _WRITERS[to](folder, sae, activation, metadata or {})
