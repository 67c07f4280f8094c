"""Writing files whole or not at all, locking them against other processes, and removing leftovers."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PART, _LOCK = ".toy-part", ".toy-lock"  # suffixes of our temporary files and locks


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that is renamed to it when the block ends, or removed if the block raises.

    Raises: OSError naming `path`.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = _new_part(path)
        guard = None if fcntl is None else os.dup(descriptor)  # keeps the file locked until it is renamed
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
    """Create a temporary file, locked so that `remove_parts` leaves it alone."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
        if not _lock(descriptor) or os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)  # another process removed it before it was locked


def _lock(descriptor: int) -> bool:
    """Lock a file without waiting; False if the file system has no locks. Raises: BlockingIOError if it is locked."""
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
    """Adds the file's name to errors of the system, such as a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def prepare(path: Path) -> None:
    """Check before any work that `path` can be written, and remove what killed writes of it left.

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
    """Returns whether this names a temporary file of `writing`, for a file whose name matches the pattern `of`."""
    return re.fullmatch(rf"\.(?:{of})\.[a-z0-9_]{{8}}{re.escape(_PART)}", name) is not None


def remove_parts(folder: Path, of: str) -> None:
    """Remove the temporary files that killed writes left, for files whose names match the pattern `of`."""
    for entry in [*os.scandir(folder)]:
        if is_part(entry.name, of) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(
                FileNotFoundError, BlockingIOError
            ):  # another process is writing or has removed it
                descriptor = os.open(entry.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
                try:
                    _lock(descriptor)
                    os.unlink(entry.path)
                finally:
                    os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a folder, which is made if necessary, against other processes; a killed process holds no lock.

    Without `wait`, raises: BlockingIOError if it is locked. On Windows, nothing is locked.
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
    """Lock the name of a file against other runs that claim it, and return the function that releases it.

    A hidden file beside it is locked, and removed on release. A killed process holds no lock. The release may be called
    twice. Raises: BlockingIOError if another run holds it. On Windows, nothing is locked.
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
                held.callback(
                    lock.unlink, missing_ok=True
                )  # runs before the close, so that no other process locks a file that is about to be removed
                return held.close


def _is_at(descriptor: int, path: Path) -> bool:
    """Returns whether an open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
