"""Files of `torch.save`, read without PyTorch and without running anything that they name.

Such a file is a zip archive of storages, and of a pickle that says which parts of them are the tensors. Python's own
unpickler reads it, reduced to the few instructions and the four functions that tensors need.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import ml_dtypes
import numpy as np

from toy.checks import MOST_QUOTED, quoted
from toy.files.archive import open_archive

DTYPES = {
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
_INSTRUCTIONS = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE
BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS
EMPTY_DICT GLOBAL STACK_GLOBAL BINPERSID REDUCE
"""
_MOST_PICKLE = 2**20  # bytes: about 5,000 tensors
_MOST_AXES = 32
_MOST_SHARED = 16  # all tensors together may have this many values per value in the storages
_NO_TENSORS = "neither a tensor nor a dictionary of tensors by name"


class _Storage(NamedTuple):
    values: np.ndarray  # one axis


def read_torch_file(path: Path | str) -> dict[str, np.ndarray] | np.ndarray:
    """Returns the tensor of a file, or its tensors by name, as read-only arrays with the file's strides.

    Time and memory are bounded by the file's size. Raises: ValueError naming the file and what is wrong with it.
    """
    try:
        with open_archive(path, compressed=False) as archive:
            return _tensors(archive)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except BadZipFile as error:
        raise ValueError(f"{path}: not a whole zip file of torch.save: {quoted(str(error), 2 * MOST_QUOTED)}") from None
    except Exception as error:  # a broken pickle can fail in any way
        is_ours = type(error) is ValueError and str(error)
        why = str(error) if is_ours else "its pickle is broken, or has an instruction that tensors do not need"
        raise ValueError(f"{path}: cannot be read as tensors: {quoted(why, 2 * MOST_QUOTED)}") from None


def _tensors(archive: ZipFile) -> dict[str, np.ndarray] | np.ndarray:
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("a zip file, but not one of torch.save, which has a single data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    if archive.getinfo(pickles[0]).file_size > _MOST_PICKLE:
        raise ValueError(f"its data.pkl has more than {_MOST_PICKLE:,} bytes")
    unpickler = _Unpickler(archive, pickles[0])
    found: Any = unpickler.load()
    tensors = found if isinstance(found, dict) else {"": found}
    if not all(isinstance(key, str) and isinstance(tensor, np.ndarray) for key, tensor in tensors.items()):
        raise ValueError(_NO_TENSORS)
    n_values = sum(len(storage.values) for storage in unpickler.storages.values())
    if sum(tensor.size for tensor in tensors.values()) > _MOST_SHARED * max(1, n_values):
        raise ValueError(f"its tensors share only {n_values:,} values: clone them before saving")
    return found


_Python: Any = pickle._Unpickler  # written in Python, unlike pickle.Unpickler, so that instructions can be replaced


class _Unpickler(_Python):
    """Python's unpickler, which builds tensors here and knows no instruction that could do anything else."""

    _codes = (getattr(pickle, name)[0] for name in _INSTRUCTIONS.split())
    dispatch = {code: _Python.dispatch[code] for code in _codes}  # noqa: RUF012

    def __init__(self, archive: ZipFile, name: str) -> None:
        super().__init__(io.BytesIO(archive.read(name)))
        self.archive, self.folder = archive, name.removesuffix("data.pkl")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Any] = {f"torch.{kind}": dtype for kind, dtype in DTYPES.items()} | {
            "collections.OrderedDict": _empty,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _tensor_of_parameter,
        }
        if f"{module}.{name}" not in known:
            raise ValueError(f"{quoted(f'{module}.{name}')} is not allowed in it")
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage of ("storage", its type, its key, its device, its number of values)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or not isinstance(pid[2], str):
            raise ValueError("a storage without a key")
        _, dtype, key, _, n_values = pid
        if not isinstance(dtype, np.dtype):
            raise ValueError("a storage of an unknown type")
        file = f"{self.folder}data/{key}"
        if file not in self.archive.NameToInfo:
            raise ValueError(f"there is no {quoted(file)} in it")
        n_bytes = self.archive.getinfo(file).file_size
        if _size(n_values) * dtype.itemsize != n_bytes:
            raise ValueError(
                f"{quoted(file)} should hold {quoted(n_values)} values of {dtype}, and has {n_bytes} bytes"
            )
        if key not in self.storages:
            self.storages[key] = _Storage(np.frombuffer(self.archive.read(file), dtype))
        return self.storages[key]

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def set_items(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise ValueError("items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # nested tuples can take for ever to hash
                raise ValueError("a key that is neither text nor a whole number")
            self.stack[-1][key] = value

    def ignore_state(self) -> None:
        """Modules leave their versions in the state of a dictionary."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise ValueError("the state of something that is no dictionary")

    dispatch |= {pickle.SETITEM[0]: set_item, pickle.SETITEMS[0]: set_items, pickle.BUILD[0]: ignore_state}


def _empty() -> dict[str, Any]:
    return {}


def _tensor_of_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, metadata: Any = None
) -> np.ndarray:
    """`torch._utils._rebuild_tensor_v2`: a view that stays within its storage. Strides count values."""
    if metadata:
        raise ValueError("a tensor with metadata: clone it before saving")
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    values, shape, strides, offset = storage.values, _sizes(shape), _sizes(strides), _size(offset)
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {quoted(shape)} with strides {quoted(strides)}")
    if 0 in shape:
        return np.empty(shape, values.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= len(values):
        raise ValueError(
            f"a tensor of shape {quoted(shape)} reaches value {quoted(last)} of a storage of {len(values)}"
        )
    if math.prod(shape) > len(values):
        raise ValueError(f"a tensor of shape {quoted(shape)} of only {len(values)} values: clone it before saving")
    in_bytes = tuple(stride * values.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(values[offset:], shape, in_bytes, writeable=False)


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > _MOST_AXES:
        raise ValueError(f"a shape or strides that are no tuple of at most {_MOST_AXES} sizes")
    return tuple(map(_size, values))


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a size that is not a number" if type(value) is not int else f"{quoted(value)} is not a size")
    return value
