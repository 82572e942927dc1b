"""Intervals of scores by bootstrap: over images, and over subjects and images.

Images are what a score should generalise over, so images are resampled, with their repeats already averaged. For
two-way identification the per-image scores are resampled, with the distractors left as they are: the interval is that
of other images judged against this test set.

Ends of an interval are quantiles of the bootstrap means. ``percentile`` reads them at the level asked for; ``bca``
corrects them for bias and skew (Efron 1987); ``expanded`` also widens them as Student's t does, because a resample of N
values spreads less than the mean it stands for (Hesterberg 2015, The American Statistician 69:371). Their
coverage is measured in experiments/paired-coverage. Given the same resamples, ``scipy.stats.bootstrap`` has the same
ends (tested); its jackknife forms all N means of N - 1 images, which for a mean are known in closed form.

A mean over subjects and seeds takes subjects and images as drawn, by a bootstrap of two levels; SciPy has none. A seed
is neither: it is a repetition of the same measurement, so seeds are averaged within an image before anything is drawn.
Subjects are drawn with replacement, and images within them. All subjects saw the same images, and an image that is
hard is hard for all, so one draw of images serves all subjects (both factors crossed: Owen 2007, Annals of Applied
Statistics 1:386).

N images, S resamples, T sets of scores at once; over subjects: S subjects, K seeds, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads scipy.special when that is first used: a table's states are read without it
from numpy.typing import NDArray

from nd.errors import UserError, unknown

LEVEL = 0.95
METHODS = ("expanded", "bca", "percentile")
FEW = 4  # subjects up to which their number, not that of the images, is the limit
CHUNK = 1000  # resamples of subjects and images at once


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` images and the ends of its confidence interval; without one (n = 1) the ends are the mean."""

    mean: float
    lo: float
    hi: float
    n: int


def bootstrap_means(values_N: NDArray[np.float64], n_boot: int, seed: int) -> NDArray[np.float64]:
    """Return the means of resamples with replacement, which depend on N, ``n_boot`` and ``seed`` alone.

    Args:
        values_N: one score per image.
        n_boot: resamples, S.
        seed: of the resampling.

    Returns:
        (S,) float64.
    """
    n = len(values_N)
    drawn = np.random.default_rng(seed).integers(n, size=(n_boot, n), dtype=np.int32)
    return np.asarray(values_N[drawn].mean(1))


def bootstrap_means_of_many(values_TN: NDArray[np.float64], n_boot: int, seed: int) -> NDArray[np.float64]:
    """(T, S) means of T sets of scores over the same resamples as ``bootstrap_means`` draws."""
    n = values_TN.shape[1]
    counts_SN = resample_counts(n, n_boot, np.random.default_rng(seed))
    return np.asarray(values_TN @ counts_SN.T / n)


def resample_counts(n: int, n_boot: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(S, N) how often each of n values is in each resample with replacement."""
    drawn_SN = rng.integers(n, size=(n_boot, n), dtype=np.int32)
    cells_SN = drawn_SN + n * np.arange(n_boot)[:, None]
    return np.bincount(cells_SN.ravel(), minlength=n_boot * n).reshape(n_boot, n).astype(np.float64)


def tail_scores(n: int, level: float, method: str) -> NDArray[np.float64]:
    """(2,) normal scores at which the ends are read before any correction."""
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "expanded" and n > 1:
        return np.asarray(np.sqrt(n / (n - 1)) * scipy.special.stdtrit(n - 1, tails))
    return np.asarray(scipy.special.ndtri(tails))


def end_levels(
    values_TN: NDArray[np.float64], means_TS: NDArray[np.float64], level: float, method: str
) -> NDArray[np.float64]:
    """(T, 2) quantiles to read off the bootstrap means: Efron 1987, bias-corrected and accelerated, for a mean."""
    z_2 = tail_scores(values_TN.shape[1], level, method)
    if method == "percentile":
        return np.broadcast_to(scipy.special.ndtr(z_2), (len(values_TN), 2))
    centre_T1 = values_TN.mean(1, keepdims=True)
    below_T1 = ((means_TS < centre_T1).mean(1) + (means_TS <= centre_T1).mean(1))[:, None] / 2
    spread_TN = values_TN - centre_T1  # proportional to the jackknife's deviations, whose scale cancels
    # Equal values have no skew; with very few resamples all may lie on one side, and the correction is then infinite.
    with np.errstate(divide="ignore", invalid="ignore"):
        acceleration_T1 = ((spread_TN**3).sum(1) / (6 * (spread_TN**2).sum(1) ** 1.5))[:, None]
        bias_T1 = scipy.special.ndtri(below_T1)
        z_T2 = bias_T1 + z_2
        levels_T2 = scipy.special.ndtr(bias_T1 + z_T2 / (1 - acceleration_T1 * z_T2))
    mixed_T1 = ((means_TS < centre_T1).any(1) & (means_TS > centre_T1).any(1))[:, None]
    return np.where(mixed_T1 & np.isfinite(levels_T2), levels_T2, scipy.special.ndtr(z_2))


def interval_ends(
    values_TN: NDArray[np.float64], means_TS: NDArray[np.float64], level: float = LEVEL, method: str = "bca"
) -> NDArray[np.float64]:
    """Return the ends of the intervals of T sets of scores.

    Args:
        values_TN: the scores.
        means_TS: their bootstrap means (``bootstrap_means_of_many``).
        level: confidence, in (0, 1).
        method: one of ``METHODS``.

    Returns:
        (T, 2) lower and upper ends.
    """
    levels_T2 = end_levels(values_TN, means_TS, level, method)
    sorted_TS = np.sort(means_TS, axis=1)
    places_T2 = levels_T2 * (means_TS.shape[1] - 1)
    below_T2 = np.floor(places_T2).astype(int)
    above_T2 = np.minimum(below_T2 + 1, means_TS.shape[1] - 1)
    lo, hi = (np.take_along_axis(sorted_TS, at, 1) for at in (below_T2, above_T2))
    return np.asarray(lo + (hi - lo) * (places_T2 - below_T2))


def bootstrap_interval(
    values: NDArray[np.floating], n_boot: int = 2000, seed: int = 0, level: float = LEVEL, method: str = "bca"
) -> Interval:
    """Return the mean of per-image values with its bootstrap interval. An image without a value (NaN) is left out.

    Args:
        values: (N,) one score per image.
        n_boot: resamples, at least 1.
        seed: of the resampling; the same everywhere, so that equal scores have equal intervals.
        level: confidence, in (0, 1).
        method: one of ``METHODS``. When all values are equal the interval is that value.

    Raises:
        UserError: no value at all, infinite values, unknown method, n_boot below 1.

    >>> found = bootstrap_interval(np.array([0.2, 0.4, 0.6, np.nan]))
    >>> found.n, found.lo < found.mean < found.hi
    (3, True)
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
    ((lo, hi),) = interval_ends(kept[None], means[None], level, method)
    return Interval(mean, float(lo), float(hi), len(kept))


def paired_difference(a: NDArray[np.floating], b: NDArray[np.floating], n_boot: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of a - b over the same images with its ``expanded`` interval; positive where ``a`` scores higher.

    Differences of two methods are often few or skewed, where ``bca`` holds the truth too rarely.

    Args:
        a, b: (N,) scores of the same images in the same order; an image without one (NaN) is left out.
        n_boot: resamples.
        seed: of the resampling.

    Raises:
        UserError: another number of images.
    """
    if np.shape(a) != np.shape(b):
        raise UserError(f"paired difference: {np.shape(a)} against {np.shape(b)} scores; the same images are needed.")
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return bootstrap_interval(difference, n_boot, seed, method="expanded")


# ---- over subjects and images


@dataclass(frozen=True)
class Pooled:
    """A mean over subjects, the ends of its interval over subjects and images, and how many of each there were."""

    mean: float
    lo: float
    hi: float
    n_subjects: int
    n_images: int


def over_seeds(scores_KN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean (N,) over seeds within an image; NaN where a seed has no score, so that all seeds count the same images."""
    return np.asarray(np.asarray(scores_KN, np.float64).mean(0))


def pooled_interval(scores: Sequence[NDArray[np.float64]], n_boot: int = 2000, seed: int = 0) -> Pooled:
    """Mean over subjects of their mean over images, each subject counted alike, with its interval.

    One subject has no spread of subjects: its interval is the one over images.

    Args:
        scores: one (N,) array for each subject, seeds averaged, all in the same order of images. An image that any
            subject has no score for (NaN) is left out for all.
        n_boot: resamples, at least 1.
        seed: of the resampling.

    Raises:
        UserError: no subject, no image that all have scores for, another number of images, n_boot < 1.
    """
    kept = _usable([np.asarray(one, np.float64) for one in scores])
    n_images = len(kept[0])
    if len(kept) == 1 or n_boot < 1:
        single = bootstrap_interval(kept[0], n_boot, seed)
        return Pooled(single.mean, single.lo, single.hi, 1, n_images)
    rng = np.random.default_rng(seed)
    lo, hi = np.quantile(_crossed(np.stack(kept), n_boot, rng), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Pooled(float(np.mean([one.mean() for one in kept])), float(lo), float(hi), len(kept), n_images)


def _usable(scores: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    sizes = [len(one) for one in scores]
    if not scores:
        raise UserError("a mean over subjects: no subject was given; at least one is needed.")
    if len(set(sizes)) > 1:
        raise UserError(f"a mean over subjects of the same images: {sizes} scores were found; as many each are wanted.")
    present = np.logical_and.reduce([~np.isnan(one) for one in scores])
    if not present.any():
        raise UserError(f"a mean over subjects: {[0] * len(scores)} usable scores by subject; each needs at least one.")
    return [one[present] for one in scores]


def _crossed(scores_SN: NDArray[np.float64], n_boot: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(B,) means over drawn subjects and drawn images, the same images for all subjects of a resample."""
    n_subjects, n_images = scores_SN.shape
    means: list[NDArray[np.float64]] = []
    for start in range(0, n_boot, CHUNK):
        n = min(CHUNK, n_boot - start)
        subjects_BS = resample_counts(n_subjects, n, rng) / n_subjects
        images_BN = resample_counts(n_images, n, rng) / n_images
        means.append(((subjects_BS @ scores_SN) * images_BN).sum(1))
    return np.concatenate(means)


def subjects_note(n_subjects: int) -> str:
    """What an interval over so few subjects can say; empty where there are more than ``FEW``."""
    if n_subjects > FEW:
        return ""
    if n_subjects == 1:
        return "one subject: the interval is over images and says nothing of other subjects"
    return (
        f"{n_subjects} subjects and the images, which they share, are drawn: with so few subjects their number is the "
        "limit, whatever the number of images, and the interval is too narrow rather than too wide"
    )
