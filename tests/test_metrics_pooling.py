"""Means over subjects and seeds: plain resampling loops, coverage, and repeats made into one score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine as scipy_cosine

from nd.errors import UserError
from nd.metrics.intervals import FEW, bootstrap_interval, over_seeds, pooled_interval, subjects_note
from nd.metrics.repeats import (
    AGGREGATIONS,
    SIMILARITIES,
    consistencies,
    of_repeats,
    pair_similarities,
    pixel_mean,
    repeats_of,
)

RNG = np.random.default_rng(0)
SCORES = [RNG.normal(mean, 0.2, 50) for mean in (0.3, 0.5, 0.6, 0.45)]


def loops(scores: list[np.ndarray], shared: bool, n_boot: int = 6000) -> np.ndarray:
    """Two-level resampling, one draw at a time; shared: the same images for all subjects of a resample."""
    rng, means = np.random.default_rng(9), []
    for _ in range(n_boot):
        images = rng.integers(len(scores[0]), size=len(scores[0]))
        total = 0.0
        for subject in rng.integers(len(scores), size=len(scores)):
            own = images if shared else rng.integers(len(scores[subject]), size=len(scores[subject]))
            total += scores[subject][own].mean()
        means.append(total / len(scores))
    return np.quantile(means, [0.025, 0.975])


def test_intervals_are_those_of_plain_resampling() -> None:
    hard = np.random.default_rng(1).normal(0, 0.4, 50)  # images that are hard for all
    scores = [one + hard for one in SCORES]
    got = pooled_interval(scores, n_boot=6000)
    assert got.mean == pytest.approx(np.mean([one.mean() for one in scores]))
    assert (got.lo, got.hi) == pytest.approx(loops(scores, True), abs=0.01)
    assert got == pooled_interval(scores, n_boot=6000)
    assert (got.n_subjects, got.n_images) == (4, 50)


def test_images_that_all_share_are_drawn_once() -> None:
    hard = np.random.default_rng(1).normal(0, 0.4, 50)
    scores = [hard + 0.01 * k for k in range(4)]
    got, (lo, hi) = pooled_interval(scores), loops(scores, False)
    assert got.hi - got.lo > 1.6 * (hi - lo)


def test_subjects_count_as_units() -> None:
    images_only = bootstrap_interval(np.mean(SCORES, axis=0))
    pooled = pooled_interval(SCORES)
    assert pooled.hi - pooled.lo > 1.8 * (images_only.hi - images_only.lo)


def test_one_subject_has_the_interval_over_images() -> None:
    got, wanted = pooled_interval(SCORES[:1], seed=3), bootstrap_interval(SCORES[0], seed=3)
    assert (got.mean, got.lo, got.hi, got.n_subjects) == (wanted.mean, wanted.lo, wanted.hi, 1)


def test_the_pooled_interval_covers_the_mean_of_new_subjects() -> None:
    rng, covered = np.random.default_rng(0), []
    for trial in range(300):
        subjects, images = rng.normal(0, 0.1, (30, 1)), rng.normal(0, 0.3, (1, 40))
        scores = 0.5 + subjects + images + rng.normal(0, 0.2, (30, 40))
        got = pooled_interval(list(scores), n_boot=400, seed=trial)
        covered.append(got.lo <= 0.5 <= got.hi)
    assert 0.91 <= np.mean(covered) <= 0.99


def test_an_image_that_a_subject_lacks_is_left_out_for_all() -> None:
    scores = [one.copy() for one in SCORES]
    scores[2][7] = np.nan
    assert pooled_interval(scores) == pooled_interval([np.delete(one, 7) for one in SCORES])
    assert pooled_interval(scores).n_images == 49


def test_seeds_are_averaged_within_an_image() -> None:
    scores_KN = RNG.normal(size=(3, 20))
    np.testing.assert_allclose(over_seeds(scores_KN), sum(scores_KN) / 3)
    scores_KN[1, 4] = np.nan
    assert np.flatnonzero(np.isnan(over_seeds(scores_KN))).tolist() == [4]


def test_few_subjects_are_said_to_be_the_limit() -> None:
    assert "one subject" in subjects_note(1)
    assert "4 subjects and the images, which they share, are drawn" in subjects_note(4)
    assert "their number is the limit" in subjects_note(2)
    assert subjects_note(FEW + 1) == ""


def test_what_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(UserError, match="no subject was given"):
        pooled_interval([])
    with pytest.raises(UserError, match=r"\[50, 9\] scores were found; as many each"):
        pooled_interval([SCORES[0], SCORES[1][:9]])
    with pytest.raises(UserError, match=r"\[0, 0\] usable scores by subject"):
        pooled_interval([SCORES[0], np.full(50, np.nan)])
    with pytest.raises(UserError, match="at least 1 resample"):
        pooled_interval(SCORES, n_boot=0)


# ---- repeats


def test_scores_of_repeats_become_one_by_name() -> None:
    scores = [torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.2]), torch.tensor([0.3, torch.nan])]
    np.testing.assert_allclose(of_repeats(scores, "each"), [0.3, np.nan])
    np.testing.assert_allclose(of_repeats(scores, "best", "higher"), [0.5, np.nan])
    np.testing.assert_allclose(of_repeats(scores, "best", "lower"), [0.1, np.nan])
    assert list(AGGREGATIONS) == ["each", "first", "best", "pixel_mean"]


def test_pictures_of_repeats_are_chosen_by_name() -> None:
    images = RNG.integers(0, 256, (3, 2, 4, 4, 3)).astype(np.uint8)
    got = {name: [repeat[:] for repeat in repeats_of(images, name)] for name in AGGREGATIONS}
    for name in ("each", "best"):
        np.testing.assert_array_equal(np.stack(got[name], 1), images)
    np.testing.assert_array_equal(np.stack(got["first"], 1), images[:, :1])
    assert (len(got["pixel_mean"]), got["pixel_mean"][0].dtype) == (1, np.float32)
    np.testing.assert_allclose(got["pixel_mean"][0], images.astype(np.float64).sum(1) / 2 / 255, atol=1e-7)
    np.testing.assert_array_equal(repeats_of(images, "each")[1][1:2], images[1:2, 1])
    assert len(repeats_of(images, "each")[0]) == 3


def test_the_mean_picture_is_the_same_of_bytes_and_floats() -> None:
    images = RNG.integers(0, 256, (2, 3, 4, 4, 3)).astype(np.uint8)
    np.testing.assert_allclose(pixel_mean(images / np.float32(255)), pixel_mean(images), atol=1e-6)


def test_what_holds_no_repeats_is_refused() -> None:
    with pytest.raises(UserError, match="hold no repeat"):
        repeats_of(np.zeros((2, 0, 4, 4, 3)), "each")
    with pytest.raises(UserError, match=r"unknown protocol.aggregation 'bets'.*'best'"):
        repeats_of(np.zeros((2, 1, 4, 4, 3)), "bets")
    with pytest.raises(UserError, match="unknown direction of a metric 'up'"):
        of_repeats([torch.zeros(4)], "best", "up")


def test_similarity_of_every_pair_its_mean_and_its_variance() -> None:
    features = torch.from_numpy(RNG.normal(size=(3, 4, 20)))
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    wanted = [[1 - scipy_cosine(image[a], image[b]) for a, b in pairs] for image in features.numpy()]
    similarity = SIMILARITIES["feature"]
    np.testing.assert_allclose(pair_similarities(features, similarity), wanted, atol=1e-6)
    columns = consistencies(features, "feature")
    np.testing.assert_allclose(columns["consistency_feature"], np.mean(wanted, 1), atol=1e-6)
    np.testing.assert_allclose(columns["consistency_feature_variance"], np.var(wanted, 1), atol=1e-6)
    assert list(consistencies(features[:, :2], "feature")) == ["consistency_feature"], "one pair has no variance"
    with pytest.raises(UserError, match="1 repeat per image, at least 2"):
        consistencies(features[:, :1], "feature")
