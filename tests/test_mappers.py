"""Ridge regression against scikit-learn and plain formulas; its choices, its checkpoint, its refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_config import mapper_settings, target_settings
from helpers_linear import one_fold as fold
from helpers_linear import z_scored as z_score
from sklearn import linear_model

from nd.errors import UserError
from nd.mappers import base
from nd.mappers.base import Group
from nd.mappers.checkpoint import Origin, checkpoint_path, is_saved, load, save
from nd.mappers.components import build_mapper
from nd.mappers.ridge import Ridge
from nd.mappers.ridge_solver import decompose, left_out_share, spread_ratio
from nd.mappers.validation import ValidationScores
from nd.targets.components import column_groups


def linear_brain(n: int, n_voxels: int, n_columns: int, noise: float = 1.0, seed: int = 0) -> tuple[Any, Any]:
    """Voxels that are a noisy linear image of the targets, each voxel with its own offset and scale."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(n, n_columns)) * rng.uniform(0.5, 2, n_columns) + rng.normal(size=n_columns)
    voxels = targets @ rng.normal(size=(n_columns, n_voxels)) + noise * rng.normal(size=(n, n_voxels))
    voxels = 3 * voxels * rng.uniform(0.1, 5, n_voxels) + 10 * rng.normal(size=n_voxels)
    return voxels.astype(np.float32), targets.astype(np.float32)


@pytest.mark.parametrize("alpha", [1e-2, 10.0, 1e4])
@pytest.mark.parametrize(("n", "n_voxels", "n_columns"), [(40, 90, 7), (90, 40, 7), (30, 80, 400)])
def test_equals_sklearn(n: int, n_voxels: int, n_columns: int, alpha: float) -> None:
    voxels, targets = linear_brain(n + 12, n_voxels, n_columns)
    new = voxels[n:] + np.float32(0.1)
    mapper = Ridge(mapper_settings(alphas=[alpha], refit=False))
    mapper.fit(fold(voxels, targets, n))
    oracle = linear_model.Ridge(alpha=alpha, solver="svd").fit(
        z_score(voxels[:n], voxels[:n]), targets[:n].astype(float)
    )
    expected = oracle.predict(z_score(voxels[:n], new))
    assert np.abs(mapper.predict(new) - expected).max() < 1e-4 * np.abs(expected).max()


def test_weights_are_stored_whole_or_as_factors_whichever_is_smaller() -> None:
    few, many = (Ridge(mapper_settings(alphas=[1.0])) for _ in range(2))
    few.fit(fold(*linear_brain(60, 50, 3), 45))
    many.fit(fold(*linear_brain(20, 80, 400), 15))
    assert few.state()["weights"].shape == (50, 3)
    assert many.state()["directions"].shape == (80, 19)  # 20 images span 19 dimensions once centred
    assert many.state()["coefficients"].shape == (19, 400)


def test_refit_uses_training_and_validation_images() -> None:
    voxels, targets = linear_brain(60, 30, 5)
    mapper = Ridge(mapper_settings(alphas=[50.0], refit=True))
    mapper.fit(fold(voxels, targets, 45))
    scaled = z_score(voxels, voxels)
    oracle = linear_model.Ridge(alpha=50.0).fit(scaled, targets.astype(float))
    np.testing.assert_allclose(mapper.predict(voxels), oracle.predict(scaled), rtol=1e-3, atol=1e-4)


def test_penalty_is_the_best_on_validation_images_for_every_group() -> None:
    voxels, targets = linear_brain(120, 60, 6, noise=4.0)
    targets[:, 3:] = np.random.default_rng(1).normal(size=(120, 3))  # nothing to decode: the largest penalty wins
    alphas = [1.0, 30.0, 1e3, 1e5]
    groups = (Group("signal", 0, 3), Group("noise", 3, 6))
    mapper = Ridge(mapper_settings(alphas=alphas, refit=False))
    mapper.fit(fold(voxels, targets, 90, groups))
    found = {g["name"]: g["alpha"] for g in mapper.details()["groups"]}
    for group in groups:
        columns = slice(group.start, group.stop)
        errors = []
        for alpha in alphas:
            oracle = linear_model.Ridge(alpha=alpha).fit(z_score(voxels[:90], voxels[:90]), targets[:90, columns])
            errors.append(((oracle.predict(z_score(voxels[:90], voxels[90:])) - targets[90:, columns]) ** 2).sum())
        assert found[group.name] == alphas[int(np.argmin(errors))]
    assert found["signal"] < found["noise"]


def test_folds_choose_the_penalty_over_all_images_fitted_on() -> None:
    voxels, targets = linear_brain(60, 80, 5, noise=6.0)
    alphas = [1.0, 30.0, 300.0, 3e3, 3e4]
    mapper = Ridge(mapper_settings(alphas=alphas, folds=4))
    mapper.fit(fold(voxels, targets, 45))
    errors = np.zeros(len(alphas))
    total = 0.0
    for k in range(4):
        held = np.arange(60) % 4 == k
        mean = targets[~held].mean(0)
        total += ((targets[held] - mean) ** 2).sum()
        for i, alpha in enumerate(alphas):
            oracle = linear_model.Ridge(alpha=alpha).fit(z_score(voxels[~held], voxels[~held]), targets[~held])
            errors[i] += ((oracle.predict(z_score(voxels[~held], voxels[held])) - targets[held]) ** 2).sum()
    (found,) = mapper.details()["groups"]
    assert found["unexplained"] == pytest.approx(errors / total, rel=1e-3)
    assert found["alpha"] == alphas[int(errors.argmin())]


def test_folds_of_a_mapper_that_is_judged_on_validation_images_do_not_see_them() -> None:
    voxels, targets = linear_brain(60, 40, 5, noise=6.0)
    one, other = (Ridge(mapper_settings(folds=5, refit=False, voxel_power=1.0)) for _ in range(2))
    one.fit(fold(voxels, targets, 45))
    voxels[45:], targets[45:] = voxels[45:] * 3 + 1, -targets[45:]
    other.fit(fold(voxels, targets, 45))
    assert one.details() == other.details()
    assert all(np.array_equal(one.state()[k], other.state()[k]) for k in one.state())


def test_more_folds_than_images() -> None:
    with pytest.raises(UserError, match=r"mapper.folds=61 folds cannot be cut from 60 images"):
        Ridge(mapper_settings(folds=61)).fit(fold(*linear_brain(60, 40, 5), 45))


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_voxel_weights_equal_ridge_on_weighted_voxels(power: float) -> None:
    voxels, targets = linear_brain(60, 90, 25, noise=3.0)
    mapper = Ridge(mapper_settings(alphas=[40.0], refit=False, voxel_power=power))
    mapper.fit(fold(voxels, targets, 45))
    scaled = z_score(voxels[:45], voxels)
    left = np.linalg.svd((targets[:45] - targets[:45].mean(0)).astype(float), full_matrices=False)[0][:, :10]
    explained = ((left.T @ scaled[:45]) ** 2).sum(0) / 45
    weights = explained**power / np.sqrt((explained ** (2 * power)).mean())
    oracle = linear_model.Ridge(alpha=40.0).fit(scaled[:45] * weights, targets[:45].astype(float))
    np.testing.assert_allclose(mapper.predict(voxels), oracle.predict(scaled * weights), rtol=1e-3, atol=1e-3)


def test_voxel_weights_find_the_voxels_that_respond() -> None:
    voxels, targets = linear_brain(160, 40, 6, noise=2.0)
    silent = np.random.default_rng(5).normal(size=(160, 2000)).astype(np.float32)
    everything = np.concatenate([voxels, silent], axis=1)
    scores = {}
    for power in (0.0, 1.0):
        mapper = Ridge(mapper_settings(refit=False, voxel_power=power))
        mapper.fit(fold(everything, targets, 120))
        scores[power] = mapper.details()["scores"]["unexplained"]
    assert scores[1.0] < 0.8 * scores[0.0]


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, targets = linear_brain(50, 30, 11)
    whole, blocked = (Ridge(mapper_settings(rescale="train")) for _ in range(2))
    whole.fit(fold(voxels, targets, 40))
    monkeypatch.setattr(base, "BLOCK_NUMBERS", 40 * 3)
    blocked.fit(fold(voxels, targets, 40))
    np.testing.assert_allclose(blocked.predict(voxels), whole.predict(voxels), rtol=1e-4, atol=1e-5)
    assert blocked.details()["scores"] == pytest.approx(whole.details()["scores"], abs=1e-5)


def test_known_brain_is_recovered_and_shuffled_images_are_at_chance() -> None:
    voxels, targets = linear_brain(400, 100, 10, noise=0.5)
    mapper = Ridge(mapper_settings())
    mapper.fit(fold(voxels, targets, 300))
    assert mapper.details()["scores"]["correlation"] > 0.95
    assert mapper.details()["scores"]["identification"] > 0.97
    shuffled = np.random.default_rng(3).permutation(targets)
    mapper.fit(fold(voxels, shuffled, 300))
    assert abs(mapper.details()["scores"]["correlation"]) < 0.15
    assert mapper.details()["scores"]["identification"] == pytest.approx(0.5, abs=0.1)


def test_constant_voxels_and_constant_targets_do_no_harm() -> None:
    voxels, targets = linear_brain(60, 30, 6)
    voxels[:, 4], targets[:, 2] = 7.0, 1.5
    mapper = Ridge(mapper_settings(rescale="train"))
    mapper.fit(fold(voxels, targets, 45))
    predicted = mapper.predict(voxels)
    assert np.isfinite(predicted).all()
    np.testing.assert_allclose(predicted[:, 2], 1.5, atol=1e-5)
    assert mapper.details()["scores"]["correlation"] > 0.5  # the constant column is not counted


def test_wide_list_of_penalties_is_asked_for_at_the_edge(caplog: pytest.LogCaptureFixture) -> None:
    Ridge(mapper_settings(alphas=[1e6, 1e7])).fit(fold(*linear_brain(60, 30, 6), 45))
    assert "end of the list" in caplog.text


@pytest.mark.parametrize("alphas", [[], [0.0], [1.0, -1.0]])
def test_penalties_must_be_positive(alphas: list[float]) -> None:
    with pytest.raises(UserError, match=r"mapper\.alphas=.*positive numbers"):
        Ridge(mapper_settings(alphas=alphas))


def test_unknown_mapper() -> None:
    with pytest.raises(UserError, match=r"unknown mapper 'rigde'. Did you mean 'ridge'"):
        build_mapper(mapper_settings(name="rigde"))


# ---- spread of the predictions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_voxels", [20, 70])
def test_spread_ratio_equals_explicit_leave_one_out(n_voxels: int) -> None:
    voxels, targets = linear_brain(40, n_voxels, 4, noise=5.0)
    x = z_score(voxels, voxels)
    left_out = []
    for i in range(40):
        rest = np.delete(np.arange(40), i)
        left_out.append(linear_model.Ridge(alpha=30.0).fit(x[rest], targets[rest]).predict(x[i : i + 1])[0])
    expected = targets.std(0) / np.std(left_out, 0)
    svd, centred = decompose(torch.from_numpy(x)), torch.from_numpy(targets - targets.mean(0))
    solved = svd.components(centred) * svd.gain(30.0).float()[:, None]
    left_out = left_out_share(svd, torch.tensor([[30.0]])).T
    np.testing.assert_allclose(spread_ratio(svd, left_out, centred, solved).numpy(), expected, rtol=1e-3)


def test_rescale_restores_the_spread_of_new_predictions() -> None:
    voxels, targets = linear_brain(600, 50, 20, noise=30.0)
    plain, rescaled = (Ridge(mapper_settings(rescale=rule)) for rule in ("none", "train"))
    for mapper in (plain, rescaled):
        mapper.fit(fold(voxels[:400], targets[:400], 300))
    spread = targets[400:].std(0)
    assert (plain.predict(voxels[400:]).std(0) / spread).mean() < 0.8
    assert (rescaled.predict(voxels[400:]).std(0) / spread).mean() == pytest.approx(1, abs=0.1)


# ---- validation scores ---------------------------------------------------------------------------------------------


def test_scores_equal_plain_formulas() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(9, 14)).astype(np.float32)
    predicted = (true + rng.normal(size=(2, 9, 14))).astype(np.float32)
    scores = ValidationScores()
    for columns in (slice(0, 5), slice(5, 14)):  # streaming equals one shot
        scores.add(torch.from_numpy(predicted[:, :, columns]), torch.from_numpy(true[:, columns]))
    for a in range(2):
        r = [np.corrcoef(predicted[a, :, k], true[:, k])[0, 1] for k in range(14)]
        wins = [
            np.corrcoef(predicted[a, i], true[i])[0, 1] > np.corrcoef(predicted[a, i], true[j])[0, 1]
            for i in range(9)
            for j in range(9)
            if i != j
        ]
        assert float(scores.correlation()[a]) == pytest.approx(np.mean(r), abs=1e-5)
        assert float(scores.ranked()[0, a]) == pytest.approx(np.mean(wins), abs=1e-9)
        share = ((predicted[a] - true) ** 2).sum() / (true**2).sum()
        assert float(scores.unexplained()[a]) == pytest.approx(share, abs=1e-5)


def test_groups_cover_all_columns_in_order() -> None:
    assert column_groups(target_settings(name="g", layers=[3, 1]), (2, 5, 4)) == [
        ("block 3", 0, 20),
        ("block 1", 20, 40),
    ]
    assert column_groups(target_settings(), (4, 2, 2)) == [("z", 0, 16)]


# ---- checkpoints ---------------------------------------------------------------------------------------------------


ORIGIN = Origin(
    subject="subj01", roi="all", n_voxels=30, mask_hash="m", split_hash="s", fold=0,
    target="z", target_fingerprint="f",
)  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Ridge]:
    mapper = Ridge(mapper_settings())
    mapper.fit(fold(*linear_brain(60, 30, 5), 45))
    path = checkpoint_path(tmp_path, 0)
    save(path, mapper, mapper_settings(), ORIGIN, (5,))
    return path, mapper


def test_checkpoint_gives_back_the_mapper(saved: tuple[Path, Ridge]) -> None:
    path, mapper = saved
    assert is_saved(path)
    voxels = linear_brain(8, 30, 5, seed=1)[0]
    np.testing.assert_array_equal(load(path, ORIGIN, "nd train").predict(voxels), mapper.predict(voxels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"n_voxels": 31, "roi": "V1"},
            r"trained on 30 voxels of subj01 \(subject.roi=all\).*\(subject.roi=V1\) has 31",
        ),
        ({"mask_hash": "x", "subject": "subj02"}, r"other voxels: mask m of subj01.*not x of subj02"),
        ({"target": "c"}, r"predicts target 'z', but 'c' is wanted"),
        ({"target_fingerprint": "other"}, r"trained on features f of target 'z'.*give other"),
        ({"fold": 1}, r"fold 0 of split s, but fold 1"),
    ],
)
def test_checkpoint_of_something_else_is_refused(
    change: dict[str, Any], message: str, saved: tuple[Path, Ridge]
) -> None:
    with pytest.raises(UserError, match=f"(?s){message}.*Train for these settings: nd train target=z"):
        load(saved[0], replace(ORIGIN, **change), "nd train target=z")


def test_damaged_checkpoint(saved: tuple[Path, Ridge]) -> None:
    path = saved[0]
    path.write_bytes(path.read_bytes()[:50])
    assert not is_saved(path)
    with pytest.raises(UserError, match="is damaged"):
        load(path, ORIGIN, "nd train")


def test_checkpoint_without_details_is_not_saved(saved: tuple[Path, Ridge]) -> None:
    saved[0].with_suffix(".json").unlink()
    assert not is_saved(saved[0])
    with pytest.raises(UserError, match="does not exist"):
        load(saved[0], ORIGIN, "nd train")
