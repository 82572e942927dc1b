"""What a Scenes image shows: the `Scene` description and how one is drawn by lot.

A scene is a function of (seed, index) alone, so any image can be made again by itself, in any order, on any machine.
Positions and sizes are in units of the image's side: x grows to the right, y downwards, both in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from nd.scenes.colours import RGB, colour_word, jitter, muted, shaded, unlike, vivid
from nd.scenes.shapes import SHAPES

# Landscapes: what lies below the horizon and what above it, each (at the far end, at the near end of the horizon or
# image), from which every scene's own colours depart.
GROUNDS: dict[str, tuple[RGB, RGB]] = {
    "meadow": ((0.45, 0.58, 0.22), (0.20, 0.38, 0.12)),
    "desert": ((0.86, 0.66, 0.40), (0.62, 0.40, 0.22)),
    "sea": ((0.20, 0.48, 0.58), (0.06, 0.20, 0.38)),
    "snow": ((0.94, 0.95, 0.97), (0.74, 0.78, 0.86)),
}
SKIES: dict[str, tuple[RGB, RGB]] = {
    "clear": ((0.30, 0.55, 0.88), (0.72, 0.85, 0.95)),
    "cloudy": ((0.48, 0.50, 0.55), (0.72, 0.73, 0.76)),
    "sunset": ((0.55, 0.25, 0.50), (0.97, 0.60, 0.32)),
    "night": ((0.02, 0.03, 0.12), (0.14, 0.14, 0.32)),
}
# Walls have colours of their own, any at all.
WALLS = ("plain", "fade", "halves", "stripes", "waves", "checks", "spots")
BACKGROUNDS = WALLS + tuple(GROUNDS)
ONE_COLOUR = ("plain",)  # walls that a caption gives a single colour

# Given the number of different colours: how many objects share them. People's photos rarely hold one thing alone.
N_COLOURS = (0.55, 0.33, 0.12)
N_OBJECTS = {1: (0.74, 0.18, 0.08), 2: (0.0, 0.65, 0.35), 3: (0.0, 0.0, 1.0)}
SIZES = ("small", "medium", "large")
SIZE_LIMITS = (0.18, 0.25)  # radius below and from which an object is small and large
RADIUS = {1: (0.15, 0.36), 2: (0.14, 0.29), 3: (0.13, 0.23)}
OVERLAP = 0.72  # least distance of two centres, as a share of the sum of their radii
TEXTURES = ("smooth", "striped", "spotted")
TEXTURE_SHARE = (0.6, 0.2, 0.2)
SAME_SHAPE = 0.25  # share of further objects that repeat the shape of the first
TILT_RAD = 0.6
# CIELAB distances that let things stand out: an object from its background, colours of a wall from each other.
STAND_OUT, CONTRAST = 38.0, 32.0
N_WAVES = 3
VARIANT_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: what it is, its colour and where it lies. `radius` is half its extent.

    rgb2: second colour of its texture, a shade of the first.
    """

    shape: str
    rgb: RGB
    rgb2: RGB
    texture: str
    radius: float
    x: float
    y: float
    tilt_rad: float

    @property
    def colour(self) -> str:
        """Its colour in a word."""
        return colour_word(self.rgb)

    @property
    def size(self) -> str:
        """Its size in a word."""
        return SIZES[int(np.searchsorted(SIZE_LIMITS, self.radius, side="right"))]

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
    """Everything an image shows; drawing and captions read nothing else.

    sky: of landscapes, else empty. level_rgbs: four colours: a wall uses the first and the last of them, landscapes
    all, from the top of the image to the horizon and on to the bottom.
    horizon: its height in the middle of the image; slope and hills: rise over the width, height of its waves.
    cells: stripes, waves, checks or spots across the image, turned by angle_rad and moved by shift (of a cell).
    light: brightness gained across the image towards light_rad, of background and objects alike.
    glow: (x, y, reach, strength) of a lighter or darker place. waves: (x cycles, y cycles, phase) of a soft
    brightness texture, whose amplitude is `texture`.
    """

    seed: int
    index: int
    background: str
    sky: str
    level_rgbs: tuple[RGB, RGB, RGB, RGB]
    horizon: float
    slope: float
    hills: float
    cells: float
    angle_rad: float
    shift: tuple[float, float]
    texture: float
    waves: tuple[tuple[float, float, float], ...]
    light: float
    light_rad: float
    glow: tuple[float, float, float, float]
    things: tuple[Thing, ...]

    @property
    def colours(self) -> tuple[str, ...]:
        """Colours of the background in words: none of landscapes, which are known by their names."""
        if self.background in GROUNDS:
            return ()
        ends = self.level_rgbs[:1] if self.background in ONE_COLOUR else (self.level_rgbs[0], self.level_rgbs[-1])
        return tuple(dict.fromkeys(colour_word(rgb) for rgb in ends))

    @property
    def palette(self) -> tuple[RGB, ...]:
        """The different colours of its objects."""
        return tuple(dict.fromkeys(thing.rgb for thing in self.things))


def sample_scene(seed: int, index: int) -> Scene:
    """The scene number `index` (>= 0) of the world `seed` (>= 0)."""
    rng = np.random.default_rng([seed, index])
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    sky = str(rng.choice(list(SKIES))) if background in GROUNDS else ""
    levels = _levels(rng, background, sky)
    return Scene(
        seed=seed,
        index=index,
        background=background,
        sky=sky,
        level_rgbs=levels,
        horizon=rng.uniform(0.22, 0.78),
        slope=rng.uniform(-0.4, 0.4),
        hills=rng.choice([0.0, 1.0, 1.0]) * rng.uniform(0.04, 0.16),
        cells=rng.uniform(1.8, 3.8),
        angle_rad=rng.uniform(0, np.pi),
        shift=(rng.random(), rng.random()),
        texture=rng.choice([0.0, 1.0, 1.0]) * rng.uniform(0.1, 0.35),
        waves=tuple((rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(0, 2 * np.pi)) for _ in range(N_WAVES)),
        light=rng.uniform(0.0, 0.7),
        light_rad=rng.uniform(0, 2 * np.pi),
        glow=(rng.random(), rng.random(), rng.uniform(0.2, 0.4), rng.uniform(-0.7, 0.7)),
        things=_things(rng, _palette(rng, levels)),
    )


def rearranged(scene: Scene, variant: int) -> Scene:
    """The scene with other objects in the same colours before the same background; variant 0 is the scene itself.

    Shapes, number, sizes, textures and places are drawn again.
    """
    if variant == 0:
        return scene
    rng = np.random.default_rng([scene.seed, scene.index, VARIANT_STREAM, variant])
    return replace(scene, things=_things(rng, scene.palette))


def _third(value: float, words: tuple[str, str, str]) -> str:
    return words[0] if value < 0.4 else words[2] if value > 0.6 else words[1]


def _levels(rng: np.random.Generator, background: str, sky: str) -> tuple[RGB, RGB, RGB, RGB]:
    """Four colours from top to bottom; all of a wall's are its one or two colours."""
    if background in GROUNDS:
        a, b, c, d = (jitter(rng, rgb, 0.14) for rgb in (*SKIES[sky], *GROUNDS[background]))
        return a, b, c, d
    first = muted(rng)
    if background in ONE_COLOUR:
        return first, first, first, first
    second = unlike(rng, muted, [first], CONTRAST)
    return first, first, second, second


def _palette(rng: np.random.Generator, levels: tuple[RGB, ...]) -> list[RGB]:
    """One to three colours that stand out from the background and each other, and have names of their own."""
    out: list[RGB] = []
    for _ in range(1 + int(rng.choice(3, p=N_COLOURS))):
        rgb = unlike(rng, vivid, [*levels, *out], STAND_OUT)
        if colour_word(rgb) not in [colour_word(c) for c in out]:
            out.append(rgb)
    return out


def _things(rng: np.random.Generator, palette: list[RGB] | tuple[RGB, ...]) -> tuple[Thing, ...]:
    """One to three objects that share these colours; later ones lie in front."""
    n = 1 + int(rng.choice(3, p=N_OBJECTS[len(palette)]))
    radii = rng.uniform(*RADIUS[n], n)
    places = _places(rng, radii)
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=n)]
    shapes = [shapes[0] if k and rng.random() < SAME_SHAPE else shape for k, shape in enumerate(shapes)]
    colours = [palette[k % len(palette)] for k in range(n)]
    return tuple(_thing(rng, s, c, float(r), *xy) for s, c, r, xy in zip(shapes, colours, radii, places, strict=True))


def _places(rng: np.random.Generator, radii: np.ndarray) -> list[tuple[float, float]]:
    """Centres anywhere inside, overlapping somewhat at most; after many tries the least overlapping ones."""
    best: tuple[float, list[tuple[float, float]]] = (-1.0, [])
    for _ in range(40):
        places = [(rng.uniform(m, 1 - m), rng.uniform(m, 1 - m)) for m in np.maximum(0.85 * radii, 0.14)]
        pairs = combinations(range(len(radii)), 2)
        apart = [np.hypot(*np.subtract(places[i], places[j])) / (radii[i] + radii[j]) for i, j in pairs]
        nearest = float(min(apart, default=np.inf))
        if nearest >= OVERLAP:
            return places
        best = max(best, (nearest, places))
    return best[1]


def _thing(rng: np.random.Generator, shape: str, rgb: RGB, radius: float, x: float, y: float) -> Thing:
    lift = rng.uniform(0.35, 0.5)
    return Thing(
        shape=shape,
        rgb=rgb,
        rgb2=shaded(rgb, lift if sum(rgb) < 1.5 else -lift),
        texture=str(rng.choice(TEXTURES, p=TEXTURE_SHARE)),
        radius=radius,
        x=x,
        y=y,
        tilt_rad=rng.uniform(-TILT_RAD, TILT_RAD),
    )
