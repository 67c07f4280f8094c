"""The file of the library that touches the disk: trees, SAEs, records, arrays. Writes are whole or not at all.

Activations, which are too many for this, have `toy.store` and `toy.matrix`.
"""

import contextlib
import errno
import glob
import hashlib
import json
import operator
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from toy.checks import quoted
from toy.json_nodes import parse_json
from toy.node import Node, TreeError
from toy.sae import RELU, SAE, Activation, BatchTopK, TopK, decoder_norms, fold_decoder_norm
from toy.saelens_model import synthetic_model
from toy.tree_json import name_notes, parse_with_notes, tree_to_dict

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_SAE_LENS_VERSION = "6.54.12"  # the version whose format `save_sae` writes
_MOST_TREE_BYTES = 32 * 2**20
_DTYPES = {  # by the names of safetensors, whose own reader for numpy knows no bfloat16
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype(bool),
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that takes its name when the block ends well, and is removed when not.

    Raises: OSError naming `path`.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the system, such as a disk that is full, with the file's name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def prepare(path: Path) -> None:
    """Before work that ends with writing `path`: see that it can be, and remove what a write that was killed left.

    Raises: OSError naming the file.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder, made if there is none, against other processes that do so; one that is killed holds nothing.

    Raises: BlockingIOError, unless it is to `wait`. Where the system has no such locks (Windows), nothing is held.
    """
    with _naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with _naming(folder):
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_tree(path: Path) -> Node:
    """A tree from a file or folder that `read_tree` reads. Raises: `TreeError` naming the file."""
    return read_tree(path)[0]


def read_tree(path: Path) -> tuple[Node, tuple[str, ...]]:
    """A tree, and what its reader should know of how it was read, one line each.

    From a JSON file or pipe (read once) in any dialect of `toy.tree_json`, or from the folder of a synthetic model that
    SAELens saved (`toy.saelens_model`). Raises: `TreeError` naming the file.
    """
    try:
        return _read_model(path) if path.is_dir() else parse_with_notes(_read_text(path))
    except TreeError as error:
        raise TreeError(f"{path}: {error}") from None
    except OSError as error:
        raise TreeError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # a path with a NUL; arrays that are broken, whose error names their file
        raise TreeError(f"{path}: cannot be read: {quoted(str(error))}") from None


def _read_text(path: Path) -> str:
    with open(path, "rb") as file:
        too_large = os.fstat(file.fileno()).st_size > _MOST_TREE_BYTES
        content = b"" if too_large else file.read(_MOST_TREE_BYTES + 1)  # the size of a pipe is not known
    if too_large or len(content) > _MOST_TREE_BYTES:
        raise TreeError(f"holds more than {_MOST_TREE_BYTES:,} bytes, far more than a tree")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TreeError("not JSON: not UTF-8 text") from None


def _read_model(folder: Path) -> tuple[Node, tuple[str, ...]]:
    files = {name: folder / f"{name}.json" for name in ("synthetic_model_config", "hierarchy")}
    if not files["synthetic_model_config"].exists():
        raise TreeError("Is a directory, and not of a SAELens model: it has no synthetic_model_config.json")
    data = {}
    for name, file in files.items():
        try:
            data[name] = parse_json(_read_text(file)) if file.exists() else None
        except TreeError as error:
            raise TreeError(f"{file.name}: {error}") from None
    arrays, _ = map_arrays(folder / "synthetic_model.safetensors")
    root, notes = synthetic_model(data["synthetic_model_config"], data["hierarchy"], arrays)
    return root, (*notes, *name_notes(root))


def save_tree(path: Path, root: Node) -> None:
    """Write a tree as JSON (`tree_to_dict`), with all digits of its numbers."""
    save_json(path, tree_to_dict(root), digits=None)


def save_json(path: Path, data: Any, *, digits: int | None = 6) -> None:
    """Write JSON (`plain` says what becomes of numpy values and NaN), a list of numbers to a line."""
    text = json.dumps(plain(data, digits), indent=1, allow_nan=False)
    with writing(path) as file:
        file.write((_one_line_lists(text) + "\n").encode())


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def plain(value: Any, digits: int | None = 6) -> Any:
    """As JSON knows it: numpy values as numbers and lists, floats to so many significant digits, NaN as None."""
    if isinstance(value, dict):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        if not np.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    if isinstance(value, Path):
        return str(value)
    return value


def _one_line_lists(text: str) -> str:
    """Put every list of plain numbers on one line: a record is read by people too."""
    lines: list[str] = []
    inside: list[str] | None = None
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.endswith("["):
            if inside is not None:
                lines += inside
            inside = [line]
        elif inside is not None and stripped.rstrip(",") == "]":
            lines.append(inside[0] + " ".join(item.strip() for item in inside[1:]) + stripped)
            inside = None
        elif inside is not None and not stripped.endswith(("{", "}", "},")):
            inside.append(line)
        else:
            lines += [*(inside or []), line]
            inside = None
    return "\n".join(lines)


def save_sae(folder: Path, sae: SAE, activation: Activation = RELU, *, metadata: dict[str, Any] | None = None) -> None:
    """Write an SAE as the folder SAELens loads: `sae_weights.safetensors` and `cfg.json`.

    As `standard`, as `topk` with `activation` TopK, or as `jumprelu` where the SAE has a threshold (BatchTopK). `sae`
    acts on unscaled inputs (`trained_sae` gives such). The order of its latents is kept. A TopK SAE is written with
    decoder norms folded into the encoder, since SAELens compares activations and not their sizes.
    """
    if isinstance(activation, BatchTopK) and sae.threshold is None:
        raise ValueError("sae: a BatchTopK SAE is saved with its threshold; trained_sae gives it")
    if isinstance(activation, TopK):
        sae = fold_decoder_norm(sae)
    # safetensors writes wrong values for arrays that are not C-contiguous.
    tensors = {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in sae._asdict().items() if leaf is not None}
    d_in, n_latents = tensors["W_enc"].shape
    cfg: dict[str, Any] = {
        "architecture": "standard" if sae.threshold is None else "jumprelu",
        "d_in": d_in,
        "d_sae": n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": _SAE_LENS_VERSION, **(metadata or {})},
    }
    if isinstance(activation, TopK):
        cfg |= {"architecture": "topk", "k": activation.k, "rescale_acts_by_decoder_norm": False}
    with writing(folder / "sae_weights.safetensors") as file:
        file.write(save(tensors))
    save_json(folder / "cfg.json", cfg)


def load_sae(folder: Path) -> tuple[SAE, Activation]:
    """Read what `save_sae` wrote. Raises: ValueError naming the file and what is wrong with it."""
    path = folder / "sae_weights.safetensors"
    try:
        cfg, tensors = load_json(folder / "cfg.json"), load_file(path)
    except (OSError, SafetensorError, ValueError) as error:  # ValueError: no text, or no JSON
        raise ValueError(f"{folder}: cannot be read as an SAE: {error}") from None
    if not isinstance(cfg, dict):
        raise ValueError(f"{folder / 'cfg.json'}: expected an object")
    architecture = cfg.get("architecture")
    if architecture not in ("standard", "jumprelu", "topk") or cfg.get("apply_b_dec_to_input", True):
        raise ValueError(
            f"{folder / 'cfg.json'}: only architectures 'standard', 'jumprelu' and 'topk' without "
            "apply_b_dec_to_input are read"
        )
    names = SAE._fields if architecture == "jumprelu" else SAE._fields[:-1]
    if set(tensors) != set(names):
        raise ValueError(f"{path}: expected tensors {', '.join(names)}, got {', '.join(sorted(tensors))}")
    sae = SAE(**{name: jnp.asarray(tensor) for name, tensor in tensors.items()})
    if architecture != "topk":
        return sae, RELU
    by_size = cfg.get("rescale_acts_by_decoder_norm") or np.allclose(decoder_norms(sae), 1, atol=1e-3)
    if not isinstance(cfg.get("k"), int) or not by_size:
        raise ValueError(
            f"{folder / 'cfg.json'}: 'topk' is read with an integer k, and with unit decoder norms unless "
            "rescale_acts_by_decoder_norm is true"
        )
    return sae, TopK(cfg["k"])


def save_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    """Write arrays as one safetensors file; gives the file's SHA-256."""
    # safetensors writes wrong values for arrays that are not C-contiguous; ascontiguousarray makes scalars vectors.
    content = save({name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata)
    with writing(path) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file, in memory, and its metadata. Raises: ValueError naming the file."""
    arrays, metadata = map_arrays(path)
    return {name: np.array(array) for name, array in arrays.items()}, metadata


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """As `load_arrays`, but as views into a map of the file: what is not looked at is not read."""
    try:
        content = np.memmap(path, np.uint8, "r").view(np.ndarray)
        size = int.from_bytes(content[:8].tobytes(), "little")
        header, data = json.loads(content[8 : 8 + size].tobytes()), content[8 + size :]
        metadata = header.pop("__metadata__", {})
        arrays = {name: _view(data, **entry) for name, entry in header.items()}
        n_bytes = sum(array.nbytes for array in arrays.values())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: broken, or no safetensors file: {error!r}") from None
    if n_bytes != data.nbytes:
        raise ValueError(f"{path}: broken: holds {data.nbytes} bytes of arrays, expected {n_bytes}")
    return arrays, metadata


def _view(data: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    first, end = data_offsets
    return data[first:end].view(_DTYPES[dtype]).reshape([operator.index(n) for n in shape])
