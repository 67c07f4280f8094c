"""The compiled program that trains a cell, which follows from the cell alone: numbers do not depend on the sweep."""

from typing import NamedTuple

from experiments.sweeps.cell import Cell, Start, built, d_in, method_of, n_latents, train_config
from experiments.sweeps.padding import TreeShape, tree_shape
from toy.features.directions import check_directions
from toy.training.config import TrainConfig

LEAST_SIZE = 12  # of features and of latents
GATES = 4  # in steps of so many, where a tree has more than one
MAX_WIDTH = 65_536  # of latents, and of d_in
MOST_LANES = 32  # more are hardly faster on a CPU
LANE_MEMORY = 512 * 2**20  # bytes, of a group's lanes
MAX_LANE_MEMORY = 4 * 2**30  # bytes, of a lane that is alone
MAX_WEIGHTS = 2_000_000  # latents times prefixes of a weighting, whose exact expectation takes 5 µs for each


class Program(NamedTuple):
    """All that is static: cells with the same are trained together, each in a lane."""

    shape: TreeShape  # of the padded tree
    d_in: int
    n_prefixes: int  # 0: a weight for every prefix
    cfg: TrainConfig  # of the padded latents
    n_eval_rows: int
    most_lanes: int | None = None  # None: MOST_LANES
    start: Start = "random"

    @property
    def n_lanes(self) -> int:
        """The fixed number of lanes of a group, so that a cell's numbers do not depend on how many others there are."""
        batch, rows, n = self.cfg.batch_size, self.n_eval_rows, max(self.cfg.n_latents, self.shape.n_nodes)
        n_bytes = 4 * (n * (24 * batch + 4 * rows + 24 * self.d_in + 4 * n) + self.d_in * (8 * batch + 2 * rows))
        return max(1, min(self.most_lanes or MOST_LANES, LANE_MEMORY // n_bytes))

    @property
    def lane_memory(self) -> int:
        """Bytes that training and measuring one cell take, roughly."""
        batch, rows, d, f = self.cfg.batch_size, self.n_eval_rows, self.d_in, self.shape.n_features
        n = max(self.cfg.n_latents, self.shape.n_nodes)
        pairs = 4 * n * n if self.cfg.loss_form == "gram" else 3 * self.n_prefixes * batch * d
        training = 4 * (24 * n * (batch + d) + 8 * batch * d + pairs)
        return training + 8 * rows * (2 * n + d) + 16 * f * (f + n) + 12 * d * d

    @property
    def cost(self) -> float:
        """A rough estimate of the seconds that a cell takes on two CPU cores."""
        n, d, rows = max(self.cfg.n_latents, self.shape.n_nodes), self.d_in, self.cfg.batch_size
        return self.cfg.n_steps * (3.5e-9 * rows * n + 2e-12 * rows * n * d + 2e-11 * rows * n * n)


def program_of(cell: Cell) -> Program:
    """Raises: ValueError if the cell cannot be: an impossible tree, directions that do not fit, too many latents."""
    training, tree = cell.training, built(cell.tree).tree
    own = tree_shape(tree)
    if max(n_latents(cell), d_in(cell)) > MAX_WIDTH:
        found = f"{n_latents(cell):,} latents, d_in {d_in(cell):,}"
        raise ValueError(f"{found}: at most {MAX_WIDTH:,} of each are trained")
    check_directions(own.n_features, d_in(cell), training.max_cosine)
    if training.start == "features" and n_latents(cell) > own.n_features:
        raise ValueError(f"start: {n_latents(cell):,} latents cannot start at {own.n_features:,} features: take random")
    n_nodes = _size(own.n_nodes + own.has_readout)
    shape = own._replace(
        n_nodes=n_nodes,
        n_features=_size(own.n_features) if own.has_readout else n_nodes,
        n_draws=n_nodes,
        n_gates=1 if own.n_gates <= 1 else -(-own.n_gates // GATES) * GATES,
    )
    _, method, weighting = method_of(cell)
    method.check(n_latents(cell))
    method.form(n_latents(cell), None)  # raises, as for TrainConfig, but for the number before padding
    n = _size(n_latents(cell)) if method.allows_padding else n_latents(cell)
    cfg = train_config(n, training.n_steps, training.batch_size, method)
    n_prefixes = _n_prefixes(weighting, n_latents(cell))
    n_sampled = min(n_prefixes, cfg.n_latents) if weighting.startswith("sampled") else 0
    fixed = (training.n_eval_rows, training.most_lanes, training.start)
    return _checked(Program(shape, d_in(cell), n_sampled, cfg, *fixed))


def _n_prefixes(weighting: str, n_latents: int) -> int:
    """The number of prefixes in the weighting's name, or 1. Raises: ValueError if there are too many to weigh."""
    kind, _, number = weighting.partition("_")
    n_prefixes = int(number) if kind in ("sampled", "expected") else 1
    if kind == "expected" and min(n_prefixes, n_latents) * n_latents > MAX_WEIGHTS:
        raise ValueError(
            f"{n_latents:,} latents with {n_prefixes:,} prefixes: at most {MAX_WEIGHTS:,} of the two multiplied are "
            "weighed: take sampled in place of expected, or fewer prefixes"
        )
    return n_prefixes


def _checked(program: Program) -> Program:
    if program.lane_memory > MAX_LANE_MEMORY:
        raise ValueError(
            f"{program.cfg.n_latents:,} latents, d_in {program.d_in:,}, batches of {program.cfg.batch_size:,} and "
            f"{program.n_eval_rows:,} held-out rows take about {program.lane_memory / 2**30:,.0f} GB, at most "
            f"{MAX_LANE_MEMORY / 2**30:.0f} GB are given to a cell: lower one of them"
        )
    return program


def _size(n: int) -> int:
    """The least of 12, 16, 24, 32, 48, 64, … that is not below; from 9 on at most a third of it is padding."""
    power = 1 << (n - 1).bit_length()
    return max(LEAST_SIZE, power * 3 // 4 if n <= power * 3 // 4 else power)
