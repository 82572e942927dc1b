"""What generators read: which images are made, their decoded or true targets, and the training images of their folds.

B images, rows in the order asked for; N training images; H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.data.prepared import Stimuli, split_of, stimuli_path
from nd.data.splits import Fold
from nd.errors import UserError
from nd.h5_values import dataset_of, read_whole
from nd.hdf5 import open_h5
from nd.sealed import recorded_of
from nd.targets.store import TargetStore

IMAGES_AT_ONCE = 256  # all training images of NSD are 5 GB


def part_ids(cfg: Config) -> list[int]:
    """Return the ids of the images of ``cfg.part``, over all folds, each once and sorted: the canonical order."""
    folds = split_of(cfg).folds
    return sorted({int(i) for fold in folds for i in _part(fold, cfg.part)})


class TrainingImages:
    """The training images of the fold in which an image is held out. Test images are out of reach."""

    def __init__(self, cfg: Config) -> None:
        """Read the split; for test images, validation images count as training images."""
        self.path, self.part = stimuli_path(cfg), cfg.part
        self.folds = split_of(cfg).folds
        # An image can be a validation image of several folds; the first one counts, as it does for predictions.
        self._fold_of = {int(i): k for k, fold in reversed(list(enumerate(self.folds))) for i in _part(fold, cfg.part)}

    def fold_of(self, image_id: int) -> int:
        """Return the number of the fold in which an image is held out."""
        return self._fold_of[image_id]

    def ids(self, fold: int) -> NDArray[np.int32]:
        """Return the sorted ids of a fold's training images."""
        return self.folds[fold].seen if self.part == "test" else self.folds[fold].train

    def images(self, fold: int, image_ids: NDArray[Any]) -> NDArray[np.uint8]:
        """Return training images (n, H, W, 3) uint8 of a fold; LeakError for any other image."""
        return self._stimuli(fold).images(image_ids)

    def first_captions(self, fold: int, image_ids: NDArray[Any]) -> list[str]:
        """Return the first caption of each of n training images of a fold; none where the data has no captions."""
        stimuli = self._stimuli(fold)
        return [own[0] for own in stimuli.captions(image_ids)] if stimuli.has_captions else []

    @lru_cache(maxsize=16)  # noqa: B019 - one object per process and run
    def _stimuli(self, fold: int) -> Stimuli:
        return Stimuli(self.path, allowed_ids=self.ids(fold))

    @lru_cache(maxsize=16)  # noqa: B019 - one object per process and run
    def mean(self, fold: int) -> NDArray[np.uint8]:
        """Return the mean training image (H, W, 3) of a fold, rounded."""
        ids = self.ids(fold)
        parts = np.array_split(ids, range(IMAGES_AT_ONCE, len(ids), IMAGES_AT_ONCE))
        total = sum(self.images(fold, part).sum(axis=0, dtype=np.int64) for part in parts)
        return np.rint(total / len(ids)).astype(np.uint8)


def _part(fold: Fold, part: str) -> NDArray[np.int32]:
    return fold.test if part == "test" else fold.val


class FeatureSource(Protocol):
    """Rows of targets by image id. Holds paths, not open files, so that it can be sent to other processes."""

    def rows(self, target: str, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return rows (B, *shape of the target) float32 of a target, for B stimulus numbers."""


class PredictedFeatures:
    """Targets decoded from voxels: the predictions.h5 of a predict run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_h5(path) as file:
            ids = read_whole(file, "image_id", "iu", (None,))
        # In the validation part of a cross-validation an image can occur in several folds; the first one counts.
        self.n_rows = len(ids)
        self._row = {int(i): len(ids) - 1 - k for k, i in enumerate(ids[::-1])}

    def rows(self, target: str, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the predictions (n, *shape of the target) float32 of n images.

        Raises:
            UserError: if the run lacks the target or an image, or a prediction is not finite.
        """
        with open_h5(self.path) as file:
            if target not in file:
                raise UserError(
                    f"{self.path} has no predictions of {target!r}. Add it to method.targets and predict again."
                )
            stored = dataset_of(file, target)
            if stored.dtype.kind != "f" or not stored.ndim or len(stored) != self.n_rows:
                raise UserError(
                    f"{self.path}: {target} is {stored.dtype} {stored.shape} for {self.n_rows} images; wanted floats, "
                    "a row for each. Remove its folder and run `nd predict` again."
                )
            missing = [i for i in image_ids if int(i) not in self._row]
            if missing:
                raise UserError(
                    f"{self.path} has no prediction for image {missing[0]}. Predict with the same data and part."
                )
            where = np.array([self._row[int(i)] for i in image_ids])
            order = np.argsort(where)  # HDF5 reads rows in rising order only
            values = np.empty((len(where), *stored.shape[1:]), dtype=np.float32)
            values[order] = stored[where[order]]
        recorded_of(self.path).check_rows(target, where, values)
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if bad.any():
            raise UserError(
                f"the prediction of {target!r} for image {image_ids[int(bad.argmax())]} in {self.path} is not finite."
            )
        return values


class TrueFeatures:
    """The true targets of the images, for the ceiling (features=oracle). Nothing else may read those of test images."""

    def __init__(self, stores: dict[str, Path]) -> None:
        """Take the store of each target by the target's name."""
        self.stores = stores

    def rows(self, target: str, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the true targets (n, *shape of the target) float32 of n images."""
        return TargetStore(self.stores[target]).rows(np.asarray(image_ids))
