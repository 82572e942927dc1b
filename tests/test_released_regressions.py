"""Regressions of released code against the packages that it calls: penalties, scaling and columns are those."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_config import mapper_settings
from helpers_linear import Table, noisy_brain, one_fold, package_fit, z_scored
from himalaya.backend import set_backend
from himalaya.ridge import RidgeCV
from sklearn import linear_model
from sklearn.preprocessing import StandardScaler

from nd.config.application import compose
from nd.errors import UserError
from nd.mappers.arrays import Scratch
from nd.mappers.base import FoldData, Group
from nd.mappers.components import FastL2LiRSettings, RidgeSettings
from nd.mappers.crossvalidation import Images, cross_validation
from nd.mappers.fastl2lir import FastL2LiR
from nd.mappers.ridge import Ridge
from nd.mappers.selected_columns import select_columns

ALPHAS = [float(alpha) for alpha in np.logspace(-1, 4, 11)]
REPEATS = 3


# ---- Takagi & Nishimoto --------------------------------------------------------------------------------------------


def trials_of_images(n_images: int, n_voxels: int, n_columns: int) -> tuple[FoldData, Any, Any]:
    """Trials by image, shown in a random order; targets have means far from 0. Also voxels and targets as measured."""
    rng = np.random.default_rng(4)
    ids = np.repeat(np.arange(n_images, dtype=np.int32), REPEATS)
    voxels, _ = noisy_brain(n_images * REPEATS, n_voxels, 5)
    truth = rng.normal(size=(n_images, n_columns)) + rng.normal(0, 3, n_columns)
    voxels += 2 * (truth @ rng.normal(size=(n_columns, n_voxels)))[ids].astype(np.float32)
    truth = (truth + rng.normal(size=truth.shape) * np.geomspace(0.1, 10, n_columns)).astype(np.float32)
    order = rng.permutation(len(ids))
    first, groups = REPEATS * (n_images - 6), (Group("all", 0, n_columns),)
    parts = [voxels[:first], voxels[first:], ids[:first], ids[first:], Table(truth), groups]
    measured = np.argsort(order)
    return FoldData(*parts, order[:first], order[first:]), voxels[measured], truth[ids[measured]]


def test_takagi_chooses_himalayas_penalties() -> None:
    """StandardScaler, then RidgeCV with its defaults, on the trials as measured, in double precision."""
    data, voxels, targets = trials_of_images(40, 30, 60)
    set_backend("numpy")
    scaler = StandardScaler().fit(voxels.astype(np.float64))
    oracle = RidgeCV(alphas=np.array(ALPHAS)).fit(scaler.transform(voxels.astype(np.float64)), targets.astype(float))
    config = mapper_settings(
        variant="released", trials="single", alphas=ALPHAS, alpha_per="column", folds=5, intercept=False
    )
    found = Ridge(config)
    found.fit(data)
    np.testing.assert_allclose(found.state()["alpha"], oracle.best_alphas_)
    inside = (oracle.best_alphas_ > ALPHAS[0]) & (oracle.best_alphas_ < ALPHAS[-1])
    assert (inside.mean() > 0.5, len(set(oracle.best_alphas_)) > 3) == (True, True)
    expected = oracle.predict(scaler.transform(voxels.astype(np.float64)))
    assert np.abs(found.predict(voxels) - expected).max() < 1e-4 * np.abs(expected).max()
    ours = Ridge(replace(config, variant="nd"))
    ours.fit(data)
    assert (ours.state()["alpha"] != oracle.best_alphas_).mean() > 0.1  # the ways differ on these data


def test_errors_of_released_folds_are_the_same_by_products() -> None:
    data, _, _ = trials_of_images(15, 40, 7)
    config = mapper_settings(variant="released", alphas=[1.0, 100.0], folds=4, intercept=False)
    images = Images(data.train_ids, data.train_voxels.copy(), data.train_order)
    trials = cross_validation(config, data, images, torch.device("cpu"), Scratch())
    plain = torch.stack([held.squared_error().sum(1) for held in trials.blocks(data.groups[0])]).sum(0)
    torch.testing.assert_close(trials._error_by_products(data.groups[0]), plain, rtol=1e-5, atol=0)
    held = [one.held.tolist() for one in trials.trials]
    assert [len(rows) for rows in held] == [7, 7, 7, 6]  # of 27 trials
    assert sorted(np.asarray(data.train_order)[held[0]].tolist()) == sorted(data.train_order.tolist())[:7]
    assert [one.weight for one in trials.trials] == pytest.approx([27 / 28, 27 / 28, 27 / 28, 27 / 24])
    with pytest.raises(UserError, match=r"mapper\.folds=28 folds cannot be cut from 27 trials"):
        cross_validation(replace(config, folds=28), data, images, torch.device("cpu"), Scratch())


def test_takagis_preset_follows_its_script() -> None:
    cfg = compose(["method=takagi_released"])
    for name, roi in (("z40", "early"), ("c", "ventral")):
        one = cfg.decodings[name]
        assert isinstance(one.mapper, RidgeSettings)
        assert (one.roi, one.mapper.variant, one.mapper.trials, one.mapper.folds) == (roi, "released", "single", 5)
        assert (one.mapper.alpha_per, one.mapper.intercept, one.mapper.refit) == ("column", False, True)
        assert one.mapper.alphas == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]


# ---- Brain-Diffuser ------------------------------------------------------------------------------------------------


def test_brain_diffuser_divides_by_the_sample_standard_deviation() -> None:
    """Scaling by n - 1 images, then scikit-learn's Ridge, then the statistics of the test images; double precision."""
    voxels, targets = noisy_brain(24, 30, 5)
    train, x = slice(0, 20), voxels.astype(np.float64)
    scaled = (x - x[train].mean(0)) / x[train].std(0, ddof=1)
    oracle = linear_model.Ridge(alpha=30, fit_intercept=True).fit(scaled[train], targets[train])
    config = compose(["method=brain_diffuser_released"]).decodings["clip_text"].mapper
    assert isinstance(config, RidgeSettings)
    found = {}
    for ddof in (config.ddof, 0):
        mapper = Ridge(replace(config, alphas=[30.0], ddof=ddof))
        mapper.fit(one_fold(voxels[:20], targets[:20], 17))  # refitted on all 20
        found[ddof] = mapper.predict(voxels)
    expected = oracle.predict(scaled)
    scale = np.abs(expected).max()
    assert np.abs(found[1] - expected).max() < 1e-5 * scale
    assert np.abs(found[0] - expected).max() > 1e-4 * scale


# ---- MindDiffuser --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seen", "of_voxels", "of_columns"), [("all", 60, 60), ("columns", 48, 60), ("none", 48, 48)])
def test_minddiffuser_scores_by_all_training_images(seen: str, of_voxels: int, of_columns: int) -> None:
    """Statistics over some images, the package's fit on the first 48 of 60, in double precision."""
    voxels, targets = noisy_brain(70, 40, 6)
    config = FastL2LiRSettings(n_feat=12, refit=False, seen_statistics=seen)
    mapper = FastL2LiR(config)
    mapper.fit(one_fold(voxels[:60], targets[:60], 48))
    x, y = z_scored(voxels[:of_voxels], voxels), z_scored(targets[:of_columns], targets)
    weights, bias = package_fit(x[:48], y[:48], 12, 0.15)
    mean, spread = targets[:of_columns].mean(0, dtype=float), targets[:of_columns].std(0, dtype=float)
    expected = (x @ weights + bias) * spread + mean
    assert np.abs(mapper.predict(voxels) - expected).max() < 1e-5 * np.abs(expected).max()


def test_minddiffusers_columns_are_judged_on_all_training_images() -> None:
    voxels, targets = noisy_brain(60, 40, 50, noise=20.0)
    config = FastL2LiRSettings(variant="released", n_feat=10, refit=False, keep=0.5, keep_on="seen")
    found = select_columns(config, one_fold(voxels, targets, 44))
    everything = one_fold(voxels, targets, 60)
    whole = replace(everything, val_voxels=voxels[44:], val_ids=np.arange(44, 60, dtype=np.int32))
    assert found.tolist() == select_columns(replace(config, keep_on="train"), whole).tolist()
    assert found.tolist() != select_columns(replace(config, keep_on="train"), one_fold(voxels, targets, 44)).tolist()


def test_minddiffusers_preset_follows_its_scripts() -> None:
    cfg = compose(["method=minddiffuser_released"])
    of = {name: one.mapper for name, one in cfg.decodings.items()}
    assert {name: one.seen_statistics for name, one in of.items()} == {"z": "all", "c": "all", "g": "columns"}
    assert (of["g"].keep, of["g"].keep_folds, of["g"].keep_on) == (0.25, 5, "seen")
    assert {one.refit for one in of.values()} == {False}


def test_statistics_of_images_not_fitted_on_need_them_not_fitted_on() -> None:
    with pytest.raises(UserError, match=r"mapper\.seen_statistics: all needs mapper\.refit=false"):
        compose(["mapper=fastl2lir", "mapper.seen_statistics=all"])
    with pytest.raises(UserError, match=r"mapper\.ddof: 2 was given, wanted 0 or 1"):
        compose(["mapper=ridge", "mapper.ddof=2"])
