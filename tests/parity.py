"""Compare this project with reference values: `python tests/parity.py FILE.npz [FILE.npz ...]`.

The keys of a file say its kind:

- loss: x, W_enc, b_enc, W_dec, b_dec, prefix_lengths, sparsity_type, sparsity_scale -> loss, grad_W_enc … grad_b_dec.
  Errors are relative, in float64 (gradients: largest error over largest entry); at most 1e-10.
- prefix inclusion: n_latents, n_prefixes, min_prefix_length, pareto_power, draws, inclusion_frequency (of lengths
  0 … n_latents). Errors are in standard errors, of the exact expectation and of this project's sampler; at most 4.
- tiny_model: tok_ids, the state dict of noanabeshima/tiny_model (embed.weight, pos_embed, torso.…, lm_head.…) ->
  out.logprobs, and any of out.resid_pre.0, out.attn_out.0, out.resid_mid.0, out.mlp_out.0, out.resid_post.0 … by
  layer. Errors are absolute, in float32; at most 1e-4. The number of heads is n_heads, or else the divisor of d_model
  with which the file agrees best.

Exit code 0: all agree; 1: some do not; 2: a file cannot be compared.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from toy.lm.model import LM, Site
from toy.lm.weights import tiny_model_from
from toy.loss import Form, sae_loss
from toy.prefixes import FixedPrefixes, draw, expected, fixed, inclusion, sampled
from toy.sae import SAE

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
Arrays = dict[str, Any]  # what a file holds, by key
Errors = dict[str, float]  # of each compared quantity


class Kind(NamedTuple):
    keys: frozenset[str]  # a file that has them all is of this kind
    errors: Callable[[Arrays], Errors]
    bound: float  # the largest error that is agreement


def prefixes_of(n_latents: int, lengths: list[int]) -> FixedPrefixes:
    """Those of a file with equal weights, the full one at no weight where the file has it not."""
    if not 0 < max(lengths, default=0) < n_latents:
        return fixed(n_latents, lengths)
    found = fixed(max(lengths), lengths)
    return FixedPrefixes(np.append(found.lengths, n_latents), np.append(found.weights, 0.0))


def loss_errors(data: Arrays) -> Errors:
    """Relative errors of loss and gradients, the weights of the prefixes being equal; the worst of all forms."""
    sae = SAE(**{name: jnp.asarray(data[name]) for name in PARAMETERS})
    n_latents, x, kind = data["W_enc"].shape[1], jnp.asarray(data["x"]), str(data["sparsity_type"])
    prefixes = jax.tree.map(jnp.asarray, prefixes_of(n_latents, data["prefix_lengths"].tolist()))
    errors: Errors = {}
    for form in get_args(Form):
        of_sae = partial(sae_loss, sparsity=kind, form=form)  # type: ignore[arg-type]
        (loss, _), grads = jax.value_and_grad(of_sae, has_aux=True)(
            sae, x, prefixes, jnp.arange(n_latents), float(data["sparsity_scale"])
        )
        pairs = {"loss": loss} | {f"grad_{name}": getattr(grads, name) for name in PARAMETERS}
        for name, ours in pairs.items():
            errors[name] = np.maximum(errors.get(name, 0.0), _relative_error(np.asarray(ours), data[name]))
    return errors


def _relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"an array of shape {theirs.shape} should have shape {ours.shape}")
    error, size = np.abs(ours - theirs).max(), np.abs(theirs).max()
    return float(error / size) if size > 0 else float(error)


def inclusion_errors(data: Arrays) -> Errors:
    """Distance of the frequencies to the exact expectation and to our own draws, the largest over lengths."""
    n_latents, n_prefixes, n_draws = (int(data[key]) for key in ("n_latents", "n_prefixes", "draws"))
    if int(data["min_prefix_length"]) != 1:
        raise ValueError(f"min_prefix_length is {int(data['min_prefix_length'])}; prefixes here start at length 1")
    if data["inclusion_frequency"].shape != (n_latents + 1,):
        raise ValueError(f"inclusion_frequency should have {n_latents + 1} entries, for lengths 0 to {n_latents}")
    never, theirs = data["inclusion_frequency"][0], data["inclusion_frequency"][1:]
    args = n_latents, n_prefixes, float(data["pareto_power"])
    exact = np.asarray(expected(*args).weights) * min(n_prefixes, n_latents)

    n_own = min(n_draws, max(1_000, 10**9 // n_latents))
    weighting = jax.tree.map(jnp.asarray, sampled(*args))
    steps = jnp.arange(n_latents)  # inclusion falls after rank k − 1 where length k is among the prefixes

    @jax.jit
    def count(keys: jax.Array) -> jax.Array:
        s = jax.vmap(lambda key: inclusion(draw(key, weighting), steps))(keys)
        return (jnp.diff(s, append=0) < -1e-9).sum(axis=0)

    chunks = np.array_split(jax.random.split(jax.random.key(0), n_own), -(-n_own * n_latents // 10**7))
    ours = sum(np.asarray(count(keys)) for keys in chunks) / n_own

    variance = np.clip(exact * (1 - exact), 0, None)
    return {
        "length 0": 0.0 if never == 0 else float("inf"),
        "expectation": _standard_errors(theirs - exact, variance / n_draws),
        "draws": _standard_errors(theirs - ours, variance / n_draws + variance / n_own),
    }


def _standard_errors(difference: np.ndarray, variance: np.ndarray) -> float:
    return float(np.max(np.abs(difference) / np.sqrt(variance + 1e-18)))  # a sure length differs by rounding alone


def tiny_model_errors(data: Arrays) -> Errors:
    """The largest absolute error of a location over all layers, and of the log-probabilities."""
    outputs = {key.removeprefix("out."): value for key, value in data.items() if key.startswith("out.")}
    state = {key: value for key, value in data.items() if key not in {"tok_ids", "n_heads"} and key[:4] != "out."}
    tok_ids, embed = data["tok_ids"], data["embed.weight"]
    if embed.ndim != 2 or 0 in embed.shape:
        raise ValueError(f"embed.weight should have shape (vocabulary, d_model), and has {embed.shape}")
    if tok_ids.ndim != 2 or not tok_ids.size or not np.issubdtype(tok_ids.dtype, np.integer):
        raise ValueError(f"tok_ids should be whole numbers (rows, positions), and are {tok_ids.dtype} {tok_ids.shape}")
    if not 0 <= tok_ids.min() <= tok_ids.max() < len(embed):
        raise ValueError(f"tok_ids are {tok_ids.min()} to {tok_ids.max()}, of a vocabulary of {len(embed)}")
    if "n_heads" in data and (data["n_heads"].size != 1 or not np.issubdtype(data["n_heads"].dtype, np.integer)):
        raise ValueError("n_heads should be one whole number")
    d_model = embed.shape[1]
    given = (
        [int(data["n_heads"].item())] if "n_heads" in data else [n for n in range(1, d_model + 1) if d_model % n == 0]
    )
    tries = [_lm_errors(tiny_model_from(state, n_heads), tok_ids, outputs) for n_heads in given]
    return min(tries, key=lambda errors: max(errors.values()))


def _lm_errors(lm: LM, tok_ids: np.ndarray, outputs: Arrays) -> Errors:
    tokens, n_layers, found = jnp.asarray(tok_ids), lm.cfg.n_layers, {}

    def note(site: Site, acts: jax.Array) -> jax.Array:
        found[str(site)] = acts
        return acts

    with jax.default_matmul_precision("float32"):
        found["logprobs"] = jax.nn.log_softmax(lm(tokens, note))
        posts = {f"resid_post.{i}": i + 1 for i in range(n_layers)}
        found |= {name: lm.resid_at(tokens, layer) for name, layer in posts.items() if name in outputs}
    if unknown := outputs.keys() - found.keys():
        raise ValueError(f"no location of a model of {n_layers} layers: {', '.join(sorted(unknown))}")
    errors: Errors = {}
    for name, theirs in outputs.items():
        ours, location = np.asarray(found[name]), name.split(".")[0]
        if ours.shape != theirs.shape:
            raise ValueError(f"out.{name}, of shape {theirs.shape}, should have shape {ours.shape}")
        errors[location] = np.maximum(errors.get(location, 0.0), np.abs(ours - theirs).max())
    return errors


LOSS_KEYS = {"x", "prefix_lengths", "sparsity_type", "sparsity_scale", "loss"}
SAE_KEYS = {prefix + name for name in PARAMETERS for prefix in ("", "grad_")}
INCLUSION_KEYS = {"n_latents", "n_prefixes", "min_prefix_length", "pareto_power", "draws", "inclusion_frequency"}
LM_KEYS = {"tok_ids", "embed.weight", "pos_embed", "lm_head.weight", "lm_head.bias", "out.logprobs"}
KINDS = {
    "loss": Kind(frozenset(LOSS_KEYS | SAE_KEYS), loss_errors, 1e-10),
    "prefix inclusion": Kind(frozenset(INCLUSION_KEYS), inclusion_errors, 4.0),
    "tiny_model": Kind(frozenset(LM_KEYS), tiny_model_errors, 1e-4),
}


def compare(path: Path) -> bool:
    """Print the errors of one file; whether all are within the bound of its kind."""
    try:
        with np.load(path) as file:
            data = dict(file)
    except (OSError, ValueError, BadZipFile, EOFError, TypeError) as error:
        raise ValueError(getattr(error, "strerror", None) or "not an .npz file") from None
    name, kind = next(((name, kind) for name, kind in KINDS.items() if kind.keys <= data.keys()), (None, None))
    if kind is None:
        raise ValueError(f"none of the kinds {', '.join(KINDS)} has just the keys {', '.join(sorted(data))}")
    with jax.enable_x64(True):
        errors = kind.errors(data)
    ok = all(error <= kind.bound for error in errors.values())  # False for NaN
    listed = "  ".join(f"{quantity} {error:.2g}" for quantity, error in errors.items())
    print(f"{path}: {name}: {listed}  (at most {kind.bound:g}): {'ok' if ok else 'DIFFERS'}")
    return ok


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    code = 0
    for path in parser.parse_args(arguments).files:
        try:
            code = max(code, 0 if compare(path) else 1)
        except (ValueError, TypeError) as error:  # TypeError: shapes that do not fit
            print(f"{path}: error: {str(error).splitlines()[0]}", file=sys.stderr)
            code = 2
    return code


if __name__ == "__main__":
    sys.exit(main())
