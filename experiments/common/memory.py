"""A lower estimate of the memory of a run against that of the machine, before anything is allocated."""

from collections.abc import Mapping

from toy.training.config import memory

FLOAT = 4  # bytes


def check_fits(least_bytes: Mapping[str, int]) -> None:
    """`least_bytes` are by the options that decide them.

    Raises: ValueError naming the options that need more memory than this machine has.
    """
    there = memory()
    for names, needed in least_bytes.items():
        if there is not None and needed > there:
            raise ValueError(
                f"{names}: need at least {needed / 2**30:,.0f} GiB of memory, of which this machine has "
                f"{there / 2**30:,.0f} GiB; give smaller ones"
            )
