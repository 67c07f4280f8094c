"""A run that was stopped at any moment goes on to the same end, bit for bit; another run's file is refused."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killed import CFG, CHUNK, HYPERS, KEY, LONG, SHORT_CHUNK, stream
from processes import killed, start
from test_mesh import mesh_of_two
from test_train import SHARED, equal, tree_source

from toy.data.activations import Activations
from toy.data.source import ArraySource
from toy.files.digest import digest_of
from toy.io import load_arrays, prepare, save_arrays, writing
from toy.prefixes import sampled
from toy.training.checkpoint import FileCheckpoint
from toy.training.grid import train_grid
from toy.training.loop import Run
from toy.training.run import train

Train = Callable[..., Any]


class StoppedError(Exception):
    """Stands in for a kill: nothing is saved on it."""


def one(source: Any, **more: Any) -> Any:
    return train(KEY, source, HYPERS, **({"cfg": CFG, "chunk": CHUNK} | more))


def grid(source: Any, **more: Any) -> Any:
    lanes = HYPERS._replace(learning_rate=np.array([1e-2, 2e-2, 1e-3], np.float32))
    axes = (None, SHARED._replace(learning_rate=0))
    return train_grid(jax.random.split(KEY, 3), source, lanes, in_axes=axes, **({"cfg": CFG, "chunk": CHUNK} | more))


def stop_after(n_chunks: int, error: type[BaseException] = StoppedError) -> Callable[[int], None]:
    told: list[int] = []

    def progress(n: int) -> None:
        told.append(n)
        if len(told) == n_chunks:
            raise error

    return progress


@pytest.mark.slow
@pytest.mark.parametrize(("run", "of"), [(one, tree_source), (one, stream), (grid, tree_source), (grid, stream)])
def test_a_run_that_was_stopped_twice_ends_as_the_whole_bit_for_bit(run: Train, of: Any, tmp_path: Path) -> None:
    whole = run(of())
    kept = FileCheckpoint(tmp_path / "run", every_s=0)
    for n_chunks in (3, 4):  # the second is told of the first's steps at once
        with pytest.raises(StoppedError):
            run(of(), checkpoint=kept, progress=stop_after(n_chunks))
    told: list[int] = []
    assert equal(run(of(), checkpoint=kept, progress=told.append), whole)
    assert told == [28, 7, 7, 7, 7, 4]  # a chunk was done and not yet saved, both times


@pytest.mark.slow
def test_a_process_that_was_killed_goes_on_in_another(tmp_path: Path) -> None:
    process = start("killed.py", "train", tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, output
    told: list[int] = []
    resumed = one(stream(), checkpoint=FileCheckpoint(tmp_path / "run"), progress=told.append)
    assert told[0] == 21
    assert equal(resumed, one(stream()))


@pytest.mark.slow
def test_a_training_killed_while_it_saves_ends_as_the_whole_bit_for_bit(
    tmp_path: Path, kill_points: np.random.Generator
) -> None:
    points = kill_points.integers(1_500, 3_000, 3).tolist()
    done = [int(killed("long", tmp_path, at).split()[0]) for at in points]  # what the checkpoint had, or a chunk
    assert done == sorted(done)  # no kill takes back what was saved before it
    kept = FileCheckpoint(tmp_path / "run")
    assert equal(
        one(stream(), cfg=LONG, chunk=SHORT_CHUNK, checkpoint=kept), one(stream(), cfg=LONG, chunk=SHORT_CHUNK)
    )


def ended(what: str, folder: Path) -> str:
    """The digest that a job of killed.py prints at its end."""
    folder.mkdir(exist_ok=True)
    process = start("killed.py", what, folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "n_kills", "first", "last"),
    [("forward", 2, 7_500, 21_000), ("chain", 1, 2_600, 9_000), ("stream", 1, 2_600, 9_000)],
)
def test_a_run_on_a_language_model_killed_at_any_moments_ends_with_the_same_bits(
    what: str, n_kills: int, first: int, last: int, tmp_path: Path, kill_points: np.random.Generator
) -> None:
    """Straight from the forward pass, and the chain from text to SAEs, with stored activations and with none.

    So many kills stay short of the end.
    """
    for at in kill_points.integers(first, last, n_kills).tolist():
        killed(what, tmp_path, at)
    assert ended(what, tmp_path) == ended(what, tmp_path / "whole")


def test_a_run_does_not_go_on_with_other_rows(tmp_path: Path) -> None:
    kept, source = FileCheckpoint(tmp_path / "run", every_s=0), stream()
    with pytest.raises(StoppedError):
        one(source, checkpoint=kept, progress=stop_after(3))
    rows = np.concatenate(source.activations.parts)
    first = set(source.rows(0, CFG.batch_size).tolist())
    rows[[row for row in range(len(rows)) if row not in first]] += 1
    for other in (rows, rows[:-3]):
        with pytest.raises(ValueError, match=r"run: made with source\.rows = .*, which now is "):
            one(replace(source, activations=Activations("rows", (other,))), checkpoint=kept)


def test_a_path_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toy.training.run.advance", None)
        for path in ("file/run", "folder"):
            with pytest.raises(OSError, match=str(tmp_path / path)):
                one(tree_source(), checkpoint=FileCheckpoint(tmp_path / path))
        patch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(PermissionError, match=r"new/run"):
            one(tree_source(), checkpoint=FileCheckpoint(tmp_path / "new" / "run"))


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = saved(tmp_path / "run")
    (tmp_path / ".run.abcd_123.toy-part").write_bytes(b"left by a kill")
    theirs = [".run.notes.md", ".run.abc", ".run.toy-part", ".run.ABCD_123.toy-part", ".runs.abcd_123.toy-part"]
    for name in [*theirs, "run.old", ".other.x"]:
        (tmp_path / name).write_bytes(b"a user's")
    (tmp_path / ".run.abcd_124.toy-part").mkdir()
    (tmp_path / ".run.abcd_125.toy-part").symlink_to(tmp_path / ".run.notes.md")
    expected = {path.name for path in tmp_path.iterdir()} - {".run.abcd_123.toy-part"}
    assert kept.load(START, {}) is not None
    kept.release()
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_what_another_process_is_writing_is_not_removed(tmp_path: Path) -> None:
    with writing(tmp_path / "run") as file:
        prepare(tmp_path / "run")
        file.write(b"whole")
    assert (tmp_path / "run").read_bytes() == b"whole"


IN_USE = r"run: another run uses it: wait for its end, stop it, or give another path"


@pytest.mark.slow
def test_one_run_at_a_time_has_a_checkpoint(tmp_path: Path) -> None:
    process = start("killed.py", "long", tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    kept = FileCheckpoint(tmp_path / "run", every_s=0)
    try:
        with pytest.raises(ValueError, match=IN_USE):
            one(stream(), cfg=LONG, chunk=SHORT_CHUNK, checkpoint=kept)
    finally:
        process.kill()
        process.communicate()
    with pytest.raises(StoppedError):  # one that was killed holds nothing
        one(stream(), cfg=LONG, chunk=SHORT_CHUNK, checkpoint=kept, progress=stop_after(2))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_is_held_until_its_run_has_ended(tmp_path: Path) -> None:
    kept, other = saved(tmp_path / "run"), FileCheckpoint(tmp_path / "run", {"model": "a"})
    for _ in range(2):
        assert kept.load(START, {}) is not None
    with pytest.raises(ValueError, match=IN_USE):
        other.load(START, {})
    kept.release()
    kept.release()
    assert other.load(START, {}) is not None
    other.release()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "told",
    [
        "",
        "[]",
        "[" * 10_000,
        "{}",
        '{"n_done": 1}',
        '{"n_done": -1, "facts": {}}',
        '{"n_done": true, "facts": {}}',
        '{"n_done": 1, "facts": []}',
        '{"n_done": 1, "facts": {"model": "\\ud800"}}',
        '{"n_done": 1, "facts": {"x": "' + "y" * 10**4 + '"}}',
    ],
    ids=range(10),
)
def test_a_checkpoint_that_is_signed_but_says_nonsense_is_refused_by_name(told: str, tmp_path: Path) -> None:
    save_arrays(tmp_path / "run", {"state.n": np.array(3)}, {"run": told})
    with pytest.raises(ValueError, match=r"run: (broken|made with).*: give another path, or delete it") as caught:
        FileCheckpoint(tmp_path / "run").load(START, {})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_000


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    kept, told = FileCheckpoint(tmp_path / "run"), []
    whole = one(tree_source(), checkpoint=kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toy.training.run.advance", None)
        assert equal(one(tree_source(), checkpoint=kept, progress=told.append), whole)
    assert told == [60]
    assert whole[1].mse.shape == (9,)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"hypers": HYPERS._replace(learning_rate=3e-2)}, r"hypers\.learning_rate = 0\.01, which now is 0\.03"),
        ({"hypers": HYPERS._replace(prefixes=sampled(20, 5))}, r"hypers\.prefixes\.weights = .*, which now is "),
        ({"key": jax.random.key(1)}, r"key = \[0, 0\], which now is \[0, 1\]"),
        ({"cfg": replace(CFG, n_steps=61)}, r"cfg\.n_steps = 60, which now is 61"),
        ({"cfg": replace(CFG, batch_size=25)}, r"cfg\.batch_size = 24, which now is 25"),
        ({"chunk": CHUNK + 1}, "chunk = 7, which now is 8"),
        ({"source": replace(stream(), seed=4)}, r"source\.seed = 3, which now is 4"),
        ({"source": ArraySource(jnp.ones((4, 8)))}, "type of source = ShardSource, which now is ArraySource"),
        ({"facts": {"model": "b"}}, "model = a, which now is b"),
        ({"facts": {}}, "model = a, which now is absent"),
    ],
)
def test_another_run_is_refused_by_what_differs_and_the_file_left_as_it_was(
    change: dict, fact: str, tmp_path: Path
) -> None:
    given = {"key": KEY, "source": stream(), "hypers": HYPERS, "cfg": CFG, "chunk": CHUNK, "facts": {"model": "a"}}

    def run(key: Any, source: Any, hypers: Any, facts: dict, **more: Any) -> None:
        train(key, source, hypers, checkpoint=FileCheckpoint(path, facts, 0), progress=stop_after(2), **more)

    path = tmp_path / "run"
    with pytest.raises(StoppedError):
        run(**given)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"run: made with {fact}.*: give another path, or delete it"):
        run(**(given | change))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def state() -> dict[str, Any]:
    return {
        "half": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
        "key": jax.random.key(5),
        "n": jnp.int32(3),
        "turned": jnp.arange(6.0).reshape(2, 3).T,
        "none": None,
    }


START = Run(state(), np.zeros(0, np.float32))


def saved(path: Path) -> FileCheckpoint:
    kept = FileCheckpoint(path, {"model": "a"})
    kept.save(Run(state(), np.array([1, 2], np.float32), 20), {}, last=True)
    return kept


def test_a_digest_of_arrays_is_of_their_names_types_and_shapes_too() -> None:
    zeros = np.zeros(4, np.int32)
    all_alike = [{"a": zeros}, {"b": zeros}, {"a": zeros.view(np.float32)}, {"a": zeros.reshape(2, 2)}]
    assert len({digest_of(arrays) for arrays in all_alike}) == len(all_alike)
    assert digest_of({"a": zeros, "b": zeros}) == digest_of({"b": zeros, "a": zeros})


def test_every_kind_of_leaf_comes_back_as_it_was(tmp_path: Path) -> None:
    run = saved(tmp_path / "run").load(START, {})
    assert run is not None
    assert run.n_done == 20
    assert run.history.tolist() == [1, 2]
    assert equal(run.state, state())
    assert [x.dtype for x in jax.tree.leaves(run.state)] == [x.dtype for x in jax.tree.leaves(state())]


def flipped(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def with_other_steps(content: bytes) -> bytes:
    assert content.count(b'n_done\\": 20') == 1
    return content.replace(b'n_done\\": 20', b'n_done\\": 14')


def with_other_facts(content: bytes) -> bytes:
    assert content.count(b'model\\": \\"a') == 1
    return content.replace(b'model\\": \\"a', b'model\\": \\"b')


@pytest.mark.parametrize(
    "spoil",
    [
        with_other_steps,
        with_other_facts,
        flipped,
        lambda c: c + b"more",
        lambda c: c[:-5],
        lambda c: c[:20],
        lambda c: b"",
        lambda c: b"x" * 99,
    ],
)
def test_a_broken_file_is_refused_by_name_and_left_as_it_is(spoil: Any, tmp_path: Path) -> None:
    kept, path = saved(tmp_path / "run"), tmp_path / "run"
    path.write_bytes(spoil(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run: (broken|cannot be read).*: give another path, or delete it"):
        kept.load(START, {})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (state() | {"n": jnp.float32(3)}, r"state\.n is int32 \(\), expected float32"),
        (state() | {"half": jnp.ones((2, 4), jnp.bfloat16)}, r"state\.half is bfloat16 \(2, 3\), expected .*\(2, 4\)"),
        (state() | {"none": jnp.ones(1)}, r"state\.none is not in it"),
        (state() | {"n": None}, r"state\.n is in it, but not in the run"),
    ],
)
def test_a_state_of_other_arrays_is_refused_by_their_name(like: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"run: {message}"):
        saved(tmp_path / "run").load(START._replace(state=like), {})


def test_an_arrays_file_of_another_kind_is_no_checkpoint(tmp_path: Path) -> None:
    for sign, message in ((True, "broken, or no checkpoint"), (False, "broken, or of another kind or version")):
        save_arrays(tmp_path / "run", {"a": np.ones(2)}, {}, sign=sign)
        with pytest.raises(ValueError, match=f"run: {message}"):
            FileCheckpoint(tmp_path / "run").load(START, {})
        (tmp_path / ".run.toy-lock").unlink()


def test_arrays_that_are_scalars_not_contiguous_or_bfloat16_are_written_right(tmp_path: Path) -> None:
    arrays = {"t": np.arange(6.0).reshape(2, 3).T, "s": np.array(2, np.int8), "b": np.ones(3, jnp.bfloat16)}
    save_arrays(tmp_path / "a", arrays, {"who": "me"})
    loaded, metadata = load_arrays(tmp_path / "a")
    assert metadata == {"who": "me"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)


def test_a_file_is_written_when_time_has_passed_and_the_last_time(tmp_path: Path) -> None:
    kept, path = FileCheckpoint(tmp_path / "run", every_s=1e6), tmp_path / "run"
    assert kept.load(START, {}) is None
    kept.save(START, {}, last=False)
    assert not path.exists()
    kept.save(START, {}, last=True)
    first = path.stat().st_mtime_ns, path.stat().st_ino
    kept.save(START, {}, last=False)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == first
    kept.every_s = 0
    kept.save(START, {}, last=False)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) != first


@pytest.mark.parametrize("run", [one, grid])
def test_an_interrupted_run_is_saved_up_to_its_last_chunk(run: Train, tmp_path: Path) -> None:
    kept = FileCheckpoint(tmp_path / "run", every_s=1e6)
    with pytest.raises(KeyboardInterrupt):
        run(stream(), checkpoint=kept, progress=stop_after(5, KeyboardInterrupt))
    told: list[int] = []
    assert equal(run(stream(), checkpoint=kept, progress=told.append), run(stream()))
    assert told[0] == 35


def test_a_run_over_a_mesh_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^checkpoint: a run over a mesh cannot be saved"):
        one(tree_source(), mesh=mesh_of_two("batch"), checkpoint=FileCheckpoint(tmp_path / "run"))
