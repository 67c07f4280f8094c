"""The seeds of an experiment: its options, and their words in captions."""

from collections.abc import Sequence
from dataclasses import dataclass

from toy.checks import MAX_SEED, SEED, Whole, check_fields


@dataclass(frozen=True)
class SeedConfig:
    """The seeds that an experiment runs."""

    seed: int = 0
    """The first seed."""
    n_seeds: int = 16
    """Number of seeds; each has directions, an initialisation and data of its own."""

    def __post_init__(self) -> None:
        check_fields(self, seed=SEED, n_seeds=Whole())
        last = self.seed + self.n_seeds - 1
        if last > MAX_SEED:
            raise ValueError(f"seed and n_seeds: the last seed, {last}, is more than {MAX_SEED}; lower one of them")

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.n_seeds))


def seeds_text(seeds: Sequence[int]) -> str:
    """The seeds of a record for a caption: consecutive ones by the first and the last."""
    return f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
