"""Where a sweep's rows are kept: one SQLite file, written a group of cells at a time, whole or not at all.

SQLite since rows come a few at a time and from more than one process: a transaction survives a kill at any moment,
a primary key keeps a cell from being stored twice, and Python has it. Parquet would need a file a group, or rewriting.
Only drivers write, never workers. All drivers of a store must run on one machine: they share memory (WAL).
Every row has a digest. A row that no longer agrees with its own counts as missing, so that its cell is run again.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from experiments.sweeps import table
from experiments.sweeps.lanes import Row
from experiments.sweeps.table import Stored
from toy.checks import quoted

_FORMAT = "matryoshka toy sweep 2"
_WITHOUT_DIGESTS = "matryoshka toy sweep 1"  # read as it is, and made to be of this format when rows are added
_TELL = "INSERT OR REPLACE INTO about VALUES (?, ?)"
_BUSY_S = 60.0


class SweepStoreError(ValueError):
    """What is wrong with which file, and what to do."""


class SweepStore:
    """Rows are only ever added; what was there already stays. Several drivers may write at the same time."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._shown = quoted(str(path))

    @property
    def _uri(self) -> str:
        uri = f"{self.path.absolute().as_uri()}?mode={'ro' if self._read_only else 'rwc'}"
        return f"{uri}&immutable=1" if self._read_only and _is_still(self.path) else uri

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """For one operation: nothing is held between them, and each ends with a single tidy file."""
        try:
            with closing(sqlite3.connect(self._uri, timeout=_BUSY_S, isolation_level=None, uri=True)) as connection:
                connection.text_factory = table.text
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
        except sqlite3.Error as error:
            raise SweepStoreError(f"{self._shown}: {_told(error)}") from None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which waits its turn before it begins."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk has ended it already
                    with suppress(sqlite3.Error):  # which would hide what went wrong first
                        connection.execute("ROLLBACK")
                raise

    def about(self) -> dict[str, Any]:
        with self._connected() as connection:
            return _about(connection)

    def finished(self, *, failed: bool = True) -> set[str]:
        """Keys of the cells that have a row; without `failed` of those that went well."""
        with self._connected() as connection:
            return _whole(table.all_rows(connection), failed)

    def finished_of(self, keys: Sequence[str], *, failed: bool = True) -> set[str]:
        """Those of the keys that `finished` has."""
        with self._connected() as connection:
            return _whole(table.rows_of(connection, keys), failed)

    def damaged(self) -> list[str]:
        """Keys of rows that are not as they were written. Nothing else that is read here has them."""
        with self._connected() as connection:
            return [row.key for row in table.all_rows(connection) if not row.is_whole]

    def add(self, code: str, rows: Iterable[tuple[str, Row]]) -> int:
        """(key, row) of some cells in one transaction; how many were not there yet.

        A row that went well takes the place of one that failed, and any that of a damaged one.
        """
        values = [table.values(key, code, row) for key, row in rows]
        with self._writing() as connection:
            there = table.rows_of(connection, [key for key, *_ in values])
            table.discard(connection, [row.key for row in there if not row.is_whole])
            before = connection.total_changes
            connection.executemany(table.ADD, values)
            return connection.total_changes - before

    def discard(self, keys: Sequence[str]) -> None:
        """Remove rows that are `damaged`."""
        with self._writing() as connection:
            table.discard(connection, keys)

    def rows(self) -> Iterator[Stored]:
        """In the order of their keys, the same however they came to be there; without damaged ones."""
        with self._connected() as connection:
            yield from (row.stored() for row in table.all_rows(connection) if row.is_whole)

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
                for statement in table.TABLES:
                    connection.execute(statement)
                connection.executemany(_TELL, _as_text({"format": _FORMAT, **about}))
            self._check(connection, {} if extend else about)
            if not table.has_digests(connection):
                connection.execute("ALTER TABLE cells ADD COLUMN digest TEXT")
            connection.executemany(_TELL, _as_text({"format": _FORMAT, **about, **notes}))

    def check(self, about: dict[str, Any]) -> None:
        with self._connected() as connection:
            self._check(connection, about)

    def _check(self, connection: sqlite3.Connection, about: dict[str, Any]) -> None:
        """Raises: SweepStoreError if it is no store, or one of something else."""
        if not {"about", "cells"} <= _tables(connection):
            raise SweepStoreError(f"{self._shown}: is no store of a sweep: give another --store")
        try:
            theirs = _about(connection)
        except ValueError:
            raise SweepStoreError(f"{self._shown}: is damaged: give another --store") from None
        if theirs.get("format") not in (_FORMAT, _WITHOUT_DIGESTS):
            told = quoted(repr(theirs.get("format")))
            raise SweepStoreError(f"{self._shown}: of format {told}, this reads {_FORMAT!r}: give another --store")
        for name, value in json.loads(json.dumps(about)).items():
            if theirs.get(name) != value:
                difference = _difference(name, theirs.get(name), value)
                raise SweepStoreError(
                    f"{self._shown}: holds another sweep: {difference}: give another --store, or --extend this one"
                )


def read_sweep_store(path: Path, about: dict[str, Any] | None = None) -> SweepStore:
    """The store at `path`, to read; with `about` refused if its rows are of something else.

    Raises: SweepStoreError naming the file.
    """
    if not path.is_file():
        raise SweepStoreError(f"{quoted(str(path))}: there is no such store; run the sweep first")
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
        raise SweepStoreError(f"{quoted(str(path))}: is a folder: give a file as --store")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.begin(about, notes or {}, extend)
    except OSError as error:
        raise SweepStoreError(
            f"{quoted(str(path))}: cannot be written ({error.strerror}): give another --store"
        ) from None
    return store


def _whole(rows: Iterable[table.Kept], failed: bool) -> set[str]:
    return {row.key for row in rows if (failed or row.error is None) and row.is_whole}


def _is_still(path: Path) -> bool:
    """Whether nobody can write here, which SQLite must be told, since it would make files beside this one to read."""
    log = path.with_name(f"{path.name}-wal")
    return not os.access(path.parent, os.W_OK) and not (log.exists() and log.stat().st_size)


def _told(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", None) or ""
    if name == "SQLITE_NOTADB":
        return "is no store of a sweep: give another --store"
    if name == "SQLITE_FULL":
        return "the disk is full: make room and start again; the rows that are there are whole"
    if name.startswith("SQLITE_CORRUPT"):
        return f"is damaged ({error}): give another --store"
    return f"{quoted(str(error))}: give another --store"


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
