"""What people measured themselves: responses and the image of every trial, checked before anything is written.

Shapes: T trials, V voxels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.npy import open_npy
from nd.data.nsd.volumes import Mask
from nd.data.own_volume import read_places, read_roi, roi_files
from nd.data.rows import BLOCK_BYTES, not_finite
from nd.data.splits import MIN_TEST, MIN_TRAIN, MIN_VAL
from nd.data.subject_file import AGAIN, SubjectTable, check_table, lay_out, repeats_of, write_rows
from nd.data.whole_numbers import read_numbers
from nd.errors import UserError
from nd.files import atomic_path
from nd.sealed import seal

LOG = logging.getLogger(__name__)


class OwnTrials:
    """The trials of one subject; every part is read and checked when it is first asked for."""

    def __init__(self, paths: Mapping[str, Path], n_test: int) -> None:
        """Take the files.

        Args:
            paths: ``voxels``, ``image_ids``; where given ``session_ids``, ``test_ids``, ``volume``, ``roi_volumes``,
                ``rois``.
            n_test: test images, where ``test_ids`` names none: the first in the order of a hash.
        """
        self.paths, self.n_test = paths, n_test

    @cached_property
    def voxels(self) -> NDArray[Any]:
        """(T, V) numbers, not in memory."""
        path = self.paths["voxels"]
        voxels = open_npy(path, "float32")
        if voxels.ndim != 2 or voxels.dtype.kind not in "fiu" or 0 in voxels.shape:
            raise UserError(
                f"data.voxels={path} is {voxels.dtype} {voxels.shape}; wanted numbers (trials, voxels), one row per "
                "trial."
            )
        return voxels

    @cached_property
    def image_id(self) -> NDArray[np.int64]:
        """(T,) the image of every trial."""
        return self._per_trial("image_ids")

    @cached_property
    def session(self) -> NDArray[np.int64]:
        """(T,) rank of every trial's session among those that occur; all 0 where they are not given."""
        if "session_ids" not in self.paths:
            return np.zeros(len(self.voxels), np.int64)
        return np.unique(self._per_trial("session_ids"), return_inverse=True)[1]

    def _per_trial(self, key: str) -> NDArray[np.int64]:
        numbers, (n_trials, n_voxels) = read_numbers(self.paths[key]), self.voxels.shape
        if len(numbers) != n_trials:
            turned = " Are its rows voxels? Transpose it." if len(numbers) == n_voxels else ""
            raise UserError(
                f"data.{key}={self.paths[key]} has {len(numbers)} entries, but data.voxels={self.paths['voxels']} has "
                f"{n_trials} trials (rows). Wanted one entry per trial.{turned}"
            )
        return numbers

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """(T,) trials whose image is for the test alone."""
        shown = np.unique(self.image_id)
        if "test_ids" in self.paths:
            what, test = f"data.test_ids={self.paths['test_ids']}", np.unique(read_numbers(self.paths["test_ids"]))
            never = np.setdiff1d(test, shown)
            if never.size:
                raise UserError(
                    f"{what}: {never.size} of {len(test)} test images were never shown (first: image {never[0]}). Name "
                    f"images that data.image_ids holds.{_from_one(test, shown)}"
                )
        else:
            what, test = f"data.n_test={self.n_test}", hash_order(shown)[: max(0, self.n_test)]
        if not MIN_TEST <= len(test) <= len(shown) - MIN_TRAIN - MIN_VAL:
            raise UserError(
                f"{what} takes {len(test)} of the {len(shown)} images that were shown; the test needs at least "
                f"{MIN_TEST} of them, since a single one has none to be told from, and training and validation at "
                f"least {MIN_TRAIN + MIN_VAL} others."
            )
        return np.isin(self.image_id, test)

    @cached_property
    def grid(self) -> Mask | None:
        """The voxels that the columns are, where that is known."""
        return read_places(self.paths["volume"], self.voxels.shape[1]) if "volume" in self.paths else None

    @cached_property
    def places(self) -> tuple[NDArray[np.int16], dict[str, NDArray[np.bool_]]]:
        """(V, 3) where the voxels lie, -1 where that is not known, and their ROIs."""
        n_voxels = self.voxels.shape[1]
        ijk = np.full((n_voxels, 3), -1, np.int16) if self.grid is None else self.grid.ijk
        return ijk, {name: read_roi(path, n_voxels, self.grid) for name, path in roi_files(self.paths).items()}

    @cached_property
    def n_constant(self) -> int:
        """Voxels that are the same in all training trials. UserError: all of them, or a value that is not finite."""
        lowest = np.full(self.voxels.shape[1], np.inf, np.float32)
        highest = -lowest
        for first, values in blocks(self.voxels):
            self._check_finite(first, values)
            seen = values[~self.held_out[first : first + len(values)]]
            np.minimum(lowest, seen.min(0, initial=np.inf), out=lowest)
            np.maximum(highest, seen.max(0, initial=-np.inf), out=highest)
        n_constant = int((lowest == highest).sum())
        if n_constant == len(lowest):
            raise UserError(
                f"data.voxels={self.paths['voxels']}: all {n_constant} voxels are the same in all training trials, so "
                "nothing can be decoded from them. Was the file written as intended?"
            )
        return n_constant

    def _check_finite(self, first: int, values: NDArray[np.float32]) -> None:
        """``first``: trial of the first row of ``values``."""
        if np.isfinite(values).all():
            return
        row, voxel = (int(k) for k in np.argwhere(~np.isfinite(values))[0])
        raise UserError(not_finite(self.paths["voxels"], first + row, voxel, float(values[row, voxel])))

    def check_images(self, image_ids: NDArray[Any], where: str) -> None:
        """Refuse trials whose image is not among those that there are; warn where ids seem to count from 1.

        Args:
            image_ids: (N,) of the images that there are.
            where: what holds them, for messages.
        """
        absent = np.setdiff1d(self.image_id, image_ids)
        if absent.size:
            trial = int(np.flatnonzero(self.image_id == absent[0])[0])
            raise UserError(
                f"{absent.size} images that were shown have no image (first: image {absent[0]}, in trial {trial}) in "
                f"{where}{_from_one(self.image_id, image_ids)}"
            )
        if self.image_id.min() == 1 and 0 in image_ids:
            LOG.warning(
                "data.image_ids=%s: the smallest id is 1, and image 0 is never shown. If they count from 1, every "
                "trial gets its neighbour's image: images count from 0, so subtract 1.", self.paths["image_ids"],
            )  # fmt: skip

    def check(self, image_ids: NDArray[Any], where: str) -> None:
        """Read and check everything, against the images that there are; ``where`` says what holds them."""
        self.check_images(image_ids, where)
        _ = self.session, self.held_out, self.places, self.n_constant

    def write(self, path: Path, name: str, attributes: dict[str, Any]) -> None:
        """Write the prepared file of the subject ``name`` atomically, a few MiB of voxels at a time."""
        ijk, rois = self.places
        table = SubjectTable(
            image_id=self.image_id,
            session=self.session,
            repeat=repeats_of(self.image_id),
            trial=np.arange(len(self.image_id)),
            held_out=self.held_out,
            ijk=ijk,
            rois=rois,
            attributes={"name": name, "constant_voxels": self.n_constant, **attributes},
        )
        check_table(path, table, self.voxels.shape)
        with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
            lay_out(handle, name, table)
            for first, values in blocks(self.voxels):
                write_rows(handle, first, values)
            seal(handle, AGAIN)


def _from_one(used: NDArray[np.int64], there: NDArray[Any]) -> str:
    """A question to the user whose ids are one too large: those that are there, each plus 1."""
    absent = np.setdiff1d(used, there)
    beyond = absent.size == 1 and absent[0] == np.max(there, initial=-1) + 1
    return " Do they count from 1? Images count from 0: subtract 1." if beyond and used.min() >= 1 else ""


def blocks(voxels_TV: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first trial, (n, V) float32), a few MiB at a time; what float32 cannot hold becomes infinite."""
    n_rows = max(1, BLOCK_BYTES // (4 * voxels_TV.shape[1]))
    for first in range(0, len(voxels_TV), n_rows):
        with np.errstate(over="ignore"):
            values = np.asarray(voxels_TV[first : first + n_rows], np.float32)
        yield first, values


def hash_order(image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids in an order that no library version changes, and that depends on nothing but the ids."""
    ids = (int(i) for i in image_ids)
    return np.array(sorted(ids, key=lambda i: hashlib.sha256(f"own-test:{i}".encode()).digest()), np.int64)
