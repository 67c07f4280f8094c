"""One HTML file from a template, its script, its style and its data; nothing in it is loaded from elsewhere."""

import html
import json
import re
from importlib.resources import files
from typing import Any

SCRIPTS = ("data.js", "pattern.js", "search.js", "viewer.js", "latent.js", "contexts.js", "toy.js", "start.js")
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def page(title: str, data: dict[str, Any]) -> str:
    """The page. Data are JSON without a "<", so that no text can end the element that holds them."""
    parts = {
        "title": html.escape(title),
        "style": _file("viewer.css"),
        "script": "\n".join(_file(name) for name in SCRIPTS),
        "data": json.dumps(data | {"title": title}, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    return _SLOT.sub(lambda slot: parts[slot[1]], _file("page.html"))


def _file(name: str) -> str:
    return files("experiments.viewer").joinpath(name).read_text(encoding="utf-8")
