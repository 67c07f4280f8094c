"""Many runs in one compiled program, spread over the local devices."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Array, Int, Key

from toy.compiled import compiled
from toy.data.source import Batches, Source, Stream
from toy.sae import SAE
from toy.training.advance import many_steps, no_metrics
from toy.training.config import Hypers, TrainConfig
from toy.training.feed import Fed, checked_run, feed_chunk, feeding, feeding_all, run_facts
from toy.training.lanes import lanewise, place
from toy.training.loop import Checkpoint, Facts, Progress, run_chunks
from toy.training.state import Metrics, TrainState, init_state, trained_sae

_STATE_AXES = TrainState(None, *[0] * (len(TrainState._fields) - 1))  # type: ignore[arg-type]


class Grid(NamedTuple):
    """Runs of one configuration, a lane each.

    `in_axes` says as for `jax.vmap`, by pytree prefixes, which leaves of source and hypers have a lane axis (0)
    and which are shared (None).
    """

    keys: Key[Array, " lanes"]
    source: Source | Stream
    hypers: Hypers
    cfg: TrainConfig
    in_axes: tuple[Any, Any] = (0, 0)

    def checked(self) -> "Grid":
        """The grid with checked rows. Raises: ValueError naming the invalid argument, before any work."""
        source = checked_run(self.keys, self.source, self.hypers, self.cfg, n_lanes=np.size(self.keys))
        if any(axis != 0 for axis in jax.tree.leaves(self.in_axes)):
            raise ValueError(f"in_axes: lanes are along the first axis: expected 0 and None alone, got {self.in_axes}")
        if isinstance(source, Stream) and self.in_axes[0] is not None:
            raise ValueError("in_axes: a stream is shared by all lanes: its entry must be None")
        return self._replace(source=source)

    def facts(self) -> Facts:
        """Everything that the runs are a function of, by name."""
        facts = run_facts(self.keys, self.source, self.hypers, self.cfg)
        return facts | {"in_axes": repr(self.in_axes), "n_devices": jax.local_device_count()}


def hyper_axes(**lanes: Any) -> Hypers:
    """The entry of `in_axes` for hypers: those named have these axes, and the others are shared."""
    return Hypers(**{name: lanes.pop(name, None) for name in Hypers._fields}, **lanes)


class _Placed(NamedTuple):
    """A grid spread over the local devices."""

    grid: Grid
    hypers: Hypers
    mesh: Mesh

    def first_state(self) -> TrainState:
        keys = place("keys", self.grid.keys, 0, n_lanes=self.grid.keys.shape[0], mesh=self.mesh)
        return _init_grid(keys, self.hypers, d_in=self.grid.source.d_in, **self.static)

    def source(self, source: Source | Batches) -> Any:
        return place("source", source, self.grid.in_axes[0], n_lanes=self.grid.keys.shape[0], mesh=self.mesh)

    def gathered(self, state: TrainState, history: Metrics) -> tuple[TrainState, Metrics]:
        """Moves the state to one device and drops the lanes that were added to fill the others."""
        n_lanes = self.grid.keys.shape[0]
        state = jax.device_put(state, jax.local_devices()[0])
        state = TrainState(state.step, *jax.tree.map(lambda leaf: leaf[:n_lanes], tuple(state[1:])))
        return state, jax.tree.map(lambda leaf: leaf[:n_lanes], history)

    @property
    def static(self) -> dict[str, Any]:
        return dict(cfg=self.grid.cfg, in_axes=self.grid.in_axes, mesh=self.mesh)


def _placed(grid: Grid) -> _Placed:
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("lanes",), axis_types=(AxisType.Auto,), devices=devices)
    hypers = place("hypers", grid.hypers, grid.in_axes[1], n_lanes=grid.keys.shape[0], mesh=mesh)
    return _Placed(grid, hypers, mesh)


def train_grid(
    keys: Key[Array, " lanes"],
    source: Source | Stream,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    in_axes: tuple[Any, Any] = (0, 0),
    chunk: int = 1_000,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[TrainState, Metrics]:
    """One run per lane, all in one compiled program spread over the local devices; results lead with a lane axis.

    `Grid` describes the arguments. Lane i is `train(keys[i], source_i, hypers_i, cfg=cfg)` up to rounding.

    Raises: ValueError if a lane axis and the number of keys disagree, and as `train`.
    """
    grid = Grid(keys, source, hypers, cfg, in_axes).checked()
    facts = None if checkpoint is None else grid.facts()
    placed = _placed(grid)
    state = placed.first_state()
    chunk = feed_chunk(grid.source, chunk, cfg)
    with feeding(grid.source, chunk, cfg, placed.source) as feed:
        state, history = run_chunks(
            lambda state, source, n: _advance_grid(state, source, placed.hypers, n_steps=n, **placed.static),
            state,
            cfg.n_steps,
            feed=feed,
            chunk=chunk,
            progress=progress,
            checkpoint=checkpoint,
            facts=facts,
            empty=no_metrics(state),
        )
    return placed.gathered(state, history)


def train_grids(
    grids: Mapping[str, Grid],
    *,
    chunk: int = 1_000,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> dict[str, tuple[TrainState, Metrics]]:
    """Several grids in step, chunk by chunk, so that those with the same source share each reading of it.

    Each grid's results are those of `train_grid`, bit for bit. The states of all are in memory, and in one checkpoint;
    `progress` counts the steps of one.

    Raises: ValueError if numbers of steps differ, and as `train_grid`.
    """
    if not grids:
        raise ValueError("grids: need at least one")
    grids = {name: grid.checked() for name, grid in grids.items()}
    if len(n_steps := {grid.cfg.n_steps for grid in grids.values()}) != 1:
        raise ValueError(f"grids: all must have the same number of steps, got {', '.join(map(str, sorted(n_steps)))}")
    facts = None
    if checkpoint is not None:
        facts = {f"{name}: {key}": value for name, grid in grids.items() for key, value in grid.facts().items()}
    placed = {name: _placed(grid) for name, grid in grids.items()}
    states = {name: one.first_state() for name, one in placed.items()}
    chunk = min(feed_chunk(grid.source, chunk, grid.cfg) for grid in grids.values())

    def advance(states: dict[str, TrainState], sources: dict[str, Any], n: int) -> tuple[Any, Any]:
        moved = {
            name: _advance_grid(states[name], sources[name], one.hypers, n_steps=n, **one.static)
            for name, one in placed.items()
        }
        return {name: state for name, (state, _) in moved.items()}, {name: of for name, (_, of) in moved.items()}

    with feeding_all(
        {name: Fed(one.grid.source, one.grid.cfg, one.source) for name, one in placed.items()}, chunk
    ) as feed:
        states, history = run_chunks(
            advance,
            states,
            n_steps.pop(),
            feed=feed,
            chunk=chunk,
            progress=progress,
            checkpoint=checkpoint,
            facts=facts,
            empty={name: no_metrics(state) for name, state in states.items()},
        )
    return {name: one.gathered(states[name], history[name]) for name, one in placed.items()}


@compiled()
def trained_saes(state: TrainState) -> SAE:
    """`trained_sae` of every lane of a grid's final state."""
    return jax.vmap(trained_sae, in_axes=(_STATE_AXES,))(state)


@compiled(static_argnames=("d_in", "cfg", "in_axes", "mesh"))
def _init_grid(
    keys: Key[Array, " lanes"], hypers: Hypers, *, d_in: int, cfg: TrainConfig, in_axes: Any, mesh: Mesh
) -> TrainState:
    init = partial(init_state, d_in=d_in, cfg=cfg)
    return lanewise(init, cfg, mesh, (0, in_axes[1]), _STATE_AXES)(keys, hypers)


@compiled(static_argnames=("cfg", "in_axes", "mesh"), donate_argnames="state")
def _advance_grid(
    state: TrainState,
    source: Source | Batches,
    hypers: Hypers,
    *,
    cfg: TrainConfig,
    n_steps: Int[Array, ""] | int,
    in_axes: Any,
    mesh: Mesh,
) -> tuple[TrainState, Metrics]:
    move = partial(many_steps, cfg=cfg)
    return lanewise(move, cfg, mesh, (_STATE_AXES, *in_axes, None), (_STATE_AXES, 0))(state, source, hypers, n_steps)
