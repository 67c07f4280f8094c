"""Which compiled program trains a cell. It follows from the cell alone, so its numbers do not depend on the sweep."""

from typing import NamedTuple

from toy.config import TrainConfig
from toy.dictionary import check_directions
from toy.padding import TreeShape, tree_shape
from toy.prefixes import SampledPrefixes
from toy.sweep.cell import Cell, built, d_in, make_weighting, n_latents

LEAST_SIZE = 16  # of features and of latents; then 32, 64, …
GATES = 4  # in steps of so many
MAX_WIDTH = 65_536  # of latents, and of d_in
MOST_LANES = 32  # more are hardly faster on a CPU
LANE_MEMORY = 512 * 2**20  # bytes, of a group's lanes


class Program(NamedTuple):
    """All that is static: cells with the same are trained together, each in a lane."""

    shape: TreeShape  # of the padded tree
    d_in: int
    n_prefixes: int  # 0: a weight for every prefix
    cfg: TrainConfig  # of the padded latents
    n_eval_rows: int

    @property
    def n_lanes(self) -> int:
        """Of a group, always: a cell's numbers must not depend on how many others there are."""
        batch, rows, n = self.cfg.batch_size, self.n_eval_rows, max(self.cfg.n_latents, self.shape.n_nodes)
        n_bytes = 4 * (n * (24 * batch + 4 * rows + 24 * self.d_in + 4 * n) + self.d_in * (8 * batch + 2 * rows))
        return max(1, min(MOST_LANES, LANE_MEMORY // n_bytes))

    @property
    def cost(self) -> float:
        """Of one cell, in seconds on two CPU cores, roughly."""
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
    n_nodes = _size(own.n_nodes + own.has_readout)
    shape = own._replace(
        n_nodes=n_nodes,
        n_features=_size(own.n_features) if own.has_readout else n_nodes,
        n_draws=n_nodes,
        n_gates=-(-max(own.n_gates, 1) // GATES) * GATES,
    )
    weighting = make_weighting(training.objective, n_latents(cell))
    sampled = isinstance(weighting, SampledPrefixes)
    cfg = TrainConfig(
        _size(n_latents(cell)),
        n_steps=training.n_steps,
        batch_size=training.batch_size,
        sparsity=training.sparsity,
    )
    n_prefixes = int(training.objective.partition("_")[2]) if sampled else 0
    return Program(shape, d_in(cell), min(n_prefixes, cfg.n_latents), cfg, training.n_eval_rows)


def _size(n: int) -> int:
    """The least of 16, 32, 64, … that is not below."""
    return max(LEAST_SIZE, 1 << (n - 1).bit_length())
