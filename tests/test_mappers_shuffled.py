"""The control with shuffled labels: targets change places among the images learnt from, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers_training import SMALL, stage_of, truth_of
from safetensors.numpy import load_file

from nd.config import Config
from nd.config.application import compose
from nd.data.prepared import open_subject, split_of
from nd.data.subject import mean_betas
from nd.errors import LeakError
from nd.mappers.checkpoint import checkpoint_path, read_details
from nd.mappers.folds import ShuffledTargets, control_of
from nd.mappers.statistics import TargetStatistics, statistics_path
from nd.mappers.two_stage import TwoStage
from nd.mappers.validation import target_scores
from nd.targets.store import TargetStore
from nd.train import train

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


def test_what_teaches_an_auxiliary_head_is_shuffled_alike(linear_world: list[str]) -> None:
    cfg = compose([*linear_world, *SMALL, "target=z", "training.aux_target=g", "control=shuffled_labels"])
    stage, truth = stage_of(cfg, "z"), truth_of(cfg, "g")
    readers = replace(stage, teacher=truth.path).data().targets
    seen = split_of(cfg).folds[0].seen
    np.testing.assert_array_equal(readers["g"].rows(seen), ShuffledTargets(truth, seen, cfg.seed).rows(seen))
    own, other = (dict(zip(seen, one.rows(seen)[:, 0, 0, 1], strict=True)) for one in (truth, readers["g"]))
    assert all(own[i] != other[i] for i in own)


def test_scores_of_a_trained_network_are_on_shuffled_labels_as_ridges_are(
    linear_world: list[str], tmp_path: Path
) -> None:
    given = ["training.pretrain=false", "training.epochs=1", "control=shuffled_labels", f"paths.runs={tmp_path}"]
    cfg = compose([*linear_world, *SMALL, "target=c", *given])
    path, fold = checkpoint_path(train(cfg), 0), split_of(cfg).folds[0]
    mapper = TwoStage.restore(cfg.mapper, load_file(path), read_details(path)["details"])
    shuffled, val = ShuffledTargets(truth_of(cfg, "c"), fold.seen, cfg.seed), torch.from_numpy(fold.val)
    predicted = torch.from_numpy(mapper.predict(mean_betas(open_subject(cfg), fold.val), fold.val))
    assert mapper.details()["scores"] == target_scores(predicted, val, shuffled, mapper.scale)
    training = TargetStatistics.load(statistics_path(path), "")
    np.testing.assert_allclose(training.mean, shuffled.rows(fold.train).reshape(len(fold.train), -1).mean(0), rtol=1e-5)
