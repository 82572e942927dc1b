"""Named, frozen splits. Images, never trials, are divided, so no repeat of a test image is ever trained on.

Membership follows the SHA-256 of "<purpose>:<image id>" and no random generator, so it is the same for every version of
every library. A validation part always exists.

The splits of NSD follow its design. Test images are those of the 1,000 shared by all subjects; no trial of a shared
image is ever trained on, whether or not it is a test image:

    nsd982       first 37 sessions, of subjects with at least as many: 982 test images, 8,859 for training
    nsd1000      all sessions of a subject: 1,000 test images (930 and 907 where only 32 and 30 sessions were scanned)
    nsd_partial  whatever sessions were prepared: comparable with nothing published

The splits of Scenes: in ``scenes`` test images show what training images show, in other arrangements.
``scenes-clusters`` holds whole clusters of images, those of one background, out of training and tests on some of them:
whoever names an image seen before, in whatever way, has none to name. Held-out images beyond n_test are not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nd.config import DataConfig
from nd.config.components import component
from nd.data import digits69
from nd.data.piece_records import check_piece
from nd.errors import UserError, unknown
from nd.files import read_json, sha256_json, write_json

# Fewest images of each part. A single image has none to be told from, so identification of one compares nothing; and
# voxels of one image have no spread to be scaled by.
MIN_TRAIN, MIN_VAL, MIN_TEST = 2, 2, 2
N_FOLDS = 10
BY_CLUSTER = "scenes-clusters"
CLUSTERS = "clusters.json"  # the cluster of every image, a file of the prepared folder
SESSIONS_OF = {"nsd982": 37}  # splits that use the first sessions alone
# What the validation images of every data set but digits69 are drawn with. It names the data set that had it first:
# another word would move the pinned split of Scenes, and data in two forms must be cut alike.
VALIDATION_PURPOSE = "scenes-val"


@dataclass(frozen=True)
class Fold:
    """Sorted, disjoint image ids (int32) to fit on, to choose with, and to be judged on."""

    train: NDArray[np.int32]
    val: NDArray[np.int32]
    test: NDArray[np.int32]

    @property
    def seen(self) -> NDArray[np.int32]:
        """Everything but the test images, sorted: what training and predicting may look at."""
        return np.union1d(self.train, self.val)


@dataclass(frozen=True)
class Split:
    """A named split: its folds and the hash of all their image ids."""

    name: str
    folds: tuple[Fold, ...]
    hash: str

    @property
    def test_ids(self) -> NDArray[np.int32]:
        """Test images of all folds, sorted."""
        return np.sort(np.concatenate([fold.test for fold in self.folds]))


def get_split(data: DataConfig) -> Split:
    """The split of a data set whose images are the same for every subject, and that needs no clusters.

    Raises UserError for a split of another data set or too few images.
    """
    _check_name(data)
    if data.split == "scenes":
        folds = [_scenes_fold(data)]
    elif data.split == "digits69-given":
        given = np.arange(digits69.N_TRAIN)
        folds = [_digits_fold(data, given, np.arange(digits69.N_TRAIN, digits69.N_IMAGES), "digits69-given")]
    else:
        folds = _digits_folds(data)
    return _named(data.split, folds)


def cluster_split(data: DataConfig, clusters: Sequence[str]) -> Split:
    """The split that holds whole clusters out of training: as many as have ``data.n_test`` images, in a fixed order.

    Args:
        clusters: the cluster of every image 0 .. N-1.

    Raises:
        UserError: a split of another data set, or too few images or clusters.
    """
    _check_name(data)
    held = _held_out(data, clusters)
    seen = np.setdiff1d(np.arange(len(clusters)), held)
    _check_n_val(data, len(seen))
    order, test = _shuffled(seen, VALIDATION_PURPOSE), _shuffled(held, f"{BY_CLUSTER}-test")[: data.n_test]
    return _named(data.split, [Fold(_sorted(order[data.n_val :]), _sorted(order[: data.n_val]), _sorted(test))])


def write_clusters(path: Path, clusters: Sequence[str]) -> None:
    """Write the cluster of every image 0 .. N-1."""
    write_json(path, list(clusters))


def read_clusters(path: Path) -> list[str]:
    """Read the cluster of every image 0 .. N-1. Raises UserError for a file that is missing or no list of names."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, and a split by clusters needs it. Run `nd prepare` with this data.split."
        )
    check_piece(path)
    found: list[str] = read_json(path, list[str], "Remove it and run `nd prepare` again.")
    return found


def _held_out(data: DataConfig, clusters: Sequence[str]) -> list[int]:
    """All images of the first clusters, in the order of a hash of their names, that have n_test images together."""
    held: list[int] = []
    names = sorted(set(clusters), key=lambda name: _digest(f"{BY_CLUSTER}:{name}"))
    for name in names[:-1]:
        held += [i for i, cluster in enumerate(clusters) if cluster == name]
        if len(held) >= data.n_test >= MIN_TEST:
            return held
    raise UserError(
        f"split {data.split!r} holds whole clusters out, and all but one of the {len(names)} clusters have {len(held)} "
        f"images; data.n_test={data.n_test} must be from {MIN_TEST} to {len(held)}."
    )


def subject_split(data: DataConfig, image_id: NDArray[np.integer], held_out: NDArray[np.bool_]) -> Split:
    """The split of one subject's images: those of held-out trials are for the test, the others for training.

    Args:
        image_id, held_out: (T,) of the trials that the split may use (``SESSIONS_OF``).

    Raises:
        UserError: a split of another data set, no test image, or too few images.
    """
    _check_name(data)
    test = np.unique(image_id[held_out])
    seen = np.setdiff1d(image_id, test)
    if len(test) < MIN_TEST:
        raise UserError(
            f"split {data.split!r} finds {len(test) or 'no'} test image among {len(image_id)} trials, wanted at least "
            f"{MIN_TEST}. Prepare sessions that hold some, or name them (own data: data.test_ids)."
        )
    _check_n_val(data, len(seen))
    order = _shuffled(seen, VALIDATION_PURPOSE)
    return _named(data.split, [Fold(_sorted(order[data.n_val :]), _sorted(order[: data.n_val]), _sorted(test))])


def narrowed(split: Split, image_id: NDArray[np.integer]) -> Split:
    """Return the same split with only some of its images to train and validate on; test images stay as they are.

    Args:
        split: any split.
        image_id: (n,) the images that are left.
    """
    folds = [
        Fold(np.intersect1d(fold.train, image_id), np.intersect1d(fold.val, image_id), fold.test)
        for fold in split.folds
    ]
    return _named(split.name, folds)


def _check_name(data: DataConfig) -> None:
    splits = component("source", data.source).splits
    if data.split not in splits:
        raise unknown(f"split of data={data.name}", data.split, splits)


def _named(name: str, folds: Sequence[Fold]) -> Split:
    parts = [[fold.train.tolist(), fold.val.tolist(), fold.test.tolist()] for fold in folds]
    return Split(name, tuple(folds), sha256_json([name, parts]))


def _shuffled(ids: Sequence[int] | NDArray[np.integer], purpose: str) -> list[int]:
    """The ids in the order of a hash: a fixed shuffle that no library version changes."""
    return sorted((int(i) for i in ids), key=lambda i: _digest(f"{purpose}:{i}"))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _sorted(ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int32]:
    return np.sort(np.asarray(ids, np.int32))


def _check_n_val(data: DataConfig, n_seen: int) -> None:
    if not MIN_VAL <= data.n_val <= n_seen - MIN_TRAIN:
        raise UserError(
            f"data.n_val={data.n_val} does not fit split {data.split!r}: the validation images are cut from {n_seen} "
            f"training images, so n_val must be from {MIN_VAL} to {n_seen - MIN_TRAIN}."
        )


def _scenes_fold(data: DataConfig) -> Fold:
    """Images 0 .. n_train-1 are for training and validation, the next n_test for the test."""
    if data.n_test < MIN_TEST:
        raise UserError(f"data.n_test={data.n_test}; a split needs at least {MIN_TEST} test images.")
    _check_n_val(data, data.n_train)
    order = _shuffled(range(data.n_train), VALIDATION_PURPOSE)
    test = np.arange(data.n_train, data.n_train + data.n_test)
    return Fold(_sorted(order[data.n_val :]), _sorted(order[: data.n_val]), _sorted(test))


def _digits_fold(data: DataConfig, seen: NDArray[np.integer], test: NDArray[np.integer], purpose: str) -> Fold:
    """Cut n_val validation images from ``seen``, sixes and nines in turn."""
    _check_n_val(data, len(seen))
    by_class = [_shuffled(seen[digits69.LABELS[seen] == digit], f"{purpose}-val") for digit in digits69.DIGITS]
    in_turn = [i for pair in zip(*by_class, strict=True) for i in pair]
    val = in_turn[: data.n_val]
    return Fold(_sorted(np.setdiff1d(seen, val)), _sorted(val), _sorted(test))


def _digits_folds(data: DataConfig) -> list[Fold]:
    """Ten folds of 5 sixes and 5 nines, over all 100 images."""
    ids = np.arange(digits69.N_IMAGES)
    dealt = [_shuffled(ids[digit == digits69.LABELS], "digits69-cv10") for digit in digits69.DIGITS]
    tests = [np.array([i for order in dealt for i in order[k::N_FOLDS]]) for k in range(N_FOLDS)]
    return [_digits_fold(data, np.setdiff1d(ids, test), test, f"digits69-cv10-{k}") for k, test in enumerate(tests)]
