"""Fonts for the names of users: DejaVu Sans, and installed ones that have the characters which that one lacks."""

import sys
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from toy.checks import quoted

BASE = "DejaVu Sans"  # comes with matplotlib
SIGNS = "Last Resort High-Efficiency"  # comes with matplotlib: for every character a sign of its script, not itself
MOST_NAMED = 3
_told: set[str] = set()


def give_fonts(figure: Figure) -> None:
    """Give the texts that need them other fonts; tell once on stderr which texts no font can draw."""
    texts = [text for text in _texts(figure) if _missing(text.get_text(), BASE)]
    if not texts:
        return
    needed = {character for text in texts for character in _missing(text.get_text(), BASE)}
    families = [BASE, *_families(frozenset(needed))]
    for text in texts:
        text.set_fontfamily(families)
    _tell([text.get_text() for text in texts if _missing(text.get_text(), *families)])


def _texts(figure: Figure) -> list[Text]:
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_ticklabels()  # sets their texts, which else happens only when they are drawn
    return [found for found in figure.findobj(Text) if isinstance(found, Text)]


def _tell(texts: list[str]) -> None:
    new = [text for text in dict.fromkeys(texts) if text not in _told]
    _told.update(new)
    if new:
        named = ", ".join(quoted(text, 40) for text in new[:MOST_NAMED]) + ", …" * (len(new) > MOST_NAMED)
        print(f"figure: no installed font has all characters of {named}: boxes stand for them", file=sys.stderr)


def _missing(text: str, *families: str) -> set[str]:
    there = frozenset[int]().union(*map(_characters, families))
    return {character for character in text if character.isprintable() and ord(character) not in there}


@cache
def _families(characters: frozenset[str]) -> tuple[str, ...]:
    """Installed fonts, each of which has some of the characters that those before it lack."""
    families, left = [], {ord(character) for character in characters}
    for family in sorted(_regular_files()):
        if left & _characters(family):
            families.append(family)
            left -= _characters(family)
    return tuple(families)


@cache
def _characters(family: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(_regular_files()[family]).get_charmap())


@cache
def _regular_files() -> dict[str, str]:
    """The file of each installed family that has an upright face of normal weight."""
    return {
        font.name: font.fname
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and font.weight in (400, "normal") and font.name != SIGNS
    }
