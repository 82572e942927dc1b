"""Choice of the columns that are kept, and predictions that are given mean and spread of the training targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_config import mapper_settings
from helpers_linear import Table, noisy_brain, one_fold, package_predict, z_scored
from numpy.typing import NDArray
from sklearn import linear_model
from sklearn.model_selection import KFold

from nd.config import Config, MapperConfig
from nd.config.application import compose, derive
from nd.data.prepared import mean_betas, open_subject, split_of
from nd.errors import UserError
from nd.extract import extract
from nd.generate.inputs import PredictedFeatures
from nd.mappers import selected_columns
from nd.mappers.base import FoldData, Group
from nd.mappers.selected_columns import Moments, best_columns, correlation, held_out_folds, select_columns
from nd.mappers.statistics import TargetStatistics, column_statistics, statistics_path
from nd.predict import predict
from nd.prepare import prepare
from nd.runs.folder import RunFolder
from nd.targets.store import TargetStore, store_path
from nd.train import train

GROUPS = (Group("one", 0, 8), Group("other", 8, 20))
N_TRAIN, N_VAL, N_TEST = 30, 8, 6


def hard_brain(seed: int = 0) -> tuple[Any, Any]:
    """70 images of which some columns can be decoded, and some cannot."""
    voxels, targets = noisy_brain(70, 40, 20, noise=2.0, seed=seed)
    targets[:, ::3] = np.random.default_rng(9).normal(size=(70, 7))
    return voxels, targets


def loop_of_fits(
    kind: str, voxels: Any, targets: Any, n_folds: int, penalties: dict[int, float], absolute: bool
) -> NDArray[np.float64]:
    """Mean correlation of every column over held-out folds, by scikit-learn or the fastl2lir package."""
    scores = []
    for k, (rest, held) in enumerate(KFold(n_folds).split(voxels)):
        if kind == "ridge":
            model = linear_model.Ridge(alpha=penalties[k]).fit(z_scored(voxels[rest], voxels[rest]), targets[rest])
            predicted = model.predict(z_scored(voxels[rest], voxels[held]))
        else:
            predicted = package_predict(voxels[rest], targets[rest], voxels[held], 12, penalties[k])
        r = [np.corrcoef(predicted[:, j], targets[held, j])[0, 1] for j in range(targets.shape[1])]
        scores.append(np.abs(r) if absolute else r)
    return np.mean(scores, 0)


def best_of(scores: Any, keep: float, groups: tuple[Group, ...] = GROUPS) -> NDArray[np.bool_]:
    return np.concatenate([scores[g.start : g.stop] >= np.quantile(scores[g.start : g.stop], 1 - keep) for g in groups])


# ---- choice of columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["nd", "released"])
@pytest.mark.parametrize("kind", ["ridge", "fastl2lir"])
def test_keeps_the_columns_that_an_explicit_loop_keeps(kind: str, variant: str) -> None:
    voxels, targets = hard_brain()
    config = mapper_settings(
        name=kind, variant=variant, alphas=[40.0], n_feat=12, penalty=40.0, keep=0.25, keep_folds=4
    )
    found = select_columns(config, one_fold(voxels, targets, 57, GROUPS))
    scores = loop_of_fits(kind, voxels[:57], targets[:57], 4, dict.fromkeys(range(4), 40.0), variant == "released")
    np.testing.assert_array_equal(found, best_of(scores, 0.25))
    assert found[:8].sum() == 2
    assert found[8:].sum() == 3


def test_a_column_predicted_backwards_is_kept_by_released_code_alone() -> None:
    voxels, targets = noisy_brain(70, 40, 20, noise=0.5)
    targets[:, 2:] = np.random.default_rng(9).normal(size=(70, 18))
    targets[25:50, 0] *= -1  # well decoded within each fold, but for a sign that the other fold has not
    config = mapper_settings(alphas=[40.0], keep=0.25, keep_folds=2)
    data = one_fold(voxels, targets, 50, (Group("all", 0, 20),))
    masks = {v: select_columns(mapper_settings(**{**vars(config), "variant": v}), data) for v in ("nd", "released")}
    assert masks["released"][:2].tolist() == [True, True]
    assert masks["nd"][:2].tolist() == [False, True]


@pytest.mark.parametrize("folds", [0, 3])
def test_penalty_is_chosen_within_each_fit(folds: int) -> None:
    """On the validation images, or over folds of the images fitted on; never on those left out."""
    voxels, targets = hard_brain()
    alphas = [1.0, 30.0, 300.0, 3e3, 3e4]
    config = mapper_settings(alphas=alphas, folds=folds, keep=0.25, keep_folds=4)
    penalties = {}
    for k, (rest, _) in enumerate(KFold(4).split(voxels[:57])):
        ranks = np.arange(len(rest))
        cuts = [(rest[ranks % 3 != i], rest[ranks % 3 == i]) for i in range(3)] if folds else [(rest, np.r_[57:70])]
        errors = np.zeros(len(alphas))
        for fitted, held in cuts:
            x, new = z_scored(voxels[fitted], voxels[fitted]), z_scored(voxels[fitted], voxels[held])
            for i, alpha in enumerate(alphas):
                model = linear_model.Ridge(alpha=alpha).fit(x, targets[fitted])
                errors[i] += ((model.predict(new) - targets[held]) ** 2).sum()
        penalties[k] = alphas[int(errors.argmin())]
    scores = loop_of_fits("ridge", voxels[:57], targets[:57], 4, penalties, absolute=False)
    group = (Group("all", 0, 20),)
    found = select_columns(config, one_fold(voxels, targets, 57, group))
    np.testing.assert_array_equal(found, best_of(scores, 0.25, group))


@pytest.mark.parametrize("config", [mapper_settings(name="fastl2lir", n_feat=12), mapper_settings(folds=3)])
def test_validation_images_do_not_choose_columns(config: MapperConfig) -> None:
    config.keep = 0.25
    voxels, targets = hard_brain()
    before = select_columns(config, one_fold(voxels, targets, 57, GROUPS))
    voxels[57:], targets[57:] = voxels[57:] * 3 + 1, -targets[57:]
    np.testing.assert_array_equal(select_columns(config, one_fold(voxels, targets, 57, GROUPS)), before)


def test_scratch_is_left_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("nd.mappers.arrays.LARGE_BYTES", 100)
    monkeypatch.setattr(
        selected_columns,
        "correlation",
        lambda *given: made.append(list((tmp_path / "room" / "columns").iterdir())) or correlation(*given),
    )
    config, data = mapper_settings(name="fastl2lir", n_feat=12, keep=0.25), one_fold(*hard_brain(), 57, GROUPS)
    inside = select_columns(config, data, scratch=tmp_path / "room")
    assert made
    assert all(made)
    assert not any((tmp_path / "room").iterdir())
    monkeypatch.undo()
    np.testing.assert_array_equal(inside, select_columns(config, data))


def test_folds_are_those_of_sklearn_unshuffled() -> None:
    for n_images, n_folds in ((57, 4), (60, 5), (11, 5), (8859, 5)):
        wanted = [held for _, held in KFold(n_folds).split(np.zeros(n_images))]
        found = held_out_folds(n_images, n_folds)
        assert all(np.array_equal(np.r_[one], other) for one, other in zip(found, wanted, strict=True))


def test_more_folds_than_pairs_of_images() -> None:
    with pytest.raises(UserError, match=r"mapper.keep_folds=6 folds of 2 or more images .* from 11 training images"):
        held_out_folds(11, 6)


class Given:
    """A mapper whose predictions are known."""

    def __init__(self, predictions: NDArray[np.float32]) -> None:
        self.predictions = predictions

    def predict(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.predictions[voxels[:, 0].astype(int)]


def test_correlation_of_groups_of_images_and_columns_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    true = (rng.normal(size=(23, 11)) + 100).astype(np.float32)
    predicted = (0.5 * true + rng.normal(size=(23, 11))).astype(np.float32)
    predicted[:, 3], true[:, 7] = 0.1, 1 / 3
    monkeypatch.setattr(selected_columns, "BLOCK_NUMBERS", 5 * 11)
    numbers = np.arange(23, dtype=np.float32)[:, None]
    found = correlation(Given(predicted), numbers, np.arange(23, dtype=np.int32), Table(true))  # type: ignore[arg-type]
    for j in range(11):
        expected = 0 if j in (3, 7) else np.corrcoef(predicted[:, j], true[:, j])[0, 1]
        assert found[j] == pytest.approx(expected, abs=1e-6), j


def test_columns_without_spread_correlate_with_nothing() -> None:
    moments = Moments(3)
    moments.add(slice(0, 3), np.ones((4, 3), np.float32), np.arange(12, dtype=np.float32).reshape(4, 3))
    moments.n = 4
    np.testing.assert_array_equal(moments.correlation(), 0)


def test_best_columns_are_those_of_each_group() -> None:
    r = np.array([0.1, 0.2, 0.3, 0.4, -0.9, -0.8, -0.7, -0.6])
    mask = best_columns(r, (Group("a", 0, 4), Group("b", 4, 8)), 0.25)
    np.testing.assert_array_equal(mask, [0, 0, 0, 1, 0, 0, 0, 1])
    assert best_columns(r, (Group("a", 0, 8),), 1.0).all()
    assert best_columns(r, (Group("a", 0, 8),), 1e-6).sum() == 1


# ---- mean and spread of the training targets -------------------------------------------------------------------------


def training_statistics(seed: int = 0, size: int = 30) -> tuple[TargetStatistics, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(40, size)) * rng.uniform(0.01, 100, size) + 10 * rng.normal(size=size)
    targets = targets.astype(np.float32)
    return TargetStatistics.fit(Table(targets), np.arange(40)), targets


@pytest.mark.parametrize("block", [7, 1 << 22])
def test_predictions_get_mean_and_spread_of_the_training_targets(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nd.mappers.statistics.BLOCK_NUMBERS", block)
    statistics, targets = training_statistics()
    predicted = (0.01 * np.random.default_rng(1).normal(size=(25, 30)) + targets.mean(0)).astype(np.float32)
    given = statistics.given_to(predicted)
    assert given.dtype == np.float32
    spread = targets.std(0, dtype=float)
    np.testing.assert_allclose((given.mean(0, dtype=float) - targets.mean(0, dtype=float)) / spread, 0, atol=1e-5)
    np.testing.assert_allclose(given.std(0, dtype=float) / spread, 1, atol=1e-5)
    z = (predicted - predicted.mean(0, dtype=float)) / predicted.std(0, dtype=float)
    expected = z * spread + targets.mean(0, dtype=float)
    np.testing.assert_allclose(given, expected, atol=1e-5 * np.abs(expected).max())


def test_prediction_without_spread_becomes_the_training_mean() -> None:
    statistics, targets = training_statistics()
    predicted = np.random.default_rng(1).normal(size=(25, 30)).astype(np.float32)
    predicted[:, 3] = 1 / 3
    predicted[:, 4] = 5 + np.float32(5e-7) * (np.arange(25) % 2)  # what rounding leaves
    given = statistics.given_to(predicted)
    for column in (3, 4):
        np.testing.assert_allclose(given[:, column], targets[:, column].mean(dtype=float), rtol=1e-6)


def test_target_without_spread_is_predicted_as_its_mean() -> None:
    targets = np.full((40, 2), 1 / 3, np.float32)
    statistics = TargetStatistics.fit(Table(targets), np.arange(40))
    np.testing.assert_array_equal(statistics.std, 0)
    given = statistics.given_to(np.random.default_rng(1).normal(size=(25, 2)).astype(np.float32))
    np.testing.assert_allclose(given, 1 / 3, rtol=1e-6)
    assert column_statistics(targets)[1].tolist() == [0, 0]


def test_one_prediction_has_no_spread() -> None:
    with pytest.raises(UserError, match=r"mapper.rescale=test .* which 1 image\(s\) do not have. Predict at least 2"):
        training_statistics()[0].given_to(np.zeros((1, 30), np.float32))


def test_statistics_are_read_back_or_missed(tmp_path: Path) -> None:
    statistics, path = training_statistics()[0], statistics_path(tmp_path / "fold-00.safetensors")
    statistics.save(path)
    assert path.name == "fold-00-targets.safetensors"
    found = TargetStatistics.load(path, "nd train")
    np.testing.assert_array_equal(found.mean, statistics.mean)
    np.testing.assert_array_equal(found.std, statistics.std)
    path.write_bytes(path.read_bytes()[:40])
    for reason in ("damaged", "absent"):
        with pytest.raises(UserError, match=r"mapper.rescale needs, cannot be read .*run: nd train target=z"):
            TargetStatistics.load(path, "nd train target=z")
        path.unlink(missing_ok=True), reason


# ---- through the verbs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One subject and small images, which are also the target."""
    root = tmp_path_factory.mktemp("columns")
    sizes = [f"data.n_train={N_TRAIN}", f"data.n_val={N_VAL}", f"data.n_test={N_TEST}", "data.n_voxels=60"]
    given = [*sizes, "data.image_size=32", "data.subjects=[subj01]", f"paths.root={root}", "method=ridge_pixels"]
    given += ["trainer.accelerator=cpu", "trainer.progress=false", "target=pixels"]
    prepare(compose(given))
    extract(compose(given))
    return given


def predicted_by(world: list[str], tmp_path: Path, *overrides: str) -> tuple[Config, dict[str, Any]]:
    cfg = compose([*world, f"paths.runs={tmp_path / 'runs'}", *overrides])
    train(derive(cfg, "target=pixels"))
    with h5py.File(predict(cfg) / "predictions.h5") as file:
        found = {"pixels": file["pixels"][()].reshape(len(file["image_id"]), -1)}
        return cfg, found | {"kept": file["kept/pixels"][()] if "kept" in file else None}


def targets_of(cfg: Config, ids: NDArray[Any]) -> NDArray[np.float32]:
    return TargetStore(store_path(cfg, "pixels")).rows(ids).reshape(len(ids), -1)


MAPPERS = [["mapper=ridge"], ["mapper=fastl2lir", "mapper.n_feat=20"]]


@pytest.mark.parametrize("mapper", MAPPERS)
def test_columns_kept_are_recorded_and_the_others_are_zero(mapper: list[str], world: list[str], tmp_path: Path) -> None:
    cfg, found = predicted_by(world, tmp_path, *mapper, "mapper.keep=0.25")
    kept, size = found["kept"], 3 * 32 * 32
    assert kept.dtype == bool
    assert kept.shape == (1, size)
    assert size / 4 <= kept.sum() < size / 4 + 2
    assert (found["pixels"][:, ~kept[0]] == 0).all()
    assert (found["pixels"][:, kept[0]].std(0) > 0).all()
    source = PredictedFeatures(predict(cfg) / "predictions.h5")
    assert source.rows("pixels", split_of(cfg).test_ids[:2]).shape == (2, 32, 32, 3)
    fold = split_of(cfg).folds[0]
    store = TargetStore(store_path(cfg, "pixels"), allowed_ids=fold.seen)
    voxels = [mean_betas(open_subject(cfg), ids) for ids in (fold.train, fold.val)]
    data = FoldData(*voxels, fold.train, fold.val, store, (Group("pixels", 0, size),))
    np.testing.assert_array_equal(select_columns(cfg.mapper, data), kept[0])


@pytest.mark.parametrize("mapper", MAPPERS)
def test_everything_kept_leaves_no_record(mapper: list[str], world: list[str], tmp_path: Path) -> None:
    assert predicted_by(world, tmp_path, *mapper)[1]["kept"] is None


@pytest.mark.parametrize("mapper", MAPPERS)
@pytest.mark.parametrize(("part", "refit"), [("test", "true"), ("test", "false"), ("val", "false")])
def test_rescaled_predictions_vary_as_the_training_targets(
    mapper: list[str], part: str, refit: str, world: list[str], tmp_path: Path
) -> None:
    given = ["mapper.variant=released", "mapper.rescale=test", f"part={part}", f"mapper.refit={refit}"]
    cfg, found = predicted_by(world, tmp_path, *mapper, *given)
    fold = split_of(cfg).folds[0]
    targets = targets_of(cfg, fold.seen if refit == "true" else fold.train).astype(float)
    values = found["pixels"].astype(float)
    np.testing.assert_allclose(values.mean(0), targets.mean(0), atol=1e-5)
    np.testing.assert_allclose(values.std(0), targets.std(0), atol=1e-5)
    plain = predicted_by(world, tmp_path, *mapper, f"part={part}", f"mapper.refit={refit}")[1]["pixels"].astype(float)
    z = (plain - plain.mean(0)) / plain.std(0)
    np.testing.assert_allclose(values, z * targets.std(0) + targets.mean(0), atol=1e-4)


def test_rescaled_predictions_are_zero_where_not_kept(world: list[str], tmp_path: Path) -> None:
    given = ["mapper.variant=released", "mapper.rescale=test", "mapper.keep=0.25", *MAPPERS[1]]
    found = predicted_by(world, tmp_path, *given)[1]
    assert (found["pixels"][:, ~found["kept"][0]] == 0).all()
    assert (found["pixels"][:, found["kept"][0]].std(0) > 0.01).all()


WEAK = [*MAPPERS[0], "mapper.alphas=[1]"]  # a penalty chosen for so few images shrinks all to the mean


@pytest.mark.parametrize("mapper", [WEAK, MAPPERS[1], [*MAPPERS[1], "mapper.keep=0.25"]])
def test_spread_is_a_factor_on_the_distance_to_the_training_mean(
    mapper: list[str], world: list[str], tmp_path: Path
) -> None:
    cfg, found = predicted_by(world, tmp_path, *mapper, "mapper.spread=1.5")
    plain, before = predicted_by(world, tmp_path, *mapper)
    assert RunFolder.open(cfg, "train").path == RunFolder.open(plain, "train").path
    assert RunFolder.open(cfg, "predict").path != RunFolder.open(plain, "predict").path
    mean, values = targets_of(cfg, split_of(cfg).folds[0].seen).mean(0), before["pixels"]
    wanted = mean + 1.5 * (values - mean)
    kept = np.ones(wanted.shape[1], bool) if found["kept"] is None else found["kept"][0]
    np.testing.assert_allclose(found["pixels"][:, kept], wanted[:, kept], atol=1e-5)
    assert (found["pixels"][:, ~kept] == 0).all()
    assert np.abs(wanted - values).max() > 0.01


@pytest.mark.parametrize("value", ["0", "-1", "inf"])
def test_a_spread_that_is_none(value: str) -> None:
    with pytest.raises(UserError, match=r"mapper.spread: \S+ was given, wanted a (positive|finite) number"):
        compose([f"mapper.spread={value}"])


def test_rescaled_results_are_marked_as_transductive(world: list[str], tmp_path: Path) -> None:
    cfg, _ = predicted_by(world, tmp_path, "mapper.variant=released", "mapper.rescale=test")
    assert cfg.transductive
    assert RunFolder.open(cfg, "predict").manifest["transductive"]
    plain, _ = predicted_by(world, tmp_path, "mapper.variant=released")
    assert not plain.transductive
    assert not RunFolder.open(plain, "predict").manifest["transductive"]
    assert compose([*world, "data.variant=released", "data.test_scaling=own"]).transductive
