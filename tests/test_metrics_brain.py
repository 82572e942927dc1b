"""Brain correlation on simulated voxels: true images above shuffled ones, near the ceiling with a right encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge as SklearnRidge

from nd.errors import UserError
from nd.evaluation.brain_correlation import Encoder, areas, brain_correlation, ceilings_of

N_TRAIN, N_TEST, REPEATS, D, V = 2000, 80, 3, 20, 60
RATIOS = np.repeat([0.9, 0.3], V // 2)  # ncsnr: a good area and a noisy one
ROIS = {"good": RATIOS > 0.5, "noisy": RATIOS < 0.5, "tiny": np.arange(V) < 9}


class World:
    """Voxels that are linear in features, with a mean and a unit of their own each, and noise of known ncsnr."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        self.weights = rng.normal(size=(D, V)) / np.sqrt(D)
        self.mean, self.unit = rng.normal(size=V) * 30, rng.uniform(0.5, 5, size=V)
        self.train, self.test = rng.normal(size=(N_TRAIN, D)) * 4 + 1, rng.normal(size=(N_TEST, D)) * 4 + 1
        self.train_voxels = self.trials(rng, self.train, 1)[:, 0]
        self.trials_NRV = self.trials(rng, self.test, REPEATS)
        self.measured = self.trials_NRV.mean(1)

    def trials(self, rng: np.random.Generator, features: NDArray[Any], repeats: int) -> NDArray[Any]:
        signal = (features - 1) / 4 @ self.weights
        noise = rng.normal(size=(len(features), repeats, V)) / RATIOS
        return (signal[:, None] + noise) * self.unit + self.mean


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def encoder(world: World) -> Encoder:
    return Encoder.fit(world.train, world.train_voxels)


def by_hand(world: World, pred: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
    measured = (world.measured - world.train_voxels.mean(0)) / world.train_voxels.std(0)
    return np.array([np.corrcoef(p[mask], m[mask])[0, 1] for p, m in zip(pred, measured, strict=True)])


def test_the_encoder_is_ridge_regression_of_z_scored_voxels(world: World) -> None:
    found = Encoder.fit(world.train, world.train_voxels, alphas=[50.0]).responses(world.test)
    z = (world.train - world.train.mean(0)) / world.train.std(0)
    voxels = (world.train_voxels - world.train_voxels.mean(0)) / world.train_voxels.std(0)
    wanted = SklearnRidge(alpha=50.0).fit(z, voxels).predict((world.test - world.train.mean(0)) / world.train.std(0))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_correlations_are_those_of_each_image_across_voxels(world: World, encoder: Encoder) -> None:
    found = brain_correlation(encoder, world.test, world.measured, ROIS)
    assert list(found) == ["all", "good", "noisy"], "an area of 9 voxels is left out"
    pred = encoder.responses(world.test)
    for name, mask in {"all": np.ones(V, bool), **ROIS}.items():
        if name in found:
            np.testing.assert_allclose(found[name].per_image, by_hand(world, pred, mask), atol=1e-5)
            assert found[name].mean == pytest.approx(found[name].per_image.mean())
            assert (found[name].n_voxels, found[name].ceiling) == (mask.sum(), None)


def test_true_pictures_score_above_shuffled_ones(world: World, encoder: Encoder) -> None:
    right = brain_correlation(encoder, world.test, world.measured, ROIS)
    wrong = brain_correlation(encoder, np.roll(world.test, 1, 0), world.measured, ROIS)
    for name in right:
        assert right[name].mean > wrong[name].mean + 0.3
        assert abs(wrong[name].mean) < 4 / np.sqrt(N_TEST * 10), "wrong images correlate with nothing"
    blurred = world.test + 4 * np.random.default_rng(0).normal(size=world.test.shape)
    between = brain_correlation(encoder, blurred, world.measured)["all"].mean
    assert wrong["all"].mean < between < right["all"].mean


def test_voxel_means_take_no_part(world: World, encoder: Encoder) -> None:
    """The pattern of means is shared by all images: as measured, wrong images would correlate nearly perfectly."""
    raw = world.measured @ np.eye(V)
    assert np.corrcoef(raw[0], raw[1])[0, 1] > 0.9
    moved = World()
    moved.train_voxels, moved.measured = moved.train_voxels * 3 - 100, moved.measured * 3 - 100
    again = brain_correlation(Encoder.fit(moved.train, moved.train_voxels), moved.test, moved.measured)
    assert again["all"].mean == pytest.approx(
        brain_correlation(encoder, world.test, world.measured)["all"].mean, abs=1e-4
    )


def test_a_good_encoder_comes_near_the_ceiling(world: World, encoder: Encoder) -> None:
    trials = (world.trials_NRV - encoder.scaler.mean) / encoder.scaler.scale
    from_repeats = ceilings_of(ROIS, betas_NRV=trials)
    from_ncsnr = ceilings_of(ROIS, ncsnr_V=RATIOS, n_trials=REPEATS)
    found = brain_correlation(encoder, world.test, world.measured, ROIS, from_repeats)
    assert list(from_repeats) == list(from_ncsnr) == list(found)
    assert from_repeats["good"] > from_repeats["noisy"]
    for name, result in found.items():
        assert result.ceiling == from_repeats[name]
        assert from_repeats[name] == pytest.approx(from_ncsnr[name], abs=0.05)
        assert from_repeats[name] - 0.12 < result.mean < from_repeats[name] + 0.02


def test_scores_of_repeats_are_averaged(world: World, encoder: Encoder) -> None:
    repeats = np.stack([world.test, np.roll(world.test, 1, 0)], 1)
    both = brain_correlation(encoder, repeats, world.measured)["all"]
    single = [brain_correlation(encoder, repeats[:, r], world.measured)["all"].per_image for r in range(2)]
    np.testing.assert_allclose(both.per_image, np.mean(single, 0))


def test_test_responses_do_not_reach_the_encoder(world: World, encoder: Encoder) -> None:
    before = encoder.responses(world.test)
    brain_correlation(encoder, world.test, world.measured * 2 + 1)
    np.testing.assert_array_equal(encoder.responses(world.test), before)
    np.testing.assert_array_equal(encoder.scaler.mean, Encoder.fit(world.train, world.train_voxels).scaler.mean)


def test_refusals(world: World, encoder: Encoder) -> None:
    with pytest.raises(UserError, match="2000 rows of features for 1999 of voxels"):
        Encoder.fit(world.train, world.train_voxels[1:])
    broken = world.train.copy()
    broken[3, 3] = np.nan
    with pytest.raises(UserError, match="1 features are NaN"):
        Encoder.fit(broken, world.train_voxels)
    with pytest.raises(UserError, match="5 folds cannot be cut from 4 images"):
        Encoder.fit(world.train[:4], world.train_voxels[:4])
    with pytest.raises(UserError, match="19 features for an encoder of 20"):
        brain_correlation(encoder, world.test[:, 1:], world.measured)
    with pytest.raises(UserError, match="79 images for 80 rows of voxels"):
        brain_correlation(encoder, world.test[1:], world.measured)
    with pytest.raises(UserError, match="the scaler was fitted on 60"):
        brain_correlation(encoder, world.test, world.measured[:, 1:])
    with pytest.raises(UserError, match=r"the mask of V1 is \(3,\), wanted \(60,\)"):
        areas({"V1": np.ones(3, bool)}, V)
    with pytest.raises(UserError, match="a ceiling needs repeats"):
        ceilings_of(ROIS)
    with pytest.raises(UserError, match=r"voxels \(60,\) were given"):
        brain_correlation(encoder, world.test, world.measured[0])
