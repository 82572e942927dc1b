"""How well a voxel, or a pattern of voxels, can be predicted at all, from repeats of the same images.

Voxels: the rule of NSD (Allen et al. 2022, Nature Neuroscience 25, "noise ceiling estimation"). Noise variance is the
variance over the repeats of an image, averaged over images; signal variance is what it leaves of the variance of all
trials, not below 0; ncsnr is the ratio of their roots; and the share of the variance of a mean over n trials that a
perfect model explains is ncsnr^2 / (ncsnr^2 + 1/n). NSD gives it in percent, here it is a share.

Patterns: for a correlation across voxels the ceiling is that of a noise-free prediction, the root of the reliability
of the measured pattern. It comes from the ncsnr of the voxels where these are known, which takes their noise as
independent of each other; or from the correlations between repeats (Spearman 1910, Brown 1910), which takes nothing.

T trials, V voxels, N images, R repeats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError

BLOCK = 1 << 24  # numbers sorted at a time, 128 MB as float64

Float = NDArray[np.float64]


def noise_variance(betas_TV: NDArray[Any], image_id_T: NDArray[Any]) -> Float:
    """(V,) variance over repeats of the same image, pooled over images by their degrees of freedom.

    Args:
        betas_TV: float, single trials in any order, any number of repeats; images shown once say nothing here.
        image_id_T: their images.

    Raises:
        UserError: other shapes, values that are not finite, no image with two trials.
    """
    betas, groups = _checked(betas_TV, image_id_T)
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    out, step = np.empty(betas.shape[1]), max(1, BLOCK // len(betas))
    for start in range(0, betas.shape[1], step):
        block = betas[order, start : start + step].astype(np.float64)
        block -= np.repeat(np.add.reduceat(block, starts) / counts[:, None], counts, axis=0)
        out[start : start + step] = (block**2).sum(0) / (len(betas) - len(counts))
    return out


def ncsnr(betas_TV: NDArray[Any], image_id_T: NDArray[Any]) -> Float:
    """(V,) ratio of the standard deviations of signal and single-trial noise; 0 without signal or variance.

    NSD's own are of betas z-scored within sessions, so that offsets of sessions are no noise: give them so.

    Args and errors: as ``noise_variance``.
    """
    noise_V = noise_variance(betas_TV, image_id_T)
    total_V = np.var(betas_TV, axis=0, dtype=np.float64)
    signal_V = np.clip(total_V - noise_V, 0, None)
    ratio_V = np.divide(signal_V, noise_V, out=np.full_like(signal_V, np.inf), where=noise_V > 0)
    return np.where(signal_V > 0, np.sqrt(ratio_V), 0.0)


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


def _checked(betas_TV: NDArray[Any], image_id_T: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Betas, and the number of each trial's image from 0 on."""
    betas, ids = np.asarray(betas_TV), np.asarray(image_id_T)
    if betas.ndim != 2 or ids.shape != betas.shape[:1]:
        raise UserError(f"noise ceiling: betas {betas.shape} for {ids.shape} image ids; (trials, voxels) are wanted.")
    found, groups = np.unique(ids, return_inverse=True)
    if len(found) == len(ids):
        raise UserError(f"noise ceiling: no image has two of the {len(ids)} trials; noise shows in repeats alone.")
    bad = int((~np.isfinite(betas)).sum())
    if bad:
        raise UserError(f"noise ceiling: {bad} betas are NaN or infinite. Leave those voxels out.")
    return betas, groups
