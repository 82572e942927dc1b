"""How well a voxel, or a pattern of voxels, can be predicted at all.

Voxels: the rule of NSD (Allen et al. 2022, Nature Neuroscience 25, "noise ceiling estimation"). Noise variance is the
variance over the repeats of an image, averaged over images; signal variance is what it leaves of the variance of all
trials, not below 0; ncsnr is the ratio of their roots, which comes with the data; and the share of the variance of a
mean over n trials that a perfect model explains is ncsnr^2 / (ncsnr^2 + 1/n). NSD gives it in percent, here it is a
share.

Patterns: for a correlation across voxels the ceiling is that of a noise-free prediction, the root of the reliability
of the measured pattern. It comes from the ncsnr of the voxels where these are known, which takes their noise as
independent of each other; or from the correlations between repeats (Spearman 1910, Brown 1910), which takes nothing.

V voxels, N images, R repeats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError

Float = NDArray[np.float64]


def noise_ceiling(ncsnr_V: NDArray[Any], n_trials: int | NDArray[Any]) -> Float:
    """(V,) share of the variance of a mean over trials that a perfect model explains, in [0, 1].

    Args:
        ncsnr_V: >= 0.
        n_trials: trials in a mean, >= 1; or (N,) of every image, where they differ: the mean of 1/n then counts.

    Raises:
        UserError: negative or missing ratios, no trials.
    """
    ratios, trials = np.asarray(ncsnr_V, np.float64), np.asarray(n_trials, np.float64)
    if ratios.size and not ratios.min() >= 0:  # said this way NaN is met too
        raise UserError("noise ceiling: ncsnr must be 0 or more, and not NaN. Set it to 0 where nothing is known.")
    if trials.size == 0 or not trials.min() >= 1:
        raise UserError(f"noise ceiling: {n_trials} trials were given; every mean is over 1 or more.")
    share_of_noise = float((1 / trials).mean())
    return 1 - 1 / (1 + ratios**2 / share_of_noise)  # in this form 0 and infinity are no exceptions


def pattern_ceiling(ncsnr_V: NDArray[Any], n_trials: int | NDArray[Any]) -> float:
    """Correlation across voxels that a noise-free prediction reaches, in [0, 1], of z-scored voxels (variance 1).

    Args and errors: as ``noise_ceiling``.
    """
    signal_V = noise_ceiling(ncsnr_V, 1)  # share of a single trial's variance, which is 1
    noise_ceiling(ncsnr_V, n_trials)  # its errors
    share_of_noise = float((1 / np.asarray(n_trials, np.float64)).mean())
    signal, noise = float(signal_V.sum()), float((1 - signal_V).sum()) * share_of_noise
    return float(np.sqrt(signal / (signal + noise))) if signal else 0.0


def repeat_ceiling(betas_NRV: NDArray[Any]) -> float:
    """The same from the repeats themselves: their mean pairwise correlation, stepped up to a mean over R of them.

    Args:
        betas_NRV: float, every image with the same number R >= 2 of trials; V >= 2 voxels.

    Raises:
        UserError: other shapes, values that are not finite.
    """
    betas = np.asarray(betas_NRV, np.float64)
    if betas.ndim != 3 or betas.shape[1] < 2 or betas.shape[2] < 2 or not len(betas):
        raise UserError(
            f"noise ceiling: repeats {betas.shape} were given; (images, repeats, voxels) with at least 2 repeats and 2 "
            "voxels are wanted. Without repeats use the voxels' ncsnr."
        )
    if not np.isfinite(betas).all():
        raise UserError(f"noise ceiling: {int((~np.isfinite(betas)).sum())} betas are NaN or infinite.")
    n = betas.shape[1]
    betas -= betas.mean(2, keepdims=True)
    norms = np.linalg.norm(betas, axis=2, keepdims=True)
    betas /= np.where(norms > 0, norms, np.inf)
    r_NRR = np.einsum("nrv,nsv->nrs", betas, betas)
    one = max(0.0, float(r_NRR[:, *np.triu_indices(n, 1)].mean()))  # below 0 only by chance
    return float(np.sqrt(n * one / (1 + (n - 1) * one)))
