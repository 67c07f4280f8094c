"""Cases of drawing SynthSAEBench's rows: here, and (`peers.generator`) in SAELens."""

from itertools import count
from typing import Any

import jax

from experiments.bench.worker import Case, timed
from toy.data.source import SyntheticSource, synthsaebench
from toy.features.synthsaebench import SynthSAEBench

OURS, THEIRS = "this project", "SAELens"


def cases(job: dict[str, Any]) -> dict[str, Case]:
    """A case whose unit is a row. Directions are not pushed apart, which is of no effect on the time."""
    source = synthsaebench(SynthSAEBench(**job["benchmark"] | {"n_orthogonal_steps": 0}))
    draw = jax.jit(SyntheticSource.sample, static_argnums=2)
    keys = map(jax.random.key, count())
    facts = {"to": THEIRS} if job["peers"] else {}
    n = job["n_rows"]
    return {OURS: Case(timed(lambda: draw(source, next(keys), n), n, n_calls=job["n_calls"]), facts)}
