"""The user's cache folder, for files that can be made again."""

import os
import tempfile
from pathlib import Path


def user_cache(*parts: str) -> Path:
    """The folder `parts` in XDG_CACHE_HOME where that is absolute, else in ~/.cache. Nothing is made.

    A user without a home has a temporary folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            base = Path(tempfile.gettempdir(), f"cache-{os.getuid() if hasattr(os, 'getuid') else 'user'}")
    return base.joinpath("matryoshka-toy", *parts)
