"""What an ROI says about a target: predictions of a pattern that is one in its voxels and zero in all others.

Brain-Diffuser's analysis (ozcelikfu/brain-diffuser@31d52c0:scripts/roi_generate_features.py) for any mapper: what the
pattern adds to the prediction of no response is brought to a fixed length, for a whole area driven at once is a pattern
that no image evokes. Its masks V1 to V4 are parts of the face areas by mistake; ours are those of the prepared file.

K ROIs, V voxels, P numbers of a flattened target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.mappers.base import Mapper
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
        mapper: fitted; its own scaling says what one and zero are in measured units.
        masks_KV: of each ROI, over the mapper's voxels.
    """
    scaled = np.concatenate([np.zeros((1, masks_KV.shape[1])), masks_KV]).astype(np.float32)
    scaler = mapper.scaler
    # One image id for all, so that a mapper that draws draws the same and the change is the voxels' alone.
    predicted = mapper.predict(scaler.mean + scaler.scale * scaled, np.zeros(len(scaled), np.int64))
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
