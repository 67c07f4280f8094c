"""How far a command is: a bar in a terminal, a line every half minute elsewhere."""

import contextlib
import sys
import threading
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from experiments.common.signals import raise_ignored

EVERY_S = 30.0


class progress_bar:  # noqa: N801
    """Progress on stderr within a `with` block; `update(n)` tells that n more of `total` are done.

    A `unit` of None leaves the counts out of lines. With `stops`, `update` raises an interrupt that was ignored;
    without, the work ends by itself after one. Other options are tqdm's.
    """

    def __init__(self, total: float, desc: str, *, unit: str | None = "step", stops: bool = True, **options: Any):
        self._total, self._desc, self._unit, self._stops = total, desc, unit, stops
        self._done, self._told, self._start = 0.0, "", time.monotonic()
        self._ended = threading.Event()
        self._bar: Any = None
        if _is_terminal():
            self._bar = tqdm(total=total, desc=desc, unit=unit or "it", leave=False, **options)

    def __enter__(self) -> "progress_bar":
        if self._bar is None:
            threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.close()

    def update(self, n: float = 1) -> None:
        self._done += n
        if self._bar is not None:
            self._bar.update(n)
        if self._stops:
            raise_ignored()

    def tell(self, text: str) -> None:
        """Text beside the bar or at the end of lines."""
        self._told = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def line(self) -> str:
        """How far it is, in words."""
        share = min(1.0, self._done / self._total) if self._total else 1.0
        counts = "" if self._unit is None else f", {self._done:,.0f} of {self._total:,.0f} {self._unit}s"
        told = f", {self._told}" if self._told else ""
        return f"{self._desc}: {share:.0%} after {time.monotonic() - self._start:,.0f} s{counts}{told}"

    def _tell(self) -> None:
        while not self._ended.wait(EVERY_S):
            with contextlib.suppress(OSError, ValueError):  # stderr was closed, or its reader has gone
                print(self.line(), file=sys.stderr, flush=True)


def _is_terminal() -> bool:
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
