"""Colours of the drawn world: any colour can occur, and each is called by the nearest of a dozen words.

Distances are taken in CIELAB, in which equal steps look about equally large; 2.3 is a just noticeable difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

RGB = tuple[float, float, float]

# What each word means at its clearest, in display values.
COLOUR_WORDS: dict[str, RGB] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.97, 0.55, 0.08),
    "yellow": (0.97, 0.90, 0.18),
    "green": (0.16, 0.62, 0.20),
    "turquoise": (0.20, 0.80, 0.78),
    "blue": (0.15, 0.30, 0.85),
    "purple": (0.52, 0.20, 0.68),
    "pink": (0.96, 0.50, 0.75),
    "brown": (0.45, 0.28, 0.14),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.52, 0.52, 0.52),
    "black": (0.06, 0.06, 0.06),
}

LAB = tuple[float, float, float]

# Linear sRGB to XYZ, D65 (IEC 61966-2-1); each row is divided by its sum, for white has X = Y = Z = 1 in CIELAB.
_TO_XYZ = tuple(
    tuple(value / sum(row) for value in row)
    for row in ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
)


def lab(rgb: RGB) -> LAB:
    """CIELAB of display RGB in [0, 1]; gamma 2.2 stands for the sRGB curve.

    In plain Python: of one colour at a time it takes a twentieth of what arrays take.
    """
    red, green, blue = (value**2.2 for value in rgb)
    x, y, z = (_bent(a * red + b * green + c * blue) for a, b, c in _TO_XYZ)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _bent(value: float) -> float:
    """The cube root, with a straight part near black."""
    return math.cbrt(value) if value > (6 / 29) ** 3 else value / (3 * (6 / 29) ** 2) + 4 / 29


_LAB_OF_WORDS = {word: lab(rgb) for word, rgb in COLOUR_WORDS.items()}


@cache
def colour_word(rgb: RGB) -> str:
    """The nearest colour word."""
    at = lab(rgb)
    return min(_LAB_OF_WORDS, key=lambda word: math.dist(_LAB_OF_WORDS[word], at))


def from_hsv(hue: float, saturation: float, value: float) -> RGB:
    """RGB of a hue in turns, a saturation and a value in [0, 1]."""
    wheel = (min(max(abs((hue + turn) % 1 * 6 - 3) - 1, 0.0), 1.0) for turn in (0.0, 2 / 3, 1 / 3))
    red, green, blue = (value * (1 - saturation * (1 - share)) for share in wheel)
    return red, green, blue


def jitter(rng: np.random.Generator, rgb: RGB, spread: float) -> RGB:
    """A colour near this one."""
    red, green, blue = (
        min(max(c + step, 0.0), 1.0) for c, step in zip(rgb, rng.uniform(-spread, spread, 3).tolist(), strict=True)
    )
    return red, green, blue


def shaded(rgb: RGB, lift: float) -> RGB:
    """A lighter (lift > 0) or darker shade of the colour: mixed with white or black by |lift|."""
    end = 1.0 if lift > 0 else 0.0
    red, green, blue = ((1 - abs(lift)) * c + abs(lift) * end for c in rgb)
    return red, green, blue


def vivid(rng: np.random.Generator) -> RGB:
    """Any colour an object may have: of any hue, or in one of six cases without one."""
    if rng.random() < 1 / 6:
        grey = rng.uniform(0.04, 0.98)
        return jitter(rng, (grey, grey, grey), 0.02)
    return from_hsv(rng.random(), rng.uniform(0.55, 1.0), rng.uniform(0.4, 1.0))


def muted(rng: np.random.Generator) -> RGB:
    """Any colour a wall may have."""
    return from_hsv(rng.random(), rng.uniform(0.05, 0.7), rng.uniform(0.12, 0.95))


def unlike(
    rng: np.random.Generator, draw: Callable[[np.random.Generator], RGB], others: list[RGB], distance: float
) -> RGB:
    """A colour by lot from `draw` that differs from the others by `distance`, or the most different of many."""
    best: tuple[float, RGB] = (-1.0, (0.0, 0.0, 0.0))
    at = [lab(other) for other in others]
    for _ in range(24):
        rgb = draw(rng)
        own = lab(rgb)
        nearest = min((math.dist(own, other) for other in at), default=math.inf)
        if nearest >= distance:
            return rgb
        best = max(best, (nearest, rgb))
    return best[1]
