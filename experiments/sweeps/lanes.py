"""Training and measuring cells of one program, each in a lane of it."""

import time
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from experiments.common.provenance import code_digest, replaced
from experiments.sweeps.cell import Cell, built, method_of, n_latents, target_l0
from experiments.sweeps.padding import pad_tree, pad_weighting
from experiments.sweeps.program import Program, program_of
from toy import prefixes
from toy.checks import quoted
from toy.compiled import compiled
from toy.data.source import TreeSource
from toy.eval.against_tree import Evaluation, evaluate
from toy.eval.metrics import Mixing
from toy.features.directions import make_directions
from toy.features.tree import held_out_key, sample_features
from toy.keys import unrolled
from toy.sae import SAE, encode, is_finite, sae_of_directions
from toy.training.advance import many_steps
from toy.training.config import Hypers
from toy.training.jax_settings import jax_flags
from toy.training.lanes import each_lane
from toy.training.state import init_state, trained_sae

OF_EVALUATION = (
    *("recovered", "hole_rate", "min_cosine", "mcc", "uniqueness", "fvu", "l0", "dead_latents", "shrinkage"),
    *("firing_accuracy", "firing_precision", "firing_recall"),
)
FACTS = ("n_features", "n_latents", "target_l0")  # which a row always has
METRICS = (*OF_EVALUATION, *Mixing._fields)  # which it has unless it failed
MOST_PROGRAMS = 48  # that are kept, at some 50 MB each, since cells come program by program
MOST_DICTIONARIES = 64  # of superposed directions, which methods share seed by seed
LIBRARIES = ("jax", "jaxlib", "optax", "numpy", "scipy")


Flags = tuple[tuple[str, str], ...]


class Row(NamedTuple):
    """The result of a cell."""

    metrics: dict[str, float | None] | None  # None: it failed
    error: str | None
    seconds: float  # its share of its group's


class Lanes(NamedTuple):
    """A cell each, padded to the program's shapes."""

    seed: UInt32[Array, "*lanes"]
    source: TreeSource
    hypers: Hypers


class Outcome(NamedTuple):
    sae: SAE
    features: Float[Array, "lanes rows n_features"]  # held out
    acts: Float[Array, "lanes rows n_latents"]


def code_version(platform: str | None = None) -> str:
    """All that a cell's numbers follow from beside the cell: this project's source, the libraries, the platform (cpu,
    gpu or tpu) that JAX computes on, of which None is this process' own, and JAX's settings where they are not at
    their defaults (`toy.training.jax_settings.jax_flags`).

    Raises: ValueError if a function was replaced since it was imported: no version of the code tells that.
    """
    others = replaced("experiments.sweeps.lanes")
    if others:
        raise ValueError(
            f"{quoted(', '.join(others))}: replaced while the program runs, so that rows would be taken for those of "
            "the code: use run_cells, which keeps none, or change the source"
        )
    flags = (f"{name}={value}" for name, value in jax_flags().items())
    return ", ".join((*_source_and_libraries(), platform or jax.default_backend(), *flags))


def _flags() -> Flags:
    """JAX's settings, for programs that make keys from seeds: JAX's cache does not see the default kind of key."""
    return tuple(jax_flags().items())


@cache
def _source_and_libraries() -> tuple[str, ...]:
    """The digest of the code and the versions of libraries, which cannot change while a process runs."""
    return (
        f"source {code_digest('experiments.sweeps.lanes')[:16]}",
        *(f"{name} {version(name)}" for name in LIBRARIES),
    )


def run_cells(cells: Sequence[Cell]) -> list[Row]:
    """Train and measure cells of one program, `n_lanes` at the most, on the default device, all at the same time.

    A cell whose numbers are not finite has a row with an error; what goes wrong otherwise is raised.
    """
    start = time.monotonic()
    program = program_of(cells[0])
    if len(cells) > program.n_lanes:
        raise ValueError(f"cells: {len(cells)} do not fit into {program.n_lanes} lanes")
    for cell in cells:
        if program_of(cell) != program:
            raise ValueError(f"cells: of different programs: {program_of(cell)} and {program}")
    if _run.n_held >= MOST_PROGRAMS:
        _run.forget()
    filled = [*cells, *[cells[-1]] * (program.n_lanes - len(cells))]
    lanes = make_lanes(filled, program)
    lanes, outcome = jax.device_get((lanes, _run(lanes, program=program, flags=_flags())))
    measured = [_measure(cell, jax.tree.map(lambda a, i=i: a[i], (lanes, outcome))) for i, cell in enumerate(cells)]
    share = (time.monotonic() - start) / len(cells)
    return [Row(None, found, share) if isinstance(found, str) else Row(found, None, share) for found in measured]


def make_lanes(cells: Sequence[Cell], program: Program) -> Lanes:
    """The cells as lanes; a hyperparameter that is no axis has its default in every lane."""
    defaults = {name: value for name, value in Hypers._field_defaults.items() if isinstance(value, int | float)}
    columns = {name: [getattr(cell.training, name, value) for cell in cells] for name, value in defaults.items()}
    columns |= {"target_l0": [target_l0(cell) for cell in cells], "aux_coef": [0.0] * len(cells)}  # AuxK is of TopK
    given: dict[str, Any] = {name: jnp.asarray(column, jnp.float32) for name, column in columns.items()}
    given["n_latents"] = jnp.asarray([n_latents(cell) for cell in cells], jnp.int32)
    hypers = Hypers(_stacked([_weighting(cell, program) for cell in cells]), **given)
    trees, W_feat = [pad_tree(built(cell.tree).tree, program.shape) for cell in cells], _directions(cells, program)
    if program.start == "features":
        directions = W_feat[:, : program.cfg.n_latents]
        padding = ~directions.any(axis=2, keepdims=True)  # which loses its encoder, but a norm of 0 has no gradient
        hypers = hypers._replace(start=sae_of_directions(directions + padding))
    return Lanes(_seeds(cells), TreeSource(_stacked(trees), jnp.asarray(W_feat)), hypers)


def _weighting(cell: Cell, program: Program) -> Any:
    weighting = prefixes.named(method_of(cell).weighting, n_latents(cell))
    padded = pad_weighting(weighting, program.cfg.n_latents, program.n_prefixes)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), padded)


def _directions(cells: Sequence[Cell], program: Program) -> Float[np.ndarray, "lanes n_features d_in"]:
    """0 for features that are padding. Orthogonal ones do not depend on how many there are, superposed ones do."""
    keys = _direction_keys(_seeds(cells), flags=_flags())
    n_features, d_in = min(program.shape.n_features, program.d_in), program.d_in
    norm_stds = {cell.training.norm_std for cell in cells if cell.training.max_cosine is None}
    orthogonal = {std: np.asarray(make_directions(keys, n_features, d_in, norm_std=std)) for std in norm_stds}
    W_feat = np.zeros((len(cells), program.shape.n_features, d_in), np.float32)
    for i, cell in enumerate(cells):
        n, training = built(cell.tree).tree.n_features, cell.training
        if training.max_cosine is None:
            W_feat[i, :n] = orthogonal[training.norm_std][i, :n]
            continue
        W_feat[i, :n] = _superposed(training.seed, n, d_in, training.max_cosine, training.norm_std, _flags())
    return W_feat


@lru_cache(MOST_DICTIONARIES)
def _superposed(
    seed: int, n_features: int, d_in: int, max_cosine: float, norm_std: float, flags: Flags
) -> Float[np.ndarray, "n_features d_in"]:
    keys = _direction_keys(jnp.asarray([seed], jnp.uint32), flags=flags)
    return np.asarray(make_directions(keys, n_features, d_in, max_cosine=max_cosine, norm_std=norm_std))[0]


@compiled(static_argnames="flags")
def _direction_keys(seeds: UInt32[Array, " lanes"], *, flags: Flags) -> Key[Array, " lanes"]:
    return jax.vmap(lambda seed: _keys(seed)[0])(seeds)


def _keys(seed: UInt32[Array, ""]) -> tuple[Key[Array, ""], ...]:
    """The keys of the directions, of the training and of the held-out rows."""
    key = jax.random.key(seed)
    return (*jax.random.split(key), held_out_key(key))


def _seeds(cells: Sequence[Cell]) -> UInt32[Array, " lanes"]:
    return jnp.asarray([cell.training.seed for cell in cells], jnp.uint32)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)


@compiled(static_argnames=("program", "flags"))
def _run(lanes: Lanes, *, program: Program, flags: Flags) -> Outcome:
    """Trains a group of cells, draws their held-out rows and encodes them; compiled once per program and settings."""

    def one(lane: Lanes) -> Outcome:
        cfg, (tree, W_feat) = program.cfg, lane.source
        _, key_training, key_held_out = _keys(lane.seed)
        state = init_state(unrolled(key_training), lane.hypers, d_in=program.d_in, cfg=cfg)
        state, _ = many_steps(state, lane.source, lane.hypers, cfg.n_steps, cfg=cfg)
        sae = trained_sae(state)
        features = sample_features(key_held_out, tree, program.n_eval_rows)
        return Outcome(sae, features, encode(sae, features @ W_feat, cfg.method.inference))

    return each_lane(one, program.cfg, (0,), 0)(lanes)


def n_compiled() -> int:
    """The number of programs of sweeps that this process has compiled: one per program and device."""
    return _run.n_compiled


def _measure(cell: Cell, lane: tuple[Lanes, Outcome]) -> dict[str, float | None] | str:
    """FACTS and METRICS; what is wrong where a number is not finite."""
    (_, source, _), (sae, features, acts) = lane
    tree, n, m = built(cell.tree).tree, built(cell.tree).tree.n_features, n_latents(cell)
    threshold = None if sae.threshold is None else sae.threshold[:m]
    sae = SAE(sae.W_enc[:, :m], sae.b_enc[:m], sae.W_dec[:m], sae.b_dec, threshold)
    if not is_finite(sae):
        return "the SAE's parameters are not finite: its training diverged; lower learning_rate"
    found = evaluate(sae, source.W_feat[:n], tree, features[:, :n], acts=acts[:, :m])
    return {"n_features": n, "n_latents": m, "target_l0": target_l0(cell), **_flat(found)}


def _flat(found: Evaluation) -> dict[str, float | None]:
    """Numbers alone; None for what is not known, such as the holes of a tree without edges."""
    values = {name: float(getattr(found, name)) for name in OF_EVALUATION} | found.mixing._asdict()
    return {name: None if np.isnan(value) else value for name, value in values.items()}
