"""Foreign zip archives, checked against the size of the file before any member is read."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from toy.checks import quoted

_MOST_DIRECTORY = 2 * 2**20  # bytes: some 20,000 members
_MOST_RATIO, _FREE = 100, 16 * 2**20  # a compressed member may grow by this factor, or to this many bytes
_ENCRYPTED = 1


class _Bounded(io.BufferedReader):
    """A file that refuses, while `bounded`, to read more at once than a directory of reasonable size."""

    bounded = True

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.bounded:
            return super().read(size)
        content = super().read(_MOST_DIRECTORY + 1 if size is None or size < 0 else min(size, _MOST_DIRECTORY + 1))
        if len(content) > _MOST_DIRECTORY:
            raise BadZipFile("its directory is too long")
        return content


@contextlib.contextmanager
def open_archive(path: Path | str, *, compressed: bool) -> Iterator[ZipFile]:
    """Open a zip archive whose members are not encrypted, have different names, and fit into the file.

    `compressed` allows compressed members of reasonable size. Raises: OSError; BadZipFile; ValueError naming a member.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would never end
        raise ValueError("no regular file")
    with _Bounded(io.FileIO(path)) as file, ZipFile(file) as archive:
        file.bounded = False
        _check(archive.infolist(), path.stat().st_size, compressed)
        yield archive


def _check(members: list[ZipInfo], n_bytes: int, compressed: bool) -> None:
    if len({member.filename for member in members}) < len(members):
        raise ValueError("it has two members of one name")
    for member in members:
        name, size, packed = quoted(member.filename), member.file_size, member.compress_size
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(f"{name} is encrypted: save it without a password")
        if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED if compressed else ZIP_STORED):
            raise ValueError(f"{name} is compressed in a way that is not read: save it uncompressed")
        if member.compress_type == ZIP_STORED and size != packed:
            raise ValueError(f"{name} has {packed:,} bytes and claims {size:,}")
        if size > max(_FREE, _MOST_RATIO * packed):
            raise ValueError(f"{name} has {packed:,} bytes and claims to be {size:,}: save it uncompressed")
    if sum(member.compress_size for member in members) > n_bytes:
        raise ValueError(f"its members claim more bytes than the {n_bytes:,} of the file")
