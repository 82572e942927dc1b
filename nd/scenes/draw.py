"""Draw Scenes images with numpy. Edges are antialiased from signed distances, so no supersampling is needed.

Shapes: N images, H W rows and columns, 3 colours. Distances are in units of the image's side, negative inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from nd.scenes.scene import GROUNDS, Scene, Thing, sample_scene
from nd.scenes.shapes import DISTANCE, SHAPES, Float

# Images drawn at once: keeps the float32 working arrays within a few megabytes, that is in the processor's cache.
CHUNK = 64
RIM = 0.020  # width of the darker rim that sets an object off from a background of like colour
RIM_DARKNESS = 0.45
EDGE_SOFTNESS_PX = 1.2
OBJECT_SHADE = 0.5  # share of the scene's light that an object shows from side to side
TEXTURE_PERIODS = 2.6  # stripes or spots across an object


def draw(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """One image: (size, size, 3) uint8, RGB."""
    return draw_scenes([scene], size)[0]


def draw_many(seed: int, indices: Iterable[int], size: int = 64) -> NDArray[np.uint8]:
    """The images `indices` of the world `seed`: (N, size, size, 3) uint8, RGB."""
    return draw_scenes([sample_scene(seed, int(i)) for i in indices], size)


def draw_scenes(scenes: Sequence[Scene], size: int = 64) -> NDArray[np.uint8]:
    """Images of these scenes: (N, size, size, 3) uint8, RGB. No image depends on its neighbours."""
    out = np.empty((len(scenes), size, size, 3), np.uint8)
    for start in range(0, len(scenes), CHUNK):
        part = scenes[start : start + CHUNK]
        canvas_NHW3 = _background(part, size)
        for slot in range(max(len(s.things) for s in part)):
            _paint(canvas_NHW3, part, slot)
        canvas_NHW3 *= _light(part, size)[..., None]
        out[start : start + CHUNK] = np.clip(canvas_NHW3 * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return out


def _grid(size: int) -> tuple[Float, Float]:
    """Pixel centres: x (1, 1, W) and y (1, H, 1), in [0, 1]."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centres[None, None, :], centres[None, :, None]


def _column(values: Iterable[float]) -> Float:
    """One number for each image, as (N, 1, 1)."""
    return np.asarray(list(values), np.float32)[:, None, None]


def _background(scenes: Sequence[Scene], size: int) -> Float:
    """(N, H, W, 3): the background with its texture."""
    x, y = _grid(size)
    mix_NHW = np.stack([3 * _MIX.get(s.background, _horizon)(s, x[0], y[0]) for s in scenes])
    levels_N43 = np.asarray([s.level_rgbs for s in scenes], np.float32)
    canvas_NHW3 = np.stack([_interpolate(levels_N43[:, :, c], mix_NHW) for c in range(3)], -1)
    return canvas_NHW3 * (1 + _texture(scenes, x, y))[..., None]


def _interpolate(levels_N4: Float, mix_NHW: Float) -> Float:
    """Linear interpolation among four levels at positions in [0, 3]."""
    steps_N3 = np.diff(levels_N4, axis=1)
    out = levels_N4[:, :1, None] + np.clip(mix_NHW, 0, 1) * steps_N3[:, :1, None]
    for k in (1, 2):
        out += np.clip(mix_NHW - k, 0, 1) * steps_N3[:, k, None, None]
    return out


def _texture(scenes: Sequence[Scene], x: Float, y: Float) -> Float:
    """(N, H, W): a soft change of brightness, the mean of a few slow waves."""
    total = np.zeros((len(scenes), x.shape[2], x.shape[2]), np.float32)
    for k in range(len(scenes[0].waves)):
        fx, fy, phase = (_column(s.waves[k][i] for s in scenes) for i in range(3))
        total += np.sin(2 * np.pi * (fx * x + fy * y) + phase)
    return total * _column(s.texture for s in scenes) / len(scenes[0].waves) * np.float32(1.7)


def _light(scenes: Sequence[Scene], size: int) -> Float:
    """(N, H, W): brightness that falls across the image, and a place that is lighter or darker."""
    x, y = _grid(size)
    across, down = (_column(f(s.light_rad) for s in scenes) for f in (np.cos, np.sin))
    slope = _column(s.light for s in scenes) * ((x - 0.5) * across + (y - 0.5) * down)
    gx, gy, reach, strength = (_column(s.glow[k] for s in scenes) for k in range(4))
    return (1 + slope) * (1 + strength * np.exp(-((x - gx) ** 2 + (y - gy) ** 2) / (2 * reach**2)))


def _turned(scene: Scene, x: Float, y: Float) -> tuple[Float, Float]:
    """Coordinates of the pattern in cells."""
    c, s = np.float32(np.cos(scene.angle_rad)), np.float32(np.sin(scene.angle_rad))
    a, b = np.float32(scene.shift[0]), np.float32(scene.shift[1])
    cells = np.float32(scene.cells)
    return cells * (c * x + s * y) + a, cells * (c * y - s * x) + b


def _plain(_: Scene, x: Float, y: Float) -> Float:
    return 0 * x + 0 * y


def _fade(scene: Scene, x: Float, y: Float) -> Float:
    c, s = np.float32(np.cos(2 * scene.angle_rad)), np.float32(np.sin(2 * scene.angle_rad))
    along = ((x - 0.5) * c + (y - 0.5) * s) / (abs(c) + abs(s)) + 0.5
    # Levels 1 to 2 only: those are the pair of different colours.
    return (1 + np.clip(1.4 * along - 0.2, 0, 1)) / 3


def _halves(scene: Scene, x: Float, y: Float) -> Float:
    c, s = np.float32(np.cos(2 * scene.angle_rad)), np.float32(np.sin(2 * scene.angle_rad))
    along = (x - 0.5) * c + (y - 0.5) * s + np.float32(0.3 * (scene.shift[0] - 0.5))
    return np.clip(0.5 + 16 * along, 0, 1)  # an edge of four pixels of an image of 64


def _soft_square_wave(position: Float, sharpness: float) -> Float:
    """0 and 1 for half a period each; positions in periods."""
    return np.clip(0.5 + sharpness * np.sin(2 * np.pi * position), 0, 1)


def _stripes(scene: Scene, x: Float, y: Float) -> Float:
    along, _ = _turned(scene, x, y)
    return _soft_square_wave(along, 2.0)


def _wavy_stripes(scene: Scene, x: Float, y: Float) -> Float:
    along, across = _turned(scene, x, y)
    return _soft_square_wave(along + 0.25 * np.sin(2 * np.pi * 0.6 * across), 2.0)


def _checks(scene: Scene, x: Float, y: Float) -> Float:
    a, b = (_soft_square_wave(c / 2, 3.0) for c in _turned(scene, x, y))
    return a + b - 2 * a * b


def _spots(scene: Scene, x: Float, y: Float) -> Float:
    a, b = (np.mod(c, 1) - 0.5 for c in _turned(scene, x, y))
    # A spot's edge is as soft as three pixels of an image of 64.
    return np.clip(0.5 + (0.3 - np.hypot(a, b)) * np.float32(22 / scene.cells), 0, 1)


def _horizon(scene: Scene, x: Float, y: Float) -> Float:
    """0 to 1/3 through the sky, 2/3 to 1 through the ground, a step of two pixels of an image of 64 between."""
    fx, _, phase = scene.waves[0]
    line = scene.horizon + scene.slope * (x - 0.5) + scene.hills * np.sin(2 * np.pi * (1 + abs(fx) / 3) * x + phase)
    line = line.astype(np.float32)
    step = np.clip((y - line) * 32 + 0.5, 0, 1)
    sky, ground = y / np.maximum(line, 0.05), 2 + (y - line) / np.maximum(1 - line, 0.05)
    return (np.clip(sky, 0, 1) * (1 - step) + np.clip(ground, 2, 3) * step) / 3


_MIX: dict[str, Callable[[Scene, Float, Float], Float]] = {
    "plain": _plain,
    "fade": _fade,
    "halves": _halves,
    "stripes": _stripes,
    "waves": _wavy_stripes,
    "checks": _checks,
    "spots": _spots,
    **dict.fromkeys(GROUNDS, _horizon),
}


def covers(thing: Thing, x: Float, y: Float) -> NDArray[np.bool_]:
    """Whether the object covers the points (x, y), arrays in units of the image's side."""
    dx, dy = (x - np.float32(thing.x)) / thing.radius, (y - np.float32(thing.y)) / thing.radius
    c, s = np.float32(np.cos(thing.tilt_rad)), np.float32(np.sin(thing.tilt_rad))
    return DISTANCE[thing.shape](c * dx + s * dy, c * dy - s * dx) < 0


def _paint(canvas_NHW3: Float, scenes: Sequence[Scene], slot: int) -> None:
    """Paint the object number `slot` of every scene that has one, in place, one shape after the other."""
    for shape in SHAPES:
        rows = [n for n, s in enumerate(scenes) if len(s.things) > slot and s.things[slot].shape == shape]
        if rows:
            things = [scenes[n].things[slot] for n in rows]
            canvas_NHW3[rows] = _over(canvas_NHW3[rows], things, [scenes[n] for n in rows])


def _over(canvas_NHW3: Float, things: Sequence[Thing], scenes: Sequence[Scene]) -> Float:
    """The canvas with one object, all of one shape, over each image."""
    size = canvas_NHW3.shape[1]
    x, y = _grid(size)
    radius, tilt = _column(t.radius for t in things), _column(t.tilt_rad for t in things)
    dx, dy = (x - _column(t.x for t in things)) / radius, (y - _column(t.y for t in things)) / radius
    u, v = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
    distance = DISTANCE[things[0].shape](u, v) * radius
    cover = np.clip(0.5 - distance * (size / EDGE_SOFTNESS_PX), 0, 1)[..., None]
    rim = np.clip(1 + distance / RIM, 0, 1) * RIM_DARKNESS
    light_rad, light = _column(s.light_rad for s in scenes), _column(s.light for s in scenes)
    lit = np.clip(dx * np.cos(light_rad) + dy * np.sin(light_rad), -1, 1) * light * OBJECT_SHADE
    rgb_N113, second_N113 = (np.asarray(c, np.float32)[:, None, None, :] for c in _two_colours(things))
    painted = rgb_N113 + (second_N113 - rgb_N113) * _object_texture(things, u, v)[..., None]
    painted = np.clip(painted * ((1 + lit) * (1 - rim))[..., None], 0, 1)
    return canvas_NHW3 + (painted - canvas_NHW3) * cover


def _two_colours(things: Sequence[Thing]) -> tuple[list[object], list[object]]:
    return [t.rgb for t in things], [t.rgb2 for t in things]


def _object_texture(things: Sequence[Thing], u: Float, v: Float) -> Float:
    """(N, H, W) share of the second colour."""
    out = np.zeros(u.shape, np.float32)
    for n, thing in enumerate(things):
        if thing.texture == "striped":
            out[n] = _soft_square_wave(v[n] * np.float32(TEXTURE_PERIODS / 2), 1.0)
        elif thing.texture == "spotted":
            a, b = (np.mod(c * np.float32(TEXTURE_PERIODS / 2) + 0.5, 1) - 0.5 for c in (u[n], v[n]))
            out[n] = np.clip(0.5 + (0.3 - np.hypot(a, b)) * 5, 0, 1)
    return out
