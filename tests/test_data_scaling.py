"""Scaling and the datamodule: right numbers, and nothing of the test rows in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from nd.data.datamodule import VoxelDataModule
from nd.data.prepared import Subject, mean_betas, write_subject
from nd.data.scaling import Scaler
from nd.data.splits import Fold
from nd.errors import UserError

FOLD = Fold(train=np.arange(0, 12), val=np.arange(12, 16), test=np.arange(16, 20))


class Targets:
    """Target of image i is (i, -i); remembers which images were asked for."""

    def __init__(self) -> None:
        self.asked: set[int] = set()

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        self.asked |= set(np.asarray(ids).tolist())
        return np.stack([ids, -np.asarray(ids)], 1).astype(np.float32)


def subject_with(voxels: NDArray[np.float32], path: Path) -> Subject:
    """20 images, each shown twice."""
    n = len(voxels)
    image_id, zeros = np.arange(n) % 20, np.zeros(n, np.int32)
    ijk = np.zeros((voxels.shape[1], 3), np.int16)
    write_subject(
        path, voxels=voxels, image_id=image_id, session=zeros, repeat=np.arange(n) // 20, trial=np.arange(n), rois={},
        ijk=ijk, attributes={},
    )  # fmt: skip
    return Subject(path)


@pytest.mark.parametrize("n_rows", [3, 50])
def test_scaler_equals_sklearn(n_rows: int) -> None:
    rng = np.random.default_rng(3)
    train, test = (rng.normal(5, 3, (n, 7)).astype(np.float32) for n in (n_rows, 4))
    scaler, oracle = Scaler.fit(train), StandardScaler().fit(train.astype(np.float64))
    np.testing.assert_allclose(scaler.transform(test), oracle.transform(test), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_voxel_becomes_zero(value: float) -> None:
    train = np.full((10, 1), value, np.float32)
    np.testing.assert_array_equal(Scaler.fit(train).transform(train), 0)
    assert Scaler.fit(train).scale[0] == 1


def test_state_restores_the_scaler() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    scaler = Scaler.fit(rows)
    np.testing.assert_array_equal(Scaler(**scaler.state()).transform(rows), scaler.transform(rows))


def test_other_voxel_count_and_too_few_rows() -> None:
    with pytest.raises(UserError, match="rows have 3 voxels but the scaler was fitted on 4"):
        Scaler.fit(np.eye(4, dtype=np.float32)).transform(np.zeros((2, 3), np.float32))
    with pytest.raises(UserError, match="at least 2 training rows and got 1"):
        Scaler.fit(np.ones((1, 4), np.float32))


@pytest.mark.parametrize("average", [True, False])
def test_changing_test_rows_changes_no_training_quantity(tmp_path: Path, average: bool) -> None:
    voxels = np.random.default_rng(5).normal(size=(40, 6)).astype(np.float32)
    changed = voxels.copy()
    changed[np.isin(np.arange(40) % 20, FOLD.test)] += 1000
    seen = []
    for k, values in enumerate((voxels, changed)):
        module = VoxelDataModule(subject_with(values, tmp_path / f"{k}.h5"), FOLD, Targets(), average=average)
        module.setup()
        val, target = next(iter(module.val_dataloader()))
        seen.append([module.scaler.mean, module.scaler.scale, module._train_voxels, val.numpy(), target.numpy()])
    for a, b in zip(*seen, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_pair_voxels_with_their_targets(tmp_path: Path) -> None:
    voxels = np.random.default_rng(6).normal(size=(40, 6)).astype(np.float32)
    subject = subject_with(voxels, tmp_path / "s.h5")
    module = VoxelDataModule(subject, FOLD, Targets(), batch_size=5)
    batches = list(module.train_dataloader())
    assert [len(v) for v, _ in batches] == [5, 5, 2]
    scaled = module.scaler.transform(mean_betas(subject, FOLD.train))
    for x, y in batches:
        np.testing.assert_array_equal(x.numpy(), scaled[y[:, 0].numpy().astype(int)])


def test_single_trials_keep_every_repeat(tmp_path: Path) -> None:
    voxels = np.random.default_rng(7).normal(size=(40, 6)).astype(np.float32)
    module = VoxelDataModule(subject_with(voxels, tmp_path / "s.h5"), FOLD, Targets(), average=False, batch_size=64)
    x, y = next(iter(module.train_dataloader()))
    assert sorted(y[:, 0].tolist()) == sorted([*range(12)] * 2)
    rows = {tuple(np.round(r, 4)) for r in module.scaler.transform(voxels[np.arange(40) % 20 < 12])}
    assert {tuple(np.round(r, 4)) for r in x.numpy()} == rows


def test_targets_of_test_images_are_never_asked_for(tmp_path: Path) -> None:
    voxels = np.random.default_rng(8).normal(size=(40, 6)).astype(np.float32)
    targets = Targets()
    module = VoxelDataModule(subject_with(voxels, tmp_path / "s.h5"), FOLD, targets)
    for loader in (module.train_dataloader(), module.val_dataloader(), module.predict_dataloader()):
        list(loader)
    assert targets.asked == set(range(16))
    assert len(module.predict_dataloader().dataset) == 4
