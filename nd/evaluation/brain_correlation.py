"""Brain correlation: would this reconstruction have driven the brain as the seen image did?

An encoder is fitted on training images, from features of a network to the subject's voxels, and applied to the
features of reconstructions; its responses are correlated with the measured ones across voxels, image by image, within
each ROI. That is MindEye2's measure (final_evaluations.ipynb) with another encoder: a ridge regression on features
that are at hand instead of a trained GNet, so values do not compare with its table.

Measured responses are means over the repeats of a test image. Both sides are z-scored by the training images' mean and
spread of each voxel: otherwise the pattern of voxel means, which all images share, would make every image look right.
Test responses are used for the score alone. A high ceiling says that the measured patterns are reliable (noise-free
predictions reach it); what the encoder cannot say lies between the score of the seen images themselves and the ceiling,
so the score of the seen images belongs beside that of reconstructions.

N images, R repeats of a reconstruction, D features, V voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.data.scaling import Scaler
from nd.data.subject_file import ALL_VOXELS
from nd.errors import UserError
from nd.mappers.base import FoldData, Group
from nd.mappers.components import RidgeSettings
from nd.mappers.ridge import Ridge
from nd.metrics.correlation import pearson
from nd.metrics.noise_ceiling import pattern_ceiling, repeat_ceiling

# They add to the Gram matrix of z-scored features, whose largest eigenvalues are some N x D.
ALPHAS = [10.0**power for power in range(8)]
FOLDS = 5
LEAST_VOXELS = 10  # of an ROI in which patterns are compared

Masks = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class BrainCorrelation:
    """Correlations (N,) across an ROI's voxels, repeats averaged; their mean; the ceiling if known; voxels."""

    per_image: NDArray[np.float64]
    mean: float
    ceiling: float | None
    n_voxels: int


@dataclass(frozen=True)
class Encoder:
    """Features to z-scored voxels; ``scaler`` z-scores measured ones by the training images."""

    ridge: Ridge
    scaler: Scaler

    @classmethod
    def fit(
        cls, features_ND: NDArray[Any], voxels_NV: NDArray[Any], alphas: list[float] | None = None, folds: int = FOLDS
    ) -> Encoder:
        """Fit on TRAINING images: one penalty for every voxel, chosen over folds of them, then all of them.

        Args:
            features_ND: float, of the images shown.
            voxels_NV: float, mean responses to them, rows in the same order.
            alphas: penalties tried, by default ``ALPHAS``.
            folds: folds over which they are compared.

        Raises:
            UserError: other shapes, values that are not finite, fewer images than folds.
        """
        features, voxels = _rows(features_ND, "features"), _rows(voxels_NV, "voxels")
        if len(features) != len(voxels):
            raise UserError(f"brain correlation: {len(features)} rows of features for {len(voxels)} of voxels.")
        scaler, ids = Scaler.fit(voxels), np.arange(len(features), dtype=np.int32)
        config = RidgeSettings(alphas=list(alphas or ALPHAS), alpha_per="column", folds=folds, refit=True)
        ridge, group = Ridge(config), Group("voxels", 0, voxels.shape[1])
        responses = _Responses(scaler.transform(voxels))
        ridge.fit(FoldData(features, features[:0], ids, ids[:0], responses, (group,)))  # no validation images
        return cls(ridge, scaler)

    def responses(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Predicted z-scored voxels (N, V), or (N, R, V) of (N, R, D). UserError: values that are not finite."""
        rows = _rows(np.reshape(features, (-1, np.shape(features)[-1])), "features")
        if rows.shape[1] != len(self.ridge.scaler.mean):
            raise UserError(
                f"brain correlation: {rows.shape[1]} features for an encoder of {len(self.ridge.scaler.mean)}. Take "
                "them from the network and layer it was fitted on."
            )
        return self.ridge.predict(rows).reshape(*np.shape(features)[:-1], -1)


class _Responses:
    """Voxels (N, V) as the target of a mapper, whose ids are rows."""

    def __init__(self, voxels_NV: NDArray[np.float32]) -> None:
        self.voxels, self.size = voxels_NV, voxels_NV.shape[1]

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        return self.voxels[np.asarray(ids), start:stop]


def brain_correlation(
    encoder: Encoder,
    features_NRD: NDArray[Any],
    measured_NV: NDArray[Any],
    rois: Masks | None = None,
    ceilings: Mapping[str, float] | None = None,
) -> dict[str, BrainCorrelation]:
    """Correlation of predicted and measured patterns by ROI, ``all`` of them first.

    Args:
        encoder: fitted on training images of the same subject and voxels.
        features_NRD: of reconstructions, or (N, D) of one image each; scores of repeats are averaged.
        measured_NV: responses to the seen images as measured, means over their repeats, in the same order.
        rois: (V,) masks by name. Those of fewer than 10 voxels are left out.
        ceilings: of ROIs by name (``ceilings_of``), to stand beside the scores.

    Raises:
        UserError: other shapes, values that are not finite.
    """
    predicted = encoder.responses(features_NRD)
    predicted_NRV = predicted if predicted.ndim == 3 else predicted[:, None]
    measured = encoder.scaler.transform(_rows(measured_NV, "voxels"))
    if len(predicted_NRV) != len(measured):
        raise UserError(f"brain correlation: {len(predicted_NRV)} images for {len(measured)} rows of voxels.")
    return {
        name: _of_roi(predicted_NRV[..., mask], measured[:, mask], (ceilings or {}).get(name))
        for name, mask in areas(rois, measured.shape[1]).items()
    }


def _of_roi(predicted_NRV: NDArray[Any], measured_NV: NDArray[Any], ceiling: float | None) -> BrainCorrelation:
    true = torch.from_numpy(measured_NV)
    repeats = [pearson(torch.from_numpy(predicted_NRV[:, r]), true).numpy() for r in range(predicted_NRV.shape[1])]
    per_image = np.mean(repeats, axis=0)
    return BrainCorrelation(per_image, float(per_image.mean()), ceiling, measured_NV.shape[1])


def areas(rois: Masks | None, n_voxels: int) -> dict[str, NDArray[np.bool_]]:
    """Masks by name, all voxels first, small ones left out. UserError: a mask of another number of voxels."""
    masks = {ALL_VOXELS: np.ones(n_voxels, bool)} | {k: np.asarray(v, bool) for k, v in (rois or {}).items()}
    wrong = [name for name, mask in masks.items() if mask.shape != (n_voxels,)]
    if wrong:
        raise UserError(
            f"brain correlation: the mask of {wrong[0]} is {masks[wrong[0]].shape}, wanted ({n_voxels},), one value "
            "for each voxel."
        )
    return {name: mask for name, mask in masks.items() if name == ALL_VOXELS or mask.sum() >= LEAST_VOXELS}


def ceilings_of(
    rois: Masks | None,
    *,
    betas_NRV: NDArray[Any] | None = None,
    ncsnr_V: NDArray[Any] | None = None,
    n_trials: int | NDArray[Any] = 1,
) -> dict[str, float]:
    """Ceiling of each ROI: from the repeats of the test images where they are given, else from the voxels' ncsnr.

    Args:
        rois: as in ``brain_correlation``.
        betas_NRV: single trials of the test images, z-scored by ``encoder.scaler``, as many of each.
        ncsnr_V: of the voxels.
        n_trials: trials in the mean of a test image, with ``ncsnr_V``.

    Raises:
        UserError: neither is given, or as ``noise_ceiling`` says.
    """
    if betas_NRV is not None:
        named = areas(rois, betas_NRV.shape[-1])
        return {name: repeat_ceiling(betas_NRV[..., mask]) for name, mask in named.items()}
    if ncsnr_V is not None:
        return {name: pattern_ceiling(ncsnr_V[mask], n_trials) for name, mask in areas(rois, len(ncsnr_V)).items()}
    raise UserError("brain correlation: a ceiling needs repeats (betas_NRV) or the voxels' ncsnr; none was given.")


def _rows(values: NDArray[Any], what: str) -> NDArray[np.float32]:
    """(N, .) float32. UserError: another shape, values that are not finite."""
    rows = np.array(values, np.float32)
    if rows.ndim != 2 or not rows.size:
        raise UserError(f"brain correlation: {what} {rows.shape} were given; rows of images are wanted.")
    bad = int((~np.isfinite(rows)).sum())
    if bad:
        raise UserError(f"brain correlation: {bad} {what} are NaN or infinite.")
    return rows
