"""A mean over subjects and seeds whose interval takes subjects and images as drawn, by a bootstrap of two levels.

A seed is neither: it is a repetition of the same measurement, so seeds are averaged within an image before anything is
drawn. Subjects are drawn with replacement, and images within them. Where all subjects saw the same images, an image
that is hard is hard for all, so one draw of images serves all subjects (both factors crossed: Owen 2007, Annals of
Applied Statistics 1:386); where each saw images of its own, each subject drawn has a draw of images of its own.

S subjects, N images, K seeds, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.metrics.statistics import LEVEL, bootstrap_interval, resample_counts

FEW = 4  # subjects up to which their number, not that of the images, is the limit
CHUNK = 1000  # resamples at once


@dataclass(frozen=True)
class Pooled:
    """A mean over subjects, the ends of its interval over subjects and images, and how many of each there were."""

    mean: float
    lo: float
    hi: float
    n_subjects: int
    n_images: int  # of all subjects together where each has its own


def over_seeds(scores_KN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean (N,) over seeds within an image; NaN where a seed has no score, so that all seeds count the same images."""
    return np.asarray(np.asarray(scores_KN, np.float64).mean(0))


def pooled_interval(
    scores: Sequence[NDArray[np.float64]],
    shared_images: bool = True,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> Pooled:
    """Mean over subjects of their mean over images, each subject counted alike, with its interval.

    One subject has no spread of subjects: its interval is the one over images.

    Args:
        scores: one (N,) array for each subject, seeds averaged. With ``shared_images`` all in the same order of images,
            and an image that any subject has no score for (NaN) is left out for all.
        shared_images: the subjects saw the same images.
        n_boot: resamples, at least 1.
        seed: of the resampling.
        level: confidence, in (0, 1).

    Raises:
        UserError: no subject, subjects without scores, another number of images although they are shared, n_boot < 1.
    """
    kept = _usable([np.asarray(one, np.float64) for one in scores], shared_images)
    n_images = len(kept[0]) if shared_images else sum(len(one) for one in kept)
    if len(kept) == 1 or n_boot < 1:
        single = bootstrap_interval(kept[0], n_boot, seed, level)
        return Pooled(single.mean, single.lo, single.hi, 1, n_images)
    rng = np.random.default_rng(seed)
    means_B = _crossed(np.stack(kept), n_boot, rng) if shared_images else _nested(kept, n_boot, rng)
    lo, hi = np.quantile(means_B, [(1 - level) / 2, (1 + level) / 2])
    return Pooled(float(np.mean([one.mean() for one in kept])), float(lo), float(hi), len(kept), n_images)


def _usable(scores: list[NDArray[np.float64]], shared_images: bool) -> list[NDArray[np.float64]]:
    sizes = [len(one) for one in scores]
    if not scores:
        raise UserError("a mean over subjects: no subject was given; at least one is needed.")
    if shared_images and len(set(sizes)) > 1:
        raise UserError(f"a mean over subjects of the same images: {sizes} scores were found; as many each are wanted.")
    present = [~np.isnan(one) for one in scores]
    if shared_images:
        present = [np.logical_and.reduce(present)] * len(scores)
    kept = [one[mask] for one, mask in zip(scores, present, strict=True)]
    sizes = [len(one) for one in kept]
    if min(sizes) == 0:
        raise UserError(f"a mean over subjects: {sizes} usable scores by subject; each needs at least one.")
    return kept


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


def _nested(scores: list[NDArray[np.float64]], n_boot: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(B,) means over drawn subjects, each with images drawn anew: also for a subject that is drawn twice."""
    total_B = np.zeros(n_boot)
    for _ in scores:  # the places of a resample
        subject_B = rng.integers(len(scores), size=n_boot)
        for index, one in enumerate(scores):
            at = np.flatnonzero(subject_B == index)
            total_B[at] += resample_counts(len(one), len(at), rng) @ one / len(one)
    return total_B / len(scores)


def subjects_note(n_subjects: int, shared_images: bool = True) -> str:
    """What an interval over so few subjects can say; empty where there are more than ``FEW``."""
    if n_subjects > FEW:
        return ""
    images = "and the images, which they share," if shared_images else "and images"
    if n_subjects == 1:
        return "one subject: the interval is over images and says nothing of other subjects"
    return (
        f"{n_subjects} subjects {images} are drawn: with so few subjects their number is the limit, whatever the "
        "number of images, and the interval is too narrow rather than too wide"
    )
