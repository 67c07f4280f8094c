"""The rows of a sweep in one SQLite file, written one group of cells at a time, in whole or not at all.

SQLite, since rows come a few at a time and from more than one process: a transaction survives a kill at any moment,
and a primary key keeps a cell from being stored twice. Only drivers write, never workers. All drivers of a store must
run on one machine, since they share memory (WAL). Every row has a digest; one that no longer agrees with it counts as
missing, so that its cell is run again.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from experiments.sweeps.lanes import Row
from experiments.sweeps.spec import Sweep, of_today, parse_sweep
from toy.checks import quoted

_FORMAT = "matryoshka toy sweep 2"
_WITHOUT_DIGESTS = "matryoshka toy sweep 1"  # can be read, and gets digests when rows are added
_BUSY_S = 60.0
_MOST_ASKED = 500  # keys per query
_TABLES = (
    "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE cells (key TEXT PRIMARY KEY, code TEXT NOT NULL, metrics TEXT, error TEXT, seconds REAL NOT NULL,
        finished REAL NOT NULL, digest TEXT)""",
)
_TELL = "INSERT OR REPLACE INTO about VALUES (?, ?)"
_ADD = """
INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    code = excluded.code, metrics = excluded.metrics, error = excluded.error, seconds = excluded.seconds,
    finished = excluded.finished, digest = excluded.digest
WHERE cells.error IS NOT NULL AND excluded.error IS NULL
"""


class SweepStoreError(ValueError):
    """The message says what is wrong with which file, and what to do."""


class Stored(NamedTuple):
    """A row as it was given to the store."""

    key: str
    code: str  # version of the code that made it
    metrics: dict[str, float | None] | None
    error: str | None
    seconds: float


class _Kept(NamedTuple):
    """A row as it stands in the file, where any byte may have changed since."""

    key: str
    code: str
    metrics: str | None  # JSON
    error: str | None
    seconds: float
    digest: str | None  # None: the store was made when rows had none

    @property
    def is_whole(self) -> bool:
        """Returns whether the row is as it was written; without a digest, whether it can be read."""
        if self.digest is not None:
            return self.digest == _digest(*self[:-1])
        try:
            return isinstance(self.stored().metrics, dict | None)
        except (ValueError, TypeError, RecursionError):
            return False

    def stored(self) -> Stored:
        """Raises: ValueError, TypeError or RecursionError if the row is not whole."""
        return Stored(*self[:2], None if self.metrics is None else json.loads(self.metrics), self.error, self.seconds)


class SweepStore:
    """Rows are only ever added; what was there already stays. Several drivers may write at the same time."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection for one operation: nothing is held in between, and each ends with a single tidy file."""
        uri = f"{self.path.absolute().as_uri()}?mode={'ro' if self._read_only else 'rwc'}"
        uri += "&immutable=1" if self._read_only and _is_still(self.path) else ""
        try:
            with closing(sqlite3.connect(uri, timeout=_BUSY_S, isolation_level=None, uri=True)) as connection:
                connection.text_factory = lambda value: value.decode(errors="replace")  # the digest tells of damage
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
        except sqlite3.Error as error:
            raise self._refused(_told(error)) from None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which waits its turn before it begins."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has ended it already
                    connection.execute("ROLLBACK")
                raise

    def _refused(self, why: str, remedy: str = "give another --store") -> SweepStoreError:
        return SweepStoreError(f"{quoted(str(self.path))}: {why}" + (f": {remedy}" if remedy else ""))

    def finished(self, *, failed: bool = True) -> set[str]:
        """The keys of the cells that have a row; without `failed`, of those that went well."""
        with self._connected() as connection:
            return _whole(_rows(connection), failed)

    def finished_of(self, keys: Sequence[str], *, failed: bool = True) -> set[str]:
        """The keys that are finished."""
        with self._connected() as connection:
            return _whole(_rows_of(connection, keys), failed)

    def damaged(self) -> list[str]:
        """The keys of rows that are not as they were written, which no other method returns."""
        with self._connected() as connection:
            return [row.key for row in _rows(connection) if not row.is_whole]

    def add(self, code: str, rows: Iterable[tuple[str, Row]]) -> int:
        """Add (key, row) of some cells in one transaction; returns how many were not there yet.

        A row that went well replaces one that failed, and any row replaces a damaged one.
        """
        values = [_values(key, code, row) for key, row in rows]
        with self._writing() as connection:
            _discard(connection, [row.key for row in _rows_of(connection, [v[0] for v in values]) if not row.is_whole])
            before = connection.total_changes
            connection.executemany(_ADD, values)
            return connection.total_changes - before

    def discard(self, keys: Sequence[str]) -> None:
        """Remove rows that are `damaged`."""
        with self._writing() as connection:
            _discard(connection, keys)

    def rows(self) -> Iterator[Stored]:
        """Undamaged rows in the order of their keys, whatever order they were added in."""
        with self._connected() as connection:
            yield from (row.stored() for row in _rows(connection) if row.is_whole)

    def codes(self) -> list[str]:
        """The versions of the code that made the rows, the latest first."""
        with self._connected() as connection:
            asked = "SELECT code FROM cells GROUP BY code ORDER BY max(finished) DESC"
            return [code for (code,) in connection.execute(asked)]

    def sweep(self) -> Sweep:
        """The sweep that the store is of. Raises: SweepStoreError if the store does not say it."""
        with self._connected() as connection:
            about = _about(connection)
        try:
            return parse_sweep({**about["sweep"], "metrics": about.get("metrics")}, _no_file)
        except (KeyError, TypeError, ValueError) as error:
            why = str(error) if isinstance(error, ValueError) else "nothing is said of its sweep"
            raise self._refused(f"is damaged: {why}") from None

    def begin(self, sweep: Sweep, *, extend: bool) -> None:
        """Make the tables if there are none; check what the rows are of, and note it."""
        about = _about_of(sweep)
        with self._connected() as connection:
            if not _tables(connection) - {"about", "cells"}:  # a file of something else is not changed
                connection.execute("PRAGMA journal_mode = WAL")  # of the file, and stays
        with self._writing() as connection:
            if not _tables(connection):
                for statement in _TABLES:
                    connection.execute(statement)
                connection.executemany(_TELL, _as_text(about))
            self._check(connection, None if extend else sweep)
            if not _has_digests(connection):
                connection.execute("ALTER TABLE cells ADD COLUMN digest TEXT")
            connection.executemany(_TELL, _as_text(about))

    def check(self, sweep: Sweep | None) -> None:
        """Raises: SweepStoreError if the file is no store, or one of another sweep."""
        with self._connected() as connection:
            self._check(connection, sweep)

    def _check(self, connection: sqlite3.Connection, sweep: Sweep | None) -> None:
        if not {"about", "cells"} <= _tables(connection):
            raise self._refused("is no store of a sweep")
        try:
            theirs = _about(connection)
        except ValueError:
            raise self._refused("is damaged") from None
        if theirs.get("format") not in (_FORMAT, _WITHOUT_DIGESTS):
            raise self._refused(f"of format {quoted(repr(theirs.get('format')))}, this reads {_FORMAT!r}")
        ours = None if sweep is None else json.loads(json.dumps(_about_of(sweep)["sweep"]))
        if ours is not None and theirs.get("sweep") != ours:
            difference = _difference("sweep", theirs.get("sweep"), ours)
            raise self._refused(f"holds another sweep: {difference}", "give another --store, or --extend this one")


def open_store(path: Path, sweep: Sweep, *, extend: bool = False) -> SweepStore:
    """The sweep's store, made if there is none. Which metrics are shown may change from one start to the next.

    With `extend` a store of another sweep becomes one of this sweep, and keeps its rows.
    Raises: SweepStoreError naming the file.
    """
    store = SweepStore(path)
    if path.is_dir():
        raise SweepStoreError(f"{quoted(str(path))}: is a folder: give a file as --store")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.begin(sweep, extend=extend)
    except OSError as error:
        told = f"cannot be written ({error.strerror}): give another --store"
        raise SweepStoreError(f"{quoted(str(path))}: {told}") from None
    return store


def read_store(path: Path, sweep: Sweep | None = None) -> SweepStore:
    """A store to read, of this sweep or of any. Raises: SweepStoreError naming the file."""
    if not path.is_file():
        raise SweepStoreError(f"{quoted(str(path))}: there is no such store; run the sweep first")
    store = SweepStore(path, read_only=True)
    store.check(sweep)
    return store


def _no_file(name: str) -> Any:
    raise ValueError(f"{name}: the store does not have this tree")


# --- the file ---------------------------------------------------------------------------------------------


def _whole(rows: Iterable[_Kept], failed: bool) -> set[str]:
    return {row.key for row in rows if (failed or row.error is None) and row.is_whole}


def _values(key: str, code: str, row: Row) -> tuple[Any, ...]:
    metrics, seconds = None if row.metrics is None else json.dumps(row.metrics), float(row.seconds)
    return key, code, metrics, row.error, seconds, time.time(), _digest(key, code, metrics, row.error, seconds)


def _digest(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode(errors="replace")).hexdigest()[:32]


def _has_digests(connection: sqlite3.Connection) -> bool:
    return any(name == "digest" for _, name, *_ in connection.execute("PRAGMA table_info(cells)"))


def _rows(connection: sqlite3.Connection, where: str = "", given: Sequence[str] = ()) -> Iterator[_Kept]:
    digest = "digest" if _has_digests(connection) else "NULL"
    asked = f"SELECT key, code, metrics, error, seconds, {digest} FROM cells {where} ORDER BY key"
    return map(_Kept._make, connection.execute(asked, given))


def _rows_of(connection: sqlite3.Connection, keys: Sequence[str]) -> Iterator[_Kept]:
    for i in range(0, len(keys), _MOST_ASKED):
        part = keys[i : i + _MOST_ASKED]
        yield from _rows(connection, f"WHERE key IN ({','.join('?' * len(part))})", part)


def _discard(connection: sqlite3.Connection, keys: Sequence[str]) -> None:
    connection.executemany("DELETE FROM cells WHERE key = ?", [(key,) for key in keys])


def _is_still(path: Path) -> bool:
    """Returns whether nobody can write here; SQLite must be told, or it makes files beside this one to read it."""
    log = path.with_name(f"{path.name}-wal")
    return not os.access(path.parent, os.W_OK) and not (log.exists() and log.stat().st_size)


def _told(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", None) or ""
    if name == "SQLITE_NOTADB":
        return "is no store of a sweep"
    if name == "SQLITE_FULL":
        return "the disk is full: make room and start again, the rows that are there are whole; or"
    return f"is damaged ({error})" if name.startswith("SQLITE_CORRUPT") else quoted(str(error))


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _about_of(sweep: Sweep) -> dict[str, Any]:
    """The table `about` of a sweep's store; metrics stand beside the sweep, since they may change."""
    data = sweep.as_data()
    metrics = data.pop("metrics")
    return {"format": _FORMAT, "sweep": data, "metrics": metrics}


def _about(connection: sqlite3.Connection) -> dict[str, Any]:
    about = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM about")}
    if isinstance(about.get("sweep"), dict):
        about["sweep"] = of_today(about["sweep"])
    return about


def _as_text(about: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, json.dumps(value)) for name, value in about.items()]


def _difference(name: str, theirs: Any, ours: Any) -> str:
    """The deepest place that holds all differences between two values."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*ours, *theirs]:
            if theirs.get(key) != ours.get(key):
                return _difference(f"{name}.{key}", theirs.get(key), ours.get(key))
    return f"{name} is {json.dumps(theirs)} there and {json.dumps(ours)} here"
