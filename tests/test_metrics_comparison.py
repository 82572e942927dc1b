"""Paired comparisons against SciPy and plain formulas; coverage and power against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_scripts import load_script
from numpy.typing import NDArray
from scipy.stats import permutation_test, wilcoxon

from nd.errors import UserError
from nd.metrics.comparison import cohens_dz, compare_paired, holm, rank_biserial, sign_flip_p, smallest_difference
from nd.metrics.intervals import bootstrap_interval, bootstrap_means_of_many, interval_ends


def drawn(n: int, shift: float, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(shift, 1.0, n)


def scipy_p(differences: NDArray[np.float64], **given: int) -> float:
    got = permutation_test((differences,), np.mean, permutation_type="samples", **given)
    return float(got.pvalue)


@pytest.mark.parametrize("n", [2, 5, 10, 12])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_few_images_are_tested_exactly(n: int, shift: float) -> None:
    values = drawn(n, shift, seed=n)
    assert sign_flip_p(values) == pytest.approx(scipy_p(values, n_resamples=2**n + 1))
    assert sign_flip_p(values) == sign_flip_p(-values)


def test_ties_by_rounding_count_as_ties() -> None:
    values = np.array([0.1, 0.2, -0.3, 0.3, 0.2, 0.1])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    sums = np.abs(signs @ np.round(values * 10).astype(int))
    assert sign_flip_p(values) == (sums >= 6).mean()


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.3])
def test_many_images_are_tested_with_drawn_signs(shift: float) -> None:
    values = drawn(80, shift, seed=3)
    wanted = scipy_p(values, n_resamples=20_000, rng=np.random.default_rng(1))
    got = sign_flip_p(values, n_flips=20_000)
    assert got == sign_flip_p(values, n_flips=20_000)
    assert got == pytest.approx(wanted, abs=4 * np.sqrt(2 * wanted / 20_000) + 1e-4)


def test_drawn_signs_never_give_a_p_of_nothing() -> None:
    assert sign_flip_p(drawn(100, 5.0), n_flips=999) == 1 / 1000
    assert sign_flip_p(np.zeros(30)) == 1.0
    assert sign_flip_p(np.array([0.3])) == 1.0
    assert sign_flip_p(np.array([0.0] * 30 + [1.0, 1.0])) == 0.5  # only the two that differ count
    with pytest.raises(UserError, match="0 flips; at least 1"):
        sign_flip_p(drawn(30, 0.0), n_flips=0)


def test_a_true_null_is_rejected_as_often_as_said() -> None:
    p = [sign_flip_p(row, n_flips=400, seed=i) for i, row in enumerate(drawn(40 * 1000, 0.0).reshape(1000, 40))]
    assert 0.03 <= np.mean(np.array(p) <= 0.05) <= 0.07


def test_effect_sizes_are_their_formulas() -> None:
    values = drawn(30, 0.4)
    values[3] = 0.0
    assert cohens_dz(values) == pytest.approx(values.mean() / np.sqrt(((values - values.mean()) ** 2).sum() / 29))
    positive = wilcoxon(values, alternative="greater", zero_method="wilcox").statistic
    total = 29 * 30 / 2
    assert rank_biserial(values) == pytest.approx((positive - (total - positive)) / total)
    assert rank_biserial(np.arange(1.0, 9.0)) == 1.0
    assert rank_biserial(-np.arange(1.0, 9.0)) == -1.0
    assert rank_biserial(np.zeros(3)) == 0.0
    assert np.isnan(cohens_dz(np.full(5, 0.1)))
    assert np.isnan(cohens_dz(np.array([0.1])))


def rejected(p: list[float], alpha: float) -> list[bool]:
    """Holm's rule as it is told: the smallest against alpha / m, the next against alpha / (m - 1), until one fails."""
    out = [False] * len(p)
    for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] > alpha / (len(p) - step):
            break
        out[index] = True
    return out


def test_holm_rejects_what_the_step_down_rule_rejects() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7):
        p = list(rng.uniform(0, 0.12, size))
        corrected = holm(p)
        for alpha in np.linspace(0.003, 0.6, 120):
            assert [value <= alpha for value in corrected] == rejected(p, alpha)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(UserError, match=r"\[0.1, 1.5\] were found; numbers from 0 to 1"):
        holm([0.1, 1.5])


def test_a_comparison_is_of_the_images_both_have() -> None:
    rng = np.random.default_rng(0)
    b = rng.uniform(size=60)
    a = b + rng.normal(0.05, 0.1, 60)
    a[4], b[9] = np.nan, np.nan
    got = compare_paired(a, b)
    kept = np.delete(a - b, [4, 9])
    assert got.difference.n == 58
    assert got.difference.mean == pytest.approx(kept.mean())
    assert got.difference == bootstrap_interval(kept, 10_000, method="expanded")
    assert (got.d_z, got.p) == (cohens_dz(kept), sign_flip_p(kept))
    assert got.spread == pytest.approx(kept.std(ddof=1))
    back = compare_paired(b, a)
    assert (back.p, back.d_z) == (got.p, -got.d_z)
    assert back.rank_biserial == pytest.approx(-got.rank_biserial)
    with pytest.raises(UserError, match="the same images are needed"):
        compare_paired(a, b[:5])


# ---- power


@pytest.mark.parametrize(("kind", "n"), [("normal", 20), ("normal", 80), ("skewed", 80)])
def test_the_smallest_difference_is_found_in_four_of_five_simulated_studies(kind: str, n: int) -> None:
    rng, spread = np.random.default_rng(n), 0.2
    shape = (4000, n)
    noise = rng.normal(size=shape) if kind == "normal" else rng.exponential(size=shape) - 1
    shift = smallest_difference(spread, n)
    values = shift + spread * noise
    t = values.mean(1) / (values.std(1, ddof=1) / np.sqrt(n))
    found = (np.abs(t) > 1.96).mean()
    # The t statistic of skewed values is not quite normal: the approximation is then some points off.
    assert found == pytest.approx(0.8, abs=0.03 if kind == "normal" else 0.08)


def test_power_has_its_known_values() -> None:
    assert smallest_difference(1.0, 100) == pytest.approx(0.28016, abs=1e-5)  # (1.95996 + 0.84162) / 10
    assert smallest_difference(1.0, 400) == pytest.approx(smallest_difference(1.0, 100) / 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1.0, 1), "n=1: at least 2"),
        ((float("nan"), 9), "spread=nan"),
    ],
)
def test_power_of_nothing_is_refused(given: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        smallest_difference(*given)  # type: ignore[arg-type]


# ---- coverage of the paired interval


COVERAGE = load_script("paired-coverage/coverage.py")


@pytest.mark.parametrize("n", [40, 200])
@pytest.mark.parametrize("name", COVERAGE.SCORES)
def test_the_paired_interval_holds_the_truth_as_often_as_it_says(name: str, n: int) -> None:
    assert 0.93 <= COVERAGE.covered(COVERAGE.SCORES[name], n, n_trials=3000)["expanded"] <= 0.97


def test_the_interval_that_is_not_widened_holds_the_truth_less_often() -> None:
    shares = COVERAGE.covered(COVERAGE.SCORES["skewed apart"], 20, n_trials=3000)
    assert shares["bca"] + 0.015 < shares["expanded"]


def test_many_sets_of_scores_have_the_intervals_of_each() -> None:
    values = np.random.default_rng(0).exponential(size=(5, 30))
    values[2] = 0.7
    for method in ("expanded", "bca", "percentile"):
        ends = interval_ends(values, bootstrap_means_of_many(values, 500, seed=4), method=method)
        for row, (lo, hi) in zip(values, ends, strict=True):
            one = bootstrap_interval(row, 500, seed=4, method=method)
            assert (lo, hi) == (pytest.approx(one.lo), pytest.approx(one.hi))
