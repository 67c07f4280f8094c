"""What a finished stage left in the cache is used only as it was made."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.language import stages
from toy.io import load_arrays, load_json, save_arrays, save_json


def make(folder: Path) -> dict[str, Any]:
    save_arrays(folder / "saes.safetensors", {"W_enc": np.arange(6.0)}, {})
    (folder / "tokenizer.json").write_text('{"model": 1}')
    (folder / "store").mkdir()
    (folder / "store" / "manifest.json").write_text("checks itself")
    return {"l0_of_training": [1.23456789, 2.0]}


make.__module__ = "experiments.language.chain"


def made(cache: Path) -> Path:
    return stages.stage(cache, "s", {"seed": 1}, ["toy.lm.text"], make)


def flip(path: Path, place: int = -2) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_stage_notes_the_digests_of_its_files_and_tells_only_its_notes(tmp_path: Path) -> None:
    folder = made(tmp_path)
    assert load_json(folder / "stage.json")["files"].keys() == {"saes.safetensors", "tokenizer.json"}
    assert stages.notes(folder).keys() == {"facts", "seconds", "l0_of_training"}
    assert stages.notes(folder)["l0_of_training"] == [1.23457, 2.0]
    (folder / ".DS_Store").touch()
    (folder / "notes.txt").write_text("a user's")
    assert made(tmp_path) == folder


@pytest.mark.parametrize("name", ["saes.safetensors", "tokenizer.json", "stage.json"])
def test_a_flipped_bit_in_a_finished_stage_is_told(name: str, tmp_path: Path) -> None:
    folder = made(tmp_path)
    size = (folder / name).stat().st_size
    for place in range(0, size, max(1, size // 40)):
        flip(folder / name, place)
        with pytest.raises(ValueError, match=rf"{name}: (damaged|broken)") as caught:
            made(tmp_path)
        assert str(caught.value).isprintable()
        flip(folder / name, place)
    made(tmp_path)


def test_a_file_that_is_missing_or_notes_that_are_not_signed_are_told(tmp_path: Path) -> None:
    folder = made(tmp_path)
    told = load_json(folder / "stage.json")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json: damaged: .*: delete .*s-.*, so that it is made anew"):
        made(tmp_path)
    for content in ({name: told[name] for name in told if name != "sha256"}, []):
        save_json(folder / "stage.json", content)
        with pytest.raises(ValueError, match=r"stage\.json: damaged"):
            made(tmp_path)


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
