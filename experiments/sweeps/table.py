"""A sweep's rows as they stand in the store's table, each with a digest of what it says."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.sweeps.lanes import Row

TABLES = (
    "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE cells (
        key TEXT PRIMARY KEY,
        code TEXT NOT NULL,
        metrics TEXT,
        error TEXT,
        seconds REAL NOT NULL,
        finished REAL NOT NULL,
        digest TEXT
    )""",
)
ADD = """
INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    code = excluded.code, metrics = excluded.metrics, error = excluded.error, seconds = excluded.seconds,
    finished = excluded.finished, digest = excluded.digest
WHERE cells.error IS NOT NULL AND excluded.error IS NULL
"""
_MOST_ASKED = 500  # keys a query


class Stored(NamedTuple):
    """A row as it was given to the store."""

    key: str
    code: str  # version of the code that made it
    metrics: dict[str, float | None] | None
    error: str | None
    seconds: float


class Kept(NamedTuple):
    """A row as it stands in the file, where any byte may have changed since."""

    key: str
    code: str
    metrics: str | None  # JSON
    error: str | None
    seconds: float
    digest: str | None  # None: the store was made when rows had none

    @property
    def is_whole(self) -> bool:
        """Whether it says what was written; of a row without digest no more is known than that it can be read."""
        if self.digest is not None:
            return self.digest == _digest(*self[:-1])
        try:
            return isinstance(self.stored().metrics, dict | None)
        except (ValueError, TypeError, RecursionError):
            return False

    def stored(self) -> Stored:
        """Raises: ValueError, TypeError or RecursionError if it is not whole."""
        return Stored(*self[:2], None if self.metrics is None else json.loads(self.metrics), self.error, self.seconds)


def values(key: str, code: str, row: Row) -> tuple[Any, ...]:
    """What `ADD` takes."""
    metrics, seconds = None if row.metrics is None else json.dumps(row.metrics), float(row.seconds)
    return key, code, metrics, row.error, seconds, time.time(), _digest(key, code, metrics, row.error, seconds)


def _digest(*values: Any) -> str:
    """32 hexadecimal digits."""
    return hashlib.sha256(repr(values).encode(errors="replace")).hexdigest()[:32]


def text(value: bytes) -> str:
    """What SQLite has as text, though it be damaged: its digest tells."""
    return value.decode(errors="replace")


def has_digests(connection: sqlite3.Connection) -> bool:
    return any(name == "digest" for _, name, *_ in connection.execute("PRAGMA table_info(cells)"))


def all_rows(connection: sqlite3.Connection, where: str = "", given: Sequence[str] = ()) -> Iterator[Kept]:
    """In the order of their keys."""
    digest = "digest" if has_digests(connection) else "NULL"
    asked = f"SELECT key, code, metrics, error, seconds, {digest} FROM cells {where} ORDER BY key"
    return map(Kept._make, connection.execute(asked, given))


def rows_of(connection: sqlite3.Connection, keys: Sequence[str]) -> Iterator[Kept]:
    for i in range(0, len(keys), _MOST_ASKED):
        part = keys[i : i + _MOST_ASKED]
        yield from all_rows(connection, f"WHERE key IN ({','.join('?' * len(part))})", part)


def discard(connection: sqlite3.Connection, keys: Sequence[str]) -> None:
    connection.executemany("DELETE FROM cells WHERE key = ?", [(key,) for key in keys])
