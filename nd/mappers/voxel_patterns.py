"""What patterns of voxels say about a target: each ROI driven at once, and each voxel alone.

ROIs: Brain-Diffuser's analysis (ozcelikfu/brain-diffuser@31d52c0:scripts/roi_generate_features.py) for any mapper. A
pattern is one in the ROI's z-scored voxels and zero in all others; what it adds to the prediction of no response is
brought to a fixed length, for a whole area driven at once is a pattern that no image evokes. Its masks V1 to V4 are
parts of the face areas by mistake; ours are those of the prepared file.

Voxels: MindDiffuser's analysis of its decoders (Lu et al., ACM MM 2023), the voxels that c, z and the layers of the
image tower are decoded from. A weight is what one spread of a voxel's responses adds to a column, in spreads of that
column over training images, so that voxels and targets of any unit compare. It is found by driving each voxel alone: of
a linear mapper that is the weight itself, of a network its change at rest.

K ROIs, V voxels, P numbers of a flattened target, G groups of columns (the layers of g; a target that is one part).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.mappers.base import BLOCK_NUMBERS, Mapper, blocks
from nd.mappers.statistics import TargetStatistics

Float = NDArray[np.float32]

# Lengths of the published analysis, for targets of the published sizes.
VDVAE_CHANGE_NORM, VDVAE_NORM = 50.0, 80.0  # of the change before it is standardised over ROIs; of the latents at last
TEXT_CHANGE_NORM, VISION_CHANGE_NORM = 9.0, 15.0  # of the changes of all tokens together
PUBLISHED = {"vdvae": (91168,), "clip_text": (77, 768), "clip_vision": (257, 768)}
CHANGE_NORMS = {"clip_text": TEXT_CHANGE_NORM, "clip_vision": VISION_CHANGE_NORM}
TINY = 1e-8


@dataclass(frozen=True)
class Contributions:
    """What a mapper makes of ROIs.

    Attributes:
        rest: prediction (P,) where no voxel responds.
        change: what each ROI's pattern adds to it, (K, P).
    """

    rest: Float
    change: Float

    @property
    def lengths(self) -> Float:
        """Length (K,) of each change; 0 for an ROI of which the mapper reads no voxel."""
        return np.asarray(np.linalg.norm(self.change, axis=1), np.float32)


def contributions(mapper: Mapper, masks_KV: NDArray[np.bool_]) -> Contributions:
    """Return what a mapper makes of ROIs.

    Args:
        mapper: fitted; means and spreads of the voxels over its images say what zero and one are in measured units.
        masks_KV: of each ROI, over the mapper's voxels.
    """
    scaled = np.concatenate([np.zeros((1, masks_KV.shape[1])), masks_KV]).astype(np.float32)
    # One image id for all, so that a mapper that draws draws the same and the change is the voxels' alone.
    predicted = mapper.predict(mapper.scaler.mean + mapper.voxel_spread * scaled, np.zeros(len(scaled), np.int64))
    return Contributions(predicted[0], predicted[1:] - predicted[0])


def decoded(name: str, shape: tuple[int, ...], found: Contributions, training: TargetStatistics) -> Float:
    """Return the target of each ROI, (K, P).

    Args:
        name: of the target.
        shape: of the target; where it is the published one the published lengths count, else a change is as long as a
            training image's target typically lies from their mean.
        found: of ``contributions``.
        training: mean and spread of the training images' targets.

    Raises:
        UserError: one ROI alone, of a target that the published analysis standardises over ROIs.
    """
    published = PUBLISHED.get(name) == tuple(shape)
    if published and name == "vdvae":
        return _vdvae(found, training)
    norm = CHANGE_NORMS[name] if published else float(np.linalg.norm(training.std))
    return np.asarray(found.rest + _of_length(found.change, norm), np.float32)


def _vdvae(found: Contributions, training: TargetStatistics) -> Float:
    latents_KP = found.rest + _of_length(found.change, VDVAE_CHANGE_NORM)
    if len(latents_KP) < 2:
        raise UserError(
            "latents of VDVAE are standardised over the ROIs shown, which takes two or more. Give more: rois=[V1,V2]."
        )
    return _of_length(training.given_to(np.asarray(latents_KP, np.float32)), VDVAE_NORM)


def _of_length(values_KP: Float, norm: float) -> Float:
    lengths_K1 = np.linalg.norm(values_KP, axis=1, keepdims=True)
    return np.asarray(norm * values_KP / (lengths_K1 + TINY), np.float32)


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
