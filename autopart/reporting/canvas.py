"""Pictures without a drawing library: boxes, lines and letters, written as SVG or as PNG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
import numpy.typing as npt

from autopart.reporting.font import GLYPH_WIDTH, glyph

__all__ = ["LETTER_WIDTH", "Box", "Letters", "Picture", "png", "svg"]

SCALE = 2
"""pixels of a PNG per unit"""

LETTER_WIDTH = 7
"""units that a letter takes, in either format"""

GLYPH_SCALE = 2
"""pixels of a PNG per dot of a letter"""

PLAIN = str.maketrans({"→": "-", "…": "~", "·": "."})
"""letters that the PNG's font does not have"""


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
        f'font-family="monospace" font-size="{LETTER_WIDTH / 0.6:.1f}">',
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
        f'<text x="{letters.left:.2f}" y="{letters.top + 11:.2f}" fill="{letters.colour}" '
        f'text-anchor="{letters.anchor}">{escape(_clean(letters.text))}</text>'
    )


def _clean(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(each if each.isprintable() else " " for each in text)


def png(picture: Picture) -> bytes:
    """The picture as a PNG file: eight bits of red, green and blue."""
    size = (picture.height * SCALE, picture.width * SCALE, 3)
    pixels = np.full(size, 255, dtype=np.uint8)
    for box in picture.boxes:
        rows = slice(*_pixels(box.top, box.height, size[0]))
        columns = slice(*_pixels(box.left, box.width, size[1]))
        pixels[rows, columns] = _rgb(box.colour)
    for letters in picture.letters:
        _write(pixels, letters)
    rows_ = np.concatenate([np.zeros((size[0], 1), np.uint8), pixels.reshape(size[0], -1)], axis=1)
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows_.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _pixels(start: float, length: float, end: int) -> tuple[int, int]:
    """From and to; what is there is at least a pixel wide."""
    first = round(start * SCALE)
    return max(0, min(first, end)), max(0, min(max(first + 1, round((start + length) * SCALE)), end))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _write(pixels: npt.NDArray[np.uint8], letters: Letters) -> None:
    text = letters.text.translate(PLAIN)
    before = {"start": 0.0, "middle": 0.5, "end": 1.0}[letters.anchor] * len(text) * LETTER_WIDTH
    left, top = round((letters.left - before) * SCALE), round((letters.top + 2) * SCALE)
    for place, letter in enumerate(text):
        for x, y in _dots(letter):
            row, column = top + y * GLYPH_SCALE, left + place * LETTER_WIDTH * SCALE + x * GLYPH_SCALE
            if row >= 0 and column >= 0:
                pixels[row : row + GLYPH_SCALE, column : column + GLYPH_SCALE] = _rgb(letters.colour)


def _dots(letter: str) -> Iterable[tuple[int, int]]:
    """Columns and rows of a letter's dots."""
    columns = glyph(letter)
    return ((x, y) for x in range(GLYPH_WIDTH) for y in range(8) if columns[x] >> y & 1)
