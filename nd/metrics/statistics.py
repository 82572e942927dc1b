"""Intervals by bootstrap over images.

Images are what a score should generalise over, so images are resampled, with their repeats already averaged. For
two-way identification the per-image scores are resampled, with the distractors left as they are: the interval is that
of other images judged against this test set.

N images, S resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from nd.errors import UserError, unknown

LEVEL = 0.95
METHODS = ("bca", "percentile")


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` images and the ends of its confidence interval; without one (n = 1) the ends are the mean."""

    mean: float
    lo: float
    hi: float
    n: int


def bootstrap_means(values_N: NDArray[np.float64], n_boot: int, seed: int) -> NDArray[np.float64]:
    """(S,) means of resamples with replacement; the resamples depend on N, ``n_boot`` and ``seed`` alone."""
    n = len(values_N)
    drawn = np.random.default_rng(seed).integers(n, size=(n_boot, n), dtype=np.int32)
    return np.asarray(values_N[drawn].mean(1))


def bca_levels(values_N: NDArray[np.float64], means_S: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Quantiles (2,) to read off the bootstrap means: Efron 1987, bias-corrected and accelerated, for a mean."""
    centre = values_N.mean()
    below = ((means_S < centre).mean() + (means_S <= centre).mean()) / 2
    spread = values_N - centre  # proportional to the jackknife's deviations, whose scale cancels
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    bias = norm.ppf(below)
    z = bias + norm.ppf([(1 - level) / 2, (1 + level) / 2])
    return np.asarray(norm.cdf(bias + z / (1 - acceleration * z)))


def bootstrap_interval(
    values: NDArray[np.floating], n_boot: int = 2000, seed: int = 0, level: float = LEVEL, method: str = "bca"
) -> Interval:
    """Mean of per-image values with its bootstrap interval. NaN marks an image without a value; it is left out.

    Args:
        values: (N,) one score per image.
        n_boot: resamples, at least 1.
        seed: of the resampling; the same everywhere, so that equal scores have equal intervals.
        level: confidence, in (0, 1).
        method: ``bca`` or ``percentile``. When all values are equal the interval is that value.

    Raises:
        UserError: no value at all, infinite values, unknown method, n_boot below 1.
    """
    if method not in METHODS:
        raise unknown("interval method", method, METHODS)
    if n_boot < 1:
        raise UserError(f"protocol.n_boot={n_boot}: at least 1 resample is needed (2000 are usual).")
    kept = np.asarray(values, np.float64)
    kept = kept[~np.isnan(kept)]
    if len(kept) == 0 or not np.isfinite(kept).all():
        raise UserError(f"bootstrap: {len(kept)} usable values of {len(values)}; finite scores of images are needed.")
    mean = float(kept.mean())
    if kept.min() == kept.max():
        return Interval(mean, mean, mean, len(kept))
    means = bootstrap_means(kept, n_boot, seed)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    # With very few resamples all may lie on one side of the mean, and the bias correction is then infinite.
    mixed = (means < mean).any() and (means > mean).any()
    lo, hi = np.quantile(means, bca_levels(kept, means, level) if method == "bca" and mixed else tails)
    return Interval(mean, float(lo), float(hi), len(kept))


def paired_difference(
    a: NDArray[np.floating], b: NDArray[np.floating], n_boot: int = 2000, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Mean of a - b over the same images with its bootstrap interval; positive where ``a`` scores higher.

    Raises:
        UserError: another number of images.
    """
    if np.shape(a) != np.shape(b):
        raise UserError(f"paired difference: {np.shape(a)} against {np.shape(b)} scores; the same images are needed.")
    return bootstrap_interval(np.asarray(a, np.float64) - np.asarray(b, np.float64), n_boot, seed, level)
