"""Where the simulated voxels lie and what part of the image each one sees.

Two mirrored hemispheres on one voxel grid. Areas are clumps of neighbouring voxels; inside an area neighbours see
neighbouring places, and the left hemisphere sees the right half of the image.
Positions in the image are in image sides from its centre: x to the right, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]


@dataclass(frozen=True)
class Area:
    """One visual area: share of the voxels, place in a hemisphere (lateral, anterior, superior, each in [0, 1]),
    receptive-field size (sigma = size * (1 + 1.5 eccentricity)), compressive exponent, and whether it responds to
    the image (early) or mostly to the content of the scene."""

    name: str
    share: float
    place: tuple[float, float, float]
    size: float
    exponent: float
    early: bool


# Sizes growing and exponents falling from V1 on: after Kay et al. 2013 (compressive spatial summation), rounded; .065
# is .55 degrees were the image 8.4 degrees wide. Shares: our choice, V1-hV4 60%, so that they cover the image.
AREAS = (
    Area("V1", 0.20, (0.15, 0.10, 0.45), 0.065, 0.60, True),
    Area("V2", 0.16, (0.28, 0.22, 0.45), 0.090, 0.50, True),
    Area("V3", 0.13, (0.42, 0.30, 0.50), 0.125, 0.45, True),
    Area("hV4", 0.11, (0.40, 0.38, 0.22), 0.170, 0.40, True),
    Area("ventral", 0.12, (0.45, 0.62, 0.15), 0.22, 0.35, False),
    Area("lateral", 0.11, (0.85, 0.45, 0.45), 0.22, 0.35, False),
    Area("parietal", 0.07, (0.45, 0.55, 0.90), 0.25, 0.40, False),
    Area("face_like", 0.05, (0.62, 0.68, 0.20), 0.22, 0.30, False),
    Area("place_like", 0.05, (0.28, 0.70, 0.18), 0.30, 0.30, False),
)
MIN_VOXELS = 2 * len(AREAS)  # one voxel per area and hemisphere
ECCENTRICITY_MAX = 0.72  # the corners of the image
MAGNIFICATION = 0.62  # .5 would spread fields evenly over the image; more of them lie near the centre


@dataclass(frozen=True)
class Cortex:
    """ijk (V, 3) int16 in C order of the grid; area (V,) index into AREAS; field (V, 3): x, y, sigma."""

    ijk: NDArray[np.int16]
    area: NDArray[np.intp]
    field: Float

    def rois(self) -> dict[str, NDArray[np.bool_]]:
        """Masks (V,): every area, and 'nsdgeneral' which is all of them."""
        masks = {area.name: self.area == k for k, area in enumerate(AREAS)}
        return {**masks, "nsdgeneral": np.ones(len(self.area), bool)}


def grow_cortex(rng: np.random.Generator, n_voxels: int) -> Cortex:
    """Draw one subject's cortex: about ``n_voxels`` (+- 10%), areas of varying sizes."""
    n_half = round(n_voxels * rng.uniform(0.9, 1.1) / 2)
    wish = np.array([a.share for a in AREAS]) * np.exp(rng.normal(0, 0.12, len(AREAS)))
    counts = np.maximum(1, np.round(wish / wish.sum() * n_half)).astype(int)
    side = int(np.ceil((8 * counts.sum()) ** (1 / 3)))
    halves = [_hemisphere(rng, counts, side) for _ in range(2)]
    ijk = np.concatenate([_mirrored(halves[0][0], side), halves[1][0] + np.array([side + 1, 0, 0])])
    area = np.concatenate([halves[0][1], halves[1][1]])
    # The left hemisphere (first half) sees the right of the image.
    field = np.concatenate([halves[0][2], halves[1][2] * np.array([-1, 1, 1], np.float32)])
    order = np.lexsort(ijk.T[::-1])
    return Cortex(ijk[order].astype(np.int16), area[order], field[order].astype(np.float32))


def _mirrored(ijk: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    return np.array([side - 1, 0, 0]) + ijk * np.array([-1, 1, 1])


def _hemisphere(
    rng: np.random.Generator, counts: NDArray[np.int64], side: int
) -> tuple[NDArray[np.int64], NDArray[np.intp], Float]:
    """(ijk, area, field) of one hemisphere whose fields all have x > 0."""
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    free = np.ones(len(grid), bool)
    ijk, area, field = [], [], []
    for k, (spec, count) in enumerate(zip(AREAS, counts, strict=True)):
        place = np.array(spec.place) * (side - 1) + rng.normal(0, 0.02 * side, 3)
        distance = np.where(free, ((grid - place) ** 2).sum(1), np.inf)
        chosen = np.argsort(distance, kind="stable")[:count]
        free[chosen] = False
        ijk.append(grid[chosen])
        area.append(np.full(count, k))
        field.append(_fields(rng, grid[chosen], spec))
    return np.concatenate(ijk), np.concatenate(area), np.concatenate(field)


def _fields(rng: np.random.Generator, ijk: NDArray[np.int64], spec: Area) -> Float:
    """(n, 3) x, y, sigma: eccentricity grows from back to front, polar angle from bottom to top of the area."""
    n = len(ijk)
    depth, height = (_rank(ijk[:, axis] + rng.normal(0, 0.5, n)) for axis in (1, 2))
    # Ranking the height inside strips of equal depth spreads the angles evenly at every eccentricity.
    strip = np.minimum((depth * np.sqrt(n)).astype(int), n - 1)
    for s in np.unique(strip):
        height[strip == s] = _rank(height[strip == s])
    eccentricity = ECCENTRICITY_MAX * depth**MAGNIFICATION
    angle = np.pi * (height - 0.5)
    sigma = spec.size * (1 + 1.5 * eccentricity) * np.exp(rng.normal(0, 0.15, n))
    # The cortex is upside down as well: its upper part sees the lower field, where y is positive.
    return np.stack([eccentricity * np.cos(angle), eccentricity * np.sin(angle), sigma], 1).astype(np.float32)


def _rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks spread evenly over (0, 1)."""
    return (np.argsort(np.argsort(values, kind="stable"), kind="stable") + 0.5) / len(values)
