"""JSON files, written in full or to some digits, and read within limits."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from toy.checks import quoted
from toy.files.atomic import writing

MOST_JSON = 256 * 2**20  # bytes of a JSON file


def save_json(path: Path, data: Any, *, digits: int | None = 6) -> None:
    """Write JSON with lists of numbers on one line each; `plain` converts numpy values and NaN."""
    text = json.dumps(plain(data, digits), indent=1, allow_nan=False)
    with writing(path) as file:
        file.write((_one_line_lists(text) + "\n").encode())


def load_json(path: Path, *, most_bytes: int = MOST_JSON) -> Any:
    """Read JSON. Raises: OSError; ValueError naming a file that is malformed, repeats a key, or is too long or deep."""
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path}: broken: has more than {most_bytes:,} bytes")
    try:
        return parse_json(content.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path}: broken: no JSON: not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{path}: broken: no JSON: {quoted(str(error))}") from None


def load_object(path: Path, what: str, *, most_bytes: int = MOST_JSON) -> dict[str, Any]:
    """Read the JSON object of `what` ("an SAE"). Raises: ValueError naming the file."""
    try:
        data = load_json(path, most_bytes=most_bytes)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as {what}: {error.strerror or error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: broken: expected an object")
    return data


def parse_json(text: str) -> Any:
    """Parse JSON. Raises: ValueError in one line if it is malformed, repeats a key or is nested too deeply."""
    try:
        return json.loads(text, object_pairs_hook=_no_repeats)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {quoted(repeated)} stands twice in one object")
    return found


def plain(value: Any, digits: int | None = 6) -> Any:
    """Data for JSON: numpy values as numbers and lists, floats to `digits` significant digits, NaN as None."""
    if isinstance(value, dict):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        if not np.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    if isinstance(value, Path):
        return str(value)
    return value


def _one_line_lists(text: str) -> str:
    """Put every list of plain values on one line, for human readers."""
    return re.sub(r"\[\n([^\[\]{}]*)\n *\]", lambda found: "[" + re.sub(r"\n *", " ", found[1].strip()) + "]", text)
