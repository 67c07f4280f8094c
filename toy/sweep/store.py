"""Where a sweep's rows are kept: one SQLite file, written a group of cells at a time, whole or not at all.

SQLite since rows come a few at a time and from more than one process: a transaction survives a kill at any moment,
a primary key keeps a cell from being stored twice, and Python has it. Parquet would need a file a group, or rewriting.
Only drivers write, never workers. All drivers of a store must run on one machine: they share memory (WAL).
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from toy.sweep.lanes import Row

_FORMAT = "matryoshka toy sweep 1"
_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE cells (
    key TEXT PRIMARY KEY,
    code TEXT NOT NULL,
    metrics TEXT,
    error TEXT,
    seconds REAL NOT NULL,
    finished REAL NOT NULL
);
"""
_ADD = """
INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    metrics = excluded.metrics, error = excluded.error, seconds = excluded.seconds, finished = excluded.finished
WHERE cells.error IS NOT NULL AND excluded.error IS NULL
"""
_TELL = "INSERT OR REPLACE INTO about VALUES (?, ?)"
_BUSY_S = 60.0
_MOST_ASKED = 500  # keys a query


class SweepStoreError(ValueError):
    """What is wrong with which file, and what to do."""


class Stored(NamedTuple):
    """A row as it is kept."""

    key: str
    code: str  # version of the code that made it
    metrics: dict[str, float | None] | None
    error: str | None
    seconds: float


class SweepStore:
    """Rows are only ever added; what was there already stays. Several drivers may write at the same time."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """For one operation: nothing is held between them, and each ends with a single tidy file."""
        try:
            with closing(sqlite3.connect(self._uri, timeout=_BUSY_S, isolation_level=None, uri=True)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
        except sqlite3.Error as error:
            no_store = getattr(error, "sqlite_errorname", None) == "SQLITE_NOTADB"
            why = "is no store of a sweep" if no_store else str(error)
            raise SweepStoreError(f"{self.path}: {why}: give another --store") from None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which waits its turn before it begins."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    def about(self) -> dict[str, Any]:
        with self._connected() as connection:
            return _about(connection)

    def finished(self, *, failed: bool = True) -> set[str]:
        """Keys of the cells that have a row; without `failed` of those that went well."""
        with self._connected() as connection:
            where = "" if failed else " WHERE error IS NULL"
            return {key for (key,) in connection.execute(f"SELECT key FROM cells{where}")}

    def finished_of(self, keys: Sequence[str], *, failed: bool = True) -> set[str]:
        """Those of the keys that `finished` has."""
        found: set[str] = set()
        with self._connected() as connection:
            for i in range(0, len(keys), _MOST_ASKED):
                part = keys[i : i + _MOST_ASKED]
                asked = f"SELECT key FROM cells WHERE key IN ({','.join('?' * len(part))})"
                asked += "" if failed else " AND error IS NULL"
                found |= {key for (key,) in connection.execute(asked, part)}
        return found

    def add(self, code: str, rows: Iterable[tuple[str, Row]]) -> int:
        """(key, row) of some cells in one transaction; how many were not there yet.

        A row that went well takes the place of one that failed, and of no other.
        """
        values = [
            (key, code, None if row.metrics is None else json.dumps(row.metrics), row.error, row.seconds, time.time())
            for key, row in rows
        ]
        with self._writing() as connection:
            before = connection.total_changes
            connection.executemany(_ADD, values)
            return connection.total_changes - before

    def rows(self) -> Iterator[Stored]:
        """In the order of their keys, the same however they came to be there."""
        with self._connected() as connection:
            asked = "SELECT key, code, metrics, error, seconds FROM cells ORDER BY key"
            for key, code, metrics, error, seconds in connection.execute(asked):
                yield Stored(key, code, None if metrics is None else json.loads(metrics), error, seconds)

    def codes(self) -> list[str]:
        """Versions of the code that rows are of, the latest first."""
        with self._connected() as connection:
            asked = "SELECT code FROM cells GROUP BY code ORDER BY max(finished) DESC"
            return [code for (code,) in connection.execute(asked)]

    def begin(self, about: dict[str, Any], notes: dict[str, Any], extend: bool) -> None:
        """Make the tables if there are none; check and say what rows are of."""
        with self._connected() as connection:
            if not _tables(connection) - {"about", "cells"}:  # nothing is changed in a file of something else
                connection.execute("PRAGMA journal_mode = WAL")  # of the file, and stays
        with self._writing() as connection:
            if not _tables(connection):
                for statement in filter(str.strip, _TABLES.split(";")):
                    connection.execute(statement)
                connection.executemany(_TELL, _as_text({"format": _FORMAT, **about}))
            self._check(connection, {} if extend else about)
            connection.executemany(_TELL, _as_text({**about, **notes}))

    def check(self, about: dict[str, Any]) -> None:
        with self._connected() as connection:
            self._check(connection, about)

    def _check(self, connection: sqlite3.Connection, about: dict[str, Any]) -> None:
        """Raises: SweepStoreError if it is no store, or one of something else."""
        if not {"about", "cells"} <= _tables(connection):
            raise SweepStoreError(f"{self.path}: is no store of a sweep: give another --store")
        theirs = _about(connection)
        if theirs.get("format") != _FORMAT:
            raise SweepStoreError(f"{self.path}: of format {theirs.get('format')!r}, this reads {_FORMAT!r}")
        for name, value in json.loads(json.dumps(about)).items():
            if theirs.get(name) != value:
                difference = _difference(name, theirs.get(name), value)
                raise SweepStoreError(
                    f"{self.path}: holds another sweep: {difference}: give another --store, or --extend this one"
                )


def read_sweep_store(path: Path, about: dict[str, Any] | None = None) -> SweepStore:
    """The store at `path`, to read; with `about` refused if its rows are of something else.

    Raises: SweepStoreError naming the file.
    """
    if not path.is_file():
        raise SweepStoreError(f"{path}: there is no such store; run the sweep first")
    store = SweepStore(path, read_only=True)
    store.check(about or {})
    return store


def open_sweep_store(
    path: Path, about: dict[str, Any], *, notes: dict[str, Any] | None = None, extend: bool = False
) -> SweepStore:
    """The store at `path` of rows of `about`, which is made if there is none and refused if it is of something else.

    To `extend` it is to have it be of `about` from now on; its rows stay. `notes` are kept beside, and may differ.

    Raises: SweepStoreError naming the file.
    """
    store = SweepStore(path)
    if path.is_dir():
        raise SweepStoreError(f"{path}: is a folder: give a file as --store")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.begin(about, notes or {}, extend)
    except OSError as error:
        raise SweepStoreError(f"{path}: cannot be written ({error.strerror}): give another --store") from None
    return store


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _about(connection: sqlite3.Connection) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM about")}


def _as_text(about: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, json.dumps(value)) for name, value in about.items()]


def _difference(name: str, theirs: Any, ours: Any) -> str:
    """Where two values differ, as deep inside as it is one place."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*ours, *theirs]:
            if theirs.get(key) != ours.get(key):
                return _difference(f"{name}.{key}", theirs.get(key), ours.get(key))
    return f"{name} is {json.dumps(theirs)} there and {json.dumps(ours)} here"
