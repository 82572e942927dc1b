"""The prepared file of one subject: its layout, and the writer.

Layout of ``<subject>.h5`` (T trials, V voxels)::

    voxels    (T, V) float32   responses, one row per trial; may be a link to a file that holds them already
    image_id  (T,)   int32     0-based stimulus index
    session   (T,)   int32     0-based
    repeat    (T,)   int32     0-based presentation number of that image
    trial     (T,)   int32     0-based position in the experiment
    held_out  (T,)   bool      optional: trials whose image is reserved for the test (NSD: the shared images)
    ijk       (V, 3) int16     position on the voxel grid; -1 where unknown
    ncsnr     (V,)   float32   optional: signal-to-noise ratio of single trials (standard deviations)
    rois/<name> (V,) bool
    digests/...              of all of it, optional (``nd.sealed``)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.rows import not_finite
from nd.data.whole_numbers import RESAVED, whole_numbers
from nd.digests import digest_rows
from nd.errors import UserError
from nd.files import atomic_path
from nd.hdf5 import allocate
from nd.sealed import ROWS, seal
from nd.terminal import check_text

TRIAL_COLUMNS = ("image_id", "session", "repeat", "trial")
ALL_VOXELS = "all"
AGAIN = "Remove it and write it again, by `nd prepare` or as it was made."


def repeats_of(image_id: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return (T,) how often the image of each trial was shown before.

    >>> repeats_of(np.array([7, 2, 7, 7]))
    array([0, 0, 1, 2], dtype=int32)
    """
    by_image = np.argsort(image_id, kind="stable")
    ordered = image_id[by_image]
    out = np.empty(len(image_id), np.int32)
    out[by_image] = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    return out


@dataclass(frozen=True, kw_only=True)
class SubjectTable:
    """Everything of a subject's file but the voxels: as in the layout at the top of this module.

    ``attributes`` become HDF5 attributes (text, numbers, bools) and should say source, mask, betas and scaling.
    """

    image_id: NDArray[Any]
    session: NDArray[Any]
    repeat: NDArray[Any]
    trial: NDArray[Any]
    ijk: NDArray[np.int16]
    rois: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    held_out: NDArray[np.bool_] | None = None
    ncsnr: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(T, V)."""
        return len(self.image_id), len(self.ijk)


def lay_out(handle: h5py.File, name: str, table: SubjectTable) -> h5py.Dataset:
    """Write ``table`` into an empty file and return its ``voxels``: allocated, to be filled by ``write_rows``."""
    write_table(handle, name, table)
    allocate(handle, f"{ROWS}/voxels", table.shape[:1], np.dtype(np.uint64))[:] = 0
    return allocate(handle, "voxels", table.shape, np.dtype(np.float32))


def write_rows(handle: h5py.File, first: int, voxels: NDArray[np.float32]) -> None:
    """Write responses (n, V) float32 of trials that follow each other, and their digests.

    Args:
        handle: a file that ``lay_out`` has laid out.
        first: the first of the trials.
        voxels: their responses.
    """
    write_digests(handle, first, voxels)
    handle["voxels"][first : first + len(voxels)] = voxels


def write_digests(handle: h5py.File, first: int, voxels: NDArray[np.float32]) -> None:
    """Write the digests of responses, which may lie elsewhere; arguments as of ``write_rows``."""
    handle[f"{ROWS}/voxels"][first : first + len(voxels)] = digest_rows(voxels)


def write_table(handle: h5py.File, name: str, table: SubjectTable) -> None:
    """Write everything but the voxels into an empty file."""
    for column in TRIAL_COLUMNS:
        numbers = whole_numbers(getattr(table, column), f"{name}: {column}")
        handle.create_dataset(column, data=numbers.astype(np.int32))
    if table.held_out is not None:
        handle.create_dataset("held_out", data=whole_numbers(table.held_out, f"{name}: held_out") > 0)
    ijk = whole_numbers(table.ijk, f"{name}: ijk", lowest=-1, within=RESAVED)
    handle.create_dataset("ijk", data=ijk.astype(np.int16))
    if table.ncsnr is not None:
        handle.create_dataset("ncsnr", data=np.asarray(table.ncsnr, np.float32))
    group = handle.create_group("rois")
    for roi, mask in table.rois.items():
        group.create_dataset(roi, data=whole_numbers(mask, f"{name}: ROI {roi}", within=RESAVED) > 0)
    handle.attrs.update({"name": name, **table.attributes})


def write_subject(
    path: Path,
    *,
    voxels: NDArray[np.float32],
    image_id: NDArray[Any],
    session: NDArray[Any],
    repeat: NDArray[Any],
    trial: NDArray[Any],
    rois: dict[str, NDArray[np.bool_]],
    ijk: NDArray[np.int16],
    attributes: dict[str, Any],
    held_out: NDArray[np.bool_] | None = None,
    ncsnr: NDArray[np.float32] | None = None,
) -> None:
    """Write one subject's prepared file atomically from arrays in memory (or a memory map).

    Args: as in the layout at the top of this module. Raises UserError where shapes disagree or a voxel is not finite.
    """
    table = SubjectTable(
        image_id=image_id, session=session, repeat=repeat, trial=trial, ijk=ijk, rois=rois, attributes=attributes,
        held_out=held_out, ncsnr=ncsnr,
    )  # fmt: skip
    check_table(path, table, voxels.shape)
    bad = np.argwhere(~np.isfinite(voxels))
    if len(bad):
        raise UserError(not_finite(path, int(bad[0][0]), int(bad[0][1]), float(voxels[tuple(bad[0])])))
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        lay_out(handle, path.stem, table)
        write_rows(handle, 0, np.asarray(voxels, np.float32))
        seal(handle, AGAIN)


def check_table(path: Path, table: SubjectTable, shape: tuple[int, ...]) -> None:
    """Refuse to write what the reader could not read back.

    Args:
        path: of the file, for messages.
        table: everything but the voxels.
        shape: (T, V) of the voxels.

    Raises:
        UserError: shapes that do not fit, and names of ROIs that no file can have.
    """
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{path.name}: voxels has shape {shape}; wanted (trials, voxels), neither of them 0.")
    per_trial: dict[str, Any] = {name: getattr(table, name) for name in TRIAL_COLUMNS} | {"held_out": table.held_out}
    per_voxel: dict[str, Any] = {f"rois/{name}": mask for name, mask in table.rois.items()} | {"ncsnr": table.ncsnr}
    wanted: dict[str, Any] = {name: (values, shape[:1]) for name, values in per_trial.items()}
    wanted |= {name: (values, shape[1:]) for name, values in per_voxel.items()}
    wanted["ijk"] = (table.ijk, (shape[1], 3))
    for name, (values, wished) in wanted.items():
        if values is not None and values.shape != wished:
            raise UserError(f"{path.name}: {name} has shape {values.shape}, but voxels {shape} asks for {wished}.")
    for roi in table.rois:
        check_roi(path.name, roi)


def check_roi(file: str, roi: str) -> None:
    """Refuse a name of an ROI that no file can have; ``file`` is its name, for messages."""
    check_text(roi, f"{file}: the name of ROI {roi!r}")
    if not roi.strip(".") or "/" in roi:
        raise UserError(f"{file}: an ROI is named {roi!r}; wanted a name without '/' that is not only dots.")
    if roi == ALL_VOXELS:
        raise UserError(f"{file}: an ROI cannot be named {ALL_VOXELS!r}, which always means every voxel.")
