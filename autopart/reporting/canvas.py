"""Pictures of boxes, lines and letters, as SVG or as PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from html import escape
from typing import Literal

__all__ = ["LETTER_WIDTH", "Box", "Letters", "Picture", "png", "svg"]

SCALE = 2
"""pixels of a PNG per unit"""

LETTER_SIZE, LETTER_WIDTH, BASELINE = 12, 7, 11
"""of the font, of a letter at most, and from a text's top to its base line; in units"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A filled rectangle; a line is a thin one."""

    left: float
    top: float
    width: float
    height: float
    colour: str
    """#rrggbb"""
    title: str = ""
    """shown on hovering, in SVG"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """A line of text; ``top`` is that of its letters."""

    left: float
    top: float
    text: str
    colour: str = "#1f2328"
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What is drawn, in order, on a white ground."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    letters: tuple[Letters, ...]


def svg(picture: Picture) -> str:
    """The picture as an SVG document."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {picture.width} {picture.height}" '
        f'width="{picture.width}" height="{picture.height}" '
        f'font-family="monospace" font-size="{LETTER_SIZE}">',
        f'<rect width="{picture.width}" height="{picture.height}" fill="#ffffff"/>',
        *map(_svg_box, picture.boxes), *map(_svg_letters, picture.letters), "</svg>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _svg_box(box: Box) -> str:
    place = f'x="{box.left:.2f}" y="{box.top:.2f}" width="{box.width:.2f}" height="{box.height:.2f}"'
    title = f"<title>{escape(_clean(box.title))}</title>" if box.title else ""
    return f'<rect {place} fill="{box.colour}">{title}</rect>' if title else f'<rect {place} fill="{box.colour}"/>'


def _svg_letters(letters: Letters) -> str:
    return (
        f'<text x="{letters.left:.2f}" y="{letters.top + BASELINE:.2f}" fill="{letters.colour}" '
        f'text-anchor="{letters.anchor}">{escape(_clean(letters.text))}</text>'
    )


def _clean(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(each if each.isprintable() else " " for each in text)


_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def png(picture: Picture) -> bytes:
    """The picture as a PNG file."""
    from PIL import Image, ImageDraw, ImageFont  # the other commands need not wait for it

    image = Image.new("RGB", (picture.width * SCALE, picture.height * SCALE), "white")
    draw = ImageDraw.Draw(image)
    for box in picture.boxes:
        left, top = round(box.left * SCALE), round(box.top * SCALE)
        right, bottom = round((box.left + box.width) * SCALE), round((box.top + box.height) * SCALE)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), box.colour)  # its end is drawn too
    font = ImageFont.load_default(LETTER_SIZE * SCALE)
    for letters in picture.letters:
        place = (letters.left * SCALE, (letters.top + BASELINE) * SCALE)
        draw.text(place, _clean(letters.text), letters.colour, font, anchor=_ANCHORS[letters.anchor])
    found = io.BytesIO()
    image.save(found, "PNG")
    return found.getvalue()
