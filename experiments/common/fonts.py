"""Fonts for user-supplied names: DejaVu Sans, and installed ones that have the characters which that one lacks."""

import sys
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from toy.checks import quoted

BASE = "DejaVu Sans"  # comes with matplotlib
SIGNS = "Last Resort High-Efficiency"  # comes with matplotlib: for every character a sign of its script, not itself
_told: set[str] = set()


def give_fonts(figure: Figure) -> None:
    """Let texts fall back on other fonts where they need them; tell once on stderr which characters no font has."""
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_ticklabels()  # sets their texts, which else happens only when they are drawn
    texts = [found for found in figure.findobj(Text) if isinstance(found, Text)]
    characters = {character for text in texts for character in text.get_text() if character.isprintable()}
    families, lacking = [BASE], characters - _characters(BASE)
    for family in sorted(_regular_files()) if lacking else ():
        if lacking & _characters(family):
            families.append(family)
            lacking = lacking - _characters(family)
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
    if new := sorted(lacking - _told):
        _told.update(new)
        print(f"figure: no installed font has {quoted(''.join(new), 40)}: boxes stand for them", file=sys.stderr)


@cache
def _characters(family: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(_regular_files()[family]).get_charmap()))


@cache
def _regular_files() -> dict[str, str]:
    """The file of each installed family that has an upright face of normal weight."""
    return {
        font.name: font.fname
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and font.weight in (400, "normal") and font.name != SIGNS
    }
