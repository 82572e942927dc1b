"""The control with shuffled labels: targets change places among the images learnt from, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from nd.config import Config
from nd.errors import LeakError
from nd.mappers.folds import ShuffledTargets, control_of
from nd.targets.store import TargetStore

SEEN = np.array([1, 3, 4, 6, 8])


@pytest.fixture
def store(tmp_path: Path) -> TargetStore:
    path = tmp_path / "scenes-c-0.h5"
    with h5py.File(path, "w") as handle:
        handle["image_id"] = np.arange(10, dtype=np.int32)
        handle["features"] = np.arange(60, dtype=np.float32).reshape(10, 6)
        handle["reference"] = np.zeros((4, 6), np.float32)
        handle.attrs.update({"shape": "[2, 3]", "fingerprint": "f", "target": "c", "details": "{}", "versions": "{}"})
    return TargetStore(path, allowed_ids=SEEN)


def test_every_image_learnt_from_has_the_target_of_another(store: TargetStore) -> None:
    shuffled = ShuffledTargets(store, SEEN, seed=0)
    own, given = store.rows(SEEN), shuffled.rows(SEEN)
    assert (given != own).all()
    assert sorted(given[:, 0, 0]) == sorted(own[:, 0, 0])
    np.testing.assert_array_equal(shuffled.columns(SEEN, 1, 4), given.reshape(5, -1)[:, 1:4])
    np.testing.assert_array_equal(ShuffledTargets(store, SEEN, seed=0).rows(SEEN[::-1]), given[::-1])


def test_other_images_keep_theirs_and_stay_out_of_reach(store: TargetStore) -> None:
    shuffled = ShuffledTargets(store, SEEN[:3], seed=0)
    np.testing.assert_array_equal(shuffled.rows(SEEN[3:]), store.rows(SEEN[3:]))
    with pytest.raises(LeakError, match="0"):
        shuffled.rows(np.array([0]))


def test_only_the_control_shuffles(store: TargetStore) -> None:
    cfg = Config()
    assert control_of(cfg, store, SEEN) is store
    assert isinstance(control_of(replace(cfg, control="shuffled_labels"), store, SEEN), ShuffledTargets)
