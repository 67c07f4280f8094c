"""Files as `torch.save` writes them, without PyTorch: a zip archive of storages, and the pickle that names them."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from toy.files.atomic import writing
from toy.files.torch_file import DTYPES


def save_torch_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors by name, as `torch.save` does with a dictionary. Raises: OSError."""
    arrays = [np.asarray(tensor, order="C") for tensor in tensors.values()]
    items = [
        _pickled(name) + _reduced(str(i), array) + pickle.SETITEM
        for i, (name, array) in enumerate(zip(tensors, arrays, strict=True))
    ]
    with writing(path) as file, ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.PROTO + b"\2" + pickle.EMPTY_DICT + b"".join(items) + pickle.STOP)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for i, array in enumerate(arrays):
            archive.writestr(f"archive/data/{i}", array.astype(array.dtype.newbyteorder("<")).tobytes())


def _reduced(key: str, array: np.ndarray) -> bytes:
    """The pickle of `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`."""
    kind = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
    storage = [_pickled("storage"), _global("torch", kind), *map(_pickled, (key, "cpu", array.size))]
    strides = tuple(step // array.itemsize for step in array.strides)
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = [_tuple(storage) + pickle.BINPERSID, *map(_pickled, (0, array.shape, strides, False)), hooks]
    return _global("torch._utils", "_rebuild_tensor_v2") + _tuple(parts) + pickle.REDUCE


def _pickled(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]  # without the protocol before it and the stop after it


def _tuple(parts: list[bytes]) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
