"""Bootstrap intervals against SciPy, and their coverage."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import ndtr, stdtrit
from scipy.stats import bootstrap

from nd.errors import UserError
from nd.metrics.intervals import bootstrap_interval, bootstrap_means, paired_difference


@pytest.mark.parametrize(("method", "scipy_method"), [("bca", "BCa"), ("percentile", "percentile")])
def test_interval_equals_scipy(method: str, scipy_method: str) -> None:
    values = np.random.default_rng(0).exponential(size=120)  # skewed, so that the two methods differ
    got = bootstrap_interval(values, n_boot=40_000, method=method)
    wanted = bootstrap((values,), np.mean, n_resamples=40_000, method=scipy_method, rng=1).confidence_interval
    spread = values.std() / np.sqrt(len(values))
    assert got.mean == values.mean()
    assert abs(got.lo - wanted.low) < 0.04 * spread
    assert abs(got.hi - wanted.high) < 0.04 * spread


@pytest.mark.parametrize("n", [8, 120])
@pytest.mark.parametrize("method", ["bca", "percentile", "expanded"])
def test_ends_are_scipys_of_the_same_resamples(method: str, n: int) -> None:
    values = np.random.default_rng(0).exponential(size=n)
    drawn = SimpleNamespace(bootstrap_distribution=bootstrap_means(values, 2000, seed=0))
    widened = float(1 - 2 * ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.025)))
    how = {
        "method": "percentile" if method == "percentile" else "BCa",
        "confidence_level": widened if method == "expanded" else 0.95,
    }
    wanted = bootstrap((values,), np.mean, n_resamples=0, bootstrap_result=drawn, **how).confidence_interval
    got = bootstrap_interval(values, method=method)
    assert (got.lo, got.hi) == (pytest.approx(wanted.low, rel=1e-12), pytest.approx(wanted.high, rel=1e-12))


def test_bca_differs_from_percentile_on_skewed_scores() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    assert bootstrap_interval(values).hi > bootstrap_interval(values, method="percentile").hi


def test_interval_is_the_same_again_and_does_not_depend_on_scale() -> None:
    values = np.random.default_rng(0).normal(size=50)
    a, b = bootstrap_interval(values), bootstrap_interval(100 * values + 3)
    assert a == bootstrap_interval(values)
    assert (b.lo, b.hi) == pytest.approx((100 * a.lo + 3, 100 * a.hi + 3))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    n_trials = 1000
    intervals = [
        paired_difference(rng.beta(5, 2, 100), rng.beta(5, 2, 100) - 0.05, n_boot=400, seed=trial)
        for trial in range(n_trials)
    ]
    covered = np.mean([i.lo <= 0.05 <= i.hi for i in intervals])
    assert 0.93 <= covered <= 0.97


def test_images_without_a_value_are_left_out() -> None:
    values = np.array([1.0, np.nan, 3.0, 2.0])
    interval = bootstrap_interval(values)
    assert (interval.mean, interval.n) == (2.0, 3)


@pytest.mark.parametrize("values", [[0.7], [0.7] * 5])
def test_equal_values_have_an_interval_of_no_width(values: list[float]) -> None:
    interval = bootstrap_interval(np.array(values))
    assert (interval.mean, interval.lo, interval.hi) == (pytest.approx(0.7),) * 3


@pytest.mark.parametrize("n_boot", [1, 2, 5])
def test_few_resamples_give_finite_ends(n_boot: int) -> None:
    interval = bootstrap_interval(np.array([0.0, 1.0, 5.0]), n_boot=n_boot)
    assert np.isfinite([interval.lo, interval.hi]).all()


def test_paired_difference_is_narrower_than_unpaired_scores() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    a, b = hard + 0.1 + 0.05 * rng.normal(size=200), hard
    pair = paired_difference(a, b)
    assert pair.lo > 0.08
    assert pair.hi < 0.12
    assert bootstrap_interval(a).lo < bootstrap_interval(b).hi


def test_the_paired_interval_is_the_widened_one_of_the_differences() -> None:
    a, b = np.random.default_rng(0).exponential(size=(2, 12))
    got = paired_difference(a, b, n_boot=2000, seed=3)
    drawn = SimpleNamespace(bootstrap_distribution=bootstrap_means(a - b, 2000, seed=3))
    widened = float(1 - 2 * ndtr(np.sqrt(12 / 11) * stdtrit(11, 0.025)))
    wanted = bootstrap(
        (a - b,), np.mean, n_resamples=0, method="BCa", confidence_level=widened, bootstrap_result=drawn
    ).confidence_interval
    np.testing.assert_allclose([got.lo, got.hi], wanted, rtol=1e-9)


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(UserError, match="0 usable values of 2"):
        bootstrap_interval(np.array([np.nan, np.nan]))
    with pytest.raises(UserError, match="finite scores"):
        bootstrap_interval(np.array([np.inf, 1.0]))
    with pytest.raises(UserError, match="n_boot=0: at least 1"):
        bootstrap_interval(np.arange(3.0), n_boot=0)
    with pytest.raises(UserError, match=r"unknown interval method 'percentil'\. Did you mean 'percentile'"):
        bootstrap_interval(np.arange(3.0), method="percentil")
    with pytest.raises(UserError, match=r"\(3,\) against \(4,\)"):
        paired_difference(np.arange(3.0), np.arange(4.0))
