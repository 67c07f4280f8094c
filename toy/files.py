"""Files: written whole or not at all, held against other processes, and JSON, read within limits and signed."""

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from toy.checks import quoted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MOST_JSON = 256 * 2**20  # bytes of a JSON file
_PART, _LOCK = ".toy-part", ".toy-lock"  # ends of the names of files that are only ours


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that takes its name when the block ends well, and is removed when it does not.

    Raises: OSError naming `path`.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = _new_part(path)
        guard = None if fcntl is None else os.dup(descriptor)  # keeps the file's lock until it has its name
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        finally:
            if guard is not None:
                os.close(guard)


def _new_part(path: Path) -> tuple[int, str]:
    """A temporary file, locked so that `remove_parts` sees that it is in use."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
        if not _lock(descriptor) or os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)  # it was removed as abandoned before it was locked


def _lock(descriptor: int) -> bool:
    """Lock a file at once. False where the file system has no locks. Raises: BlockingIOError if another holds it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the system, such as a disk that is full, with the file's name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def prepare(path: Path) -> None:
    """Before work that ends with writing `path`: check that this can be, and remove what killed writes of it left.

    Raises: OSError naming the file.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        remove_parts(path.parent, re.escape(path.name))


def is_part(name: str, of: str) -> bool:
    """Whether a file's name is one that `writing` gives to the temporary file of a name matching the pattern `of`."""
    return re.fullmatch(rf"\.(?:{of})\.[a-z0-9_]{{8}}{re.escape(_PART)}", name) is not None


def remove_parts(folder: Path, of: str) -> None:
    """Remove the temporary files that killed writes left, of names matching the pattern `of`, and no other file."""
    for entry in [*os.scandir(folder)]:
        if is_part(entry.name, of) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError, BlockingIOError):  # another process writes, or removed it
                descriptor = os.open(entry.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
                try:
                    _lock(descriptor)
                    os.unlink(entry.path)
                finally:
                    os.close(descriptor)


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


def claim(path: Path) -> Callable[[], None]:
    """Hold the name of a file against every other run that claims it; what this gives releases it, also twice.

    A hidden file beside it is locked, and removed on release. A process that is killed holds nothing.

    Raises: BlockingIOError if another run holds it. Where the system has no such locks (Windows), nothing is held.
    """
    if fcntl is None:
        return lambda: None
    lock = path.with_name(f".{path.name}{_LOCK}")
    while True:
        with _naming(path), contextlib.ExitStack() as on_failure:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            on_failure.callback(os.close, descriptor)
            _lock(descriptor)
            if _is_at(descriptor, lock):
                held = on_failure.pop_all()
                held.callback(lock.unlink, missing_ok=True)  # first, so that no one locks what is about to go
                return held.close


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still is the one at the path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_json(path: Path, data: Any, *, digits: int | None = 6) -> None:
    """Write JSON (`plain` says what becomes of numpy values and NaN), a list of numbers to a line."""
    text = json.dumps(plain(data, digits), indent=1, allow_nan=False)
    with writing(path) as file:
        file.write((_one_line_lists(text) + "\n").encode())


def load_json(path: Path, *, most_bytes: int = MOST_JSON) -> Any:
    """Read JSON. Raises: OSError; ValueError naming the file if it is no JSON, repeats a key, is too long or deep."""
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path}: broken: has more than {most_bytes:,} bytes")
    try:
        return parse_json(content.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path}: broken: no JSON: not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{path}: broken: no JSON: {quoted(str(error))}") from None


def parse_json(text: str) -> Any:
    """Parse JSON. Raises: ValueError in one line if it is none, repeats a key or is nested too deeply."""
    try:
        return json.loads(text, object_pairs_hook=_no_repeats)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {quoted(repeated)} stands twice in one object")
    return found


def signed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its SHA-256, by which `is_signed` finds out whether it was changed."""
    return {**content, "sha256": content_digest({k: v for k, v in content.items() if k != "sha256"})}


def is_signed(content: dict[str, Any]) -> bool:
    """Whether the SHA-256 that the content holds is its own."""
    try:
        return content.get("sha256") == signed(content)["sha256"]
    except (RecursionError, ValueError):  # nested too deeply, or a number too long to write
        return False


def content_digest(data: Any) -> str:
    """SHA-256 of data as JSON knows it."""
    return hashlib.sha256(json.dumps(plain(data, None), sort_keys=True).encode()).hexdigest()


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
