"""A scene in numbers: what is in it and where, for areas of the simulated brain that respond to content.

Names are "<group>:<what>" with the groups shape, colour, texture, size, place, layout and background.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nd.scenes.colours import COLOUR_WORDS
from nd.scenes.scene import BACKGROUNDS, GROUNDS, SIZES, SKIES, TEXTURES, Scene, Thing
from nd.scenes.shapes import SHAPES

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
PLACE_SIGMA = 0.2  # of the tuning to nine places a third of the image apart, in image sides
LAYOUT = ("number", "area", "mean x", "mean y", "spread x", "spread y", "horizon", "slope", "light x", "light y")


def attribute_names() -> list[str]:
    """Names of the columns of ``attribute_matrix``."""
    groups = {
        "shape": SHAPES,
        "colour": tuple(COLOUR_WORDS),
        "texture": TEXTURES,
        "size": SIZES,
        "place": tuple(f"{row} {column}" for row in ROWS for column in COLUMNS),
        "layout": LAYOUT,
        "background": (*BACKGROUNDS, *SKIES, *COLOUR_WORDS),
    }
    return [f"{group}:{name}" for group, names in groups.items() for name in names]


def attribute_matrix(scenes: Sequence[Scene]) -> NDArray[np.float32]:
    """(N, A) float32: counts of objects with a property, nearness of objects to nine places, flags of the background,
    layout in image sides."""
    names = attribute_names()
    column = {name: k for k, name in enumerate(names)}
    out = np.zeros((len(scenes), len(names)), np.float32)
    for row, scene in zip(out, scenes, strict=True):
        for name, value in _values(scene):
            row[column[name]] += value
    return out


def _values(scene: Scene) -> list[tuple[str, float]]:
    grounds = [name for name in (scene.background, scene.sky, *scene.colours) if name]
    values = [(f"background:{name}", 1.0) for name in grounds]
    for thing in scene.things:
        words = (f"shape:{thing.shape}", f"colour:{thing.colour}", f"texture:{thing.texture}", f"size:{thing.size}")
        values += [(word, 1.0) for word in words] + _places(thing)
    return values + [(f"layout:{name}", value) for name, value in zip(LAYOUT, _layout(scene), strict=True)]


def _places(thing: Thing) -> list[tuple[str, float]]:
    """How near the object is to each of nine places: smooth, since places are."""
    return [
        (f"place:{row} {column}", float(np.exp(-((thing.x - x) ** 2 + (thing.y - y) ** 2) / (2 * PLACE_SIGMA**2))))
        for row, y in zip(ROWS, (1 / 6, 1 / 2, 5 / 6), strict=True)
        for column, x in zip(COLUMNS, (1 / 6, 1 / 2, 5 / 6), strict=True)
    ]


def _layout(scene: Scene) -> tuple[float, ...]:
    xs, ys = np.array([t.x for t in scene.things]), np.array([t.y for t in scene.things])
    area = sum(np.pi * t.radius**2 for t in scene.things)
    # A wall has no horizon; the middle, level, is the neutral value.
    horizon, slope = (scene.horizon, scene.slope) if scene.background in GROUNDS else (0.5, 0.0)
    light = scene.light * np.cos(scene.light_rad), scene.light * np.sin(scene.light_rad)
    return len(scene.things), area, xs.mean(), ys.mean(), np.ptp(xs), np.ptp(ys), horizon, slope, *light
