"""Rows of a sweep: whole or not there, each once, and only of the sweep that the store is of."""

import json
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from experiments.sweeps import store as sweep_store
from experiments.sweeps.lanes import Row
from experiments.sweeps.spec import Sweep, parse_sweep
from experiments.sweeps.store import SweepStore, SweepStoreError, open_store, read_store


def sweep_of(seeds: Any = (0, 1), name: str = "a", **axes: Any) -> Sweep:
    return parse_sweep({"name": name, "axes": {**axes, "seed": list(seeds)}}, lambda tree: pytest.fail(tree))


SWEEP = sweep_of()
GOOD, BAD = Row({"fvu": 0.1, "hole_rate": None}, None, 0.5), Row(None, "it broke", 0.0)


def store(path: Path, sweep: Sweep | None = SWEEP, **options: Any) -> SweepStore:
    return read_store(path / "s.sqlite") if sweep is None else open_store(path / "s.sqlite", sweep, **options)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    assert store(tmp_path).add("code", [("k2", GOOD), ("k1", BAD)]) == 2
    again = store(tmp_path)
    assert [(row.key, row.code, row.metrics, row.error, row.seconds) for row in again.rows()] == [
        ("k1", "code", None, "it broke", 0.0),
        ("k2", "code", {"fvu": 0.1, "hole_rate": None}, None, 0.5),
    ]
    assert again.finished() == {"k1", "k2"}
    assert again.finished(failed=False) == {"k2"}
    assert again.finished_of(["k1", "k2", "k3"]) == {"k1", "k2"}
    assert again.finished_of(["k1", "k2", "k3"], failed=False) == {"k2"}


def test_a_row_stays_as_it_was_first_unless_it_failed(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add("one", [("a", GOOD), ("b", BAD)])
    assert kept.add("two", [("a", Row({"fvu": 9.0}, None, 1.0)), ("b", BAD)]) == 0
    assert kept.add("two", [("a", BAD), ("b", GOOD)]) == 1
    assert [row.metrics for row in kept.rows()] == [GOOD.metrics] * 2


def test_a_transaction_is_whole_or_not_at_all(tmp_path: Path) -> None:
    kept = store(tmp_path)
    with pytest.raises(SweepStoreError, match=r"s\.sqlite: .*NOT NULL"):
        kept.add("code", [("a", GOOD), ("b", Row({}, None, float("nan")))])  # which SQLite takes for NULL
    assert kept.finished() == set()


def test_many_keys_are_asked_for_at_once(tmp_path: Path) -> None:
    kept = store(tmp_path)
    keys = [f"k{i}" for i in range(2_500)]
    kept.add("code", [(key, GOOD) for key in keys[:2_000]])
    assert kept.finished_of(keys) == set(keys[:2_000])


def test_two_drivers_write_at_the_same_time_and_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    store(tmp_path)

    def write(first: int) -> int:
        own = store(tmp_path)
        return sum(own.add("code", [(f"k{i}", GOOD), (f"k{i + 1}", GOOD)]) for i in range(first, first + 100))

    with ThreadPoolExecutor(4) as threads:
        added = list(threads.map(write, (0, 50, 100, 20)))
    assert sum(added) == len(list(store(tmp_path).rows())) == 201


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (sweep_of(name="b"), r'sweep\.name is "a" there and "b" here'),
        (sweep_of([0, 2]), r"sweep\.axes\.seed is \[0, 1\] there and \[0, 2\] here"),
        (sweep_of(depth=[1]), r"sweep\.axes\.depth is null there and \[1\] here"),
    ],
)
def test_a_store_of_another_sweep_is_refused_by_what_differs(other: Sweep, message: str, tmp_path: Path) -> None:
    store(tmp_path).add("code", [("a", GOOD)])
    with pytest.raises(SweepStoreError, match=rf"s\.sqlite: holds another sweep: {message}: give another --store"):
        store(tmp_path, other)
    assert store(tmp_path).sweep() == SWEEP
    with pytest.raises(SweepStoreError, match=message):
        read_store(tmp_path / "s.sqlite", other)
    extended = store(tmp_path, other, extend=True)
    assert extended.sweep() == other
    assert extended.finished() == {"a"}


def test_a_store_in_which_weightings_are_called_objectives_is_the_sweep_s(tmp_path: Path) -> None:
    sweep = sweep_of(weighting=["vanilla", "all"])
    store(tmp_path, sweep).add("code", [("a", GOOD)])
    in_file(tmp_path, "UPDATE about SET value = replace(value, 'weighting', 'objective')")
    assert read_store(tmp_path / "s.sqlite", sweep).sweep() == store(tmp_path, sweep).sweep() == sweep


def test_a_store_can_be_read_while_another_writes_and_not_written_by_readers(tmp_path: Path) -> None:
    store(tmp_path).add("code", [("a", GOOD)])
    reader = read_store(tmp_path / "s.sqlite", SWEEP)
    with store(tmp_path)._writing():
        assert reader.finished() == {"a"}
        assert len(list(reader.rows())) == 1
    with pytest.raises(SweepStoreError, match=r"s\.sqlite: attempt to write a readonly database"):
        reader.add("code", [("b", GOOD)])


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
@pytest.mark.parametrize("sweep", [SWEEP, None])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(content: bytes, sweep: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(content)
    if not content and sweep is not None:  # as an interrupted start may leave it
        assert store(tmp_path).finished() == set()
        return
    with pytest.raises(SweepStoreError, match=r"s\.sqlite: is no store of a sweep"):
        store(tmp_path, sweep)
    if content:
        assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "s.sqlite") as other:
        other.execute("CREATE TABLE things (x)")
    other.close()
    before = (tmp_path / "s.sqlite").read_bytes()
    with pytest.raises(SweepStoreError, match=r"s\.sqlite: is no store of a sweep"):
        store(tmp_path)
    assert (tmp_path / "s.sqlite").read_bytes() == before


def test_a_store_of_another_format_or_that_is_missing_or_cannot_be_made_is_refused(tmp_path: Path) -> None:
    store(tmp_path)
    with sqlite3.connect(tmp_path / "s.sqlite") as inside:
        inside.execute("UPDATE about SET value = '\"other\"' WHERE name = 'format'")
    inside.close()
    with pytest.raises(SweepStoreError, match=r"of format 'other', this reads 'matryoshka toy sweep 2': give another"):
        store(tmp_path)
    with pytest.raises(SweepStoreError, match=r"nowhere: there is no such store; run the sweep first"):
        read_store(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(SweepStoreError, match=r"file/s\.sqlite: cannot be written \(.*\): give another --store"):
        open_store(tmp_path / "file" / "s.sqlite", SWEEP)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SweepStoreError, match=r"folder: is a folder: give a file as --store"):
        open_store(tmp_path / "folder", SWEEP)


# --- damage, full disks, folders that only can be read ----------------------------------------------------


def in_file(path: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(path / "s.sqlite") as inside:
        inside.execute(statement, values)
    inside.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("metrics", '{"fvu": 0.2, "hole_rate": null}'),  # one bit
        ("metrics", '{"fvu": 0.1'),
        ("metrics", None),
        ("metrics", b"\xff\xfe"),
        ("error", "it broke"),
        ("code", "cod"),
        ("key", "b"),
        ("seconds", 0.25),
        ("seconds", "text"),
        ("digest", "0" * 32),
    ],
)
def test_a_damaged_row_counts_as_missing_and_is_replaced(column: str, value: Any, tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add("code", [("a", GOOD), ("c", GOOD)])
    in_file(tmp_path, f"UPDATE cells SET {column} = ? WHERE key = 'a'", value)
    key = "b" if column == "key" else "a"
    assert kept.damaged() == [key]
    assert kept.finished() == kept.finished_of(["a", "b", "c"]) == {"c"}
    assert [row.key for row in kept.rows()] == ["c"]
    assert kept.add("code", [(key, GOOD)]) == 1
    assert kept.finished() == {key, "c"}
    assert kept.damaged() == []


def test_damaged_rows_can_be_removed(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add("code", [("a", GOOD), ("c", GOOD)])
    in_file(tmp_path, "UPDATE cells SET key = 'zz' WHERE key = 'a'")
    kept.discard(kept.damaged())
    assert (kept.damaged(), kept.finished()) == ([], {"c"})


def old_store(path: Path) -> None:
    """Makes a store as they were before rows had digests."""
    with sqlite3.connect(path / "s.sqlite") as made:
        made.execute("CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        made.execute(
            "CREATE TABLE cells (key TEXT PRIMARY KEY, code TEXT NOT NULL, metrics TEXT, error TEXT, "
            "seconds REAL NOT NULL, finished REAL NOT NULL)"
        )
        told = {"format": "matryoshka toy sweep 1", "sweep": SWEEP.as_data()}
        del told["sweep"]["metrics"]
        made.executemany("INSERT INTO about VALUES (?, ?)", [(name, json.dumps(value)) for name, value in told.items()])
        rows = [("a", "code", '{"fvu": 0.1}', None, 1.0, 2.0), ("b", "code", '{"fvu": 0.', None, 1.0, 2.0)]
        made.executemany("INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?)", rows)
    made.close()


def test_a_store_without_digests_is_read_and_has_them_from_the_next_row_on(tmp_path: Path) -> None:
    old_store(tmp_path)
    before = (tmp_path / "s.sqlite").read_bytes()
    reader = read_store(tmp_path / "s.sqlite", SWEEP)
    assert [(row.key, row.metrics) for row in reader.rows()] == [("a", {"fvu": 0.1})]
    assert reader.damaged() == ["b"]  # which is no JSON
    assert (tmp_path / "s.sqlite").read_bytes() == before
    kept = store(tmp_path)
    assert kept.add("code", [("b", GOOD), ("c", GOOD)]) == 2
    assert (kept.finished(), kept.damaged()) == ({"a", "b", "c"}, [])
    in_file(tmp_path, "UPDATE cells SET metrics = '{}' WHERE key = 'c'")
    assert store(tmp_path).damaged() == ["c"]


def test_a_file_that_is_damaged_is_told_in_one_line(tmp_path: Path) -> None:
    store(tmp_path).add("code", [(f"k{i}", GOOD) for i in range(2_000)])
    content = bytearray((tmp_path / "s.sqlite").read_bytes())
    content[20_000:40_000] = b"\xff" * 20_000
    (tmp_path / "s.sqlite").write_bytes(content)
    with pytest.raises(SweepStoreError, match=r"^\S*s\.sqlite: is damaged \(.*malformed\): give another --store$"):
        list(store(tmp_path, None).rows())


def test_what_a_store_says_of_itself_may_be_damaged(tmp_path: Path) -> None:
    store(tmp_path)
    in_file(tmp_path, "UPDATE about SET value = '{\"name\": ' WHERE name = 'sweep'")
    with pytest.raises(SweepStoreError, match=r"s\.sqlite: is damaged: give another --store"):
        store(tmp_path, None)


def test_a_full_disk_is_told_and_what_was_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store(tmp_path)
    kept.add("code", [("a", GOOD)])
    connect = sqlite3.connect

    def full(*given: Any, **options: Any) -> Any:
        connection = connect(*given, **options)
        connection.execute("PRAGMA max_page_count = 10")
        return connection

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(SweepStoreError, match=r"s\.sqlite: the disk is full: make room and start again"):
        kept.add("code", [(f"k{i}", GOOD) for i in range(5_000)])
    assert kept.finished() == {"a"}


def test_an_interrupt_leaves_no_half_of_a_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store(tmp_path)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweep_store, "_discard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept.add("code", [("a", GOOD)])
    assert kept.add("code", [("a", GOOD)]) == 1


def test_a_finished_store_is_read_in_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path).add("code", [("a", GOOD)])
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    seen: list[str] = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda file, **options: seen.append(file) or connect(file, **options))
    reader = read_store(tmp_path / "s.sqlite", SWEEP)
    for _ in reader.rows():
        assert [path.name for path in tmp_path.iterdir()] == ["s.sqlite"]  # SQLite made nothing beside it
    assert all(uri.endswith("?mode=ro&immutable=1") for uri in seen)


def test_rows_that_are_still_in_the_log_are_read_in_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store(tmp_path)
    (tmp_path / "copy").mkdir()
    with kept._connected():  # an open connection keeps the log
        kept.add("code", [("a", GOOD)])
        for file in tmp_path.glob("s.sqlite*"):
            shutil.copy(file, tmp_path / "copy")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert store(tmp_path / "copy", None).finished() == {"a"}
