"""What a run needs of memory at least, against what this machine has: told before anything is allocated."""

import os
from collections.abc import Mapping
from math import inf


def check_fits(least_bytes: Mapping[str, int]) -> None:
    """`least_bytes` are by the options that decide them.

    Raises: ValueError naming the options that need more memory than this machine has.
    """
    there = memory()
    for names, needed in least_bytes.items():
        if needed > there:
            raise ValueError(
                f"{names}: need at least {needed / 2**30:,.0f} GiB of memory, of which this machine has "
                f"{there / 2**30:,.0f} GiB; give smaller ones"
            )


def memory() -> float:
    """Bytes of this machine's memory; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return inf
