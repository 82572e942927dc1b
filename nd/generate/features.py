"""Where a generator's inputs come from: predictions of the mappers, or the true targets.

B images, rows in the order asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.files import open_h5
from nd.targets.store import TargetStore


class FeatureSource(Protocol):
    """Rows of targets by image id. Holds paths, not open files, so that it can be sent to other processes."""

    def rows(self, target: str, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return (B, *shape of the target) float32."""


class PredictedFeatures:
    """Targets decoded from voxels: the predictions.h5 of a predict run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_h5(path) as file:
            ids = file["image_id"][:]
        # In the validation part of a cross-validation an image can occur in several folds; the first one counts.
        self._row = {int(i): len(ids) - 1 - k for k, i in enumerate(ids[::-1])}

    def rows(self, target: str, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the predictions of some images.

        Raises:
            UserError: if the run lacks the target or an image, or a prediction is not finite.
        """
        with open_h5(self.path) as file:
            if target not in file:
                raise UserError(
                    f"{self.path} has no predictions of {target!r}. Add it to method.targets and predict again."
                )
            missing = [i for i in image_ids if int(i) not in self._row]
            if missing:
                raise UserError(
                    f"{self.path} has no prediction for image {missing[0]}. Predict with the same data and part."
                )
            where = np.array([self._row[int(i)] for i in image_ids])
            order = np.argsort(where)  # HDF5 reads rows in rising order only
            values = np.empty((len(where), *file[target].shape[1:]), dtype=np.float32)
            values[order] = file[target][where[order]]
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
        """Return the true targets of some images."""
        return TargetStore(self.stores[target]).rows(np.asarray(image_ids))
