"""What a sweep's text says, as YAML or JSON, where every reader would read the same and nothing is dropped untold."""

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

from toy.checks import quoted

MOST_YAML = 10**6  # characters: its reader takes some 10 s for as many
MOST_JSON = 2 * 10**8  # a record of a million cells has about as many

_BOOL, _INT, _FLOAT, _NULL, _EITHER = (f"!sweep/{kind}" for kind in ("bool", "int", "float", "null", "either"))
_TWO_READINGS = (  # which YAML 1.1 and 1.2 read differently, and so do their readers
    r"(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)",
    r"<<",
    r"[-+]?0[0-9_]+",
    r"(?=[^_]*_)[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?",
    r"[-+]?0[xX](?=[^_]*_)[0-9a-fA-F_]+",
    r"[-+]?0(?:b[01_]+|o[0-7_]+)",
    r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?",
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?",
)


class SweepTextError(ValueError):
    """A text that is no sweep's; the message says where and why."""


def sweep_data(text: str, *, is_json: bool) -> Any:
    """The value that a text of YAML, or of JSON, holds. Takes time in proportion to its length.

    Raises: SweepTextError, in one line, if it is neither; if a key is repeated; or, in YAML, if there is an anchor, an
    alias or a tag, or a value that versions of YAML read differently.
    """
    most = MOST_JSON if is_json else MOST_YAML
    if len(text) > most:
        told = "" if is_json else "; give a long sweep as JSON, or its values as range"
        raise SweepTextError(f"has more than {most:,} characters{told}")
    try:
        return _from_json(text) if is_json else yaml.load(text, _Loader)
    except SweepTextError:
        raise
    except RecursionError:
        raise SweepTextError("is nested too deeply") from None
    except (ValueError, yaml.YAMLError) as error:
        raise SweepTextError(f"neither YAML nor JSON: {quoted(' '.join(str(error).split()))}") from None


# --- JSON -------------------------------------------------------------------------------------------------


def _from_json(text: str) -> Any:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in pairs:
            if key in data:
                raise SweepTextError(f"the key {quoted(key, 60)} stands twice in one object{_lines(text, key)}")
            data[key] = value
        return data

    return json.loads(text, object_pairs_hook=without_repeats, parse_constant=_no_constant)


def _lines(text: str, key: str) -> str:
    """Where a key stands, since JSON's reader does not tell."""
    found = [str(i) for i, line in enumerate(text.split("\n"), 1) if json.dumps(key) in line]
    return f" (line{'s' * (len(found) > 1)} {', '.join(found[:5])})" if found else ""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


# --- YAML -------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, without what makes a text mean more than it shows."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _fault(event, f"anchors and aliases ({quoted(event.anchor, 60)}) are not read: write the values out")
        if event.tag is not None:
            raise _fault(event, f"tags ({quoted(event.tag, 60)}) are not read: leave it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault(key, "a name is text, and no list or object")
            if key.value in seen:
                raise _fault(key, f"the key {quoted(key.value, 60)} stands twice in one object")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _fault(at: Any, why: str) -> SweepTextError:
    return SweepTextError(f"line {at.start_mark.line + 1}: {why}")


def _either(loader: Any, node: Any) -> Any:
    raise _fault(node, f"{quoted(node.value, 60)} is read differently by versions of YAML: {_remedy(node.value)}")


def _remedy(text: str) -> str:
    try:
        old = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        old = None
    plain = json.dumps(old) if isinstance(old, bool | int | float) else None
    return "quote it" if plain is None else f"quote it, or write {quoted(plain, 60)}"


def _scalar(tag: str, pattern: str, first: str, read: Callable[[str], Any]) -> None:
    """Have plain scalars that match be read so; `first` are the characters that they may begin with."""
    _Loader.add_implicit_resolver(tag, re.compile(rf"(?:{pattern})\Z"), list(first) or [""])
    _Loader.add_constructor(tag, lambda loader, node: read(node.value))


def _float(text: str) -> float:
    special = text.lower().lstrip("+-")
    return float(text.lower().replace(special, special[1:])) if special in (".inf", ".nan") else float(text)


_KEPT = [f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")]
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _KEPT}

_NUMERIC = "-+.0123456789"
_scalar(_EITHER, "|".join(_TWO_READINGS), "yYnNoO<" + _NUMERIC, str)
_Loader.add_constructor(_EITHER, _either)
_scalar(_INT, r"[-+]?(?:0|[1-9][0-9]*|0[xX][0-9a-fA-F]{1,64})", _NUMERIC, lambda text: int(text, 0))
_scalar(_FLOAT, r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", _NUMERIC, _float)
_scalar(_FLOAT, r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", _NUMERIC, _float)
_scalar(_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true")
_scalar(_NULL, r"~|null|Null|NULL", "~nN", lambda text: None)
_Loader.add_implicit_resolver(_NULL, re.compile(r"\Z"), [""])
