"""Progress of a command: a bar in a terminal, a line every half minute elsewhere."""

import contextlib
import sys
import threading
import time
from typing import Any

from tqdm import tqdm

from experiments.common.signals import raise_swallowed

EVERY_S = 30.0
COMPILING = "compiling"


class progress_bar:  # noqa: N801
    """Progress on stderr within a `with` block; `update(n)` tells that n more of `total` are done.

    A `unit` of None leaves the counts out of lines. With `stops`, `update` raises an interrupt that was swallowed;
    without, the work ends by itself after one. Other options are tqdm's.
    """

    def __init__(self, total: float, desc: str, *, unit: str | None = "step", stops: bool = True, **options: Any):
        self._total, self._desc, self._unit, self._stops = total, desc, unit, stops
        self._done, self._told, self._start = 0.0, "", time.monotonic()
        self._ended = threading.Event()
        terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=desc, unit=unit or "it", leave=False, disable=not terminal, **options)

    def __enter__(self) -> "progress_bar":
        if self._bar.disable:
            threading.Thread(target=self._print_lines, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._bar.close()

    def update(self, n: float = 1) -> None:
        if self._told == COMPILING:
            self.tell("")
        self._done += n
        self._bar.update(n)
        if self._stops:
            raise_swallowed()

    def compiling(self) -> None:
        """Say so until the first steps are done."""
        self.tell(COMPILING)

    def tell(self, text: str) -> None:
        """Text beside the bar or at the end of lines."""
        self._told = text
        self._bar.set_postfix_str(text)

    def line(self) -> str:
        """The progress in words."""
        share = min(1.0, self._done / self._total) if self._total else 1.0
        counts = "" if self._unit is None else f", {self._done:,.0f} of {self._total:,.0f} {self._unit}s"
        told = f", {self._told}" if self._told else ""
        return f"{self._desc}: {share:.0%} after {time.monotonic() - self._start:,.0f} s{counts}{told}"

    def _print_lines(self) -> None:
        while not self._ended.wait(EVERY_S):
            with contextlib.suppress(OSError, ValueError):  # stderr was closed, or its reader has gone
                print(self.line(), file=sys.stderr, flush=True)
