"""One subject's voxels in the prepared HDF5 format: writer and lazy reader.

Layout of ``<subject>.h5`` (T trials, V voxels)::

    voxels    (T, V) float32   responses, one row per trial
    image_id  (T,)   int32     0-based stimulus index
    session   (T,)   int32     0-based
    repeat    (T,)   int32     0-based presentation number of that image
    trial     (T,)   int32     0-based position in the experiment
    ijk       (V, 3) int16     position on the voxel grid; -1 where unknown
    ncsnr     (V,)   float32   optional: signal-to-noise ratio of single trials (standard deviations)
    rois/<name> (V,) bool

The reader opens the file for each read and holds one block of rows at a time, so it can be copied to worker
processes and never has all betas in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError, unknown
from nd.files import atomic_path, open_h5, sha256_json

TRIAL_COLUMNS = ("image_id", "session", "repeat", "trial")
BLOCK_BYTES = 1 << 20  # rows are stored and read in blocks of about 1 MiB
ALL_VOXELS = "all"


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
    ncsnr: NDArray[np.float32] | None = None,
) -> None:
    """Write one subject's prepared file atomically.

    Args: as in the layout at the top of this module; ``attributes`` become HDF5 attributes (text, numbers, bools) and
    should say source, mask, betas and scaling. Raises UserError where shapes disagree or a voxel is not finite.
    """
    columns = {"image_id": image_id, "session": session, "repeat": repeat, "trial": trial}
    _check_arrays(path, voxels, columns, rois, ijk, ncsnr)
    n_trials, n_voxels = voxels.shape
    rows = min(n_trials, _block_rows(n_voxels))
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        handle.create_dataset("voxels", data=np.asarray(voxels, np.float32), chunks=(rows, n_voxels))
        for name, values in columns.items():
            handle.create_dataset(name, data=np.asarray(values, np.int32))
        handle.create_dataset("ijk", data=np.asarray(ijk, np.int16))
        if ncsnr is not None:
            handle.create_dataset("ncsnr", data=np.asarray(ncsnr, np.float32))
        group = handle.create_group("rois")
        for name, mask in rois.items():
            group.create_dataset(name, data=np.asarray(mask, bool))
        handle.attrs.update({"name": path.stem, **attributes})


def _check_arrays(
    path: Path,
    voxels: NDArray[Any],
    columns: dict[str, NDArray[Any]],
    rois: dict[str, NDArray[Any]],
    ijk: NDArray[Any],
    ncsnr: NDArray[Any] | None,
) -> None:
    """Refuse to write what the reader could not read back."""
    if voxels.ndim != 2 or 0 in voxels.shape:
        raise UserError(f"{path.name}: voxels has shape {voxels.shape}; wanted (trials, voxels), neither of them 0.")
    wanted: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
        name: (values, (len(voxels),)) for name, values in columns.items()
    }
    wanted |= {f"rois/{name}": (mask, (voxels.shape[1],)) for name, mask in rois.items()}
    wanted["ijk"] = (ijk, (voxels.shape[1], 3))
    if ncsnr is not None:
        wanted["ncsnr"] = (ncsnr, (voxels.shape[1],))
    for name, (values, shape) in wanted.items():
        if values.shape != shape:
            raise UserError(
                f"{path.name}: {name} has shape {values.shape}, but voxels {voxels.shape} asks for {shape}."
            )
    if ALL_VOXELS in rois:
        raise UserError(f"{path.name}: an ROI cannot be named {ALL_VOXELS!r}, which always means every voxel.")
    _check_finite(path, voxels, 0)


def _block_rows(n_voxels: int) -> int:
    return max(1, BLOCK_BYTES // (4 * n_voxels))


def _check_finite(path: Path, voxels: NDArray[np.float32], first_row: int) -> None:
    """Name the first voxel and trial that is NaN or infinite; ``first_row`` is the trial of row 0."""
    if np.isfinite(voxels).all():
        return
    row, column = np.argwhere(~np.isfinite(voxels))[0]
    raise UserError(
        f"{path}: voxel {column} of trial {first_row + row} is {voxels[row, column]}; every beta must be finite. "
        "Leave that voxel out of the mask or write the file again."
    )


@lru_cache(maxsize=256)
def _check_file(path: Path, size: int, modified_ns: int) -> None:
    """Check one prepared file whole, block by block, once per process (``size`` and ``modified_ns`` key the cache)."""
    with open_h5(path) as handle:
        missing = [name for name in ("voxels", "ijk", "rois", *TRIAL_COLUMNS) if name not in handle]
        if missing:
            found = ", ".join(sorted(handle)) or "nothing"
            raise UserError(
                f"{path} is not a prepared subject file: it lacks {', '.join(missing)} and holds {found}. "
                "Write it with `nd prepare` or nd.data.prepared.write_subject."
            )
        voxels = handle["voxels"]
        if voxels.ndim != 2 or any(handle[c].shape != voxels.shape[:1] for c in TRIAL_COLUMNS):
            shapes = ", ".join(f"{c} {handle[c].shape}" for c in ("voxels", *TRIAL_COLUMNS))
            raise UserError(f"{path}: the columns do not have one row per trial ({shapes}). Write the file again.")
        masks = {name: mask.shape for name, mask in handle["rois"].items() if mask.shape != voxels.shape[1:]}
        if masks or handle["ijk"].shape != (voxels.shape[1], 3):
            raise UserError(f"{path}: ROI masks or ijk do not fit {voxels.shape[1]} voxels. Write the file again.")
        for start in range(0, len(voxels), _block_rows(voxels.shape[1])):
            _check_finite(path, _read(path, voxels, start), start)


def _read(path: Path, voxels: h5py.Dataset, start: int) -> NDArray[np.float32]:
    """One block of rows from ``start``; a damaged block is a UserError that names the file."""
    try:
        return np.asarray(voxels[start : start + _block_rows(voxels.shape[1])], np.float32)
    except OSError as error:
        raise UserError(f"{path} is damaged at trial {start} ({error}). Fetch or write the file again.") from None


class Subject:
    """A prepared subject file opened for reading, seen through one ROI.

    Attributes: ``name``; ``n_voxels`` V inside the ROI; ``image_id``, ``session``, ``repeat``, ``trial`` (T,) int32;
    ``ijk`` (V, 3) int16; ``ncsnr`` (V,) float32 or None; ``rois`` masks over all voxels of the file; ``attributes``;
    ``mask_hash`` of subject, voxel positions and ROI: two equal hashes mean the same voxels in the same order.
    """

    def __init__(self, path: Path, roi: str = ALL_VOXELS) -> None:
        """Open and check the file. UserError: missing, truncated, wrong columns, not finite, unknown or empty ROI."""
        self.path, self.roi = Path(path), roi
        if self.path.is_file():
            state = self.path.stat()
            _check_file(self.path, state.st_size, state.st_mtime_ns)
        with open_h5(self.path) as handle:
            self.attributes: dict[str, Any] = {
                k: v.item() if hasattr(v, "item") else v for k, v in handle.attrs.items()
            }
            self.image_id, self.session, self.repeat, self.trial = (handle[c][()] for c in TRIAL_COLUMNS)
            self.rois: dict[str, NDArray[np.bool_]] = {
                name: mask[()].astype(bool) for name, mask in handle["rois"].items()
            }
            ijk, ncsnr = handle["ijk"][()], handle["ncsnr"][()] if "ncsnr" in handle else None
        self.name = str(self.attributes.get("name", self.path.stem))
        self._columns = np.flatnonzero(self._mask(len(ijk)))
        self.n_voxels = len(self._columns)
        self.ijk = ijk[self._columns]
        self.ncsnr = None if ncsnr is None else ncsnr[self._columns]
        self.mask_hash = sha256_json([self.name, self._columns.tolist(), self.ijk.tolist()])

    def _mask(self, n_all: int) -> NDArray[np.bool_]:
        if self.roi == ALL_VOXELS:
            return np.ones(n_all, bool)
        if self.roi not in self.rois:
            raise unknown(f"ROI of {self.path.name}", self.roi, [ALL_VOXELS, *self.rois])
        if not self.rois[self.roi].any():
            raise UserError(f"ROI {self.roi!r} of {self.path.name} holds no voxel. Choose another subject.roi.")
        return self.rois[self.roi]

    def blocks(self, rows: NDArray[Any]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Yield (positions in ``rows``, their voxels) in file order, reading each needed block of the file once."""
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self.image_id)):
            raise UserError(
                f"{self.path.name} has trials 0..{len(self.image_id) - 1}; asked for {rows.min()}..{rows.max()}."
            )
        order = np.argsort(rows, kind="stable")
        with open_h5(self.path) as handle:
            voxels = handle["voxels"]
            size = _block_rows(voxels.shape[1])
            block_of = rows[order] // size
            for block in np.unique(block_of):
                positions = order[block_of == block]
                values = _read(self.path, voxels, int(block) * size)[rows[positions] - block * size]
                yield positions, values[:, self._columns]

    def voxels(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """(n, V) float32: the trials ``rows`` in the order asked for."""
        out = np.empty((len(rows), self.n_voxels), np.float32)
        for positions, values in self.blocks(rows):
            out[positions] = values
        return out


def mean_betas(subject: Subject, image_ids: NDArray[Any]) -> NDArray[np.float32]:
    """(n, V) float32: the mean over all trials of each image, rows in the order of ``image_ids``.

    Raises UserError where an image was never shown to this subject.
    """
    wanted, inverse = np.unique(np.asarray(image_ids), return_inverse=True)
    missing = np.setdiff1d(wanted, subject.image_id)
    if missing.size:
        raise UserError(
            f"{subject.path.name} has no trial of {missing.size} of the {wanted.size} images asked for "
            f"(first: image {missing[0]}). Was it prepared with the same data settings as the split?"
        )
    rows = np.flatnonzero(np.isin(subject.image_id, wanted))
    target = np.searchsorted(wanted, subject.image_id[rows])
    total = np.zeros((len(wanted), subject.n_voxels), np.float32)
    for positions, values in subject.blocks(rows):
        np.add.at(total, target[positions], values)
    total /= np.bincount(target, minlength=len(wanted))[:, None].astype(np.float32)
    return total[inverse]
