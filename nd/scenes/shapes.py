"""The shapes of the drawn world as distances to their outline, negative inside.

Coordinates (u, v) are in units of the object's radius, v downwards; a shape about fills the unit circle. Distances are
exact near straight edges and close elsewhere, which is all that antialiasing needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]
Points = tuple[tuple[float, float], ...]


def _circle(u: Float, v: Float) -> Float:
    return np.hypot(u, v) - 0.95


def _square(u: Float, v: Float) -> Float:
    return np.maximum(np.abs(u), np.abs(v)) - 0.84


def _star(u: Float, v: Float) -> Float:
    """Five points: fold the plane into one half-point, whose single edge is then a straight line."""
    angle = np.abs(np.mod(np.arctan2(u, -v), 2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(u, v)
    a, b = radius * np.cos(np.pi / 5 - angle), radius * np.sin(np.pi / 5 - angle)
    tip, inner = (1.12, 0.0), (0.48 * np.cos(np.pi / 5), 0.48 * np.sin(np.pi / 5))
    normal = np.array([inner[1], tip[0] - inner[0]], np.float32)
    normal /= np.hypot(*normal)
    return (a - np.float32(tip[0])) * normal[0] + b * normal[1]


def _cross(u: Float, v: Float) -> Float:
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.32, b - 1), np.maximum(a - 1, b - 0.32))


def _ring(u: Float, v: Float) -> Float:
    return np.abs(np.hypot(u, v) - 0.72) - 0.28


def _moon(u: Float, v: Float) -> Float:
    return np.maximum(np.hypot(u, v) - 1, 0.82 - np.hypot(u - 0.5, v))


def _heart(u: Float, v: Float) -> Float:
    a = np.abs(u)
    lobes = np.hypot(a - 0.46, v + 0.34) - 0.52
    point = np.maximum((a + v - 0.92) * np.float32(np.sqrt(0.5)), -v - 0.34)
    return np.minimum(lobes, np.maximum(point, a - 0.98 + 0 * v))


def _flower(u: Float, v: Float) -> Float:
    """Six round petals about a middle."""
    step = np.pi / 3
    angle = np.mod(np.arctan2(v, u) + step / 2, step) - step / 2
    radius = np.hypot(u, v)
    petal = np.hypot(radius * np.cos(angle) - 0.66, radius * np.sin(angle)) - 0.34
    return np.minimum(petal, radius - 0.5)


def _drop(u: Float, v: Float) -> Float:
    cone = np.maximum(np.abs(u) * 0.86 - (v + 1.1) * 0.5, v - 0.05)
    return np.minimum(np.hypot(u, v - 0.33) - 0.64, cone)


def _fish(u: Float, v: Float) -> Float:
    body = (np.hypot((u - 0.22) / 0.78, v / 0.52) - 1) * 0.6
    tail = np.maximum(np.maximum(u + 0.35, -1.0 - u), np.abs(v) + u * 0.8 + 0.22)
    return np.minimum(body, tail * 0.8)


def _mushroom(u: Float, v: Float) -> Float:
    cap = np.maximum(np.hypot(u / 1.0, (v - 0.05) / 0.95) - 1, v - 0.05)
    return np.minimum(cap, np.maximum(np.abs(u) - 0.3, np.abs(v - 0.45) - 0.5))


def _convex(points: Points) -> Callable[[Float, Float], Float]:
    """A convex polygon whose corners are listed clockwise as seen on the screen."""
    edges = [(p, q) for p, q in zip(points, points[1:] + points[:1], strict=True)]

    def distance(u: Float, v: Float) -> Float:
        out = None
        for (u0, v0), (u1, v1) in edges:
            length = np.hypot(u1 - u0, v1 - v0)
            side = (u - u0) * np.float32((v1 - v0) / length) - (v - v0) * np.float32((u1 - u0) / length)
            out = side if out is None else np.maximum(out, side)
        assert out is not None
        return out

    return distance


def _union(*parts: Callable[[Float, Float], Float]) -> Callable[[Float, Float], Float]:
    def distance(u: Float, v: Float) -> Float:
        out = parts[0](u, v)
        for part in parts[1:]:
            out = np.minimum(out, part(u, v))
        return out

    return distance


DISTANCE: dict[str, Callable[[Float, Float], Float]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _convex(((0.0, -1.0), (0.95, 0.75), (-0.95, 0.75))),
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
    "heart": _heart,
    "flower": _flower,
    "drop": _drop,
    "fish": _fish,
    "mushroom": _mushroom,
    "diamond": _convex(((0.0, -1.05), (0.62, 0.0), (0.0, 1.05), (-0.62, 0.0))),
    "arrow": _union(
        _convex(((0.05, -0.8), (1.0, 0.0), (0.05, 0.8))), _convex(((-1.0, -0.3), (0.1, -0.3), (0.1, 0.3), (-1.0, 0.3)))
    ),
    "house": _union(
        _convex(((0.0, -1.0), (1.0, -0.15), (-1.0, -0.15))),
        _convex(((-0.72, -0.2), (0.72, -0.2), (0.72, 0.85), (-0.72, 0.85))),
    ),
    "tree": _union(
        _convex(((0.0, -1.05), (0.78, 0.45), (-0.78, 0.45))),
        _convex(((-0.2, 0.4), (0.2, 0.4), (0.2, 1.0), (-0.2, 1.0))),
    ),
}
SHAPES = tuple(DISTANCE)
