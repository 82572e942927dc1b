"""What a number of images can show: the smallest difference that a paired test would find, and how often it is found.

By the normal approximation to the mean of N differences, two-sided.
"""

from __future__ import annotations

import math

from scipy.stats import norm

from nd.errors import UserError

POWER, ALPHA = 0.8, 0.05


def smallest_difference(spread: float, n: int, power: float = POWER, alpha: float = ALPHA) -> float:
    """Smallest true mean difference found with probability ``power`` at level ``alpha``.

    Args:
        spread: standard deviation over images of the differences between two methods.
        n: images, at least 2.
        power: in (alpha, 1).
        alpha: in (0, 1).

    Raises:
        UserError: values outside these ranges.
    """
    _check(spread, n, alpha)
    if not alpha < power < 1:
        raise UserError(f"power={power}: a share between alpha={alpha} and 1 is wanted (0.8 is usual).")
    return float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * spread / math.sqrt(n))


def detection_rate(difference: float, spread: float, n: int, alpha: float = ALPHA) -> float:
    """How often a true mean difference is found at level ``alpha`` with n images."""
    _check(spread, n, alpha)
    if spread == 0:
        return alpha if difference == 0 else 1.0
    shift, bound = difference * math.sqrt(n) / spread, norm.ppf(1 - alpha / 2)
    return float(norm.cdf(shift - bound) + norm.cdf(-shift - bound))


def _check(spread: float, n: int, alpha: float) -> None:
    if not (math.isfinite(spread) and spread >= 0):
        raise UserError(f"spread={spread}: the standard deviation of differences, 0 or more, is wanted.")
    if n < 2:
        raise UserError(f"n={n}: at least 2 images are needed.")
    if not 0 < alpha < 1:
        raise UserError(f"alpha={alpha}: a share between 0 and 1 is wanted (0.05 is usual).")
