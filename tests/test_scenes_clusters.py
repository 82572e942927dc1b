"""Scenes with whole clusters held out: prepared so that nothing of a held-out image takes part in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nd.config import Config
from nd.config.application import check, compose
from nd.data.prepared import Subject, data_folder, open_subject, split_of, subject_path
from nd.data.splits import CLUSTERS, read_clusters
from nd.errors import UserError
from nd.prepare import prepare

SMALL = ["data.n_train=60", "data.n_val=10", "data.n_test=8", "data.n_voxels=60", "data.n_repeats=2"]


def small(root: Path, *more: str) -> Config:
    return compose(["data=scenes_clusters", *SMALL, f"paths.data={root}", *more])


def test_it_is_prepared_with_its_clusters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = small(tmp_path)
    prepare(cfg)
    assert "wrote scenes_clusters: 4 subjects and the stimuli, " in capsys.readouterr().out
    names = np.array(read_clusters(data_folder(cfg) / CLUSTERS))
    (fold,) = split_of(cfg).folds
    assert len(names) == 68
    assert len(fold.test) == 8
    assert not set(names[fold.test]) & set(names[fold.seen])


def test_trials_are_scaled_by_those_of_training_images(tmp_path: Path) -> None:
    cfg = small(tmp_path)
    prepare(cfg)
    subject, seen = open_subject(cfg), split_of(cfg).folds[0].seen
    voxels = subject.voxels(np.arange(len(subject.image_id)))  # one session
    fit = voxels[np.isin(subject.image_id, seen)]
    np.testing.assert_allclose(fit.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(fit.std(axis=0), 1, atol=1e-4)
    # As many images at random would have been others.
    first = voxels[subject.image_id < cfg.data.n_train]
    assert np.abs(first.mean(axis=0)).max() > 0.01


def test_a_folder_of_the_other_split_is_refused_both_ways(tmp_path: Path) -> None:
    random, clustered = (small(tmp_path, "data.name=one", f"data.split={s}") for s in ("scenes", "scenes-clusters"))
    prepare(random)
    with pytest.raises(UserError, match=r"\(split: made without, asked for scenes-clusters\)"):
        prepare(clustered)
    subject = subject_path(random)
    for file in (subject.parent).iterdir():
        file.unlink()
    prepare(clustered)
    with pytest.raises(UserError, match=r"\(split: made with scenes-clusters, asked for None\)"):
        prepare(random)


def test_without_its_clusters_there_is_no_split(tmp_path: Path) -> None:
    cfg = small(tmp_path)
    with pytest.raises(UserError, match=r"clusters.json does not exist, and a split by clusters needs it"):
        split_of(cfg)


def test_the_release_forms_have_no_such_split() -> None:
    with pytest.raises(UserError, match=r"layout: nsd has no split scenes-clusters; use data.split=scenes"):
        check("prepare", ["data=scenes_clusters", "layout=nsd"])


def test_the_default_experiment_is_as_it_was(tmp_path: Path) -> None:
    a, b = small(tmp_path / "a"), small(tmp_path / "b", "data.name=scenes", "data.split=scenes")
    for cfg in (a, b):
        prepare(cfg)
    one, other = Subject(subject_path(a)), Subject(subject_path(b))
    np.testing.assert_array_equal(one.image_id, other.image_id)  # the same brain sees the same images
    voxels = other.voxels(np.arange(len(other.image_id)))
    fit = voxels[other.image_id < b.data.n_train]
    np.testing.assert_allclose(fit.mean(axis=0), 0, atol=1e-5)
