"""The text of a sweep, in YAML or JSON: read where all readers agree, and refused by its line elsewhere."""

import json
import re
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from toy.checks import quoted
from toy.files.json_files import parse_json

MOST_YAML = 10**6  # characters: reading as many takes some 10 s
MOST_JSON = 2 * 10**8  # a record of a million cells has about as many

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0[xX][0-9a-fA-F]{1,64}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_o]+")  # octal in YAML 1.1 or 1.2, decimal in the other


class SweepTextError(ValueError):
    """The text is not a sweep's; the message says where and why."""


def sweep_data(text: str, *, is_json: bool) -> Any:
    """The value that a text of YAML or of JSON holds, read in time proportional to its length.

    Raises: SweepTextError, in one line, if it is neither, or repeats a key; in YAML also for an anchor, an alias, a
    tag, and a value that YAML 1.1 and 1.2 read differently.
    """
    most = MOST_JSON if is_json else MOST_YAML
    if len(text) > most:
        remedy = "" if is_json else "; give a long sweep as JSON, or its values as range"
        raise SweepTextError(f"has more than {most:,} characters{remedy}")
    try:
        return parse_json(text) if is_json else yaml.load(text, _Loader)
    except SweepTextError:
        raise
    except RecursionError:
        raise SweepTextError("is nested too deeply") from None
    except (ValueError, yaml.YAMLError) as error:
        raise SweepTextError(f"neither YAML nor JSON: {quoted(' '.join(str(error).split()))}") from None


class _Loader(yaml.SafeLoader):
    """YAML's core schema, without what makes a text mean more than it shows."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _fault(event, f"anchors and aliases ({quoted(event.anchor, 60)}) are not read: write the values out")
        if event.tag is not None:
            raise _fault(event, f"tags ({quoted(event.tag, 60)}) are not read: leave it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault(key, "a name is text, and no list or object")
            if key.value in names:
                raise _fault(key, f"the key {quoted(key.value, 60)} stands twice in one object")
            names.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: Any) -> None:
        """Merge keys (<<) are refused with the other scalars that readers disagree on."""

    def construct_scalar(self, node: Any) -> Any:
        return super().construct_scalar(node) if node.style else _plain(node, super().resolve)


def _fault(at: Any, why: str) -> SweepTextError:
    return SweepTextError(f"line {at.start_mark.line + 1}: {why}")


def _plain(node: Any, resolve: Any) -> Any:
    """The value of a scalar without quotes by YAML 1.2. Raises: SweepTextError if YAML 1.1 has another."""
    text = node.value
    is_number = _INT.fullmatch(text) or _FLOAT.fullmatch(text)
    is_text = resolve(yaml.ScalarNode, text, (True, False)) == Resolver.DEFAULT_SCALAR_TAG
    if _LEADING_ZERO.fullmatch(text) or not (is_number or is_text or _BOOL.fullmatch(text) or _NULL.fullmatch(text)):
        raise _fault(node, f"{quoted(text, 60)} is read differently by versions of YAML: {_remedy(text)}")
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text, 0)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan")) if is_number else text


def _remedy(text: str) -> str:
    try:
        old = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        old = None
    return f"quote it, or write {quoted(json.dumps(old), 60)}" if isinstance(old, bool | int | float) else "quote it"


_KEPT = [f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")]
_Loader.yaml_constructors = {tag: SafeConstructor.yaml_constructors[tag] for tag in _KEPT}
for _kind in ("null", "bool", "int", "float", "timestamp", "merge", "value"):  # as YAML 1.1 takes plain scalars
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_scalar)
