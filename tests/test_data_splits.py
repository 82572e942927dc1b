"""Splits: by image, disjoint, frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_config import data_settings

from nd.config import DataConfig
from nd.data.digits69 import LABELS
from nd.data.splits import Fold, cluster_split, get_split, read_clusters, write_clusters
from nd.errors import UserError
from nd.scenes.scene import sample_scene

SCENES = data_settings()
CV10 = data_settings(name="digits69", source="digits69", split="digits69-cv10", n_val=10)
GIVEN = data_settings(name="digits69", source="digits69", split="digits69-given", n_val=10)
CLUSTERED = data_settings(name="scenes_clusters", split="scenes-clusters")
ALL = pytest.mark.parametrize("data", [SCENES, CV10, GIVEN], ids=lambda d: d.split)


def assert_sound(fold: Fold, n_images: int) -> None:
    parts = [fold.train, fold.val, fold.test]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together) == n_images
    assert (together.min(), together.max()) == (0, n_images - 1)
    for part in parts:
        assert len(part)
        assert part.dtype == np.int32
        assert (np.diff(part) > 0).all()


@ALL
def test_parts_are_sorted_disjoint_and_complete(data: DataConfig) -> None:
    for fold in get_split(data).folds:
        assert_sound(fold, 1800 if data.name == "scenes" else 100)
        assert len(fold.val) == data.n_val
        np.testing.assert_array_equal(fold.seen, np.sort(np.concatenate([fold.train, fold.val])))


# A changed hash means that every score under the split's name was earned on other images: give it a new name instead.
@pytest.mark.parametrize(
    ("data", "expected"),
    [(SCENES, "3c706f78219c"), (CV10, "c5be1f9558da"), (GIVEN, "6f579d9b0e31")],
    ids=lambda v: getattr(v, "split", ""),
)
def test_hash_is_pinned(data: DataConfig, expected: str) -> None:
    assert get_split(data).hash == expected


@ALL
def test_hash_follows_the_images(data: DataConfig) -> None:
    fewer = data_settings(name=data.name, source=data.source, split=data.split, n_val=data.n_val - 1)
    assert get_split(data).hash == get_split(data).hash != get_split(fewer).hash


def test_world_seed_and_subjects_do_not_move_the_split() -> None:
    other = data_settings(world_seed=99, subjects=["subj04"], n_voxels=50, n_repeats=1)
    assert get_split(other).hash == get_split(SCENES).hash


def test_scenes_test_images_follow_the_training_images() -> None:
    split = get_split(data_settings(n_train=48, n_val=12, n_test=6))
    np.testing.assert_array_equal(split.test_ids, np.arange(48, 54))


def test_ten_folds_test_every_image_once_and_are_balanced() -> None:
    split = get_split(CV10)
    assert len(split.folds) == 10
    np.testing.assert_array_equal(split.test_ids, np.arange(100))
    for fold in split.folds:
        assert [int((LABELS[fold.test] == d).sum()) for d in (6, 9)] == [5, 5]
        assert [int((LABELS[fold.val] == d).sum()) for d in (6, 9)] == [5, 5]


def test_given_split_is_that_of_the_file() -> None:
    (fold,) = get_split(GIVEN).folds
    np.testing.assert_array_equal(fold.test, np.arange(90, 100))


@pytest.mark.parametrize("n_val", [0, -1, 1, 1599, 1600, 5000])
def test_n_val_that_leaves_nothing(n_val: int) -> None:
    with pytest.raises(UserError, match=rf"data.n_val={n_val} does not fit split 'scenes'.*from 2 to 1598"):
        get_split(data_settings(n_val=n_val))


def test_split_of_another_data_set() -> None:
    with pytest.raises(
        UserError, match=r"unknown split of data=digits69 'scenes'.*Allowed: digits69-cv10, digits69-given"
    ):
        get_split(data_settings(name="digits69", source="digits69", split="scenes"))


def clusters(data: DataConfig) -> list[str]:
    return [sample_scene(data.world_seed, i).background for i in range(data.n_train + data.n_test)]


def test_whole_clusters_are_held_out() -> None:
    names = np.array(clusters(CLUSTERED))
    (fold,) = cluster_split(CLUSTERED, names.tolist()).folds
    held = set(names[fold.test])
    assert not held & set(names[fold.seen])
    assert (len(fold.test), len(fold.val)) == (200, 100)
    for part in (fold.train, fold.val, fold.test):
        assert part.dtype == np.int32
        assert (np.diff(part) > 0).all()
    # Every image of the other clusters is used; held-out ones that are not tested on are nowhere.
    np.testing.assert_array_equal(fold.seen, np.flatnonzero(~np.isin(names, list(held))))
    assert len(np.intersect1d(fold.train, fold.val)) == 0
    # No cluster was held out that was not needed.
    counts = {name: int((names == name).sum()) for name in held}
    assert sum(counts.values()) - min(counts.values()) < 200 <= sum(counts.values())


def test_hash_of_the_cluster_split_is_pinned() -> None:
    names = clusters(CLUSTERED)
    split = cluster_split(CLUSTERED, names)
    assert split.hash == cluster_split(CLUSTERED, names).hash == "56ad50258746"
    assert cluster_split(CLUSTERED, names[::-1]).hash != split.hash
    assert sorted({names[i] for i in split.test_ids}) == ["halves", "meadow"]


def test_too_few_clusters_or_images() -> None:
    few = data_settings(split="scenes-clusters", n_test=3, n_val=2)
    with pytest.raises(
        UserError, match=r"all but one of the 2 clusters have 2 images; data.n_test=3 must be from 2 to"
    ):
        cluster_split(few, ["a", "a", "b", "b"])
    with pytest.raises(UserError, match=r"data.n_test=0 must be from 2 to"):
        cluster_split(data_settings(split="scenes-clusters", n_test=0), ["a", "b"])
    with pytest.raises(UserError, match=r"data.n_val=2 does not fit split 'scenes-clusters'.*from 2 to 0"):
        cluster_split(data_settings(split="scenes-clusters", n_test=2, n_val=2), ["a", "a", "b", "b"])
    with pytest.raises(UserError, match=r"unknown split of data=digits69 'scenes-clusters'"):
        cluster_split(data_settings(name="digits69", source="digits69", split="scenes-clusters"), ["a", "b"])


def test_clusters_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "clusters.json"
    with pytest.raises(UserError, match=r"clusters.json does not exist.*Run `nd prepare` with this data.split"):
        read_clusters(path)
    write_clusters(path, ["sea", "night"])
    assert read_clusters(path) == ["sea", "night"]
    path.write_text('{"sea": 1}', encoding="utf-8")
    with pytest.raises(UserError, match=r"clusters.json does not hold what it should: .* should be a valid list"):
        read_clusters(path)
