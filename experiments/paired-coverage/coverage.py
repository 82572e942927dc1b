"""How often the interval of a paired difference holds the truth, on simulated scores of two methods.

    python experiments/paired-coverage/coverage.py      half a minute on one CPU core; writes results.json beside itself

Draws scores of n images for two methods many times, makes each time the interval at 95% that tables show, and counts.
The first six kinds of score are what image metrics give: bounded, often skewed. The last two have tails that no bounded
score has, and show where the interval fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nd.files import write_json
from nd.metrics.intervals import METHODS, bootstrap_means_of_many, interval_ends

HERE = Path(__file__).parent
SIZES = (20, 40, 200, 1000)
N_TRIALS, N_BOOT = 4000, 1000
Shape = tuple[int, int]
Draw = Callable[[np.random.Generator, Shape], NDArray[np.float64]]


def beta(a: float, b: float) -> Draw:
    """Scores between 0 and 1."""
    return lambda rng, shape: rng.beta(a, b, shape)


def ceiling(mean: float, spread: float) -> Draw:
    """Identification near its ceiling: most images at 1, a tail below."""
    return lambda rng, shape: np.minimum(1.0, rng.normal(mean, spread, shape))


def hits(rate: float) -> Draw:
    """Right or wrong, as in retrieval."""
    return lambda rng, shape: (rng.random(shape) < rate).astype(np.float64)


def normal(mean: float, spread: float) -> Draw:
    """Scores without skew."""
    return lambda rng, shape: rng.normal(mean, spread, shape)


def nothing(rng: np.random.Generator, shape: Shape) -> NDArray[np.float64]:
    """A method whose scores do not vary."""
    return np.zeros(shape)


SCORES: dict[str, tuple[Draw, Draw]] = {
    "symmetric": (normal(0.4, 0.15), normal(0.35, 0.1)),
    "alike and skewed": (beta(5, 2), beta(5, 2)),
    "skewed apart": (beta(8, 1.5), beta(2, 3)),
    "gain in few images": (lambda rng, shape: rng.chisquare(4, shape) / 20, nothing),
    "near the ceiling": (ceiling(0.97, 0.05), ceiling(0.93, 0.1)),
    "right or wrong": (hits(0.8), hits(0.7)),
}
HEAVY: dict[str, tuple[Draw, Draw]] = {
    "heavy tails (t, 3)": (lambda rng, shape: rng.standard_t(3, shape), nothing),
    "log-normal": (lambda rng, shape: rng.lognormal(size=shape), nothing),
}


def covered(scores: tuple[Draw, Draw], n: int, n_trials: int = N_TRIALS, seed: int = 0) -> dict[str, float]:
    """Share of trials whose interval holds the true mean difference, by kind of interval."""
    a, b = scores
    rng = np.random.default_rng(seed)
    far = (1, 4_000_000)  # the truth to within a thousandth of the spread
    truth = (a(rng, far) - b(rng, far)).mean()
    differences = a(rng, (n_trials, n)) - b(rng, (n_trials, n))
    means = bootstrap_means_of_many(differences, N_BOOT, seed)
    ends = {method: interval_ends(differences, means, method=method) for method in METHODS}
    return {method: float(((e[:, 0] <= truth) & (truth <= e[:, 1])).mean()) for method, e in ends.items()}


def main() -> None:
    """Print and record the table."""
    record = {name: {str(n): covered(s, n) for n in SIZES} for name, s in (SCORES | HEAVY).items()}
    for name, by_size in record.items():
        for n, shares in by_size.items():
            print(f"{name:<22}{n:>5} images  " + "  ".join(f"{m} {100 * share:5.1f}%" for m, share in shares.items()))
    write_json(HERE / "results.json", {"n_trials": N_TRIALS, "n_boot": N_BOOT, "level": 0.95, "coverage": record})


if __name__ == "__main__":
    main()
