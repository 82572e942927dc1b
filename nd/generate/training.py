"""Which images are reconstructed, and which training images each of them may be compared with."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.data.prepared import Stimuli, split_of, stimuli_path
from nd.data.splits import Fold


def part_ids(cfg: Config) -> list[int]:
    """Return the ids of the images of ``cfg.part``, over all folds, each once and sorted: the canonical order."""
    folds = split_of(cfg).folds
    return sorted({int(i) for fold in folds for i in _part(fold, cfg.part)})


PICTURES_AT_ONCE = 256  # all training images of NSD are 5 GB


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
        return Stimuli(self.path, allowed_ids=self.ids(fold)).images(image_ids)

    @lru_cache(maxsize=16)  # noqa: B019 - one object per process and run
    def mean(self, fold: int) -> NDArray[np.uint8]:
        """Return the mean training image (H, W, 3) of a fold, rounded."""
        ids = self.ids(fold)
        parts = np.array_split(ids, range(PICTURES_AT_ONCE, len(ids), PICTURES_AT_ONCE))
        total = sum(self.images(fold, part).sum(axis=0, dtype=np.int64) for part in parts)
        return np.rint(total / len(ids)).astype(np.uint8)


def _part(fold: Fold, part: str) -> NDArray[np.int32]:
    return fold.test if part == "test" else fold.val
