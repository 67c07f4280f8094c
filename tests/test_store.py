"""A store is what was put into it, whatever was killed on the way; every fault is told by its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from killed import FACTS, N_SHARDS, make_shard
from processes import killed, start

from toy.data.store import Store, StoreError, open_store, write_store
from toy.files.digest import signed
from toy.io import load_json, locked, save_arrays, save_json

SHARDS = [make_shard(i) for i in range(N_SHARDS)]
COLUMNS = ("token", "document", "position")


def whole(name: str) -> np.ndarray:
    return np.concatenate([shard[name] for shard in SHARDS])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(folder: Path, **more: Any) -> Store:
    return write_store(folder, **({"facts": FACTS, "n_shards": N_SHARDS, "make_shard": make_shard} | more))


def never(i: int) -> dict[str, np.ndarray]:
    pytest.fail(f"made shard {i}")


def test_a_store_holds_what_was_put_into_it(tmp_path: Path) -> None:
    told: list[int] = []
    store = written(tmp_path / "s", progress=told.append)
    assert told == [1] * N_SHARDS
    for opened in (store, open_store(tmp_path / "s"), open_store(tmp_path / "s", verify=False)):
        assert opened.facts == FACTS
        assert list(opened.sites) == ["a", "b"]
        assert opened.n_rows == opened.activations("a").n_rows == len(whole("a"))
        for site in ("a", "b"):
            acts = opened.activations(site)
            np.testing.assert_array_equal(np.concatenate(list(acts.slices(13))), whole(site))
            assert max(len(rows) for rows in acts.slices(13)) == 13
            rows = np.random.default_rng(0).integers(0, acts.n_rows, 200)
            np.testing.assert_array_equal(acts.take(rows), whole(site)[rows])
        np.testing.assert_array_equal(opened.token, whole("token"))
        np.testing.assert_array_equal(opened.document, whole("document"))
        np.testing.assert_array_equal(opened.position, whole("position"))
    assert {*contents(tmp_path / "s")} == {"manifest.json", *(f"shard-0000{i}.safetensors" for i in range(N_SHARDS))}


def test_the_mean_and_mean_norm_are_written_in_full_precision(tmp_path: Path) -> None:
    site = written(tmp_path / "s").sites["b"]
    x = whole("b").astype(np.float64)
    np.testing.assert_allclose(site.mean, x.mean(axis=0), rtol=1e-13, atol=1e-15)
    assert site.mean_norm == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-13)


def test_sums_are_of_all_rows_of_a_shard(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(9_000, 2)).astype(np.float32)
    columns = {name: np.zeros(len(rows), np.int32) for name in COLUMNS}
    site = written(tmp_path / "s", n_shards=1, make_shard=lambda i: {"a": rows, **columns}).sites["a"]
    np.testing.assert_allclose(site.mean, rows.astype(float).mean(axis=0), rtol=1e-10)
    assert site.mean_norm == pytest.approx(np.linalg.norm(rows.astype(float), axis=1).mean(), rel=1e-10)


def test_bfloat16_is_kept_and_what_is_taken_is_float32(tmp_path: Path) -> None:
    def half(i: int) -> dict[str, np.ndarray]:
        return make_shard(i) | {"a": SHARDS[i]["a"].astype(jnp.bfloat16)}

    acts = written(tmp_path / "s", make_shard=half).activations("a")
    assert acts.dtype == jnp.bfloat16
    taken = acts.take(np.array([0, 60, 3]))
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, whole("a")[[0, 60, 3]].astype(jnp.bfloat16).astype(np.float32))


def test_rows_and_sites_that_are_not_there_are_refused(tmp_path: Path) -> None:
    store = written(tmp_path / "s")
    with pytest.raises(StoreError, match="s: has no site 'c'; it has 'a', 'b'"):
        store.activations("c")
    for row in (-1, store.n_rows):
        with pytest.raises(IndexError, match=f"rows {row}"):
            store.activations("a").take(np.array([row]))


# --- killed, resumed, refused -------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_export_that_was_killed_loses_at_most_a_shard_and_ends_as_the_whole(
    tmp_path: Path, kill_points: np.random.Generator
) -> None:
    written(tmp_path / "whole")
    folder = tmp_path / "s"
    made = []
    for at in kill_points.integers(300, 1_000, 2):
        made += killed("store", folder, int(at)).split()
        with pytest.raises(StoreError, match=r"manifest\.json: cannot be read as a finished store"):
            open_store(folder)
    again: list[int] = []
    written(folder, make_shard=lambda i: again.append(i) or make_shard(i))
    assert again == list(range(N_SHARDS - len(again), N_SHARDS))
    assert len(made) + len(again) <= N_SHARDS + 2
    assert contents(folder) == contents(tmp_path / "whole")


def stopped(folder: Path, n_shards: int = 3) -> None:
    def make(i: int) -> dict[str, np.ndarray]:
        if i == n_shards:
            raise InterruptedError
        return make_shard(i)

    with pytest.raises(InterruptedError):
        written(folder, make_shard=make)


def test_a_kept_shard_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    written(tmp_path / "whole")
    stopped(tmp_path / "s")
    flip(tmp_path / "s" / "shard-00001.safetensors")
    (tmp_path / "s" / "shard-00002.safetensors").write_bytes(b"")
    (tmp_path / "s" / ".shard-00003.safetensors.abcd_123.toy-part").write_bytes(b"left by a kill")
    again: list[int] = []
    written(tmp_path / "s", make_shard=lambda i: again.append(i) or make_shard(i))
    assert again == [1, 2, 3, 4, 5]
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_a_kept_shard_of_another_place_or_export_is_made_again(tmp_path: Path) -> None:
    written(tmp_path / "whole")
    stopped(tmp_path / "s")
    stopped(tmp_path / "other", n_shards=2)
    name = "shard-0000{}.safetensors".format
    (tmp_path / "s" / name(0)).write_bytes((tmp_path / "s" / name(1)).read_bytes())
    written(tmp_path / "t", facts={"model": "other"}, make_shard=lambda i: make_shard(i + 1))
    (tmp_path / "s" / name(2)).write_bytes((tmp_path / "t" / name(2)).read_bytes())
    again: list[int] = []
    written(tmp_path / "s", make_shard=lambda i: again.append(i) or make_shard(i))
    assert again == [0, 2, 3, 4, 5]
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    stopped(tmp_path / "s")
    names = ("shard-00004.safetensors", "manifest.json", "unfinished.json")
    for name in names:
        (tmp_path / "s" / f".{name}.abcd_123.toy-part").write_bytes(b"left by a kill")
    theirs = [".manifest.json.notes", ".manifest.json.toy-part", ".shard-x.abcd_123.toy-part", "a.abcd_123.toy-part"]
    for name in theirs:
        (tmp_path / "s" / name).write_bytes(b"a user's")
    written(tmp_path / "s")
    assert sorted(name for name in contents(tmp_path / "s") if "shard-0" not in name) == [*theirs, "manifest.json"]


def test_a_kill_between_the_two_last_writes_leaves_a_store_that_is_only_opened(tmp_path: Path) -> None:
    stopped(tmp_path / "s")
    mark = (tmp_path / "s" / "unfinished.json").read_bytes()
    written(tmp_path / "s")
    before = contents(tmp_path / "s")
    (tmp_path / "s" / "unfinished.json").write_bytes(mark)
    written(tmp_path / "s", make_shard=never)
    assert contents(tmp_path / "s") == before


def test_one_process_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "whole")
    refused = []

    def make(i: int) -> dict[str, np.ndarray]:
        with pytest.raises(StoreError, match="s: another process is writing to it: wait"):
            written(tmp_path / "s", make_shard=never)
        refused.append(i)
        return make_shard(i)

    written(tmp_path / "s", make_shard=make)
    assert refused == list(range(N_SHARDS))
    with locked(tmp_path / "s"):
        written(tmp_path / "s", make_shard=never)  # what is finished is only opened
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_more_shards_than_files_that_may_be_open_are_opened_or_told_before_any_work(tmp_path: Path) -> None:
    output = start("killed.py", "shards", tmp_path).communicate(timeout=120)[0]
    assert "opened 300 shards" in output, output
    assert "s: 300 shards need as many open files, but this process may open only 280: have the limit" in output
    assert "nothing was made" in output, output


def test_a_finished_store_of_the_same_facts_is_only_opened(tmp_path: Path) -> None:
    written(tmp_path / "s")
    before = contents(tmp_path / "s")
    written(tmp_path / "s", make_shard=never)
    assert contents(tmp_path / "s") == before


def unfinished_of_nothing(folder: Path) -> None:
    folder.mkdir()
    (folder / "unfinished.json").write_text('{"facts": 3, "n_shards": 6}')


def other_files(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("all my work")


@pytest.mark.parametrize(
    ("prepare", "more", "message"),
    [
        (written, {"facts": {"model": "n"}}, r"s/manifest\.json: made with model = m, which now is n"),
        (written, {"facts": FACTS | {"seed": 1}}, r"s/manifest\.json: made with seed = absent, which now is 1"),
        (written, {"n_shards": 5}, r"s/manifest\.json: made with n_shards = 6, which now is 5"),
        (stopped, {"facts": {}}, r"s/unfinished\.json: made with model = m, which now is absent"),
        (stopped, {"n_shards": 7}, r"s/unfinished\.json: made with n_shards = 6, which now is 7"),
        (unfinished_of_nothing, {}, r"s/unfinished\.json: broken: it has no facts"),
        (other_files, {}, r"s: holds other files \(thesis\.tex\): give an empty folder"),
        (lambda folder: folder.mkdir(), {"n_shards": 0}, "s: n_shards must be at least 1"),
    ],
)
def test_a_folder_of_anything_else_is_refused_and_left_as_it_is(
    prepare: Callable[[Path], Any], more: dict, message: str, tmp_path: Path
) -> None:
    prepare(tmp_path / "s")
    before = contents(tmp_path / "s")
    with pytest.raises(StoreError, match=message):
        written(tmp_path / "s", **({"make_shard": never} | more))
    assert contents(tmp_path / "s") == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(StoreError, match="s: is a file"):
        written(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.ones((50, 4))}, "a: expected float32 or bfloat16"),
        ({"a": np.ones(50, np.float32)}, "a: expected float32"),
        ({"a": np.ones((49, 4), np.float32)}, r"a: expected float32 \(50, 4\), got float32 \(49, 4\)"),
        ({"a": np.full((50, 4), np.nan, np.float32)}, "a: has numbers that are not finite"),
        ({"token": np.ones(50, np.int64)}, "token: expected int32"),
        ({"document": np.ones(49, np.int32)}, "document: expected int32"),
        ({"token": None}, "expected arrays a, b, token, document, position, got a, b, document, position"),
        (dict.fromkeys(("a", "b")), "expected arrays token, document, position, got document, position, token"),
    ],
)
def test_a_shard_that_cannot_be_is_not_written(change: dict, message: str, tmp_path: Path) -> None:
    shard = {name: array for name, array in (SHARDS[0] | change).items() if array is not None}
    with pytest.raises(StoreError, match=rf"shard-00000\.safetensors: {message}"):
        written(tmp_path / "s", make_shard=lambda _: shard)
    assert [*contents(tmp_path / "s")] == ["unfinished.json"]


def test_all_shards_have_the_same_sites(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"shard-00001\.safetensors: a: expected float32 \(51, 4\), got .*\(51, 3\)"):
        written(tmp_path / "s", make_shard=lambda i: make_shard(i) | ({"a": np.ones((51, 3), np.float32)} if i else {}))


# --- faults in a finished store -----------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def edit(change: Callable[[dict], Any], *, sign: bool = False) -> Callable[[Path], None]:
    """A manifest with a change; with `sign` one that says so itself."""

    def spoil(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        save_json(folder / "manifest.json", signed(manifest) if sign else manifest, digits=None)

    return spoil


def replace_shard(**change: np.ndarray) -> Callable[[Path], None]:
    """Shard 1 with other arrays, and a manifest that knows its bytes."""

    def spoil(folder: Path) -> None:
        path = folder / "shard-00001.safetensors"
        sha256 = save_arrays(path, SHARDS[1] | change, {})
        told = load_json(folder / "manifest.json")
        told["shards"][1] |= {"bytes": path.stat().st_size, "sha256": sha256}
        save_json(folder / "manifest.json", signed(told), digits=None)

    return spoil


SHARD_1, FILE = r"shard-00001\.safetensors", "shard-00001.safetensors"
CHANGED = r"manifest\.json: damaged: its SHA-256 is not that of its content: copy it again, or delete the store"
EDITS: dict[str, Callable[[dict], Any]] = {
    "no shards": lambda m: m.update(shards=[]),
    "the last shard left out": lambda m: m["shards"].pop(),
    "no sites": lambda m: m.pop("sites"),
    "a shard elsewhere": lambda m: m["shards"][1].update(name="../x"),
    "rows no number": lambda m: m["shards"][1].update(rows="51"),
    "a short mean": lambda m: m["sites"]["a"]["mean"].pop(),
    "another mean": lambda m: m["sites"]["a"]["mean"].__setitem__(0, 0.0),
    "no mean norm": lambda m: m["sites"]["a"].update(mean_norm=None),
    "another model": lambda m: m["facts"].update(model="n"),
    "no signature": lambda m: m.pop("sha256"),
    "another signature": lambda m: m.update(sha256="0" * 64),
}
SITE = "site a must have d_in, dtype, mean and mean_norm"
SHARD = "shard 1 must have the name shard-00001.safetensors, rows, bytes and sha256"
SIGNED: dict[str, tuple[Callable[[dict], Any], str]] = {  # changes with a SHA-256 of their own
    **{
        f"a shard named {name!r}": (lambda m, name=name: m["shards"][1].update(name=name), SHARD)
        for name in ("../x", "/x", "x/y", "shard-00000.safetensors", "manifest.json", 3, None)
    },
    **{
        f"{key} of {value!r}": (lambda m, key=key, value=value: m["shards"][1].update({key: value}), SHARD)
        for key, value in (("rows", "51"), ("rows", 0), ("rows", True), ("bytes", -1), ("bytes", 1e9))
    },
    "a shard that says more": (lambda m: m["shards"][1].update(more=1), SHARD),
    "a shard that is a text": (lambda m: m["shards"].__setitem__(1, "x"), SHARD),
    "shards by name": (lambda m: m.update(shards={}), "it must have facts, sites and shards"),
    "none of the shards": (lambda m: m.update(shards=[]), "it must have facts, sites and shards"),
    "none of the sites": (lambda m: m.update(sites={}), "it must have facts, sites and shards"),
    "sites in a list": (lambda m: m.update(sites=[1]), "it must have facts, sites and shards"),
    "facts in a list": (lambda m: m.update(facts=[1]), "it must have facts, sites and shards"),
    "a site that is a number": (lambda m: m["sites"].update(a=1), SITE),
    "a site that says more": (lambda m: m["sites"]["a"].update(more=1), SITE),
    "a mean that is short": (lambda m: m["sites"]["a"]["mean"].pop(), SITE),
    "a mean of texts": (lambda m: m["sites"]["a"].update(mean=["x"] * 4), SITE),
    "a mean norm below 0": (lambda m: m["sites"]["a"].update(mean_norm=-1.0), SITE),
    "no mean norm at all": (lambda m: m["sites"]["a"].update(mean_norm=None), SITE),
    "d_in of no number": (lambda m: m["sites"]["a"].update(d_in="4"), SITE),
    "a type in a list": (lambda m: m["sites"]["a"].update(dtype=["float32"]), SITE),
    "a type that is not stored": (lambda m: m["sites"]["a"].update(dtype="float64"), SITE),
}
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: cannot be read as a finished store"),
    "no text": (lambda f: (f / "manifest.json").write_bytes(b"\xff"), r"manifest\.json: broken: no JSON"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json: broken: no JSON"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), r"manifest\.json: broken: expected an object"),
    "another version": (edit(lambda m: m.update(version=1)), r"manifest\.json: of version 1, but this program reads 2"),
    "no version": (edit(lambda m: m.pop("version")), r"manifest\.json: of version None"),
    **{f"edited: {name}": (edit(change), CHANGED) for name, change in EDITS.items()},
    **{
        f"signed: {name}": (edit(change, sign=True), rf"manifest\.json: damaged: {message}")
        for name, (change, message) in SIGNED.items()
    },
    "nested too deeply": (
        lambda f: (f / "manifest.json").write_text('{"a":' * 10**5),
        r"manifest\.json: broken: no JSON",
    ),
    "keys twice": (lambda f: (f / "manifest.json").write_text('{"a": 1, "a": 2}'), "broken: no JSON: the key a stands"),
    "another dtype": (
        edit(lambda m: m["sites"]["a"].update(dtype="bfloat16"), sign=True),
        "shard-00000.*: a: expected bfloat16",
    ),
    "another d_in": (
        edit(lambda m: m["sites"]["a"].update(d_in=5, mean=[0.0] * 5), sign=True),
        r"shard-00000.*: a: expected float32 \(50, 5\), got float32 \(50, 4\)",
    ),
    "other rows": (
        edit(lambda m: m["shards"][1].update(rows=52), sign=True),
        f"{SHARD_1}: has 51 rows, the manifest says 52",
    ),
    "a missing shard": (lambda f: (f / FILE).unlink(), f"{SHARD_1}: is missing"),
    "a shard cut short": (
        lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-4]),
        rf"{SHARD_1}: damaged: has \d+ bytes, expected \d+",
    ),
    "an extra site": (replace_shard(c=np.ones((51, 4), np.float32)), f"{SHARD_1}: expected arrays a, b, token"),
    "a site of another shape": (replace_shard(a=np.ones((51, 3), np.float32)), rf"{SHARD_1}: a: expected .*\(51, 4\)"),
    "a column of another type": (replace_shard(token=np.ones(51, np.int64)), f"{SHARD_1}: token: expected int32"),
    "a column without rows": (replace_shard(token=np.array(1, np.int32)), f"{SHARD_1}: token: expected int32"),
    "a site of one number": (replace_shard(a=np.array(1, np.float32)), f"{SHARD_1}: a: expected float32"),
    "a header that is broken": (
        lambda f: (f / FILE).write_bytes(b"\xff" * (f / FILE).stat().st_size),
        f"{SHARD_1}: (broken|damaged)",
    ),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_by_its_file_and_nothing_is_changed(fault: str, verify: bool, tmp_path: Path) -> None:
    spoil, message = FAULTS[fault]
    written(tmp_path / "s")
    spoil(tmp_path / "s")
    before = contents(tmp_path / "s")
    with pytest.raises(StoreError, match=message):
        open_store(tmp_path / "s", verify=verify)
    assert contents(tmp_path / "s") == before


def test_a_flipped_byte_is_found_when_verifying_and_not_looked_for_else(tmp_path: Path) -> None:
    written(tmp_path / "s")
    flip(tmp_path / "s" / FILE)
    with pytest.raises(StoreError, match=f"{SHARD_1}: damaged: its SHA-256 is not the one in the manifest"):
        open_store(tmp_path / "s")
    open_store(tmp_path / "s", verify=False)
