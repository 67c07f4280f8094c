"""Weights of SAEs by other libraries, as the SAE of this project that computes the same."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from toy.checks import quoted
from toy.sae import SAE, Activation, MatchingPursuit, TopK, decoder_norms, fold_decoder_norm

Tensors = Mapping[str, np.ndarray]
LINEAR = ("encoder.weight", "decoder.weight")  # layers of PyTorch, [out in]
PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
GATED = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")
_RENAMED = dict(zip(LINEAR, ("W_enc", "W_dec"), strict=True)) | {
    "encoder.bias": "b_enc",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
    **dict.fromkeys(("bias", "decoder.bias", "decoder_bias"), "b_dec"),
}


def named(
    owner: Path, found: Tensors, expected: tuple[str, ...], ignored: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The expected tensors by the names and with the axes that they have here: W_enc [d_in n_latents].

    Raises: ValueError naming the file if one is missing, or if there are others that are not to be ignored.
    """
    if set(found) - {*ignored} != set(expected) - {*ignored}:
        raise ValueError(
            f"{owner}: expected tensors {', '.join(expected)}, got {quoted(', '.join(sorted(map(str, found))))}"
        )
    return {_RENAMED.get(name, name): found[name].T if name in LINEAR else found[name] for name in expected}


def as_float32(owner: Path, name: str, tensor: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """Convert to float32, via the type that the file names."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"{owner}: {name} has {tensor.dtype} values, expected floating-point numbers")
    with np.errstate(over="ignore"):  # infinite numbers are refused later
        return tensor.astype(tensor.dtype if dtype is None else dtype).astype(np.float32)


def sizes(owner: Path | str, tensors: Tensors) -> tuple[int, int]:
    """d_in and the number of latents. Raises: ValueError if W_enc is no matrix."""
    if tensors["W_enc"].ndim != 2:
        raise ValueError(f"{owner}: W_enc: expected (d_in, n_latents) of one SAE, got {tensors['W_enc'].shape}")
    return tensors["W_enc"].shape


def check_weights(owner: Path | str, tensors: Tensors, d_in: int, d_sae: int) -> None:
    """Raises: ValueError naming a tensor that has another shape, or numbers that are not finite."""
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "topk_threshold": ()}
    for name, tensor in tensors.items():
        expected = shapes.get(name, (d_sae,))
        if tensor.shape != expected:
            raise ValueError(
                f"{owner}: {name} has shape {tensor.shape}, expected {expected} by d_in = {d_in} and d_sae = {d_sae}"
            )
        if not np.isfinite(tensor).all():
            raise ValueError(f"{owner}: {name} has numbers that are not finite in float32: train or export it again")


def as_sae(tensors: Tensors, *, centred: bool) -> SAE:
    """The SAE with these tensors, which `check_weights` has passed.

    `centred` says that b_dec is subtracted from the input, which is folded into the biases. A gated SAE becomes the
    JumpReLU SAE that it equals (Rajamanoharan et al., arXiv 2404.16014).
    """
    tensors = dict(tensors)
    if centred:
        moved = tensors["b_dec"].astype(np.float64) @ tensors["W_enc"].astype(np.float64)
        for name, scale in _biases(tensors).items():
            tensors[name] = (tensors[name] - moved * scale).astype(np.float32)
    if "b_gate" in tensors:
        tensors = _from_gated(tensors)
    return SAE(**{name: jnp.asarray(tensor) for name, tensor in tensors.items()})


def _biases(tensors: Tensors) -> dict[str, np.ndarray | float]:
    """The biases of pre-activations by name, and what x W_enc is multiplied by before each is added."""
    return {"b_enc": 1.0} if "b_enc" in tensors else {"b_gate": 1.0, "b_mag": np.exp(tensors["r_mag"].astype(float))}


def _from_gated(tensors: Tensors) -> dict[str, np.ndarray]:
    """(x W_enc + b_gate > 0) · ReLU(exp(r_mag) · x W_enc + b_mag) as ReLU(…) above a threshold."""
    scale = np.exp(tensors["r_mag"].astype(float))
    return {
        "W_enc": (tensors["W_enc"] * scale).astype(np.float32),
        "b_enc": tensors["b_mag"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
        "threshold": (tensors["b_mag"] - scale * tensors["b_gate"]).astype(np.float32),
    }


def comparing_activations(sae: SAE, k: int) -> TopK:
    """TopK of activations, whatever their decoder norms: that of sizes if the norms are equal."""
    norms = np.asarray(decoder_norms(sae))
    return TopK(k, by_size=bool(np.allclose(norms, norms.mean(), rtol=1e-5, atol=0)))


def to_write(sae: SAE, activation: Activation) -> tuple[SAE, dict[str, np.ndarray]]:
    """The SAE with the activations that other libraries compare, alone or as steps of a pursuit, in float32.

    Raises: ValueError naming a tensor that is not finite or has a wrong shape.
    """
    if isinstance(activation, TopK | MatchingPursuit):
        by_size = isinstance(activation, MatchingPursuit) or activation.by_size
        sae = (fold_decoder_norm(sae) if by_size else sae)._replace(threshold=None)
    tensors = {name: np.asarray(leaf, np.float32) for name, leaf in sae._asdict().items() if leaf is not None}
    check_weights("sae", tensors, *sizes("sae", tensors))
    return sae, tensors


def as_layers(tensors: Tensors) -> dict[str, np.ndarray]:
    """The encoder as a layer of PyTorch that is given x − b_dec."""
    moved = tensors["b_dec"].astype(np.float64) @ tensors["W_enc"].astype(np.float64)
    return {"encoder.weight": tensors["W_enc"].T, "encoder.bias": (tensors["b_enc"] + moved).astype(np.float32)}
