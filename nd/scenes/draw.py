"""Draw Scenes pictures with numpy. Edges are antialiased from signed distances, so no supersampling is needed.

Shapes: N pictures, H W rows and columns, 3 colours. Distances are in units of the picture's side, negative inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.scenes.scene import SHAPES, Scene, Thing, sample_scene

Float = NDArray[np.floating[Any]]

# Pictures drawn at once: keeps the float32 working arrays of draw_many within a few tens of megabytes.
CHUNK = 256
RIM = 0.022  # width of the darker rim that sets an object off from a background of like colour
RIM_DARKNESS = 0.45
EDGE_SOFTNESS_PX = 1.2


def draw(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """One picture: (size, size, 3) uint8, RGB."""
    return draw_scenes([scene], size)[0]


def draw_many(seed: int, indices: Iterable[int], size: int = 64) -> NDArray[np.uint8]:
    """The pictures `indices` of the world `seed`: (N, size, size, 3) uint8, RGB."""
    return draw_scenes([sample_scene(seed, int(i)) for i in indices], size)


def draw_scenes(scenes: Sequence[Scene], size: int = 64) -> NDArray[np.uint8]:
    """Pictures of these scenes: (N, size, size, 3) uint8, RGB. No picture depends on its neighbours."""
    out = np.empty((len(scenes), size, size, 3), np.uint8)
    for start in range(0, len(scenes), CHUNK):
        part = scenes[start : start + CHUNK]
        canvas_NHW3 = _background(part, size)
        for slot in range(2):
            _paint(canvas_NHW3, part, slot)
        out[start : start + CHUNK] = np.clip(canvas_NHW3 * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return out


def _grid(size: int) -> tuple[Float, Float]:
    """Pixel centres: x (1, 1, W) and y (1, H, 1), in [0, 1]."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centres[None, None, :], centres[None, :, None]


def _column(values: Iterable[float]) -> Float:
    """One number for each picture, as (N, 1, 1)."""
    return np.asarray(list(values), np.float32)[:, None, None]


def _background(scenes: Sequence[Scene], size: int) -> Float:
    """(N, H, W, 3): the background with its texture."""
    x, y = _grid(size)
    mix_NHW = np.empty((len(scenes), size, size), np.float32)
    canvas_NHW3 = np.empty((len(scenes), size, size, 3), np.float32)
    levels_N43 = np.asarray([s.level_rgbs for s in scenes], np.float32)
    horizon = _column(s.horizon for s in scenes)
    # Position among the four levels: 0..1 through the sky, 2..3 through the ground, a two-pixel step between.
    sky, ground = y / horizon, 2 + (y - horizon) / (1 - horizon)
    step = np.clip((y - horizon) * size / 2 + 0.5, 0, 1)
    landscape = np.clip(sky, 0, 1) * (1 - step) + np.clip(ground, 2, 3) * step
    for n, scene in enumerate(scenes):
        mix_NHW[n] = landscape[n] if scene.background not in _WALL_MIX else 3 * _WALL_MIX[scene.background](scene, x, y)
    for c in range(3):
        canvas_NHW3[..., c] = _interpolate(levels_N43[:, :, c], mix_NHW)
    return canvas_NHW3 * (1 + _texture(scenes, x, y))[..., None]


def _interpolate(levels_N4: Float, mix_NHW: Float) -> Float:
    """Linear interpolation among four levels at positions in [0, 3]."""
    low = np.minimum(mix_NHW.astype(np.int64), 2)
    rows = np.arange(len(levels_N4))[:, None, None]
    fraction = mix_NHW - low
    return levels_N4[rows, low] * (1 - fraction) + levels_N4[rows, low + 1] * fraction


def _texture(scenes: Sequence[Scene], x: Float, y: Float) -> Float:
    """(N, H, W): a soft change of brightness, the mean of a few slow waves."""
    total = np.zeros((len(scenes), x.shape[2], x.shape[2]), np.float32)
    for k in range(len(scenes[0].waves)):
        fx, fy, phase = (_column(s.waves[k][i] for s in scenes) for i in range(3))
        total += np.sin(2 * np.pi * (fx * x + fy * y) + phase)
    return total * _column(s.texture for s in scenes) / len(scenes[0].waves) * np.float32(1.7)


def _plain(_: Scene, x: Float, y: Float) -> Float:
    return 0 * x[0] + 0 * y[0]


def _fade(_: Scene, x: Float, y: Float) -> Float:
    # Levels 1 to 2 only: those are the pair of different colours.
    return (1 + y[0] + 0 * x[0]) / 3


def _soft_square_wave(position: Float, cells: float) -> Float:
    return np.clip(0.5 + 2.5 * np.sin(np.pi * cells * position), 0, 1)


def _stripes(scene: Scene, x: Float, y: Float) -> Float:
    along = x[0] + 0 * y[0] if scene.vertical else y[0] + 0 * x[0]
    return _soft_square_wave(along, 2 * scene.cells)


def _checks(scene: Scene, x: Float, y: Float) -> Float:
    a, b = _soft_square_wave(x[0], scene.cells + 1), _soft_square_wave(y[0], scene.cells + 1)
    return a + b - 2 * a * b


_WALL_MIX: dict[str, Callable[[Scene, Float, Float], Float]] = {
    "plain": _plain,
    "fade": _fade,
    "stripes": _stripes,
    "checks": _checks,
}


def _circle(u: Float, v: Float) -> Float:
    return np.hypot(u, v) - 1


def _square(u: Float, v: Float) -> Float:
    return np.maximum(np.abs(u), np.abs(v)) - 0.88


def _triangle(u: Float, v: Float) -> Float:
    # Upright, its three sides at 0.55 from the centre, which sits a little low so that it looks centred.
    v = v - 0.2
    return np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) - 0.6


def _star(u: Float, v: Float) -> Float:
    """Five points: fold the plane into one half-point, whose single edge is then a straight line."""
    angle = np.abs(np.mod(np.arctan2(u, -v), 2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(u, v)
    a, b = radius * np.cos(np.pi / 5 - angle), radius * np.sin(np.pi / 5 - angle)
    tip, inner = (1.12, 0.0), (0.48 * np.cos(np.pi / 5), 0.48 * np.sin(np.pi / 5))
    normal = np.array([inner[1], tip[0] - inner[0]])
    normal /= np.hypot(*normal)
    return ((a - tip[0]) * normal[0] + b * normal[1]).astype(np.float32)


def _cross(u: Float, v: Float) -> Float:
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.34, b - 1), np.maximum(a - 1, b - 0.34))


def _ring(u: Float, v: Float) -> Float:
    return np.abs(np.hypot(u, v) - 0.76) - 0.27


_DISTANCE: dict[str, Callable[[Float, Float], Float]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}


def _paint(canvas_NHW3: Float, scenes: Sequence[Scene], slot: int) -> None:
    """Paint the object number `slot` of every scene that has one, in place, one shape after the other."""
    for shape in SHAPES:
        rows = [n for n, s in enumerate(scenes) if len(s.things) > slot and s.things[slot].shape == shape]
        if rows:
            shade = _column(scenes[n].shade for n in rows)
            canvas_NHW3[rows] = _over(canvas_NHW3[rows], [scenes[n].things[slot] for n in rows], shade)


def _over(canvas_NHW3: Float, things: Sequence[Thing], shade: Float) -> Float:
    """The canvas with one object, all of one shape, over each picture."""
    size = canvas_NHW3.shape[1]
    x, y = _grid(size)
    radius, tilt = _column(t.radius for t in things), _column(t.tilt_rad for t in things)
    dx, dy = (x - _column(t.x for t in things)) / radius, (y - _column(t.y for t in things)) / radius
    u, v = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
    distance = _DISTANCE[things[0].shape](u, v) * radius
    cover = np.clip(0.5 - distance * size / EDGE_SOFTNESS_PX, 0, 1)
    rim = np.clip(1 + distance / RIM, 0, 1) * RIM_DARKNESS
    light = (1 - shade * np.clip(u + v, -1.5, 1.5) / 1.5) * (1 - rim)
    rgb_N113 = np.asarray([t.rgb for t in things], np.float32)[:, None, None, :]
    painted = np.clip(light[..., None] * rgb_N113, 0, 1)
    return canvas_NHW3 * (1 - cover[..., None]) + painted * cover[..., None]
