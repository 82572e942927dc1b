"""The verbs extract, train and predict on a small Scenes data set and an untrained backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_backbone import IMAGE_SIZE
from helpers_files import edited
from numpy.typing import NDArray
from safetensors.numpy import load_file

import nd.data.prepared
from nd import predict as predict_verb
from nd.config import BackboneConfig, Config
from nd.config.application import compose, derive
from nd.data.prepared import Subject, mean_betas, open_subject, split_of, subject_path, write_subject
from nd.data.splits import Fold, Split, get_split
from nd.errors import LeakError, UserError
from nd.extract import extract
from nd.mappers import folds
from nd.mappers.ridge import Ridge
from nd.predict import predict
from nd.prepare import prepare
from nd.reconstruct import feature_source
from nd.runs.folder import RunFolder
from nd.targets.store import TargetStore, store_path
from nd.train import train

N_TRAIN, N_VAL, N_TEST = 40, 10, 6


@pytest.fixture(scope="module")
def overrides(tiny_backbone_config: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A data set of 46 small images and one subject of about 100 voxels, with all targets extracted."""
    root = tmp_path_factory.mktemp("chain")
    backbone = [f"backbone.{f}={getattr(tiny_backbone_config, f)}" for f in ("weights", "image_tower")]
    sizes = [f"{name}={IMAGE_SIZE}" for name in ("backbone.image_size", "backbone.tower_size")]
    data = [f"data.n_train={N_TRAIN}", f"data.n_val={N_VAL}", f"data.n_test={N_TEST}", "data.n_voxels=100"]
    data.append("data.image_size=32")
    common = [
        "method=neuraldiffuser_ridge",
        "data.subjects=[subj01]",
        f"paths.root={root}",
        "trainer.progress=false",
        "trainer.accelerator=cpu",
    ]
    given = [*backbone, *sizes, *data, *common]
    prepare(compose(given))
    for target in ("z", "c", "g", "pixels"):
        extract(compose([*given, f"target={target}"]))
    return given


@pytest.fixture
def cfg(overrides: list[str], tmp_path: Path) -> Config:
    """The data set with run folders of the test's own."""
    return compose([*overrides, f"paths.runs={tmp_path / 'runs'}"])


def train_all(cfg: Config) -> None:
    for target in cfg.method.targets:
        train(derive(cfg, f"target={target}"))


def predictions(cfg: Config) -> dict[str, NDArray[Any]]:
    with h5py.File(predict(cfg) / "predictions.h5") as file:
        return {name: values[()] for name, values in file.items() if isinstance(values, h5py.Dataset)}


def test_chain_predicts_every_target_of_the_test_images(cfg: Config) -> None:
    train_all(cfg)
    found = predictions(cfg)
    np.testing.assert_array_equal(found["image_id"], np.arange(N_TRAIN, N_TRAIN + N_TEST))
    assert found["image_id"].dtype == np.int32
    assert (found["fold"] == 0).all()
    shapes = {"z": (4, 4, 4), "c": (8, 16), "g": (6, 17, 16)}
    assert {name: found[name].shape for name in shapes} == {name: (N_TEST, *shape) for name, shape in shapes.items()}
    assert all(found[name].dtype == np.float32 for name in shapes)


def test_second_call_does_nothing_and_says_so(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    train_all(cfg)
    predict(cfg)
    before = {path: path.stat().st_mtime_ns for path in Path(cfg.paths.runs).rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    train_all(cfg)
    predict(cfg)
    extract(cfg)
    assert capsys.readouterr().out.count("nothing to do") == 5
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_predictions_belong_to_their_images(cfg: Config) -> None:
    """The same rows come out when every image is predicted alone by the checkpoint."""
    one = derive(cfg, "method=ridge_pixels")
    path = train(derive(one, "target=pixels"))
    found = predictions(one)
    subject, split = Subject(subject_path(cfg)), get_split(cfg.data)
    origin = folds.origin_of(
        derive(cfg, "target=pixels"), subject, split, 0, TargetStore(store_path(one, "pixels")).fingerprint
    )
    for row, image in enumerate(found["image_id"]):
        alone = folds.predict_fold(path, origin, mean_betas(subject, np.array([image])), "nd train")
        np.testing.assert_allclose(found["pixels"][row], alone[0], atol=1e-5)


def test_store_of_a_target_is_the_same_for_every_verb(cfg: Config) -> None:
    for target in ("z", "c", "g", "pixels"):
        assert store_path(cfg, target) == store_path(derive(cfg, f"target={target}"))


# ---- test images stay out of reach -----------------------------------------------------------------------------------


def test_targets_of_test_images_cannot_be_reached_while_training(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def peek(self: Ridge, data: Any, scratch: Any) -> None:
        data.targets.columns(np.array([N_TRAIN]), 0, 1)  # the first test image

    monkeypatch.setattr(Ridge, "fit", peek)
    with pytest.raises(LeakError, match=f"first: image {N_TRAIN}"):
        train(cfg)
    assert not list(Path(cfg.paths.runs).rglob("*.safetensors"))


def test_voxels_and_targets_of_test_images_change_no_byte_of_a_checkpoint(cfg: Config, tmp_path: Path) -> None:
    honest = train(derive(cfg, "target=g")) / "checkpoint"
    for folder in ("data", "cache"):
        shutil.copytree(getattr(cfg.paths, folder), tmp_path / folder)
    other = derive(cfg, "target=g", *(f"paths.{name}={tmp_path / name}" for name in ("data", "cache")))
    other.paths.runs = str(tmp_path / "other")
    with edited(subject_path(other)) as file:
        rows = file["image_id"][()] >= N_TRAIN
        voxels = file["voxels"][()]
        voxels[rows] = 1e3
        file["voxels"][...] = voxels
    with edited(store_path(other)) as file:
        assert (file["image_id"][N_TRAIN:] >= N_TRAIN).all()
        file["features"][N_TRAIN:] = -1e3
    corrupted = train(other) / "checkpoint"
    names = sorted(path.name for path in honest.iterdir())
    assert names == ["fold-00.json", "fold-00.safetensors"]
    assert all((honest / name).read_bytes() == (corrupted / name).read_bytes() for name in names)


# ---- controls and parts ----------------------------------------------------------------------------------------------


def test_shuffled_control_gives_every_image_the_prediction_of_another(cfg: Config) -> None:
    train_all(cfg)
    straight, shuffled = predictions(cfg), predictions(derive(cfg, "control=shuffled_voxels"))
    np.testing.assert_array_equal(straight["image_id"], shuffled["image_id"])
    order = folds.derangement(cfg.seed, 0, N_TEST)
    for name in ("z", "c", "g"):
        np.testing.assert_allclose(shuffled[name], straight[name][order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_images", [2, 3, 10, 200])
def test_derangement_moves_every_image(n_images: int) -> None:
    order = folds.derangement(7, 0, n_images)
    assert sorted(order) == list(range(n_images))
    assert (order != np.arange(n_images)).all()
    np.testing.assert_array_equal(order, folds.derangement(7, 0, n_images))


def test_derangement_follows_seed_and_fold_and_needs_two_images() -> None:
    assert (folds.derangement(7, 0, 50) != folds.derangement(7, 1, 50)).any()
    assert (folds.derangement(7, 0, 50) != folds.derangement(8, 0, 50)).any()
    with pytest.raises(UserError, match="at least 2 images in fold 3, which has 1"):
        folds.derangement(7, 3, 1)


def test_validation_part_is_predicted_without_refit(cfg: Config) -> None:
    val = derive(cfg, "part=val", "mapper.refit=false")
    train_all(val)
    np.testing.assert_array_equal(predictions(val)["image_id"], get_split(cfg.data).folds[0].val)


# ---- several folds, interruption -------------------------------------------------------------------------------------


@pytest.fixture
def two_folds(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> Split:
    """A cross-validation in place of the single fold: the second fold tests on what the first one trains on."""
    (only,) = get_split(cfg.data).folds
    test, rest = only.train[:4], np.setdiff1d(np.arange(N_TRAIN + N_TEST), only.train[:4])
    swapped = Fold(train=rest[8:], val=rest[:8], test=test)
    split = Split("scenes", (only, swapped), "two-folds")
    monkeypatch.setattr(nd.data.prepared, "get_split", lambda data: split)
    return split


def test_every_fold_is_predicted_by_its_own_mapper(cfg: Config, two_folds: Split) -> None:
    train_all(cfg)
    found = predictions(cfg)
    np.testing.assert_array_equal(found["image_id"], np.concatenate([f.test for f in two_folds.folds]))
    np.testing.assert_array_equal(found["fold"], [0] * N_TEST + [1] * 4)


def test_interrupted_training_keeps_finished_folds(
    cfg: Config, two_folds: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, calls = Ridge.fit, []

    def fail_second(self: Ridge, data: Any, scratch: Any) -> None:
        calls.append(len(data.train_ids))
        if len(calls) == 2:
            raise KeyboardInterrupt
        fit(self, data, scratch)

    monkeypatch.setattr(Ridge, "fit", fail_second)
    with pytest.raises(KeyboardInterrupt):
        train(cfg)
    assert RunFolder.open(cfg, "train").status == "failed"
    train(cfg)
    assert len(calls) == 3  # fold 0 once, fold 1 twice
    assert RunFolder.open(cfg, "train").done


# ---- what can go wrong -----------------------------------------------------------------------------------------------


def test_predict_before_train_names_the_command(cfg: Config) -> None:
    with pytest.raises(UserError, match=r"has not been run\. Run: nd train .*target=z"):
        predict(cfg)
    assert not Path(cfg.paths.runs).exists()


def test_train_before_extract_names_the_command(cfg: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Run: nd extract target=z"):
        train(derive(cfg, f"paths.cache={tmp_path / 'nothing'}"))
    assert not Path(cfg.paths.runs).exists()


def test_another_number_of_voxels_is_one_message_and_exit_code_2(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cfg.paths.data, tmp_path / "data")
    other = derive(cfg, f"paths.data={tmp_path / 'data'}")
    train_all(other)
    subject = Subject(subject_path(other))
    n_all = subject.n_voxels
    kept = np.arange(n_all - 7)
    trials = {name: getattr(subject, name) for name in ("image_id", "session", "repeat", "trial")}
    write_subject(
        subject_path(other),
        voxels=subject.voxels(np.arange(len(subject.image_id)))[:, kept],
        ijk=subject.ijk[kept],
        rois={name: mask[kept] for name, mask in subject.rois.items()},
        attributes=subject.attributes,
        **trials,
    )
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        predict_verb.main(other.overrides)
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"was trained on {n_all} voxels of subj01 (subject.roi=all)" in message
    assert f"has {n_all - 7}. Train for these settings: nd train" in message
    assert message.count("\n") == 1
    assert not (Path(cfg.paths.runs) / "predict").exists()


def test_other_weights_than_those_trained_for(cfg: Config, tmp_path: Path) -> None:
    shutil.copytree(cfg.backbone.weights, tmp_path / "weights")
    other = derive(cfg, f"backbone.weights={tmp_path / 'weights'}")
    train_all(cfg)
    predict(other)  # the same contents elsewhere are the same weights
    (tmp_path / "weights" / "vae" / "config.json").open("a", encoding="utf-8").write("\n")
    with pytest.raises(UserError, match=r"was trained on features .* of target 'z', but the present backbone"):
        predict(other)
    feature_source(cfg, cfg.method.targets)
    with pytest.raises(UserError, match=r"weights/vae/config.json has other contents than the file this run read"):
        feature_source(other, other.method.targets)


def test_test_voxels_scaled_by_their_own_statistics(overrides: list[str], tmp_path: Path) -> None:
    """As released code does it: marked as transductive, and what the plain formula gives."""
    weak = "mapper.alphas=[1]"  # so few trials are shrunk to almost nothing otherwise
    given = [*overrides, f"paths.runs={tmp_path / 'runs'}", "method=vae", weak]
    cfg = compose([*given, "data.variant=released", "data.test_scaling=own"])
    train_all(cfg)
    found = predictions(cfg)["z"].reshape(N_TEST, -1)
    voxels = mean_betas(open_subject(cfg), split_of(cfg).test_ids).astype(np.float64)
    z_scored = (voxels - voxels.mean(0)) / voxels.std(0)
    (path,) = (tmp_path / "runs" / "train").rglob("fold-00.safetensors")
    arrays = load_file(path)
    weights = arrays["weights"] if "weights" in arrays else arrays["directions"] @ arrays["coefficients"]
    np.testing.assert_allclose(found, z_scored @ weights + arrays["target_mean"], atol=2e-4)
    run = RunFolder.open(cfg, "predict")
    assert run.manifest["transductive"]
    plain = compose(given)
    train_all(plain)
    assert not np.allclose(predictions(plain)["z"].reshape(N_TEST, -1), found, atol=1e-3)
    assert not RunFolder.open(plain, "predict").manifest["transductive"]


# ---- recipes: every target its own mapper, ROI and trials


RECIPE = {
    "z": ["mapper=ridge", "mapper.alphas=[5]"],
    "c": ["mapper=fastl2lir", "mapper.n_feat=20", "subject.roi=V1+V2"],
    "g": ["mapper=ridge", "mapper.alphas=[70]", "mapper.trials=single", "mapper.keep=0.5", "mapper.keep_folds=2"],
}
WRITTEN = (
    "method.targets={z:{mapper:{name:ridge,alphas:[5]}},"
    "c:{roi:V1+V2,mapper:{name:fastl2lir,n_feat:20}},"
    "g:{mapper:{name:ridge,alphas:[70],trials:single,keep:0.5,keep_folds:2}}}"
)


def test_a_recipe_predicts_what_a_command_for_each_target_does(overrides: list[str], tmp_path: Path) -> None:
    whole = compose([*overrides, "method=nearest_image", WRITTEN, f"paths.runs={tmp_path / 'whole'}"])
    for name in RECIPE:
        train(whole.with_target(name))
    together = predictions(whole)
    for name, own in RECIPE.items():
        given = [*overrides, "method=nearest_image", f"method.targets=[{name}]", *own, f"paths.runs={tmp_path / 'one'}"]
        train(compose([*given, f"target={name}"]))
        np.testing.assert_array_equal(together[name], predictions(compose(given))[name])


def test_single_trials_are_fitted_and_chosen_by_image(overrides: list[str], tmp_path: Path) -> None:
    """The plain formula over all trials, with folds that never part the trials of an image."""
    given = [*overrides, "method=vae", "mapper.trials=single", "mapper.folds=4", "mapper.alphas=[3,30,300]"]
    cfg = compose([*given, "target=z", f"paths.runs={tmp_path}"])
    train(cfg)
    (path,) = tmp_path.rglob("fold-00.json")
    subject, split = open_subject(cfg), split_of(cfg)
    rows = np.flatnonzero(np.isin(subject.image_id, split.folds[0].seen))
    x, ids = subject.voxels(rows).astype(np.float64), subject.image_id[rows]
    y = TargetStore(store_path(cfg)).rows(ids).reshape(len(ids), -1).astype(np.float64)
    fold = np.unique(ids, return_inverse=True)[1] % 4

    def predicted(fit: Any, at: Any, alpha: float) -> NDArray[Any]:
        mean, sd = x[fit].mean(0), x[fit].std(0)
        a, b, centre = (x[fit] - mean) / sd, (x[at] - mean) / sd, y[fit].mean(0)
        weights = np.linalg.solve(a.T @ a + alpha * np.eye(a.shape[1]), a.T @ (y[fit] - centre))
        return b @ weights + centre

    def error(alpha: float) -> float:
        return sum(float(((predicted(fold != k, fold == k, alpha) - y[fold == k]) ** 2).sum()) for k in range(4))

    best = min((3.0, 30.0, 300.0), key=error)
    details = json.loads(path.read_text(encoding="utf-8"))["details"]
    assert details["n_images"] == len(ids)
    shown = predicted(np.ones(len(ids), bool), np.ones(len(ids), bool), best)
    state = load_file(path.with_suffix(".safetensors"))
    scaled = (x - state["voxel_mean"]) / state["voxel_scale"]
    weights = state["weights"] if "weights" in state else state["directions"] @ state["coefficients"]
    np.testing.assert_allclose(scaled @ weights + state["target_mean"], shown, atol=1e-3 * np.abs(shown).max())
