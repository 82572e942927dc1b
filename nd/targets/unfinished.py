"""A target store while it is being filled: laid out in full at once, filled by rows, named when it is whole.

A killed process never leaves a broken HDF5 structure behind, only rows that are not yet marked as done.
Shapes: N images, P numbers per image.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.image_checks import named_ids
from nd.data.prepared import Stimuli
from nd.digests import digest_rows
from nd.errors import UserError
from nd.files import check_space
from nd.hdf5 import allocate, attributes_of
from nd.machine import versions
from nd.sealed import RECORDED, ROWS, seal
from nd.targets.base import Extractor
from nd.targets.reference import check_drift, reference_features
from nd.targets.store import AGAIN, details_of, store_fingerprint

log = logging.getLogger(__name__)

PARTS = ("features", "done", "image_id", "reference", RECORDED, f"{ROWS}/features")
CHECK_ROWS = 256  # rows compared at a time when a filled store is checked


@dataclass(frozen=True)
class Job:
    """One store that is wanted: what computes it, where it lies, its storage type, the networks' arithmetic."""

    extractor: Extractor
    path: Path
    dtype: str = "float32"
    precision: str = "float32"

    def details(self, stimuli: Stimuli) -> dict[str, Any]:
        """Everything the stored values depend on."""
        return details_of(self.extractor, stimuli, self.dtype, self.precision)


class Unfinished:
    """The partial file of one job, open for writing."""

    def __init__(self, job: Job, stimuli: Stimuli, path: Path) -> None:
        """Open what an interrupted run left at ``path``, or a new file.

        UserError: too little room, or, where an interrupted run is gone on with, features of the reference images that
        are no longer the same.
        """
        self.job, self.path = job, path
        self.file = self._open(stimuli)
        self.left: NDArray[np.intp] = np.flatnonzero((self.file["done"][()] == 0) | self._damaged())

    def _damaged(self) -> NDArray[np.bool_]:
        """Rows (N,) that are marked as done and are not what was written."""
        features, digests = self.file["features"], self.file[f"{ROWS}/features"][()]
        other = self.file["done"][()] > 0
        for start in range(0, len(features), CHECK_ROWS):
            rows = slice(start, start + CHECK_ROWS)
            if other[rows].any():
                other[rows] &= digest_rows(features[rows]) != digests[rows]
        if other.any():
            log.warning("%d images of %s are damaged; they are computed again", other.sum(), self.path)
        return other

    def write(self, rows: NDArray[np.intp], ids: NDArray[Any], features: NDArray[np.float32]) -> None:
        """Store the features (B, *shape) of some rows, and mark them as done once they are written."""
        check_features(self.job.extractor.name, features, ids)
        with np.errstate(over="ignore"):  # reported below
            stored = features.reshape(len(rows), -1).astype(self.file["features"].dtype)
        if not np.isfinite(stored).all():
            raise UserError(
                f"the features {self.job.extractor.name!r} overflow target.dtype={self.job.dtype}: the largest is "
                f"{np.abs(features).max():.3g}. Use target.dtype=float32."
            )
        self.file["features"][rows] = stored
        self.file[f"{ROWS}/features"][rows] = digest_rows(stored)
        self.file.flush()
        self.file["done"][rows] = 1
        self.file.flush()

    def finish(self) -> None:
        """Close the file, which is whole now. Features that are the same for every image are a UserError instead."""
        features, first = self.file["features"], self.file["features"][0]
        starts = range(0, len(features), CHECK_ROWS)
        varies = any((features[start : start + CHECK_ROWS] != first).any() for start in starts)
        n_images = len(features)
        if varies or n_images < 2:
            seal(self.file, AGAIN)
            self.close()
            return
        self.close()
        self.path.unlink()
        raise UserError(
            f"the features {self.job.extractor.name!r} are the same for all {n_images} images; nothing can be decoded "
            "from them. Are the weights (backbone.weights, backbone.image_tower) trained and whole?"
        )

    def close(self) -> None:
        """Close the file; what is finished stays."""
        if self.file:
            self.file.close()

    def _open(self, stimuli: Stimuli) -> h5py.File:
        details = self.job.details(stimuli)
        handle = self._left_behind(store_fingerprint(details))
        reference_4P = reference_features(self.job.extractor, stimuli.shape[0])
        if handle is None:
            numbers = len(stimuli.image_id) * int(np.prod(self.job.extractor.shape))
            room = "Free some space, choose another paths.cache, or store halves with target.dtype=float16."
            check_space(self.path, numbers * np.dtype(self.job.dtype).itemsize, room)
            return _create(self.path, self.job, stimuli, details, reference_4P)
        try:
            made_with = json.loads(attributes_of(handle)["versions"])
            check_drift(str(self.path), handle["reference"][()], reference_4P, self.job.precision, made_with)
        except UserError:
            handle.close()
            raise
        return handle

    def _left_behind(self, fingerprint: str) -> h5py.File | None:
        """The file of an interrupted run of the same settings."""
        if not self.path.exists():
            return None
        try:
            handle = h5py.File(self.path, "r+", locking=False)  # whoever fills a store holds its lock
            if attributes_of(handle).get("fingerprint") == fingerprint and all(name in handle for name in PARTS):
                return handle
            handle.close()
        except (OSError, RuntimeError, KeyError, ValueError, TypeError):  # whatever h5py trips over
            log.warning("%s was left unreadable by an interrupted run; starting it again", self.path)
        self.path.unlink()
        return None


def check_features(name: str, features: NDArray[Any], ids: NDArray[Any]) -> None:
    """Refuse features that are not finite.

    Args:
        name: the target.
        features: (B, ...) floats.
        ids: (B,) the image ids.

    Raises:
        UserError: NaN or infinite values; names the images.
    """
    bad_B = ~np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if bad_B.any():
        raise UserError(
            f"the features {name!r} of {named_ids(ids, bad_B)} are not finite. Are the weights whole? Networks in "
            "target.precision=float16 may also overflow: use bfloat16 or float32."
        )


def _create(
    path: Path, job: Job, stimuli: Stimuli, details: dict[str, Any], reference_4P: NDArray[np.float32]
) -> h5py.File:
    shape = tuple(int(side) for side in job.extractor.shape)
    n_images = len(stimuli.image_id)
    handle = h5py.File(path, "w", locking=False)
    allocate(handle, "features", (n_images, int(np.prod(shape))), np.dtype(job.dtype))
    allocate(handle, "done", (n_images,), np.dtype(np.uint8))[:] = 0
    allocate(handle, f"{ROWS}/features", (n_images,), np.dtype(np.uint64))[:] = 0
    handle.create_dataset("image_id", data=stimuli.image_id)
    handle.create_dataset("reference", data=reference_4P)
    handle.attrs.update(
        {
            "target": job.extractor.name,
            "shape": json.dumps(shape),
            "fingerprint": store_fingerprint(details),
            "details": json.dumps(details, sort_keys=True),
            "versions": json.dumps(versions(), sort_keys=True),
        }
    )
    seal(handle, AGAIN)
    handle.flush()
    return handle
