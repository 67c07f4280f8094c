"""Where what can be made again is kept: the user's cache folder."""

import os
import tempfile
from pathlib import Path


def user_cache(*parts: str) -> Path:
    """The folder `parts` in the user's cache: XDG_CACHE_HOME, else ~/.cache, else a temporary folder of the user's own.

    An XDG_CACHE_HOME that is empty or relative does not count, as the XDG specification says. Nothing is made.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given, "matryoshka-toy", *parts)
    try:
        base = Path.home() / ".cache"
    except RuntimeError:  # HOME is not set, and the user has no entry that says where it is
        user = os.getuid() if hasattr(os, "getuid") else "user"
        base = Path(tempfile.gettempdir()) / f"cache-{user}"
    return base.joinpath("matryoshka-toy", *parts)
