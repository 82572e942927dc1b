"""Two methods compared image by image: how far apart, how surely, how large beside the spread of images.

The p-value is that of a sign-flip permutation test: under the null hypothesis an image's difference is as likely to
have the other sign. Comparisons that stand in one table are one family, whose p-values are corrected by Holm's rule.
Effect sizes: Cohen's d_z, the mean difference in standard deviations of the differences, and the matched-pairs
rank-biserial correlation (Kerby 2014), from -1 to 1, which one outlying image cannot carry. And what a number of images
can show at all: the smallest difference that such a test would find.

``scipy.stats.permutation_test`` has the same exact p-values (tested); of drawn signs it doubles the smaller tail, here
sizes are compared, and images that differ by nothing do not count as images. SciPy has no Holm's rule.

N images, F flips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import scipy
from numpy.typing import NDArray

from nd.errors import UserError
from nd.metrics.intervals import Interval, paired_difference

EXACT_UP_TO = 16  # images: 2**16 patterns of signs, of which half are looked at
N_FLIPS = 10_000  # drawn where there are more; the smallest p-value is then 1 / 10,001
CHUNK = 1000  # flips at once
POWER, ALPHA = 0.8, 0.05
ROUNDING = 1e-12  # sums of the same numbers in another order, relative to the sum of their sizes


@dataclass(frozen=True)
class Comparison:
    """``a - b`` over the images both have: interval, sign-flip p-value, effect sizes, standard deviation of a - b."""

    difference: Interval
    p: float
    d_z: float
    rank_biserial: float
    spread: float


def compare_paired(a: NDArray[np.floating], b: NDArray[np.floating], n_boot: int = 10_000) -> Comparison:
    """Compare two methods by their scores of the same images; an image without a score in either is left out.

    Args:
        a: (N,) scores of one method.
        b: (N,) of the other, in the same order of images.
        n_boot: resamples of the interval.

    Raises:
        UserError: another number of images, no usable image, infinite scores.
    """
    interval = paired_difference(a, b, n_boot)
    differences_N = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    differences_N = differences_N[~np.isnan(differences_N)]
    spread = float(differences_N.std(ddof=1)) if len(differences_N) > 1 else float("nan")
    return Comparison(
        interval, sign_flip_p(differences_N), cohens_dz(differences_N), rank_biserial(differences_N), spread
    )


def sign_flip_p(differences_N: NDArray[np.float64], n_flips: int = N_FLIPS, seed: int = 0) -> float:
    """Return the two-sided p-value of a mean difference of 0.

    Args:
        differences_N: finite; those of exactly 0 say nothing.
        n_flips: patterns drawn where more than 16 differences are other than 0; up to there the test is exact.
        seed: of the drawing.

    Raises:
        UserError: no flip is asked for where signs must be drawn.
    """
    kept_N = differences_N[differences_N != 0]  # a flip leaves 0 as it is
    if len(kept_N) == 0:
        return 1.0
    wanted = abs(kept_N.sum()) - ROUNDING * np.abs(kept_N).sum()
    if len(kept_N) <= EXACT_UP_TO:
        # All signs turned give the same size, so the first stays as it is.
        signs = np.array([(1, *rest) for rest in product((1, -1), repeat=len(kept_N) - 1)])
        return float((np.abs(signs @ kept_N) >= wanted).mean())
    if n_flips < 1:
        raise UserError(f"sign-flip test: {n_flips} flips; at least 1 is needed (10,000 are usual).")
    rng, found = np.random.default_rng(seed), 0
    for start in range(0, n_flips, CHUNK):
        size = (min(CHUNK, n_flips - start), len(kept_N))
        flipped_FN = rng.integers(0, 2, size, dtype=np.int8) * 2.0 - 1.0
        found += int((np.abs(flipped_FN @ kept_N) >= wanted).sum())
    return (1 + found) / (1 + n_flips)  # what was observed is one of the patterns


def cohens_dz(differences_N: NDArray[np.float64]) -> float:
    """Mean difference in standard deviations (n - 1) of the differences; NaN where they do not vary."""
    if len(differences_N) < 2 or differences_N.min() == differences_N.max():
        return float("nan")
    return float(differences_N.mean() / differences_N.std(ddof=1))


def rank_biserial(differences_N: NDArray[np.float64]) -> float:
    """Share of rank sum for ``a`` minus that for ``b``, by size of difference; 0 where no image differs."""
    kept_N = differences_N[differences_N != 0]
    if len(kept_N) == 0:
        return 0.0
    _, size_N, counts = np.unique(np.abs(kept_N), return_inverse=True, return_counts=True)
    ranks_N = (counts.cumsum() - (counts - 1) / 2)[size_N]  # of equal sizes the mean of their ranks
    return float((ranks_N * np.sign(kept_N)).sum() / ranks_N.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down rule (1979), in the order given; at most 1.

    Raises:
        UserError: a value that is no probability.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise UserError(f"Holm's correction: p-values {list(p_values)} were found; numbers from 0 to 1 are wanted.")
    order = np.argsort(given, kind="stable")
    stepped = given[order] * np.arange(len(given), 0, -1)
    corrected = np.empty(len(given))
    corrected[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return [float(p) for p in corrected]


def smallest_difference(spread: float, n: int) -> float:
    """Smallest true mean difference that a paired test finds with probability ``POWER`` at level ``ALPHA``.

    By the normal approximation to the mean of N differences, two-sided.

    Args:
        spread: standard deviation over images of the differences between two methods.
        n: images, at least 2.

    Raises:
        UserError: values outside these ranges.
    """
    if not (math.isfinite(spread) and spread >= 0):
        raise UserError(f"spread={spread}: the standard deviation of differences, 0 or more, is wanted.")
    if n < 2:
        raise UserError(f"n={n}: at least 2 images are needed.")
    return float((scipy.special.ndtri(1 - ALPHA / 2) + scipy.special.ndtri(POWER)) * spread / math.sqrt(n))
