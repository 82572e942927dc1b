"""Many small images as a few sheets that a page can hold: without loss where they fit, as JPEG where they do not.

A sheet is a square of cells, filled line by line; an image stands in the upper left corner of its cell. Cells are a
multiple of 8 pixels wide, the blocks of JPEG, so that neighbours do not mix.

T tiles, s side of a tile in pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BUDGET = 9.5e6  # bytes of all sheets; as text they are a third more, and the page shall stay below 15 MB
ACROSS = 16  # cells in a line: a sheet of 64-pixel images is 4 MB when it is decoded
BLOCK = 8
LOSSLESS = 0
QUALITIES = (LOSSLESS, 95, 90, 80, 65)
SIDES = (256, 192, 128, 96, 64, 48)
# A pixel at quality 80 with full colour resolution (drawn Scenes .3, the same blurred with noise .5).
BYTES_PER_PIXEL = 0.4


@dataclass(frozen=True)
class Sheets:
    """Encoded sheets, all of one kind.

    Attributes:
        files: each a PNG or JPEG.
        side: of a tile, pixels.
        quality: of JPEG; 0 where nothing was lost.
    """

    files: list[bytes]
    side: int
    quality: int

    @property
    def kind(self) -> str:
        """``png`` or ``jpeg``, as in an image's media type."""
        return "png" if self.quality == LOSSLESS else "jpeg"

    @property
    def cell(self) -> int:
        """Side of a cell in pixels."""
        return cell_of(self.side)

    @property
    def texts(self) -> list[str]:
        """The files as base64."""
        return [base64.b64encode(file).decode() for file in self.files]


def cell_of(side: int) -> int:
    """Return the side of the cell that holds a tile.

    >>> [cell_of(side) for side in (6, 28, 64)]
    [8, 32, 64]
    """
    return -(-side // BLOCK) * BLOCK


def most_tiles() -> int:
    """Return how many tiles of the smallest side fit."""
    return int(BUDGET / (BYTES_PER_PIXEL * SIDES[-1] ** 2))


def side_for(n_tiles: int, side: int) -> int:
    """Return the side at which T images of a side are kept: their own where that fits.

    >>> [side_for(n, 64) for n in (2000, 9000)], side_for(2000, 512), side_for(9000, 28)
    ([64, 48], 96, 28)
    """
    sides = [side, *(smaller for smaller in SIDES if smaller < side)]
    fitting = [one for one in sides if n_tiles * one**2 * BYTES_PER_PIXEL <= BUDGET]
    return fitting[0] if fitting else sides[-1]


def tile(image_HW3: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return an image as a tile (s, s, 3): as it is where it has that side, else resampled."""
    if image_HW3.shape[:2] == (side, side):
        return image_HW3
    return np.asarray(Image.fromarray(image_HW3).resize((side, side), Image.Resampling.LANCZOS))


class Tiles:
    """Tiles in the order in which they were added; equal ones are kept once."""

    def __init__(self, side: int) -> None:
        """Keep tiles of one side."""
        self.side = side
        self.images: list[NDArray[np.uint8]] = []
        self._known: dict[bytes, int] = {}

    def add(self, image_HW3: NDArray[np.uint8]) -> int:
        """Return the number of an image's tile."""
        made = tile(image_HW3, self.side)
        key = made.tobytes()
        if key not in self._known:
            self._known[key] = len(self.images)
            self.images.append(made)
        return self._known[key]

    def sheets(self, budget: float = BUDGET) -> Sheets:
        """Return all tiles on sheets of the highest quality that keeps within ``budget``, or of the lowest."""
        per_sheet = ACROSS**2
        drawn = [drawn_sheet(self.images[k : k + per_sheet]) for k in range(0, len(self.images), per_sheet)]
        for quality in QUALITIES:
            files = _encoded(drawn, quality, budget)
            if files is not None or quality == QUALITIES[-1]:
                break
        return Sheets(files or [encoded(one, quality) for one in drawn], self.side, quality)


def drawn_sheet(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return tiles in the cells of one sheet, whose edges go on to the end of their cell."""
    side = images[0].shape[0]
    cell = cell_of(side)
    lines = -(-len(images) // ACROSS)
    sheet = np.zeros((lines * cell, ACROSS * cell, 3), np.uint8)
    for k, image in enumerate(images):
        top, left = (k // ACROSS) * cell, (k % ACROSS) * cell
        padded = np.pad(image, ((0, cell - side), (0, cell - side), (0, 0)), mode="edge")
        sheet[top : top + cell, left : left + cell] = padded
    return sheet


def encoded(image_HW3: NDArray[np.uint8], quality: int) -> bytes:
    """Return an image as PNG (quality 0) or as JPEG with full resolution of colour."""
    out = io.BytesIO()
    if quality == LOSSLESS:
        Image.fromarray(image_HW3).save(out, format="PNG")
    else:
        Image.fromarray(image_HW3).save(out, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return out.getvalue()


def _encoded(drawn: Sequence[NDArray[np.uint8]], quality: int, budget: float) -> list[bytes] | None:
    """All sheets at one quality; None as soon as it is clear that they take more than ``budget``."""
    files: list[bytes] = []
    for number, sheet in enumerate(drawn, 1):
        files.append(encoded(sheet, quality))
        spent = sum(map(len, files))
        if spent > budget or spent * len(drawn) / number > 1.5 * budget:
            return None
    return files
