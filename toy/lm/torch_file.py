"""Files of `torch.save`, read without PyTorch and without running anything that stands in them."""

import pickle
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import ml_dtypes
import numpy as np

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class _Storage(NamedTuple):
    values: np.ndarray  # one axis


def read_torch_file(path: Path | str) -> dict[str, np.ndarray] | np.ndarray:
    """The tensor, or the tensors by name, of a file. Arrays are read-only and have the file's strides.

    Raises: ValueError naming the file and what is wrong with it; nothing that a file names is called or imported.
    """
    try:
        with ZipFile(path) as archive:
            return _tensors(archive)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except BadZipFile as error:
        raise ValueError(f"{path}: not a whole zip file of torch.save: {error}") from None
    except Exception as error:  # a broken pickle fails in any way
        raise ValueError(f"{path}: cannot be read as tensors: {error or type(error).__name__}") from None


def _tensors(archive: ZipFile) -> dict[str, np.ndarray] | np.ndarray:
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("a zip file, but not one of torch.save: there is no single data.pkl in it")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    found = _Unpickler(archive, folder).load()
    if isinstance(found, np.ndarray):
        return found
    if isinstance(found, dict):
        tensors = dict(found)
        if all(isinstance(key, str) and isinstance(value, np.ndarray) for key, value in tensors.items()):
            return tensors
    raise ValueError("neither a tensor nor a dictionary of tensors by name")


class _Unpickler(pickle.Unpickler):
    """Knows ordered dictionaries, tensors and their storages, and no other name."""

    def __init__(self, archive: ZipFile, folder: str) -> None:
        super().__init__(BytesIO(archive.read(f"{folder}data.pkl")))
        self.archive, self.folder = archive, folder
        self.storages: dict[tuple[str, str], _Storage] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if module_name == "torch" and global_name in _STORAGES:
            return global_name
        if (module_name, global_name) not in known:
            raise ValueError(f"{module_name}.{global_name} is not allowed in it")
        return known[module_name, global_name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, n_values = pid
        if kind != "storage" or storage not in _STORAGES or not isinstance(key, str):
            raise ValueError(f"a storage of an unknown kind ({storage})" if isinstance(storage, str) else "no storage")
        if (storage, key) not in self.storages:
            dtype, file = _STORAGES[storage], f"{self.folder}data/{key}"
            n_bytes = self.archive.getinfo(file).file_size
            if _size(n_values) * dtype.itemsize != n_bytes:
                raise ValueError(f"{file} should hold {n_values} values of {dtype}, and has {n_bytes} bytes")
            self.storages[storage, key] = _Storage(np.frombuffer(self.archive.read(file), dtype))
        return self.storages[storage, key]


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value} is not a size" if type(value) is int else "a size that is not a number")
    return value


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any = False, hooks: Any = None, metadata: Any = None
) -> np.ndarray:
    """`torch._utils._rebuild_tensor_v2`: a view of a storage, which it must not leave. Strides count values."""
    if metadata:
        raise ValueError(f"a tensor with metadata ({', '.join(map(str, metadata))}): clone it before saving")
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    values, shape, strides = storage.values, tuple(map(_size, shape)), tuple(map(_size, strides))
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    if 0 in shape:
        return np.empty(shape, values.dtype)
    last = _size(offset) + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= len(values):
        raise ValueError(f"a tensor of shape {shape} reaches value {last} of a storage of {len(values)}")
    if np.prod(shape, dtype=object) > len(values):
        raise ValueError(f"a tensor of shape {shape} of only {len(values)} values: clone it before saving")
    in_bytes = tuple(stride * values.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(values[offset:], shape, in_bytes, writeable=False)


def _parameter(tensor: Any, *_: Any) -> Any:
    """`torch._utils._rebuild_parameter`."""
    return tensor
