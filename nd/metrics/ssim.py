"""Structural similarity of grey images, 2-D.

Wang et al. 2004 with the settings every NSD paper means: Gaussian window of sigma 1.5, population covariance,
data range 1. Equal to ``skimage.metrics.structural_similarity(..., channel_axis=None, gaussian_weights=True, sigma=1.5,
use_sample_covariance=False, data_range=1)``. scikit-image 0.17 with ``multichannel=True``, as in the pinned environment
of Brain-Diffuser, looped over columns instead (1-D windows) and gives higher values (0.09 to 0.15 on photographs); that
is another metric, here ``windows="per_column"``. Which of the two made Brain-Diffuser's published .356 is not known.

B batch, C = 3 channels, H W image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nd.errors import UserError, unknown
from nd.metrics.correlation import all_finite, same_shape
from nd.metrics.images import to_grey

WINDOWS = ("2d", "per_column")
SIGMA = 1.5
RADIUS = 5  # int(3.5 * SIGMA + 0.5): scikit-image cuts the Gaussian at 3.5 sigma
WINDOW = 2 * RADIUS + 1
C1, C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 with the paper's K1, K2 and data range L = 1


def _blur(images_BHW: Tensor, windows: str) -> Tensor:
    """Gaussian means at the positions where the whole window lies inside the image."""
    down_BHW = _blur_along(images_BHW, -2)
    return _blur_along(down_BHW, -1) if windows == "2d" else down_BHW


def _blur_along(images_BHW: Tensor, dim: int) -> Tensor:
    """Gaussian means along one dimension, as a sum of shifted images: float64 convolution is slow on a CPU."""
    weights = [math.exp(-((i - RADIUS) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    size = images_BHW.shape[dim] - 2 * RADIUS
    mean_BHW = images_BHW.narrow(dim, RADIUS, size).clone()  # the weight of the centre is 1
    for i in range(RADIUS):
        mean_BHW.add_(images_BHW.narrow(dim, i, size), alpha=weights[i])
        mean_BHW.add_(images_BHW.narrow(dim, 2 * RADIUS - i, size), alpha=weights[i])
    return mean_BHW / sum(weights)


def ssim(x_BCHW: Tensor, y_BCHW: Tensor, windows: str = "2d") -> Tensor:
    """Return the SSIM of RGB images turned grey; float64 inside.

    Args:
        x_BCHW, y_BCHW: images of one size, float in [0, 1].
        windows: ``2d``, or ``per_column``: every column by itself, then the mean over columns.

    Returns:
        (B,) in [-1, 1], best 1.

    Raises:
        UserError: images of different or too small size (a window is 11 pixels), or not finite; unknown windows.
    """
    if windows not in WINDOWS:
        raise unknown("windows of SSIM", windows, WINDOWS)
    same_shape(x_BCHW, y_BCHW, "SSIM")
    all_finite(x_BCHW, "SSIM")
    all_finite(y_BCHW, "SSIM")
    if min(x_BCHW.shape[-2:]) < WINDOW:
        raise UserError(f"SSIM: images of {tuple(x_BCHW.shape[-2:])} pixels; its window needs at least {WINDOW}.")
    x, y = to_grey(x_BCHW.double()), to_grey(y_BCHW.double())
    mean_x, mean_y, xx, yy, xy = _blur(torch.cat([x, y, x * x, y * y, x * y]), windows).chunk(5)
    var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + C1) * (2 * covariance + C2)) / (
        (mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2)
    )
    return similarity.mean(dim=(-2, -1))


def ssim_per_column(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Return ``ssim(..., windows="per_column")``."""
    return ssim(x_BCHW, y_BCHW, "per_column")
