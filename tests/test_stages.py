"""A finished stage is taken from the cache only as it was made."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from experiments.language import stages
from toy.io import load_arrays, load_json, save_arrays, save_json

MODULE = "experiments.language.chain"


def make(cache: Path) -> stages.Stage:
    """A stage with two files, a note and a store."""
    with stages.stage(cache, "s", {"seed": 1}, MODULE, "toy.lm.text") as made:
        if not made.done:
            save_arrays(made.folder / "saes.safetensors", {"W_enc": np.arange(6.0)}, {})
            (made.folder / "tokenizer.json").write_text('{"model": 1}')
            (made.folder / "store").mkdir()
            (made.folder / "store" / "manifest.json").write_text("checks itself")
            made.notes["l0_of_training"] = [1.23456789, 2.0]
    return made


def flip(path: Path, place: int = -2) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_stage_notes_the_digests_of_its_files_and_tells_only_its_notes(tmp_path: Path) -> None:
    folder, done, notes = make(tmp_path)
    assert not done
    assert load_json(folder / "stage.json")["files"].keys() == {"saes.safetensors", "tokenizer.json"}
    assert notes.keys() == {"facts", "seconds", "l0_of_training"}
    assert notes["l0_of_training"] == [1.23457, 2.0]
    (folder / ".DS_Store").touch()
    (folder / "notes.txt").write_text("a user's")
    assert make(tmp_path) == (folder, True, notes)


def test_a_stage_whose_block_fails_is_not_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), stages.stage(tmp_path, "s", {}, MODULE, "toy.lm.text"):
        raise KeyboardInterrupt
    with stages.stage(tmp_path, "s", {}, MODULE, "toy.lm.text") as made:
        assert not made.done


@pytest.mark.parametrize("what", ["library_versions", "file_digest", "code_digest"])
def test_a_stage_is_named_by_the_libraries_and_the_code_that_make_it(what, monkeypatch, tmp_path: Path) -> None:
    folders = [make(tmp_path).folder for _ in range(2)]
    monkeypatch.setattr(stages, what, lambda *_: "another")
    folders.append(make(tmp_path).folder)
    assert folders[0] == folders[1] != folders[2]


def test_two_runs_at_once_make_a_stage_once(tmp_path: Path) -> None:
    def run() -> stages.Stage:
        with stages.stage(tmp_path, "s", {}, MODULE, "toy.lm.text") as made:
            if not made.done:
                time.sleep(0.3)
                made.notes["made"] = 1
        return made

    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(run) for _ in range(4)]
    assert sorted(stage.result().done for stage in found) == [False, True, True, True]
    assert [stage.result().notes["made"] for stage in found] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["saes.safetensors", "tokenizer.json", "stage.json"])
def test_a_flipped_bit_in_a_finished_stage_is_told(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path).folder
    size = (folder / name).stat().st_size
    for place in range(0, size, max(1, size // 40)):
        flip(folder / name, place)
        with pytest.raises(ValueError, match=rf"{name}: (damaged|broken)") as caught:
            make(tmp_path)
        assert str(caught.value).isprintable()
        flip(folder / name, place)
    make(tmp_path)


def test_a_file_that_is_missing_or_notes_that_are_not_signed_are_told(tmp_path: Path) -> None:
    folder = make(tmp_path).folder
    told = load_json(folder / "stage.json")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json: damaged: .*: delete .*s-.*, so that it is made anew"):
        make(tmp_path)
    for content in ({name: told[name] for name in told if name != "sha256"}, []):
        save_json(folder / "stage.json", content)
        with pytest.raises(ValueError, match=r"stage\.json: damaged"):
            make(tmp_path)


def test_arrays_that_were_changed_are_not_loaded_and_those_of_others_are(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_arrays(path, {"a": np.arange(6.0), "b": np.ones(2, np.int8)}, {"who": "me"})
    whole = path.read_bytes()
    name_of_digest = range(whole.index(b"toy.sha256"), whole.index(b"toy.sha256") + 10)  # without it, another's file
    for place in range(len(whole)):
        flip(path, place)
        with pytest.raises(ValueError, match=r"a\.safetensors: broken"):
            load_arrays(path, signed=place in name_of_digest)
        flip(path, place)
    assert load_arrays(path)[1] == {"who": "me"}
    save_arrays(path, {"a": np.arange(6.0)}, {"sha256": "of another kind"}, sign=False)
    assert load_arrays(path)[1] == {"sha256": "of another kind"}
    with pytest.raises(ValueError, match=r"a\.safetensors: broken, or of another kind or version: it holds no SHA-256"):
        load_arrays(path, signed=True)
