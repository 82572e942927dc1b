"""subject.sessions: later trials of training and validation images are out of sight; test images keep all of theirs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_config import data_settings
from helpers_datamodule import Targets
from helpers_files import edited
from numpy.typing import NDArray
from safetensors.numpy import load_file

import nd.scenes.world as world
from nd.config import Config, PathsConfig
from nd.config.application import compose, derive
from nd.data.datamodule import VoxelDataModule
from nd.data.prepared import Subject, data_folder, mean_betas, open_subject, split_of, subject_path, write_subject
from nd.data.splits import get_split
from nd.errors import UserError
from nd.extract import extract
from nd.generate.inputs import TrainingImages
from nd.predict import predict
from nd.prepare import prepare
from nd.train import train

N_SESSIONS = 4
SCENES = data_settings(subjects=["subj01", "subj02"], n_train=24, n_val=5, n_test=6, n_repeats=4, n_voxels=120)
LIMITS = pytest.mark.parametrize("sessions", range(1, N_SESSIONS + 1))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A Scenes folder whose subjects have 120 trials in 4 sessions each. Read only."""
    cfg = Config(data=SCENES, paths=PathsConfig(data=str(tmp_path_factory.mktemp("scenes"))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "TRIALS_PER_SESSION", 30)
        prepare(cfg)
    return cfg


def limited(cfg: Config, sessions: int) -> Config:
    return replace(cfg, subject=replace(cfg.subject, sessions=sessions))


# ---- what is seen --------------------------------------------------------------------------------------------------


@LIMITS
def test_only_training_and_validation_images_are_limited(scenes: Config, sessions: int) -> None:
    whole, seen = open_subject(scenes), open_subject(limited(scenes, sessions))
    (fold,), (all_of,) = split_of(limited(scenes, sessions)).folds, split_of(scenes).folds
    early = set(whole.image_id[whole.session < sessions].tolist())
    assert fold.train.tolist() == [i for i in all_of.train.tolist() if i in early]
    assert fold.val.tolist() == [i for i in all_of.val.tolist() if i in early]
    np.testing.assert_array_equal(fold.test, all_of.test)
    np.testing.assert_array_equal(mean_betas(seen, fold.test), mean_betas(whole, fold.test))
    for ids, in_sight in ((all_of.seen, whole.session < sessions), (all_of.test, whole.session >= 0)):
        rows = np.flatnonzero(np.isin(whole.image_id, ids) & in_sight)
        found = np.flatnonzero(np.isin(seen.image_id, ids))
        for column in ("image_id", "session", "repeat", "trial", "held_out"):
            np.testing.assert_array_equal(getattr(seen, column)[found], getattr(whole, column)[rows], err_msg=column)
        np.testing.assert_array_equal(seen.voxels(found), whole.voxels(rows))
    assert (seen.name, seen.n_voxels, seen.mask_hash) == (whole.name, whole.n_voxels, whole.mask_hash)
    assert fold.train.dtype == fold.val.dtype == np.int32


def test_more_sessions_show_more(scenes: Config) -> None:
    splits = [split_of(limited(scenes, n)) for n in range(1, N_SESSIONS + 1)]
    trials = [len(open_subject(limited(scenes, n)).image_id) for n in range(1, N_SESSIONS + 1)]
    assert trials == sorted(set(trials))
    assert trials[-1] == 120
    assert len(splits[0].folds[0].seen) < len(splits[1].folds[0].seen)
    for fewer, more in pairwise(splits):
        assert set(fewer.folds[0].train) <= set(more.folds[0].train)
        assert set(fewer.folds[0].val) <= set(more.folds[0].val)
    assert splits[0].hash != splits[1].hash
    # All sessions are the split itself.
    assert splits[-1].hash == split_of(scenes).hash == get_split(scenes.data).hash


def test_the_split_of_another_subject_is_whole(scenes: Config) -> None:
    cfg = limited(scenes, 1)
    assert split_of(cfg, "subj02").hash == split_of(scenes).hash
    assert len(open_subject(cfg).image_id) < len(open_subject(scenes).image_id) == 120
    assert split_of(cfg, "subj01").hash == split_of(cfg).hash


def test_every_reader_of_the_split_sees_the_same(scenes: Config) -> None:
    cfg = limited(scenes, 2)
    (fold,) = split_of(cfg).folds
    images = TrainingImages(cfg)
    np.testing.assert_array_equal(images.ids(0), fold.seen)
    subject = open_subject(cfg)
    data = VoxelDataModule([(subject, fold)], {"a": Targets()}, batch_size=8)
    ids = np.concatenate([batch.image_id for batch in data.train_dataloader()])
    whole = open_subject(scenes)
    rows = np.isin(whole.image_id, fold.train) & (whole.session < 2)
    assert sorted(ids.tolist()) == sorted(whole.image_id[rows].tolist())


# ---- later trials reach nothing ------------------------------------------------------------------------------------


def spoil(cfg: Config, sessions: int) -> int:
    """Change all later trials of training and validation images; returns how many there are."""
    path = subject_path(cfg)
    with edited(path) as file:
        test = get_split(cfg.data).test_ids
        rows = (file["session"][()] >= sessions) & ~np.isin(file["image_id"][()], test)
        voxels = file["voxels"][()]
        voxels[rows] += 1000
        file["voxels"][...] = voxels
    return int(rows.sum())


@pytest.mark.parametrize("sessions", [1, 3])
def test_changed_later_trials_change_no_voxel_in_sight(scenes: Config, tmp_path: Path, sessions: int) -> None:
    shutil.copytree(scenes.paths.data, tmp_path / "data")
    other = replace(scenes, paths=PathsConfig(data=str(tmp_path / "data")))
    assert spoil(other, sessions) > 10
    a, b = (open_subject(limited(cfg, sessions)) for cfg in (scenes, other))
    rows = np.arange(len(a.image_id))
    np.testing.assert_array_equal(a.voxels(rows), b.voxels(rows))
    whole = np.arange(120)
    assert np.abs(open_subject(scenes).voxels(whole) - open_subject(other).voxels(whole)).max() > 100


def test_changed_later_trials_change_no_prediction_of_the_verbs(scenes: Config, tmp_path: Path) -> None:
    """By ridge, from prepared data to predictions."""
    found = []
    for name in ("honest", "spoiled"):
        sizes = {"n_train": 24, "n_val": 5, "n_test": 6, "n_repeats": 4, "n_voxels": 120}
        data = [f"data.{key}={value}" for key, value in sizes.items()]
        given = [*data, "data.subjects=[subj01,subj02]", f"paths.root={tmp_path / name}", "trainer.progress=false"]
        cfg = compose([*given, "method=ridge_pixels", "target=pixels", "subject.sessions=2", "trainer.accelerator=cpu"])
        shutil.copytree(data_folder(scenes), data_folder(cfg))
        if name == "spoiled":
            assert spoil(cfg, 2) > 10
        extract(cfg)
        checkpoint = load_file(next(train(cfg).rglob("fold-00.safetensors")))
        with h5py.File(predict(cfg) / "predictions.h5") as file:
            found.append({**checkpoint, **{key: file[key][()] for key in ("image_id", "pixels")}})
    assert found[0].keys() == found[1].keys()
    for key, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][key], err_msg=key)
    np.testing.assert_array_equal(found[0]["image_id"], get_split(scenes.data).test_ids)
    whole = derive(cfg, "subject.sessions=0")
    train(whole)
    with h5py.File(predict(whole) / "predictions.h5") as file:
        assert np.abs(file["pixels"][()] - found[0]["pixels"]).max() > 0.01  # or the later trials never mattered


# ---- other data sets -----------------------------------------------------------------------------------------------


def written(folder: Path, source: str, trials: list[tuple[int, int]], held_out: list[int], **more: Any) -> Config:
    """A subject with trials (session, image), the first voxel of each its number."""
    splits = {"own": "own", "nsd": "nsd_partial", "digits69": "digits69-cv10"}
    data = {"name": "some", "source": source, "split": splits[source], "subjects": ["subj01"], "n_val": 2, **more}
    cfg = Config(data=data_settings(**data), paths=PathsConfig(data=str(folder)))
    data_folder(cfg).mkdir(exist_ok=True)
    session, image_id = np.array(trials).T
    voxels = np.arange(len(trials) * 3, dtype=np.float32).reshape(-1, 3)
    write_subject(
        subject_path(cfg), voxels=voxels, image_id=image_id, session=session, repeat=0 * session,
        trial=np.arange(len(trials)), rois={}, ijk=np.zeros((3, 3), np.int16), held_out=np.isin(image_id, held_out),
        attributes={"simulated": True, "sessions_scanned": len(set(session.tolist()))},
    )  # fmt: skip
    return cfg


# Session and image of each trial: sessions have gaps and are not in order. Images 8 and 9 are for the test.
TRIALS = list(zip([7, 7, 7, 2, 2, 2, 2, 2, 4, 4, 7, 7, 7, 4], [3, 6, 0, 0, 1, 2, 5, 8, 4, 0, 9, 8, 7, 1], strict=True))


@pytest.mark.parametrize("source", ["own", "nsd"])
def test_sessions_count_in_the_order_of_their_numbers(tmp_path: Path, source: str) -> None:
    cfg = written(tmp_path, source, TRIALS, [8, 9], n_val=3)
    (whole,) = split_of(cfg).folds
    images = {1: [0, 1, 2, 5], 2: [0, 1, 2, 4, 5], 3: list(range(8))}
    for sessions, ids in images.items():
        (fold,) = split_of(limited(cfg, sessions)).folds
        assert fold.seen.tolist() == ids
        assert set(fold.val) == set(whole.val) & set(ids)
        assert fold.test.tolist() == [8, 9]
    seen = open_subject(limited(cfg, 1))
    assert seen.trial.tolist() == [3, 4, 5, 6, 7, 10, 11]
    np.testing.assert_array_equal(seen.voxels(np.arange(7))[:, 0], seen.trial * 3)
    assert open_subject(limited(cfg, 2)).trial.tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11, 13]


def test_sessions_are_those_of_the_split(tmp_path: Path) -> None:
    """nsd982 uses 37 sessions, and so do its test images, whatever is trained on."""
    trials = [(s, i) for s in range(40) for i in (s, 50 + s % 20, 90 + s)]
    cfg = written(tmp_path, "nsd", trials, list(range(90, 130)), split="nsd982", n_val=20)
    (whole,) = split_of(cfg).folds
    (fold,) = split_of(limited(cfg, 5)).folds
    assert fold.test.tolist() == whole.test.tolist() == list(range(90, 127))
    assert fold.seen.tolist() == [0, 1, 2, 3, 4, 50, 51, 52, 53, 54]
    assert len(open_subject(limited(cfg, 5)).image_id) == 10 + 37
    np.testing.assert_array_equal(split_of(limited(cfg, 37)).folds[0].seen, whole.seen)
    with pytest.raises(UserError, match="sessions=38, but subj01 has 37 sessions here; wanted 1 to 37, or 0 for all"):
        split_of(limited(cfg, 38))


def test_several_folds_test_images_that_none_of_them_trains_on(tmp_path: Path) -> None:
    trials = [(int(i % 4 == 3), i) for i in range(100)]  # every fourth image in the second session
    cfg = limited(written(tmp_path, "digits69", trials, [], n_val=10), 1)
    whole, split = get_split(cfg.data), split_of(cfg)
    assert len(split.folds) == 10
    for fold, all_of in zip(split.folds, whole.folds, strict=True):
        assert fold.train.tolist() == [i for i in all_of.train.tolist() if i % 4 != 3]
        assert fold.val.tolist() == [i for i in all_of.val.tolist() if i % 4 != 3]
        np.testing.assert_array_equal(fold.test, all_of.test)
    assert open_subject(cfg).image_id.tolist() == list(range(100))
    assert split.hash != whole.hash


# ---- mistakes ------------------------------------------------------------------------------------------------------

Opened = pytest.mark.parametrize("read", [open_subject, split_of])


@Opened
def test_sessions_that_there_are_not(scenes: Config, read: Any) -> None:
    with pytest.raises(UserError, match=r"subject.sessions=5, but subj01 has 4 sessions here; wanted 1 to 4, or 0 for"):
        read(limited(scenes, 5))
    with pytest.raises(
        UserError, match=r"subject.sessions=-1, but subj01 has 4 sessions here; wanted 1 to 4, or 0 for"
    ):
        read(limited(scenes, -1))


@Opened
def test_too_few_images_are_left(tmp_path: Path, read: Any) -> None:
    def left(image_ids: NDArray[np.int32]) -> Config:
        early = [(0, int(i)) for i in image_ids]
        return limited(written(tmp_path, "own", [*early, *((1, i) for i in range(10))], [8, 9]), 1)

    (fold,) = split_of(limited(left(np.arange(10)), 0)).folds
    assert (len(fold.train), len(fold.val)) == (6, 2)
    with pytest.raises(UserError, match=r"sessions=1 leaves 6 training and 0 validation images of subj01; wanted at l"):
        read(left(fold.train))
    with pytest.raises(UserError, match=r"leaves 1 .* 2 and 2. Use more of its 2 sessions, or another data.n_val"):
        read(left(np.append(fold.train[:1], fold.val)))
    with pytest.raises(UserError, match="leaves 2 training and 1 validation images"):
        read(left(np.append(fold.train[:2], fold.val[:1])))
    read(left(np.append(fold.train[:2], fold.val)))


@Opened
def test_images_that_one_fold_tests_and_another_trains_on(tmp_path: Path, read: Any) -> None:
    trials = [(0, i) for i in range(100)]
    cfg = written(tmp_path, "digits69", [*trials, (1, 3), (1, 7)], [], n_val=10)
    with pytest.raises(
        UserError, match=r"'digits69-cv10': 2 images \(first: image 3\) are trained on in one fold, tes"
    ):
        read(limited(cfg, 1))
    read(limited(cfg, 2))
    assert Subject(subject_path(cfg)).n_sessions == 2
