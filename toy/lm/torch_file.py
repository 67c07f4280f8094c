"""Files of `torch.save`, read without PyTorch and without running anything that stands in them.

Such a file is a zip archive of storages, and of a pickle that says which tensors are which parts of them. The few
instructions of the pickle language that tensors need are read here; Python's own unpickler is not used.
"""

import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import ml_dtypes
import numpy as np

from toy.checks import MOST_QUOTED, quoted
from toy.files.archive import open_archive

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
_MOST_PICKLE = 4 * 2**20  # bytes
_MOST_STEPS = 100_000  # instructions: about 3,000 tensors
_MOST_AXES = 32
_MOST_SHARED = 16  # values of all tensors to one value of the storages


class _Storage(NamedTuple):
    values: np.ndarray  # one axis


class _Name(NamedTuple):
    """A name that the pickle gives, such as `torch FloatStorage`."""

    text: str


class _Mark:
    """Where the arguments of an instruction begin on the stack."""


_DICT, _TENSOR, _PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_KNOWN = {_DICT, _TENSOR, _PARAMETER, *(f"torch {name}" for name in _STORAGES)}


def read_torch_file(path: Path | str) -> dict[str, np.ndarray] | np.ndarray:
    """The tensor, or the tensors by name, of a file. Arrays are read-only and have the file's strides.

    Time and memory are those of the file's size, whatever it says.

    Raises: ValueError naming the file and what is wrong with it; nothing that a file names is called or imported.
    """
    try:
        with open_archive(path, compressed=False) as archive:
            return _tensors(archive)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except BadZipFile as error:
        raise ValueError(f"{path}: not a whole zip file of torch.save: {quoted(str(error), 2 * MOST_QUOTED)}") from None
    except Exception as error:  # a broken pickle fails in any way
        told = (
            quoted(str(error), 2 * MOST_QUOTED)
            if isinstance(error, ValueError) and str(error)
            else "its pickle is broken"
        )
        raise ValueError(f"{path}: cannot be read as tensors: {told}") from None


def _tensors(archive: ZipFile) -> dict[str, np.ndarray] | np.ndarray:
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("a zip file, but not one of torch.save: there is no single data.pkl in it")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    if archive.getinfo(pickles[0]).file_size > _MOST_PICKLE:
        raise ValueError(f"its data.pkl has more than {_MOST_PICKLE:,} bytes")
    storages = _Storages(archive, folder)
    found = _Pickle(storages).read(archive.read(pickles[0]))
    tensors = [found] if isinstance(found, np.ndarray) else [*found.values()] if isinstance(found, dict) else []
    if not all(isinstance(tensor, np.ndarray) for tensor in tensors):
        raise ValueError("neither a tensor nor a dictionary of tensors by name")
    if sum(tensor.size for tensor in tensors) > _MOST_SHARED * max(1, storages.n_values):
        raise ValueError(f"its tensors share only {storages.n_values:,} values: clone them before saving")
    if isinstance(found, np.ndarray):
        return found
    if isinstance(found, dict) and all(isinstance(key, str) for key in found):
        return found
    raise ValueError("neither a tensor nor a dictionary of tensors by name")


class _Storages:
    """The storages of a file, each read once."""

    def __init__(self, archive: ZipFile, folder: str) -> None:
        self.archive, self.folder = archive, folder
        self.n_values = 0
        self._contents: dict[str, bytes] = {}

    def get(self, pid: Any) -> _Storage:
        """The storage of a persistent id: ("storage", its type, its key, its device, its number of values)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[2], str):
            raise ValueError("a storage without a key")
        _, kind, key, _, n_values = pid
        name = kind.text.removeprefix("torch ") if isinstance(kind, _Name) else ""
        if name not in _STORAGES:
            raise ValueError("a storage of an unknown type")
        dtype, file = _STORAGES[name], f"{self.folder}data/{key}"
        if file not in self.archive.NameToInfo:
            raise ValueError(f"there is no {quoted(file)} in it")
        n_bytes = self.archive.getinfo(file).file_size
        if _size(n_values) * dtype.itemsize != n_bytes:
            raise ValueError(
                f"{quoted(file)} should hold {quoted(n_values)} values of {dtype}, and has {n_bytes} bytes"
            )
        if key not in self._contents:
            self._contents[key] = self.archive.read(file)
            self.n_values += n_values
        return _Storage(np.frombuffer(self._contents[key], dtype))


class _Pickle:
    """A stack machine for the instructions that `torch.save` writes of tensors by name."""

    def __init__(self, storages: _Storages) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, content: bytes) -> Any:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if step > _MOST_STEPS:
                raise ValueError(f"its pickle has more than {_MOST_STEPS:,} instructions")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name not in _STEPS:
                raise ValueError(f"the instruction {opcode.name} is not allowed in it")
            _STEPS[opcode.name](self, argument)
        raise ValueError("its pickle has no end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def name(self, text: str) -> None:
        if text not in _KNOWN:
            raise ValueError(f"{quoted(text.replace(' ', '.'))} is not allowed in it")
        self.push(_Name(text))

    def name_of_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is no text")
        self.name(f"{module} {name}")

    def since_mark(self) -> list[Any]:
        values = []
        while not isinstance(value := self.stack.pop(), _Mark):
            values.append(value)
        return values[::-1]

    def tuple_of(self, n: int) -> None:
        self.stack[-n:] = [tuple(self.stack[-n:])]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # others may be nested so that their hash takes for ever
                raise ValueError("a key that is neither text nor a whole number")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("elements of something that is no list")
        self.stack[-1].extend(items)

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no name")
        if function.text == _DICT and not arguments:
            self.push({})
        elif function.text == _TENSOR and 6 <= len(arguments) <= 7:
            self.push(_tensor(*arguments))
        elif function.text == _PARAMETER and arguments and isinstance(arguments[0], np.ndarray):
            self.push(arguments[0])
        else:
            raise ValueError(f"{function.text.replace(' ', '.')} with arguments that it does not take")

    def set_state(self, _: Any) -> None:
        """Ignore the state of a dictionary: modules leave their versions there."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise ValueError("the state of something that is no dictionary")


_STEPS: dict[str, Callable[[_Pickle, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda pickle, _: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Pickle.put),
    "MEMOIZE": lambda pickle, _: pickle.put(len(pickle.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda pickle, place: pickle.push(pickle.memo[place])),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Pickle.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _Pickle.push),
    "NONE": lambda pickle, _: pickle.push(None),
    "NEWTRUE": lambda pickle, _: pickle.push(True),
    "NEWFALSE": lambda pickle, _: pickle.push(False),
    "MARK": lambda pickle, _: pickle.push(_Mark()),
    "EMPTY_TUPLE": lambda pickle, _: pickle.push(()),
    "TUPLE": lambda pickle, _: pickle.push(tuple(pickle.since_mark())),
    **{f"TUPLE{n}": lambda pickle, _, n=n: pickle.tuple_of(n) for n in (1, 2, 3)},
    "EMPTY_DICT": lambda pickle, _: pickle.push({}),
    "SETITEM": lambda pickle, _: pickle.set_items([pickle.stack.pop(), pickle.stack.pop()][::-1]),
    "SETITEMS": lambda pickle, _: pickle.set_items(pickle.since_mark()),
    "EMPTY_LIST": lambda pickle, _: pickle.push([]),
    "APPEND": lambda pickle, _: pickle.append([pickle.stack.pop()]),
    "APPENDS": lambda pickle, _: pickle.append(pickle.since_mark()),
    "GLOBAL": _Pickle.name,
    "STACK_GLOBAL": _Pickle.name_of_stack,
    "BINPERSID": lambda pickle, _: pickle.push(pickle.storages.get(pickle.stack.pop())),
    "REDUCE": _Pickle.call,
    "BUILD": _Pickle.set_state,
}


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{quoted(value)} is not a size" if type(value) is int else "a size that is not a number")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > _MOST_AXES:
        raise ValueError(f"a shape or strides that are no tuple of at most {_MOST_AXES} sizes")
    return tuple(map(_size, values))


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, metadata: Any = None
) -> np.ndarray:
    """`torch._utils._rebuild_tensor_v2`: a view of a storage, which it must not leave. Strides count values."""
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
