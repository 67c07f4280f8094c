"""Files under bad conditions: full disks, folders that cannot be written, headers and JSON that claim too much."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import HERE

from toy.data.store import open_store, write_store
from toy.io import load_arrays, load_json, save_arrays, save_json, write_sae, writing
from toy.sae import SAE

LIMIT = 20_000  # bytes of a file, in a process of its own


def rows(i: int) -> dict[str, np.ndarray]:
    columns = {name: np.zeros(2_000, np.int32) for name in ("token", "document", "position")}
    return {"a": np.full((2_000, 4), i, np.float32), **columns}


def write_all(folder: Path) -> None:
    """Behaves like a full disk: it tells each error, and writes what fits."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    sae = SAE(*(np.ones(shape, np.float32) for shape in ((90, 90), (90,), (90, 90), (90,))))  # type: ignore[arg-type]
    for write in (
        lambda: save_arrays(folder / "a.safetensors", {"x": np.ones(LIMIT)}, {}),
        lambda: save_json(folder / "a.json", [0.1] * LIMIT),
        lambda: write_sae(folder / "sae", sae),
        lambda: write_store(folder / "store", {}, 2, rows),
    ):
        try:
            write()
        except OSError as error:
            print(error)


def test_a_full_disk_is_told_by_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    names = ("a.safetensors", "a.json", "sae/sae_weights.safetensors", "store/shard-00000.safetensors")
    told = [f"[Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}: '{tmp_path / name}'" for name in names]
    assert ended.stdout.splitlines() == told
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["a.json", "store/unfinished.json"]
    assert (tmp_path / "a.json").read_text() == "old"
    np.testing.assert_array_equal(
        write_store(tmp_path / "store", {}, 2, rows).activations("a").take(np.array([2_000])), 1
    )


def test_a_finished_store_opens_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "s", {}, 2, rows)
    (tmp_path / "s" / "unfinished.json").write_text("left between the two last writes")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("os.unlink", "os.replace", "os.mkdir", "tempfile.mkstemp", "fcntl.flock"):
        monkeypatch.setattr(name, refuse)
    assert open_store(tmp_path / "s").n_rows == 4_000
    assert write_store(tmp_path / "s", {}, 2, rows).n_rows == 4_000
    with pytest.raises(OSError, match=r"s/b\.json"):
        save_json(tmp_path / "s" / "b.json", {})


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", refuse)
    with writing(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{" + b'"a": {' * 100_000, "broken: no JSON: it is nested too deeply"),
        (b'{"b": 1, "a": 1, "c": {"a": 3, "a": 4}}', "broken: no JSON: the key a stands twice in one object"),
        (b'["' + b"x" * 10**6, "broken: no JSON: Unterminated string"),
        (b"[1]" + b" " * 100, "broken: has more than 64 bytes"),
        (b"\xff", "broken: no JSON: not UTF-8 text"),
        (b"9" * 5_000, "broken: "),
    ],
)
def test_json_from_elsewhere_is_refused_in_one_line_that_names_the_file(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json: {message}") as caught:
        load_json(tmp_path / "a.json", most_bytes=64 if len(content) < 200 and b" " * 9 in content else 10**7)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


# --- headers of safetensors ---------------------------------------------------------------------------------


def entry(first: Any, end: Any, *shape: Any, dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, end], **more}


def deep() -> bytes:
    text = b'{"a":' * 50_000
    return len(text).to_bytes(8, "little") + text


HEADERS: list[Any] = [
    [],
    {"a": entry(0, 8, 2), "b": entry(4, 12, 2)},
    {"a": entry(0, 4, 1), "b": entry(8, 12, 1)},
    {"a": entry(0, 8, 2)},
    {"a": entry(0, 16, 4)},
    {"a": entry(0, 12, 2)},
    {"a": entry(0, 12, 2**62, 2**62)},
    {"a": entry(0, 12, -3)},
    {"a": entry(12, 0, 3)},
    {"a": entry(0, 12, 3.0)},
    {"a": entry(0, 12, True, 3)},
    {"a": entry(0, 12, *[1] * 99, 3)},
    {"a": entry(0, 2**64, 3)},
    {"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 12]}},
    {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4, 12]}},
    {"a": entry(0, 12, 3, dtype="F4")},
    {"a": entry(0, 12, 12, dtype="F8_E4M3")},
    {"a": entry(0, 12, 3, dtype=["F32"])},
    {"a": entry(0, 12, 3, more=1)},
    {"a": 3},
    {"a": entry(0, 12, 3), "__metadata__": []},
    {"a": entry(0, 12, 3), "__metadata__": {"b": 1}},
    {"x" * 10**6: 3},
    b'{"a": {"dtype": "F32", "dtype": "F64"}}',
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_a_header_that_does_not_fit_its_file_is_refused(header: Any, tmp_path: Path) -> None:
    text: bytes = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    refused(tmp_path / "a", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot mmap an empty file"),
        (b"1234567", "a header of .* bytes in a file of 7"),
        ((2**63).to_bytes(8, "little") + bytes(99), "a header of 9,223,372,036,854,775,808 bytes in a file of 107"),
        ((5 * 2**20).to_bytes(8, "little") + b" " * 5 * 2**20, "a header of 5,242,880 bytes .*, at most 4,194,304"),
        ((3).to_bytes(8, "little") + b"\xff\xff\xff", "invalid UTF-8"),
        (deep(), "invalid JSON"),
    ],
    ids=range(6),
)
def test_a_file_that_begins_with_no_good_header_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a", f".*{message}")


def refused(path: Path, message: str, read: Callable[[Path], Any] = load_arrays) -> None:
    with pytest.raises(ValueError, match=rf"a: broken, or no safetensors file: {message}") as caught:
        read(path)
    assert len(str(caught.value)) < 1_000
    assert str(caught.value).isprintable()


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    refused(tmp_path / "a", "no regular file")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
