"""Command lines, run in the process of the tests."""

import sys
from collections.abc import Callable

import pytest


def exit_code(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """What a command exits with."""
    monkeypatch.setattr(sys, "argv", ["python -m", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
