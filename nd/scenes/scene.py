"""What a Scenes picture shows: the `Scene` description and how one is drawn by lot.

A scene is a function of (seed, index) alone, so any picture can be made again by itself, in any order, on any machine.
Positions and sizes are in units of the picture's side: x grows to the right, y downwards, both in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RGB = tuple[float, float, float]

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

# Saturated, and far apart from each other and from every background colour.
OBJECT_COLOURS: dict[str, RGB] = {
    "red": (0.86, 0.12, 0.12),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.98, 0.92, 0.15),
    "green": (0.10, 0.66, 0.20),
    "cyan": (0.15, 0.85, 0.90),
    "blue": (0.12, 0.25, 0.88),
    "pink": (0.96, 0.40, 0.72),
    "white": (0.97, 0.97, 0.97),
}

# Muted, so that an object stands out on every one of them.
WALL_COLOURS: dict[str, RGB] = {
    "grey": (0.55, 0.55, 0.57),
    "beige": (0.80, 0.72, 0.58),
    "navy": (0.13, 0.16, 0.33),
    "brown": (0.38, 0.25, 0.17),
    "mint": (0.62, 0.78, 0.68),
}

# Landscapes: (sky at the top, sky at the horizon, ground at the horizon, ground at the bottom).
LANDSCAPES: dict[str, tuple[RGB, RGB, RGB, RGB]] = {
    "meadow": ((0.42, 0.62, 0.86), (0.76, 0.85, 0.93), (0.42, 0.55, 0.22), (0.22, 0.36, 0.12)),
    "desert": ((0.62, 0.72, 0.82), (0.93, 0.84, 0.70), (0.80, 0.62, 0.38), (0.62, 0.43, 0.24)),
    "sea": ((0.70, 0.78, 0.84), (0.88, 0.90, 0.90), (0.16, 0.38, 0.50), (0.06, 0.18, 0.32)),
    "night": ((0.03, 0.04, 0.12), (0.16, 0.14, 0.30), (0.10, 0.11, 0.10), (0.04, 0.05, 0.05)),
}

WALLS = ("plain", "fade", "stripes", "checks")
BACKGROUNDS = WALLS + tuple(LANDSCAPES)

TWO_OBJECTS_SHARE = 0.4
SMALL_RADIUS = (0.115, 0.150)
LARGE_RADIUS = (0.200, 0.250)
N_WAVES = 3


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: what it is, its colour and where it lies. `radius` is half its extent."""

    shape: str
    colour: str
    rgb: RGB
    size: str
    radius: float
    x: float
    y: float
    tilt_rad: float

    @property
    def column(self) -> str:
        """Where it lies from left to right, in a word."""
        return _third(self.x, ("left", "centre", "right"))

    @property
    def row(self) -> str:
        """Where it lies from top to bottom, in a word."""
        return _third(self.y, ("top", "middle", "bottom"))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything a picture shows; drawing and captions read nothing else.

    level_rgbs: four colours down the picture; a wall uses the first and the last of them.
    horizon: height of the horizon in landscapes. cells: stripes or checks across the picture.
    shade: strength of the light from the upper left on the objects. waves: (x cycles, y cycles, phase) of the
    soft brightness texture, whose amplitude is `texture`.
    """

    seed: int
    index: int
    background: str
    wall_colours: tuple[str, ...]
    level_rgbs: tuple[RGB, RGB, RGB, RGB]
    horizon: float
    cells: float
    vertical: bool
    texture: float
    waves: tuple[tuple[float, float, float], ...]
    shade: float
    things: tuple[Thing, ...]


def sample_scene(seed: int, index: int) -> Scene:
    """The scene number `index` (>= 0) of the world `seed` (>= 0)."""
    rng = np.random.default_rng([seed, index])
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    names = tuple(str(n) for n in rng.permutation(list(WALL_COLOURS))[:2]) if background in WALLS else ()
    return Scene(
        seed=seed,
        index=index,
        background=background,
        wall_colours=names if background == "fade" else names[:1],
        level_rgbs=_levels(rng, background, names),
        horizon=rng.uniform(0.42, 0.66),
        cells=float(rng.integers(3, 6)),
        vertical=bool(rng.random() < 0.5),
        texture=rng.choice([0.0, 0.04, 0.09]),
        waves=tuple(
            (rng.uniform(-2.5, 2.5), rng.uniform(-2.5, 2.5), rng.uniform(0, 2 * np.pi)) for _ in range(N_WAVES)
        ),
        shade=rng.uniform(0.0, 0.25),
        things=_things(rng),
    )


def _third(value: float, words: tuple[str, str, str]) -> str:
    return words[0] if value < 0.4 else words[2] if value > 0.6 else words[1]


def _jitter(rng: np.random.Generator, rgb: RGB, spread: float) -> RGB:
    moved = np.clip(np.asarray(rgb) + rng.uniform(-spread, spread, 3), 0.0, 1.0)
    return float(moved[0]), float(moved[1]), float(moved[2])


def _levels(rng: np.random.Generator, background: str, names: tuple[str, ...]) -> tuple[RGB, RGB, RGB, RGB]:
    """Four colours from top to bottom; all of a wall's are its one or two colours."""
    if background in LANDSCAPES:
        a, b, c, d = (_jitter(rng, rgb, 0.05) for rgb in LANDSCAPES[background])
        return a, b, c, d
    first, second = (_jitter(rng, WALL_COLOURS[name], 0.04) for name in names)
    if background != "fade":
        # Stripes and checks: two shades of one colour, so that the caption needs one word only.
        lift = 0.0 if background == "plain" else 0.2 if sum(first) < 1.5 else -0.2
        second = _jitter(rng, (first[0] + lift, first[1] + lift, first[2] + lift), 0.02)
    return first, first, second, second


def _things(rng: np.random.Generator) -> tuple[Thing, ...]:
    """One object in a 3 x 3 grid, or two objects of different colours side by side or above each other."""
    colours = [str(c) for c in rng.permutation(list(OBJECT_COLOURS))[:2]]
    if rng.random() >= TWO_OBJECTS_SHARE:
        x, y = rng.choice([0.29, 0.5, 0.71], 2)
        return (_thing(rng, colours[0], x, y, LARGE_RADIUS),)
    across = rng.choice([0.4, 0.5, 0.6])
    places = [(0.27, across), (0.73, across)] if rng.random() < 0.5 else [(across, 0.27), (across, 0.73)]
    # Two large objects would touch: the larger ones of a pair are a little smaller than a large one alone.
    return tuple(_thing(rng, c, x, y, (0.180, 0.215)) for c, (x, y) in zip(colours, places, strict=True))


def _thing(rng: np.random.Generator, colour: str, x: float, y: float, large: tuple[float, float]) -> Thing:
    size = str(rng.choice(["small", "large"]))
    return Thing(
        shape=SHAPES[rng.integers(len(SHAPES))],
        colour=colour,
        rgb=_jitter(rng, OBJECT_COLOURS[colour], 0.03),
        size=size,
        radius=rng.uniform(*(large if size == "large" else SMALL_RADIUS)),
        x=x + rng.uniform(-0.05, 0.05),
        y=y + rng.uniform(-0.05, 0.05),
        tilt_rad=rng.uniform(-0.15, 0.15),
    )
