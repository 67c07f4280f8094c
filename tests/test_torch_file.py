"""Files of torch.save that were made to do harm are refused at once, and change nothing."""

import resource
import struct
import time
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest

from toy.files.torch_file import read_torch_file

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "attack"
VALUES = np.arange(6, dtype=np.float32)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, of: str) -> bytes:
    return b"c" + f"{module}\n{of}\n".encode()


def storage(key: str = "0", n: int = 6) -> bytes:
    return b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu") + b"K" + bytes([n]) + b"tQ"


REBUILD, ORDERED = name("torch._utils", "_rebuild_tensor_v2"), name("collections", "OrderedDict") + b")R"
TENSOR = REBUILD + b"(" + storage() + b"K\x00K\x06\x85K\x01\x85\x89" + ORDERED + b"tR"
GOOD = b"\x80\x02}" + text("a") + TENSOR + b"s."


def archive(path: Path, data: bytes, *, kind: int = 0, values: bytes = VALUES.tobytes()) -> Path:
    with ZipFile(path, "w", kind) as file:
        file.writestr("m/data.pkl", data)
        file.writestr("m/data/0", values)
    return path


def refused(path: Path, message: str) -> None:
    """At once, in one line and in little memory; and a good file is still read after it."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as caught:
        read_torch_file(path)
    assert time.process_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 700
    good = read_torch_file(archive(path.with_name("good.pt"), GOOD))
    assert isinstance(good, dict)
    np.testing.assert_array_equal(good["a"], VALUES)


def bomb_of_hashes() -> bytes:
    """A tuple of a tuple twice, and so on: its hash takes 2^60 steps."""
    return b")q\x00" + b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))


ATTACKS: dict[str, tuple[bytes, str]] = {
    "a key of nested tuples": (b"}" + b")" + b"\x85" * 90_000 + b"K\x01s.", "a key that is neither text nor a whole"),
    "tuples nested without end": (b")" + b"\x85" * 250_000 + b".", "neither a tensor"),
    "a key whose hash takes for ever": (b"}" + bomb_of_hashes() + b"K\x01s.", "a key that is neither text nor"),
    "a memo of 2^30 places": (b"]r\xff\xff\xff\x3f.", "neither a tensor"),
    "the state of a function": (REBUILD + b"}" + text("__defaults__") + b"Nsb.", "the state of something that is no"),
    "the class of a dictionary called": (ORDERED[:-2] + b"K\x01\x85R.", "its pickle is broken"),
    "a tensor called": (TENSOR + b")R.", "its pickle is broken"),
    "a text called": (text("os.system") + b")R.", "its pickle is broken"),
    "a name of another module": (name("os", "system") + b".", r"os\.system is not allowed in it"),
    "a name from the stack": (text("os") + text("system") + b"\x93.", r"os\.system is not allowed in it"),
    "a name that is a number": (text("os") + b"K\x01\x93.", "its pickle is broken"),
    "an instance": (b"(ios\nsystem\n.", "its pickle is broken"),
    "an extension": (b"\x82\x01.", "its pickle is broken"),
    "a new object": (ORDERED[:-2] + b")\x81.", "its pickle is broken"),
    "a list in itself": (b"]q\x00h\x00a.", "neither a tensor nor a dictionary of tensors"),
    "a dictionary in itself": (b"}q\x00" + text("a") + b"h\x00s.", "neither a tensor nor a dictionary of tensors"),
    "metadata of many parts": (
        REBUILD + b"(" + storage() + b"K\x00K\x06\x85K\x01\x85\x89N(" + text("x" * 9_000) * 99 + b"ttR.",
        "a tensor with metadata: clone it",
    ),
    "an offset of thousands of digits": (
        REBUILD
        + b"("
        + storage()
        + b"\x8b"
        + struct.pack("<i", 10**6)
        + b"\x7f" * 10**6
        + b"K\x06\x85K\x01\x85\x89NtR.",
        "its pickle is broken",
    ),
    "a shape of many axes": (
        REBUILD + b"(" + storage() + b"K\x00(" + b"K\x01" * 99 + b"t(" + b"K\x00" * 99 + b"t\x89NtR.",
        "a shape or strides that are no tuple of at most 32 sizes",
    ),
    "a shape that is a text": (REBUILD + b"(" + storage() + b"K\x00" + text("6") + b"K\x01\x85\x89NtR.", "no tuple of"),
    "too few arguments": (REBUILD + b"(" + storage() + b"tR.", "its pickle is broken"),
    "a storage that is not there": (storage("1") + b".", r"there is no m/data/1 in it"),
    "a storage elsewhere": (storage("../data.pkl") + b".", r"there is no m/data/\.\./data\.pkl in it"),
    "a persistent id that is a text": (text("storage") + b"Q.", "a storage without a key"),
    "one storage by many names": (
        b"\x80\x02}(" + b"".join(text(str(i)) + TENSOR for i in range(99)) + b"u.",
        "its tensors share only 6 values: clone them before saving",
    ),
    "nothing on the stack": (b"u.", "its pickle is broken"),
    "no end": (b"}", "cannot be read as tensors"),
    "a text longer than the file": (b"X\xff\xff\xff\x7fabc.", "cannot be read as tensors"),
    "odd items": (b"}(" + text("a") + b"u.", "items of something that is no dictionary"),
    "items of a tensor": (TENSOR + text("a") + b"K\x01s.", "items of something that is no dictionary"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_made_to_do_harm_is_refused(attack: str, tmp_path: Path) -> None:
    data, message = ATTACKS[attack]
    refused(archive(tmp_path / "a.pt", data), message)


def test_a_pickle_of_another_protocol_is_read(tmp_path: Path) -> None:
    data = b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a" + GOOD[GOOD.index(REBUILD) :]
    found = read_torch_file(archive(tmp_path / "a.pt", data))
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["a"], VALUES)


def test_compressed_members_and_members_that_claim_too_much_are_refused_before_they_are_read(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "zip.pt", GOOD, kind=ZIP_DEFLATED, values=bytes(10**8))
    assert bomb.stat().st_size < 10**6
    refused(bomb, "is compressed in a way that is not read: save it uncompressed")
    refused(archive(tmp_path / "big.pt", GOOD[:-1] + b"0" * 5 * 2**20), "its data.pkl has more than 1,048,576 bytes")
    twice = archive(tmp_path / "twice.pt", GOOD).read_bytes().replace(b"m/data/0", b"m/data.p")
    (tmp_path / "twice.pt").write_bytes(twice.replace(b"m/data.pkl", b"m/data.p__").replace(b"data.p__", b"data.p\0_"))
    refused(tmp_path / "twice.pt", "two members of one name")
    whole = bytearray(archive(tmp_path / "claims.pt", GOOD).read_bytes())
    entry = whole.rindex(b"PK\x01\x02")
    for first in (20, 24):  # both sizes of the storage, in the directory
        whole[entry + first : entry + first + 4] = struct.pack("<I", 10**9)
    (tmp_path / "claims.pt").write_bytes(whole)
    refused(tmp_path / "claims.pt", "its members claim more bytes than the")
    whole[entry + 8] |= 1
    (tmp_path / "claims.pt").write_bytes(whole)
    refused(tmp_path / "claims.pt", "m/data/0 is encrypted: save it without a password")


def test_a_directory_of_very_many_members_is_not_read(tmp_path: Path) -> None:
    names = [f"{i:06d}".encode() for i in range(50_000)]
    entries = b"".join(b"PK\x01\x02" + bytes(24) + b"\x06" + bytes(17) + name for name in names)
    end = b"PK\x05\x06" + bytes(4) + b"\xff\xff" * 2 + struct.pack("<II", len(entries), 0) + bytes(2)
    (tmp_path / "many.pt").write_bytes(entries + end)
    assert len(ZipFile(tmp_path / "many.pt").filelist) == len(names)
    refused(tmp_path / "many.pt", "its directory is too long")


@pytest.mark.parametrize("name", ["deep_tuple_key", "hash_bomb", "memo_bomb", "metadata_str_bomb", "defaults"])
def test_the_files_that_were_found_are_refused(name: str) -> None:
    if not CASES.exists():
        pytest.skip("the attacks that were found are not here")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        read_torch_file(CASES / f"torch_{name}.pt")
