"""Weights of voxels by how much of them the target explains, so that ridge regression leans on the responsive ones.

Plain ridge regression treats all z-scored voxels alike. Where few of thousands of voxels respond to the images, the
others add noise that no penalty on all of them can tell from signal. A voxel's weight is the share of its training
variance that the target's leading principal components explain, to a power; a weight w in front of a voxel is the same
as a penalty alpha / w^2 on its coefficient. Training images alone are used.

Shapes: N training images, V voxels, P target columns, K components.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nd.data.scaling import Scaler
from nd.mappers.base import FoldData
from nd.mappers.blocks import column_blocks

# Few enough that their share in a voxel of pure noise, N_COMPONENTS / N, stays small; enough for the target's gist.
N_COMPONENTS = 10
TINY = 1e-12
MIN_WEIGHT = 1e-6  # a voxel's scale is divided by it and must stay finite


def voxel_scaler(data: FoldData, voxels_NV: NDArray[np.float32], ids: NDArray[np.int32], power: float) -> Scaler:
    """Z-scores voxels and, unless `power` is 0, multiplies them by their weights, all found on the given images.

    Args:
        voxels_NV: responses as measured, a row for each of `ids`, whose targets `data` gives.
    """
    scaler = Scaler.fit(voxels_NV)
    if power == 0:
        return scaler
    columns = column_blocks(0, data.targets.size, len(ids))
    components_NK = leading_components(data.targets.columns(ids, block.start, block.stop) for block in columns)
    weights_V = voxel_weights(scaler.transform(voxels_NV), components_NK, power)
    return Scaler(mean=scaler.mean, scale=scaler.scale / weights_V)


def leading_components(blocks_NP: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    """The target's leading principal components over the training images, orthonormal (N, K); blocks of columns."""
    gram_NN: NDArray[np.float64] | float = 0.0
    for block in blocks_NP:
        centred = block.astype(np.float64) - block.mean(0, dtype=np.float64)
        gram_NN = gram_NN + centred @ centred.T
    variances, vectors_NN = np.linalg.eigh(np.asarray(gram_NN))
    keep = variances > TINY * max(variances[-1], TINY)
    return vectors_NN[:, keep][:, ::-1][:, :N_COMPONENTS]


def voxel_weights(
    scaled_NV: NDArray[np.float32], components_NK: NDArray[np.float64], power: float
) -> NDArray[np.float32]:
    """Weights (V,) float32 of z-scored voxels, of mean square 1, so that penalties keep their meaning."""
    explained_V = np.square(components_NK.T @ scaled_NV).sum(0) / len(scaled_NV)
    weights_V = np.maximum(explained_V, TINY) ** power
    weights_V /= np.sqrt(np.square(weights_V).mean())
    return np.maximum(weights_V, MIN_WEIGHT).astype(np.float32)
