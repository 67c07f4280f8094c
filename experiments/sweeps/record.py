"""The record of a sweep's report: how it is read and checked, since it may be anybody's file."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.sweeps.lanes import METRICS
from experiments.sweeps.spec import checked_name, parse_sweep
from experiments.sweeps.text import MOST_JSON, sweep_data
from toy.checks import quoted
from toy.features.node import Node

PREFIX = "sweep_"  # of a record's name; then comes the sweep's
DIGEST = re.compile(r"[0-9a-f]{4,64}")


def load_sweep_record(path: Path) -> dict[str, Any]:
    """A checked record. Raises: ValueError, in one line that names the file, if a report could not have written it."""
    shown = quoted(str(path))
    try:
        with path.open(encoding="utf-8") as file:
            return checked_record(sweep_data(file.read(MOST_JSON + 1), is_json=True))
    except FileNotFoundError:
        raise ValueError(f"{shown}: there is no record to draw from; run the report first") from None
    except OSError as error:
        raise ValueError(f"{shown}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{shown}: no record of a sweep: not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{shown}: no record of a sweep: {error}") from None


def checked_record(record: Any) -> dict[str, Any]:
    """The record with its sweep as `as_data` has it. Raises: ValueError naming the entry and what it should be."""
    _expect(isinstance(record, dict), "expected an object")
    name, config, results, seeds = (record.get(entry) for entry in ("name", "config", "results", "seeds"))
    _expect(isinstance(name, str) and name.startswith(PREFIX), f"name: expected {PREFIX}…, got {quoted(repr(name))}")
    checked_name(str(name).removeprefix(PREFIX))
    sweep = parse_sweep(config, _no_file)
    _expect(_is_list(seeds, int, least=1), "seeds: expected whole numbers")
    _expect(_is_number(record.get("seconds")), "seconds: expected a number")
    _expect(isinstance(results, dict), "results: expected an object")
    _check_results(results, len(sweep))
    return {**record, "config": json.loads(json.dumps(sweep.as_data()))}


def _check_results(results: dict[str, Any], n_cells: int) -> None:
    columns, cells, errors = (results.get(entry) for entry in ("columns", "cells", "errors"))
    _expect(results.get("n_cells") == n_cells, f"results.n_cells: expected {n_cells:,}, as the sweep has")
    for name in ("n_missing", "n_failed", "n_off_target"):
        n = results.get(name, 0)
        _expect(_is(n, int) and 0 <= n <= n_cells, f"results.{name}: expected a whole number up to {n_cells:,}")
    _expect(isinstance(results.get("code"), str), "results.code: expected text")
    _expect(isinstance(columns, dict) and columns, "results.columns: expected an object of columns")
    for name, column in (columns or {}).items():
        shown = f"results.columns.{quoted(name, 60)}"
        _expect(name in METRICS, f"{shown}: no metric")
        _expect(isinstance(column, list) and len(column) == n_cells, f"{shown}: expected {n_cells:,} values")
        _expect(all(value is None or _is_number(value) for value in column), f"{shown}: expected numbers or null")
    _expect(_is_list(cells, str, n_cells), f"results.cells: expected {n_cells:,} digests")
    _expect(all(map(_is_digest, cells or ())), "results.cells: expected digests of hexadecimal digits")
    for name in ("failed", "off_target"):
        places = results.get(name, [])
        _expect(_is_list(places, int), f"results.{name}: expected places of cells")
        _expect(all(0 <= place < n_cells for place in places), f"results.{name}: expected places below {n_cells:,}")
    _expect(
        isinstance(errors, list) and all(map(_is_error, errors)), "results.errors: expected errors with their cells"
    )


def _expect(is_right: Any, told: str) -> None:
    if not is_right:
        raise ValueError(told)


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_list(values: Any, kind: type, length: int | None = None, least: int = 0) -> bool:
    is_long = isinstance(values, Sequence) and len(values) >= least and length in (None, len(values))
    return is_long and isinstance(values, list) and all(_is(value, kind) for value in values)


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def _is_error(value: Any) -> bool:
    is_whole = isinstance(value, dict) and isinstance(value.get("error"), str) and _is(value.get("n_cells"), int)
    return is_whole and _is_digest(value.get("first_cell"))


def _no_file(name: str) -> Node:
    raise ValueError("the record does not have this tree")
