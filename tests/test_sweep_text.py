"""A sweep's text: what every reader reads alike is read, all else is refused by its line."""

import math
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.sweep import read_sweep
from experiments.sweeps.text import SweepTextError, sweep_data

BOMB = "metrics: [&a [1, 1], *a, *a]"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("0", 0),
        ("+12", 12),
        ("0x1F", 31),
        ("TRUE", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ('"yes"', "yes"),
        ("_1", "_1"),
        ("a_1", "a_1"),
        ("expected_10", "expected_10"),
        ("no way", "no way"),
        ("1e", "1e"),
        ("[2, 3]", [2, 3]),
        ("a: {b: [1]}", {"a": {"b": [1]}}),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = sweep_data(text, is_json=False)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("scalar", "remedy"),
    [
        ("010", "quote it, or write 8"),
        ("-017", "quote it, or write -15"),
        ("08", "quote it"),
        ("10:00", "quote it, or write 600"),
        ("1:30.5", "quote it, or write 90.5"),
        ("1_000", "quote it, or write 1000"),
        ("1_0.5", "quote it, or write 10.5"),
        ("0x1_F", "quote it, or write 31"),
        ("0b11", "quote it, or write 3"),
        ("0o17", "quote it"),
        ("yes", "quote it, or write true"),
        ("OFF", "quote it, or write false"),
        ("2001-01-01", "quote it"),
        ("<<", "quote it"),
    ],
)
@pytest.mark.parametrize("text", ["axes:\n  seed: [{}]", "axes:\n  {}: [1]"])
def test_what_versions_of_yaml_read_differently_is_told_with_the_remedy(text: str, scalar: str, remedy: str) -> None:
    with pytest.raises(SweepTextError) as caught:
        sweep_data(text.format(scalar), is_json=False)
    assert str(caught.value) == f"line 2: {scalar} is read differently by versions of YAML: {remedy}"


@pytest.mark.parametrize(
    ("text", "is_json", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", False, r"^line 4: the key c stands twice in one object$"),
        ("a: {b: 1, 'b': 2}", False, r"^line 1: the key b stands twice in one object$"),
        ('{"a": 1,\n "b": {"c": 1,\n"c": 2}}', True, r"^neither YAML nor JSON: the key c stands twice in one object$"),
        ('{"a\\n": 1, "a\\n": 1}', True, r"^neither YAML nor JSON: the key a\\+n stands twice in one object$"),
        (BOMB, False, r"^line 1: anchors and aliases \(a\) are not read: write the values out$"),
        ("a: *b", False, r"^line 1: anchors and aliases \(b\) are not read"),
        ("a: !!python/object/apply:os.system [ls]", False, r"^line 1: tags \(tag:yaml\.org,2002:python/object/apply"),
        ("? [a]\n: 1", False, "^line 1: a name is text, and no list or object$"),
        ("[" * 100_000, False, "^is nested too deeply$"),
        ("[" * 100_000, True, "is nested too deeply$"),
        ("- " * 5_000, False, "^is nested too deeply$"),
        ("1" * 5_000, False, "^neither YAML nor JSON: Exceeds the limit"),
        ("1" * 5_000, True, "^neither YAML nor JSON: Exceeds the limit"),
        ("a: b: c", False, "^neither YAML nor JSON: mapping values are not allowed here"),
        ("'" + "x" * 10_000, False, "^neither YAML nor JSON: .{,300}$"),
        ("x" * 1_000_001, False, "^has more than 1,000,000 characters; give a long sweep as JSON"),
    ],
)
def test_texts_that_mean_harm_or_nothing_are_refused_in_one_line(text: str, is_json: bool, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(SweepTextError, match=message) as caught:
        sweep_data(text, is_json=is_json)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


def test_many_different_keys_are_read_in_linear_time() -> None:
    text = "{" + ", ".join(f'"k{i}": 1' for i in range(100_000)) + ', "k7": 2}'
    start = time.monotonic()
    with pytest.raises(SweepTextError, match=r"the key k7 stands twice"):
        sweep_data(text, is_json=True)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.yaml",
            b"axes: {seed: [0]}\nfixed: {n_steps: 5000, n_steps: 5}",
            r"a\.yaml: line 2: the key n_steps stands",
        ),
        ("a.json", b'{"axes": {"seed": [0], "seed": [1]}}', r"a\.json: .*the key seed stands twice in one object"),
        ("a.yaml", b"axes: {seed: {range: [0, 1000000000000]}}", r"a\.yaml: seed: has more than 1,000,000 values"),
        ("a.yaml", b'axes: {tree: ["a\\nb"]}', r"a\.yaml: .*a\\nb: No such file or directory$"),
        ("a\n.yaml", b"axes: {}", r"a\\n\.yaml: axes: expected an object"),
        ("a.yaml", b"\xff\xfe", r"a\.yaml: neither YAML nor JSON: not UTF-8 text"),
    ],
)
def test_a_file_s_fault_is_one_line_with_its_name(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_sweep(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"axes": {"learning_rate": [1e-3]}}')
    assert read_sweep(tmp_path / "a.json").axes == {"learning_rate": (0.001,)}
