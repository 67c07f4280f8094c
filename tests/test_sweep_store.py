"""Rows of a sweep: whole or not there, each once, and only of the sweep that the store is of."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from toy.sweep.lanes import Row
from toy.sweep.store import SweepStore, SweepStoreError, open_sweep_store, read_sweep_store

ABOUT = {"sweep": {"name": "a", "axes": {"seed": [0, 1]}}}
GOOD, BAD = Row({"fvu": 0.1, "hole_rate": None}, None, 0.5), Row(None, "it broke", 0.0)


def store(path: Path, about: Any = ABOUT, **options: Any) -> SweepStore:
    if about is None:
        return read_sweep_store(path / "s.sqlite")
    return open_sweep_store(path / "s.sqlite", about, **options)


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
    ("about", "message"),
    [
        ({"sweep": {"name": "b", "axes": {"seed": [0, 1]}}}, r'sweep\.name is "a" there and "b" here'),
        ({"sweep": {"name": "a", "axes": {"seed": [0, 2]}}}, r"sweep\.axes\.seed is \[0, 1\] there and \[0, 2\] here"),
        ({"sweep": {"name": "a", "axes": {}}}, r"sweep\.axes\.seed is \[0, 1\] there and null here"),
    ],
)
def test_a_store_of_another_sweep_is_refused_by_what_differs(about: Any, message: str, tmp_path: Path) -> None:
    store(tmp_path).add("code", [("a", GOOD)])
    with pytest.raises(SweepStoreError, match=rf"s\.sqlite: holds another sweep: {message}: give another --store"):
        store(tmp_path, about)
    assert store(tmp_path).about()["sweep"] == ABOUT["sweep"]
    with pytest.raises(SweepStoreError, match=message):
        read_sweep_store(tmp_path / "s.sqlite", about)
    extended = store(tmp_path, about, extend=True)
    assert extended.about()["sweep"] == about["sweep"]
    assert extended.finished() == {"a"}


def test_a_store_can_be_read_while_another_writes_and_not_written_by_readers(tmp_path: Path) -> None:
    store(tmp_path).add("code", [("a", GOOD)])
    reader = read_sweep_store(tmp_path / "s.sqlite", ABOUT)
    with store(tmp_path)._writing():
        assert reader.finished() == {"a"}
        assert len(list(reader.rows())) == 1
    with pytest.raises(SweepStoreError, match=r"s\.sqlite: attempt to write a readonly database"):
        reader.add("code", [("b", GOOD)])


def test_notes_may_differ(tmp_path: Path) -> None:
    store(tmp_path, notes={"file": "a.yaml"})
    assert store(tmp_path, notes={"file": "b.yaml"}).about()["file"] == "b.yaml"


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
@pytest.mark.parametrize("about", [ABOUT, None])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(content: bytes, about: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(content)
    if not content and about is not None:  # as an interrupted start may leave it
        assert store(tmp_path).finished() == set()
        return
    with pytest.raises(SweepStoreError, match=r"s\.sqlite: is no store of a sweep"):
        store(tmp_path, about)
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
    with pytest.raises(SweepStoreError, match=r"of format 'other', this reads 'matryoshka toy sweep 1'"):
        store(tmp_path)
    with pytest.raises(SweepStoreError, match=r"nowhere: there is no such store; run the sweep first"):
        read_sweep_store(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(SweepStoreError, match=r"file/s\.sqlite: cannot be written \(.*\): give another --store"):
        open_sweep_store(tmp_path / "file" / "s.sqlite", ABOUT)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SweepStoreError, match=r"folder: is a folder: give a file as --store"):
        open_sweep_store(tmp_path / "folder", ABOUT)
