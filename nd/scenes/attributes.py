"""A scene in numbers: what is in it and where, for areas of the simulated brain that respond to content.

Names are "<group>:<what>" with the groups shape, colour, size, place, layout and background.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nd.scenes.scene import BACKGROUNDS, OBJECT_COLOURS, SHAPES, WALL_COLOURS, Scene

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
LAYOUT = ("two objects", "area", "mean x", "mean y", "spread x", "spread y", "horizon", "vertical lines")


def attribute_names() -> list[str]:
    """Names of the columns of ``attribute_matrix``."""
    places = [f"{row} {column}" for row in ROWS for column in COLUMNS]
    groups = {
        "shape": SHAPES,
        "colour": tuple(OBJECT_COLOURS),
        "size": ("small", "large"),
        "place": tuple(places),
        "layout": LAYOUT,
        "background": (*BACKGROUNDS, *WALL_COLOURS),
    }
    return [f"{group}:{name}" for group, names in groups.items() for name in names]


def attribute_matrix(scenes: Sequence[Scene]) -> NDArray[np.float32]:
    """(N, A) float32: counts of objects with a property, flags of the background, layout in picture sides."""
    names = attribute_names()
    column = {name: k for k, name in enumerate(names)}
    out = np.zeros((len(scenes), len(names)), np.float32)
    for row, scene in zip(out, scenes, strict=True):
        for name, value in _values(scene):
            row[column[name]] += value
    return out


def _values(scene: Scene) -> list[tuple[str, float]]:
    values = [(f"background:{name}", 1.0) for name in (scene.background, *scene.wall_colours)]
    for thing in scene.things:
        words = (
            f"shape:{thing.shape}",
            f"colour:{thing.colour}",
            f"size:{thing.size}",
            f"place:{thing.row} {thing.column}",
        )
        values += [(word, 1.0) for word in words]
    return values + [(f"layout:{name}", value) for name, value in zip(LAYOUT, _layout(scene), strict=True)]


def _layout(scene: Scene) -> tuple[float, ...]:
    xs, ys = np.array([t.x for t in scene.things]), np.array([t.y for t in scene.things])
    area = sum(np.pi * t.radius**2 for t in scene.things)
    lines = float(scene.vertical) if scene.background == "stripes" else 0.5
    # A wall has no horizon; the middle is the neutral value.
    horizon = 0.5 if scene.wall_colours else scene.horizon
    return len(scene.things) - 1.0, area, xs.mean(), ys.mean(), np.ptp(xs), np.ptp(ys), horizon, lines
