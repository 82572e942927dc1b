"""Which voxels a decoder uses: maps of the weights by which single voxels change the prediction of a target.

MindDiffuser's analysis of its decoders (Lu et al., ACM MM 2023): the voxels that c, z and the layers of the image tower
are decoded from. A weight is what one spread of a voxel's responses adds to a column, in spreads of that column over
training images, so that voxels and targets of any unit compare. It is found by driving each voxel alone: of a linear
mapper that is the weight itself, of a network its change at rest.

V voxels, P numbers of a flattened target, G groups of columns (the layers of g; a target that is one part), K ROIs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nd.mappers.base import BLOCK_NUMBERS, Mapper, blocks
from nd.mappers.roi_patterns import contributions

Float = NDArray[np.float32]


def voxel_maps(mapper: Mapper, n_voxels: int, std_P: Float, groups: Sequence[tuple[str, int, int]]) -> Float:
    """Return the root mean square (G, V) of each voxel's weights over the columns of each group.

    Args:
        mapper: fitted.
        n_voxels: V, those that it reads.
        std_P: standard deviation of each column over training images; columns without one are left out.
        groups: (label, first column, end column) of each.

    Returns:
        0 for a voxel that is not used, and for all where no column of a group is predicted.
    """
    counted = std_P > 0
    if mapper.kept is not None:
        counted &= mapper.kept
    scale = np.divide(1, std_P, out=np.zeros_like(std_P), where=counted)
    found, every = np.zeros((len(groups), n_voxels), np.float32), np.eye(n_voxels, dtype=bool)
    for part in blocks(0, n_voxels, max(1, BLOCK_NUMBERS // len(std_P))):
        weights = contributions(mapper, every[part]).change * scale
        for g, (_, start, stop) in enumerate(groups):
            n_columns = max(1, int(counted[start:stop].sum()))
            found[g, part] = np.sqrt(np.square(weights[:, start:stop]).sum(1) / n_columns)
    return found


def shares(map_V: Float) -> Float:
    """Return a map over its mean, so that 1 is what voxels are used on average; all 0 where none is."""
    mean = float(map_V.mean()) if len(map_V) else 0.0
    return map_V / mean if mean > 0 else np.zeros_like(map_V)


def profile(shares_V: Float, masks_KV: NDArray[np.bool_]) -> Float:
    """Return the mean share (K,) of each ROI's voxels; NaN for an ROI of which the mapper reads none."""
    return np.asarray([shares_V[mask].mean() if mask.any() else np.nan for mask in masks_KV], np.float32)


def cosine(a_K: Float, b_K: Float) -> float:
    """Return the cosine of two profiles' deviations from 1, over ROIs that both have; NaN where one has none.

    Without the 1 that they share, profiles that have nothing in common have cosines around 0.

    >>> cosine(np.array([1.5, 0.5, np.nan]), np.array([3.0, -1.0, 1.0]))
    1.0
    """
    both = ~(np.isnan(a_K) | np.isnan(b_K))
    a, b = (np.asarray(one[both], np.float64) - 1 for one in (a_K, b_K))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return round(float(a @ b) / lengths, 12) if lengths > 0 else float("nan")
