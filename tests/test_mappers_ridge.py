"""Ridge with a penalty for each column, folds, no intercept, columns left out; its parts; streaming through files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_config import mapper_settings
from helpers_linear import Table, noisy_brain, one_fold, z_scored
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from numpy.typing import NDArray
from sklearn import linear_model

from nd.config import MapperConfig
from nd.errors import UserError
from nd.mappers import arrays, base, ridge_solver, validation
from nd.mappers.arrays import Scratch
from nd.mappers.base import Group
from nd.mappers.checkpoint import Origin, checkpoint_path, load, save
from nd.mappers.crossvalidation import CrossValidation
from nd.mappers.ridge import Ridge
from nd.mappers.ridge_solver import HatMatrix, decompose, hat_matrix
from nd.mappers.validation import ValidationScores

ALPHAS = [1.0, 30.0, 300.0, 3e3, 3e4]
# Images, voxels: held-out predictions by way of images, of voxels as two factors, of voxels multiplied out.
SHAPES = [(60, 90), (90, 12), (90, 60)]


def brain_of_unequal_columns(n: int, n_voxels: int, n_columns: int = 9) -> tuple[Any, Any]:
    """Targets with more and more noise, so that different penalties suit them, and means far from 0."""
    voxels, targets = noisy_brain(n, n_voxels, n_columns)
    noise = np.random.default_rng(7).normal(size=targets.shape) * np.geomspace(0.01, 30, n_columns)
    return voxels, (targets + noise + np.linspace(-40, 40, n_columns)).astype(np.float32)


def fitted(config: MapperConfig, data: Any, scratch: Path | None = None) -> Ridge:
    mapper = Ridge(config)
    mapper.fit(data, scratch)
    return mapper


# ---- one fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [1e-6, 1e-1, 10.0, 1e4])
@pytest.mark.parametrize(("n", "n_voxels"), [(40, 90), (90, 40), (60, 60)])
def test_equals_sklearn(n: int, n_voxels: int, alpha: float, intercept: bool) -> None:
    voxels, targets = brain_of_unequal_columns(n + 12, n_voxels)
    mapper = fitted(mapper_settings(alphas=[alpha], refit=False, intercept=intercept), one_fold(voxels, targets, n))
    scaled, y = z_scored(voxels[:n], voxels), targets[:n].astype(float)
    oracle = linear_model.Ridge(alpha=alpha, solver="svd", fit_intercept=intercept).fit(scaled[:n], y)
    expected = oracle.predict(scaled)
    assert np.abs(mapper.predict(voxels) - expected).max() < 1e-4 * np.abs(expected).max()
    assert mapper.state()["target_mean"].any() == intercept


def test_without_intercept_the_mean_is_lost() -> None:
    voxels, targets = brain_of_unequal_columns(60, 90)
    with_mean, without = (
        fitted(mapper_settings(alphas=[30.0], intercept=i), one_fold(voxels, targets, 45)) for i in (1, 0)
    )
    np.testing.assert_allclose(without.predict(voxels) + targets.mean(0), with_mean.predict(voxels), atol=1e-4)


# ---- choice --------------------------------------------------------------------------------------------------------


def held_out_by_sklearn(voxels: Any, targets: Any, folds: int, alpha: float, intercept: bool) -> tuple[Any, Any]:
    """Predictions and truths, less what is predicted without voxels, of all images held out in turn."""
    predicted, true = np.empty_like(targets, float), np.empty_like(targets, float)
    for k in range(folds):
        held = np.arange(len(voxels)) % folds == k
        y = targets[~held].astype(float)
        model = linear_model.Ridge(alpha=alpha, fit_intercept=intercept)
        model.fit(z_scored(voxels[~held], voxels[~held]), y)
        without = y.mean(0) * intercept
        predicted[held] = model.predict(z_scored(voxels[~held], voxels[held])) - without
        true[held] = targets[held] - without
    return predicted, true


def errors_of(held_out: list[tuple[Any, Any]]) -> NDArray[np.float64]:
    """Squared errors (penalties, columns)."""
    return np.array([((predicted - true) ** 2).sum(0) for predicted, true in held_out])


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "n_voxels"), SHAPES)
@pytest.mark.parametrize("by_products", [True, False])
def test_global_choice_over_folds_equals_a_loop(
    n: int, n_voxels: int, intercept: bool, by_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrossValidation, "by_products", lambda *_: by_products)
    voxels, targets = brain_of_unequal_columns(n, n_voxels)
    groups = (Group("few", 0, 4), Group("others", 4, 9))
    config = mapper_settings(alphas=ALPHAS, folds=4, intercept=intercept)
    mapper = fitted(config, one_fold(voxels, targets, n - 12, groups))
    held_out = [held_out_by_sklearn(voxels, targets, 4, alpha, intercept) for alpha in ALPHAS]
    errors, total = errors_of(held_out), (held_out[0][1] ** 2).sum(0)
    for group, described in zip(groups, mapper.details()["groups"], strict=True):
        columns = slice(group.start, group.stop)
        expected = errors[:, columns].sum(1) / total[columns].sum()
        np.testing.assert_allclose(described["unexplained"], expected, rtol=1e-4, atol=2e-6)
        best = int(expected.argmin())
        assert described["alpha"] == ALPHAS[best]
        assert described["scores"]["unexplained"] == pytest.approx(expected[best], rel=1e-4, abs=2e-6)
        parts = [np.arange(n) % 4 == k for k in range(4)]
        wins = [identified(*(values[part, columns] for values in held_out[best])) for part in parts]
        assert described["scores"]["identification"] == pytest.approx(np.mean(np.concatenate(wins)), abs=2e-3)
        found = mapper.state()["validation_correlation"][columns]
        np.testing.assert_allclose(found, correlations(*held_out[best])[columns], atol=1e-4)


def identified(predicted: Any, true: Any) -> NDArray[np.bool_]:
    """For every pair of images whether a prediction correlates better with its own truth than with the other's."""
    n = len(true)
    r = np.corrcoef(predicted, true)[:n, n:]
    return (r < r.diagonal()[:, None])[~np.eye(n, dtype=bool)]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "n_voxels"), SHAPES)
def test_choice_for_each_column_equals_a_loop(n: int, n_voxels: int, intercept: bool) -> None:
    voxels, targets = brain_of_unequal_columns(n, n_voxels)
    config = mapper_settings(alphas=ALPHAS, alpha_per="column", folds=4, intercept=intercept)
    mapper = fitted(config, one_fold(voxels, targets, n - 12))
    held_out = [held_out_by_sklearn(voxels, targets, 4, alpha, intercept) for alpha in ALPHAS]
    best = errors_of(held_out).argmin(0)
    assert len(set(best)) > 2  # they do differ
    np.testing.assert_array_equal(mapper.state()["alpha"], np.float32(ALPHAS)[best])
    expected = [correlations(*held_out[a])[k] for k, a in enumerate(best)]
    np.testing.assert_allclose(mapper.state()["validation_correlation"], expected, atol=1e-4)
    (described,) = mapper.details()["groups"]
    assert described["columns_per_alpha"] == [int((best == a).sum()) for a in range(len(ALPHAS))]
    least, total = errors_of(held_out).min(0).sum(), (held_out[0][1] ** 2).sum()
    assert described["scores"]["unexplained"] == pytest.approx(least / total, rel=1e-4, abs=2e-6)
    scaled, y = z_scored(voxels, voxels), targets.astype(float)
    oracle = linear_model.Ridge(alpha=np.array(ALPHAS)[best], fit_intercept=intercept).fit(scaled, y)
    np.testing.assert_allclose(mapper.predict(voxels), oracle.predict(scaled), rtol=1e-4, atol=1e-3)


def test_choice_for_each_column_on_validation_images() -> None:
    voxels, targets = brain_of_unequal_columns(90, 120)
    mapper = fitted(mapper_settings(alphas=ALPHAS, alpha_per="column"), one_fold(voxels, targets, 70))
    scaled = z_scored(voxels[:70], voxels)
    fits = [linear_model.Ridge(alpha=alpha).fit(scaled[:70], targets[:70]).predict(scaled[70:]) for alpha in ALPHAS]
    best = ((np.array(fits) - targets[70:]) ** 2).sum(1).argmin(0)
    np.testing.assert_array_equal(mapper.state()["alpha"], np.float32(ALPHAS)[best])


def correlations(predicted: Any, true: Any) -> NDArray[np.float64]:
    return np.array([np.corrcoef(p, t)[0, 1] for p, t in zip(predicted.T, true.T, strict=True)])


@pytest.mark.filterwarnings("ignore:Solving")
@pytest.mark.parametrize("kind", [KernelRidgeCV, RidgeCV])
@pytest.mark.parametrize(("n", "n_voxels"), [(60, 90), (80, 30)])
def test_equals_himalaya(kind: type[Any], n: int, n_voxels: int) -> None:
    """It scales nothing and by default has no intercept: folds z-scored by themselves leave nothing to scale."""
    voxels, targets = brain_of_unequal_columns(n, n_voxels)
    fold = np.arange(n) % 4
    for k in range(4):
        voxels[fold == k] = z_scored(voxels[fold == k], voxels[fold == k])
    voxels, targets = voxels.astype(np.float64), targets.astype(np.float64)
    set_backend("numpy")
    splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(4)]
    oracle = kind(alphas=np.array(ALPHAS), cv=splits).fit(voxels, targets)
    config = mapper_settings(alphas=ALPHAS, alpha_per="column", folds=4, intercept=False)
    mapper = fitted(config, one_fold(voxels.astype(np.float32), targets.astype(np.float32), n - 12))
    assert len(set(oracle.best_alphas_)) > 1
    np.testing.assert_allclose(mapper.state()["alpha"], oracle.best_alphas_)
    expected = oracle.predict(voxels)
    assert np.abs(mapper.predict(voxels.astype(np.float32)) - expected).max() < 1e-4 * np.abs(expected).max()


def test_edge_of_the_list_is_told_where_most_columns_lie_there(caplog: pytest.LogCaptureFixture) -> None:
    voxels, targets = brain_of_unequal_columns(60, 90)
    config = mapper_settings(alpha_per="column", folds=4, alphas=[1e5, 1e6])
    fitted(config, one_fold(voxels, targets[:, :4], 45))
    assert "lies at the end of the list for {'all (100000)': '100% of the columns'}" in caplog.text
    caplog.clear()
    fitted(replace(config, alphas=ALPHAS), one_fold(voxels, targets[:, :4], 45))
    assert not caplog.text


def test_spread_is_restored_for_each_column_under_its_own_penalty() -> None:
    voxels, targets = brain_of_unequal_columns(60, 90)
    config = mapper_settings(alphas=ALPHAS, alpha_per="column", folds=4, rescale="train")
    mapper = fitted(config, one_fold(voxels, targets, 45))
    alphas = mapper.state()["alpha"]
    for k in (0, 8):
        alone = fitted(
            mapper_settings(alphas=[float(alphas[k])], folds=4, rescale="train"), one_fold(voxels, targets[:, [k]], 45)
        )
        np.testing.assert_allclose(mapper.predict(voxels)[:, k], alone.predict(voxels)[:, 0], rtol=1e-4, atol=1e-3)
    assert alphas[0] != alphas[8]


# ---- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "n_voxels"), SHAPES)
def test_smoother_equals_the_formula(n: int, n_voxels: int) -> None:
    rng = np.random.default_rng(0)
    x, held, y = rng.normal(size=(n, n_voxels)), rng.normal(size=(11, n_voxels)), rng.normal(size=(n, 5))
    made = hat_matrix(*(torch.from_numpy(v).float() for v in (x, held)), ALPHAS, Scratch())
    assert (made.right is not None) == (n_voxels == 12)
    expected = [held @ np.linalg.solve(x.T @ x + alpha * np.eye(n_voxels), x.T @ y) for alpha in ALPHAS]
    found = made.predict(torch.from_numpy(y).float())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(made.at(2).predict(torch.from_numpy(y).float())[0].numpy(), found[2].numpy(), rtol=1e-5)
    true = rng.normal(size=(11, 5))
    errors = made.squared_error(torch.from_numpy(y @ y.T), torch.from_numpy(true @ y.T), torch.tensor((true**2).sum()))
    np.testing.assert_allclose(errors.numpy(), ((np.array(expected) - true) ** 2).sum((1, 2)), rtol=1e-5)


def test_penalty_too_small_for_double_precision_counts_as_the_smallest_that_is_not() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(20, 30)), 2, axis=0)  # singular: every image twice
    made = hat_matrix(torch.from_numpy(x).float(), torch.from_numpy(x[::2]).float(), [1e-30], Scratch())
    y = np.repeat(rng.normal(size=(20, 3)), 2, axis=0)
    np.testing.assert_allclose(made.predict(torch.from_numpy(y).float())[0].numpy(), y[::2], atol=1e-3)


def test_cheaper_way_to_the_errors_is_taken() -> None:
    """Few columns or few held-out images: their predictions. Many columns and folds: inner products."""
    left = torch.empty(10, 200, 800)
    trials = [type("T", (), {"hat": HatMatrix(left)})() for _ in range(5)]
    many = CrossValidation(Table(np.empty((0, 9000))), np.arange(1000), trials, True, torch.device("cpu"))  # type: ignore[arg-type]
    assert many.by_products(Group("all", 0, 9000))
    assert not many.by_products(Group("all", 0, 500))
    assert not replace_trials(many, 1).by_products(Group("all", 0, 9000))


def replace_trials(held_out: CrossValidation, n_held: int) -> CrossValidation:
    trials: list[Any] = [type("T", (), {"hat": HatMatrix(torch.empty(10, n_held, 800))})()]
    return CrossValidation(held_out.targets, held_out.ids, trials, True, held_out.device)


@pytest.mark.parametrize("tile", [3, 512])
def test_gram_equals_the_product(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge_solver, "TILE", tile)
    monkeypatch.setattr(ridge_solver, "WIDENED_NUMBERS", 17)
    x = np.random.default_rng(0).normal(size=(7, 11)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(5, 11)).astype(np.float32)
    exact = x.astype(float)
    np.testing.assert_allclose(ridge_solver.gram(torch.from_numpy(x)).numpy(), exact @ exact.T, rtol=1e-13)
    np.testing.assert_allclose(ridge_solver.gram(torch.from_numpy(x).T).numpy(), exact.T @ exact, rtol=1e-13)
    found = ridge_solver.products(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(found, exact @ y.astype(float).T, rtol=1e-12)


@pytest.mark.parametrize("n_voxels", [20, 70])
def test_leverage_of_several_penalties(n_voxels: int) -> None:
    x = z_scored(*2 * (noisy_brain(40, n_voxels, 4)[0],))
    svd = decompose(torch.from_numpy(x))
    found = svd.leverage(torch.tensor([[3.0], [50.0]], dtype=torch.float64), intercept=False)
    for row, alpha in zip(found, (3.0, 50.0), strict=True):
        hat = x @ np.linalg.solve(x.T @ x + alpha * np.eye(n_voxels), x.T)
        np.testing.assert_allclose(row.numpy(), np.diag(hat), rtol=1e-5)
        np.testing.assert_allclose(svd.leverage(alpha).numpy(), np.diag(hat) + 1 / 40, rtol=1e-5)


# ---- validation scores ---------------------------------------------------------------------------------------------


def test_retrieval_equals_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "ROWS_AT_ONCE", 4)
    rng = np.random.default_rng(0)
    true = rng.normal(size=(13, 20)).astype(np.float32)
    predicted = (true + 2.0 * rng.normal(size=(2, 13, 20))).astype(np.float32)
    scores = ValidationScores()
    for columns in (slice(0, 7), slice(7, 20)):
        scores.add(torch.from_numpy(predicted[:, :, columns]), torch.from_numpy(true[:, columns]))
    for a in range(2):
        r = np.corrcoef(predicted[a], true)[:13, 13:]
        forward, backward = (r.argmax(1) == np.arange(13)).mean(), (r.argmax(0) == np.arange(13)).mean()
        assert 0 < forward < 1
        assert scores.ranked()[1:, a].tolist() == pytest.approx([forward, backward])
        np.testing.assert_allclose(scores.column_correlation()[a], correlations(predicted[a], true), atol=1e-5)


def test_images_are_identified_among_those_held_out_together() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(13, 20)).astype(np.float32)
    predicted = (true + 2.0 * rng.normal(size=(13, 20))).astype(np.float32)
    scores, wins, hits = ValidationScores(), [], []
    for columns in (slice(0, 7), slice(7, 20)):
        scores.add(torch.from_numpy(predicted[None, :, columns]), torch.from_numpy(true[:, columns]), [5, 8])
    for part in (slice(0, 5), slice(5, 13)):
        n = part.stop - part.start
        r = np.corrcoef(predicted[part], true[part])[:n, n:]
        wins += list((r < r.diagonal()[:, None])[~np.eye(n, dtype=bool)])
        hits += list(r.argmax(1) == np.arange(n))
    assert scores.ranked()[:2, 0].tolist() == pytest.approx([np.mean(wins), np.mean(hits)])
    assert float(scores.merge(scores).ranked()[1, 0]) == pytest.approx(np.mean(hits))


def test_retrieval_of_equal_predictions_fails() -> None:
    true = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32))
    scores = ValidationScores()
    scores.add(torch.ones(1, 6, 9), true)
    assert scores.summary()["retrieval"] == scores.summary()["brain_retrieval"] == 0
    perfect = ValidationScores()
    perfect.add(true[None], true)
    assert perfect.summary()["retrieval"] == perfect.summary()["brain_retrieval"] == 1


def test_merged_scores_hold_the_columns_of_both() -> None:
    rng = np.random.default_rng(0)
    true, predicted = (torch.from_numpy(rng.normal(size=(8, 10)).astype(np.float32)) for _ in range(2))
    whole, parts = ValidationScores(), [ValidationScores(), ValidationScores()]
    whole.add(predicted[None], true)
    for part, columns in zip(parts, (slice(0, 4), slice(4, 10)), strict=True):
        part.add(predicted[None, :, columns], true[:, columns])
    merged = ValidationScores().merge(parts[0]).merge(parts[1])
    assert merged.summary() == pytest.approx(whole.summary(), abs=1e-5)
    np.testing.assert_allclose(merged.column_correlation(), whole.column_correlation(), atol=1e-6)


def test_flat_columns_correlate_with_nothing() -> None:
    voxels, targets = brain_of_unequal_columns(60, 30)
    targets[:, 3] = 2.5
    mapper = fitted(mapper_settings(alpha_per="column"), one_fold(voxels, targets, 45))
    assert mapper.state()["validation_correlation"][3] == 0
    assert mapper.state()["validation_correlation"][0] > 0.5
    np.testing.assert_allclose(mapper.predict(voxels)[:, 3], 2.5, atol=1e-5)


# ---- columns left out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["group", "column"])
def test_columns_left_out_are_predicted_as_zero_and_change_nothing_else(per: str, tmp_path: Path) -> None:
    voxels, targets = brain_of_unequal_columns(60, 90)
    kept = np.array([0, 1, 1, 0, 0, 0, 1, 0, 1], bool)
    groups = (Group("a", 0, 3), Group("none kept", 3, 6), Group("c", 6, 9))
    config = mapper_settings(alphas=ALPHAS, alpha_per=per, folds=4)
    mapper = Ridge(config)
    mapper.keep_columns(kept)
    mapper.fit(one_fold(voxels, targets, 45, groups))
    few = fitted(config, one_fold(voxels, targets[:, kept], 45, (Group("a", 0, 2), Group("c", 2, 4))))
    predicted = mapper.predict(voxels)
    np.testing.assert_array_equal(predicted[:, kept], few.predict(voxels))
    assert not predicted[:, ~kept].any()
    assert mapper.details() == few.details()
    np.testing.assert_array_equal(mapper.kept, kept)  # type: ignore[arg-type]
    assert mapper.state()["kept"].dtype == np.uint8
    assert mapper.state()["validation_correlation"].shape == (9,)
    path = saved(tmp_path, mapper, config)
    again = load(path, ORIGIN, "nd train")
    np.testing.assert_array_equal(again.predict(voxels), predicted)
    np.testing.assert_array_equal(again.kept, kept)  # type: ignore[arg-type]


def test_all_columns_are_kept_by_default() -> None:
    assert fitted(mapper_settings(), one_fold(*noisy_brain(40, 20, 5), 30)).kept is None


# ---- streaming -----------------------------------------------------------------------------------------------------


ORIGIN = Origin(
    subject="subj01", roi="all", n_voxels=90, mask_hash="m", split_hash="s", fold=0,
    target="z", target_fingerprint="f",
)  # fmt: skip


def saved(folder: Path, mapper: Ridge, config: MapperConfig) -> Path:
    path = checkpoint_path(folder, 0)
    save(path, mapper, config, ORIGIN, (9,))
    return path


class Watched(Table):
    """Remembers how many numbers it was asked for at once."""

    most = 0

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        self.most = max(self.most, len(ids) * (stop - start))
        return super().columns(ids, start, stop)


@pytest.mark.parametrize("config", [
    mapper_settings(alphas=ALPHAS, folds=4),
    mapper_settings(alphas=ALPHAS, folds=4, alpha_per="column", rescale="train"),
    mapper_settings(alphas=ALPHAS, voxel_power=1.0),
])  # fmt: skip
def test_targets_come_in_blocks_and_large_arrays_go_to_files(
    config: MapperConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels, targets = brain_of_unequal_columns(60, 90, 300)
    data = one_fold(voxels, targets, 45)
    whole = fitted(config, data)
    monkeypatch.setattr(arrays, "LARGE_BYTES", 0)
    monkeypatch.setattr(base, "BLOCK_NUMBERS", 60 * 7)
    watched = Watched(targets)
    streamed = fitted(config, replace(data, targets=watched), tmp_path / "scratch")
    assert watched.most <= 60 * 7
    assert isinstance(streamed.state()["coefficients"], np.memmap)
    assert Path(streamed.state()["coefficients"].filename).parent == tmp_path / "scratch"  # type: ignore[attr-defined]
    np.testing.assert_allclose(streamed.predict(voxels), whole.predict(voxels), rtol=1e-4, atol=1e-3)
    assert streamed.details()["scores"] == pytest.approx(whole.details()["scores"], abs=1e-4)
    if "alpha" in whole.state():
        np.testing.assert_array_equal(streamed.state()["alpha"], whole.state()["alpha"])


def test_checkpoint_is_read_where_it_is_used(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    voxels, targets = brain_of_unequal_columns(60, 90, 300)
    config = mapper_settings(alphas=ALPHAS, alpha_per="column", folds=4)
    mapper = fitted(config, one_fold(voxels, targets, 45))
    path = saved(tmp_path, mapper, config)
    found, mapped = load_file(path), load(path, ORIGIN, "nd train").state()
    assert found.keys() == mapped.keys() == mapper.state().keys()
    for name, values in mapper.state().items():
        for other in (found[name], mapped[name]):
            assert other.dtype == values.dtype
            np.testing.assert_array_equal(other, values)
    assert not mapped["coefficients"].flags.owndata
    assert not mapped["coefficients"].flags.writeable
    assert path.stat().st_mode & 0o044 == (tmp_path / "checkpoint" / "fold-00.json").stat().st_mode & 0o044


def test_arrays_of_every_kind_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import load_file

    monkeypatch.setattr(arrays, "PIECE_BYTES", 40)  # several pieces
    rng = np.random.default_rng(0)
    given = {
        "double": rng.normal(size=(3, 5)), "mask": rng.random(11) > 0.5, "turned": rng.normal(size=(9, 4)).T,
        "byte": np.arange(7, dtype=np.uint8), "alone": np.float32(3.5), "none": np.empty((0, 4), np.float32),
        "long": np.arange(-3, 3), "half": rng.normal(size=(2, 3, 4)).astype(np.float16),
    }  # fmt: skip
    arrays.write_arrays(tmp_path / "a", {name: np.asarray(values) for name, values in given.items()})
    for read in (load_file, arrays.read_arrays):
        found = read(tmp_path / "a")
        assert found.keys() == given.keys()
        for name, values in given.items():
            assert found[name].dtype == np.asarray(values).dtype
            np.testing.assert_array_equal(found[name], values)
            assert found[name].flags.aligned


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    given = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(3, dtype=np.uint8)}
    save_file(given, tmp_path / "a", metadata={"format": "np"})
    found = arrays.read_arrays(tmp_path / "a")
    assert found.keys() == given.keys()
    for name, values in given.items():
        np.testing.assert_array_equal(found[name], values)


def test_longer_checkpoint_than_its_header_says_is_damaged(tmp_path: Path) -> None:
    mapper = fitted(mapper_settings(), one_fold(*noisy_brain(40, 90, 9), 30))
    path = saved(tmp_path, mapper, mapper_settings())
    with open(path, "ab") as handle:
        handle.write(b"more")
    with pytest.raises(UserError, match="is damaged"):
        load(path, ORIGIN, "nd train")


def test_scratch_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays, "LARGE_BYTES", 0)
    monkeypatch.setattr(arrays.os, "posix_fallocate", full)
    message = (
        r"cannot make .*1\.array of .* GB: No space left on device\. Free some space or choose another paths\.runs"
    )
    with pytest.raises(UserError, match=message):
        fitted(mapper_settings(), one_fold(*noisy_brain(40, 20, 5), 30), tmp_path / "scratch")


def test_scratch_goes_whatever_happens(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "old").touch()

    def stopped() -> None:
        with arrays.scratch_folder(tmp_path) as folder:
            assert not folder.exists()  # what a killed run left is gone
            folder.mkdir()
            (folder / "1.array").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not (tmp_path / "scratch").exists()
