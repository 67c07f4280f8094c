"""A run in one file, so that it can be killed at any moment and go on to the same result, bit for bit."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from toy.checks import quoted
from toy.files.arrays import load_arrays, save_arrays
from toy.files.atomic import claim, prepare
from toy.files.digest import check_same, key_numbers, leaf_name
from toy.files.json_files import parse_json
from toy.training.loop import Facts, Run

_FORMAT = "matryoshka toy checkpoint 3"
_REMEDY = "give another path, or delete it to start anew"


@dataclass
class FileCheckpoint:
    """Writes the run whole or not at all: after a chunk once `every_s` seconds have passed, and at the end.

    `facts` are JSON values that the caller adds to those of the trainer; a file that was made with others is refused.
    From `load` to `release` no other run may use the file. Writing needs memory for a copy of the state.
    """

    path: Path
    facts: Facts = field(default_factory=dict)
    every_s: float = 60.0
    _written_at: float = field(default=0.0, init=False, repr=False)
    _unlock: Callable[[], None] | None = field(default=None, init=False, repr=False)

    def load(self, like: Run, facts: Facts) -> Run | None:
        """The run in the file, or None if there is no file.

        Raises: ValueError if the file is broken, is of a run with other facts or arrays, or is used by another run;
        OSError if a file cannot be written there.
        """
        self._written_at = time.monotonic()
        prepare(self.path)
        self._claim()
        if not self.path.exists():
            return None
        try:
            arrays, metadata = load_arrays(self.path, signed=True)
        except ValueError as error:
            raise ValueError(f"{error}: {_REMEDY}") from None
        n_done, theirs = self._parsed(metadata.get("run", ""))
        check_same(self.path, theirs, self._all_facts(facts), _REMEDY)
        wanted = _named(like)
        self._check_arrays(arrays, wanted)
        leaves = [_restored(arrays[name], leaf) for name, leaf in wanted.items()]
        state, history = jax.tree.unflatten(jax.tree.structure((like.state, like.history)), leaves)
        return Run(state, history, n_done)

    def save(self, run: Run, facts: Facts, *, last: bool) -> None:
        if not last and time.monotonic() < self._written_at + self.every_s:
            return
        arrays = {name: np.asarray(jax.device_get(key_numbers(leaf))) for name, leaf in _named(run).items()}
        save_arrays(self.path, arrays, {"run": json.dumps({"n_done": run.n_done, "facts": self._all_facts(facts)})})
        self._written_at = time.monotonic()

    def release(self) -> None:
        if self._unlock is not None:
            self._unlock()
        self._unlock = None

    def _claim(self) -> None:
        if self._unlock is not None:
            return
        try:
            self._unlock = claim(self.path)
        except BlockingIOError:
            raise ValueError(
                f"{self.path}: another run uses it: wait for its end, stop it, or give another path"
            ) from None

    def _parsed(self, text: str) -> tuple[int, Facts]:
        """The number of steps and the facts, which need checking even in a file whose SHA-256 is right."""
        try:
            run = parse_json(text)
            n_done, facts = run["n_done"], run["facts"]
        except (ValueError, KeyError, TypeError):
            raise self._refusal("broken, or no checkpoint: it does not say its steps and facts") from None
        if type(n_done) is not int or n_done < 0 or not isinstance(facts, dict):
            raise self._refusal(f"broken, or no checkpoint: it was made with {quoted(n_done)} steps")
        return n_done, facts

    def _all_facts(self, facts: Facts) -> Facts:
        return json.loads(json.dumps({"format": _FORMAT, **self.facts, **facts}))

    def _check_arrays(self, arrays: dict[str, np.ndarray], wanted: dict[str, Any]) -> None:
        for name in [*wanted, *arrays]:
            if name not in arrays or name not in wanted:
                where = "not in it" if name in wanted else "in it, but not in the run"
                raise self._refusal(f"{quoted(name)} is {where}")
            leaf, array = key_numbers(wanted[name]), arrays[name]
            n_axes = leaf.ndim - 1 if name.startswith("history") else leaf.ndim  # it has as many rows as chunks
            if (array.dtype, array.ndim, array.shape[:n_axes]) != (leaf.dtype, leaf.ndim, leaf.shape[:n_axes]):
                raise self._refusal(f"{name} is {array.dtype} {array.shape}, expected {leaf.dtype} {leaf.shape}")

    def _refusal(self, why: str) -> ValueError:
        return ValueError(f"{self.path}: {why}: {_REMEDY}")


def _named(run: Run) -> dict[str, Any]:
    parts = {"state": run.state, "history": run.history}
    return {
        leaf_name(part, path): leaf
        for part, tree in parts.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _restored(array: np.ndarray, like: PyTree) -> PyTree:
    if not isinstance(like, jax.Array):
        return array
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.device_put(
            jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like)), like.sharding
        )
    return jax.device_put(array, like.sharding)
