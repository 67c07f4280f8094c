"""The texts for readers: their examples run, their links lead somewhere, and the first page stays short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [ROOT / "README.md", *sorted(path for top in ("toy", "experiments") for path in (ROOT / top).rglob("*.md"))]
MOST_CHARACTERS = 9_000


def anchor(heading: str) -> str:
    """The anchor that a heading gets on the web: "Trees as files" is `trees-as-files`."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links() -> list[tuple[Path, str]]:
    found = ((text, re.findall(r"\]\(([^)\s]+)\)", text.read_text())) for text in TEXTS)
    return [(text, link) for text, targets in found for link in targets if not link.startswith("http")]


@pytest.mark.parametrize(("text", "link"), links(), ids=lambda value: getattr(value, "name", value))
def test_a_link_leads_to_a_file_and_to_a_heading_of_it(text, link):
    path, _, heading = link.partition("#")
    target = text.parent / path if path else text
    assert target.exists()
    assert not heading or heading in map(anchor, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE))


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text()) <= MOST_CHARACTERS


def examples() -> list[str]:
    return [example for text in TEXTS for example in re.findall(r"```python\n(.*?)```", text.read_text(), re.DOTALL)]


@pytest.mark.slow
@pytest.mark.parametrize("example", examples(), ids=map(str, range(len(examples()))))
def test_an_example_runs_as_it_is(example, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "example", "exec"), {})
