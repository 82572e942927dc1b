"""Single-trial betas of one session, through a mask, from either form in which NSD has them; and their scaling.

NIfTI: (X, Y, Z, trials) int16, compressed, read volume by volume. HDF5: ``betas`` int16, written by MATLAB as
(X, Y, Z, trials), so (trials, Z, Y, X) here, in chunks of one voxel and all trials, read slice by slice. Both hold
percent signal change times 300. Memory stays near that of the kept voxels.

``session_train`` (the default) z-scores every voxel by the session's trials that show no shared image, so that no test
trial has a part in it; the released MindEye2 betas ("renorm") were made so. ``session`` uses all trials of the session,
test trials included, as earlier published pipelines do: it is transductive and marked as such.
Shapes: T trials, V voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.nsd import tree
from nd.data.nsd.facts import BETA_UNIT
from nd.data.nsd.volumes import Mask, check_claim, nifti_values, open_nifti
from nd.errors import UserError
from nd.h5_values import check_size
from nd.hdf5 import names_in, open_h5

LOG = logging.getLogger(__name__)

KEY = "betas"
SCALES = {"scale_factor", "add_offset", "scl_slope", "scl_inter"}  # attributes that say integers are to be scaled
LEAST, MOST = 0.02, 60.0  # medians of |beta|, percent, between which no unit is doubted; NSD's are near 1
SAMPLE = 1_000_000  # betas looked at for that
SLAB_BYTES = 64 << 20  # of an HDF5 file read at a time


RULES = {
    "raw": "none: percent signal change",
    "session": "z-scored per session and voxel by the mean and deviation of all its trials (transductive)",
    "session_train": "z-scored per session and voxel by the mean and deviation of its training-image trials",
}


def session_files(root: Path, subject: str, version: str, n_sessions: int) -> list[Path]:
    """Return the file of each session, NIfTI where both forms are there.

    Args:
        root: of the tree.
        subject: "subj01" to "subj08".
        version: of the betas, "betas_fithrf" or "betas_fithrf_GLMdenoise_RR".
        n_sessions: sessions wanted, from the first on.

    Raises:
        UserError: files that are missing, all of them in one message.
    """
    found, missing = [], []
    for session in range(1, n_sessions + 1):
        forms = [root / path for path in tree.session_paths(subject, version, session)]
        there = [path for path in forms if path.is_file()]
        found += there[:1]
        missing += [] if there else [session]
    if missing:
        raise UserError(
            f"{root / tree.betas_folder(subject, version)} lacks the betas of {len(missing)} of {n_sessions} sessions "
            f"(first: betas_session{missing[0]:02d}.nii.gz or .hdf5). Fetch them, or prepare the sessions before them "
            f"(data.sessions={missing[0] - 1}) where that is enough."
        )
    return found


def check_session(path: Path, mask: Mask, n_trials: int) -> None:
    """Hold the header of a session's file against the mask and the design; a UserError says what differs."""
    if path.suffix == ".hdf5":
        with open_h5(path) as handle:
            shape = _dataset(path, handle).shape[::-1]
    else:
        shape = open_nifti(path).shape
    if len(shape) != 4 or shape[:3] != mask.grid:
        raise UserError(
            f"{path} has a grid {shape[:3]}, but the mask {mask.path} lies on {mask.grid}. Take both from the same "
            "preparation (func1pt8mm) of the same subject."
        )
    if shape[3] != n_trials:
        raise UserError(f"{path} has {shape[3]} trials, but the design has {n_trials} in this session. Fetch it again.")


def read_session(path: Path, mask: Mask) -> NDArray[np.float32]:
    """Return the betas of a session.

    Args:
        path: of the NIfTI or HDF5 file.
        mask: the voxels that are kept.

    Returns:
        (T, V) float32 in percent signal change.

    Raises:
        UserError: a damaged file, scaled integers in HDF5, and betas that are not finite, naming the first.
    """
    values = _read_hdf5(path, mask) if path.suffix == ".hdf5" else _read_nifti(path, mask)
    if not np.isfinite(values).all():
        trial, voxel = np.argwhere(~np.isfinite(values))[0]
        raise UserError(
            f"{path}: the beta of voxel {tuple(int(i) for i in mask.ijk[voxel])} in trial {trial} of the session is "
            f"{values[trial, voxel]}; every beta must be finite. Leave that voxel out of data.mask, or fetch "
            "the file again."
        )
    return values


def _read_nifti(path: Path, mask: Mask) -> NDArray[np.float32]:
    image = open_nifti(path)
    check_claim(path, image)
    flat = np.ravel_multi_index(tuple(mask.ijk.T.astype(np.intp)), mask.grid, order="F")  # the order on disk
    out = np.empty((image.shape[3], len(flat)), np.float32)
    kind = image.get_data_dtype()
    with nifti_values(path):
        for trial in range(len(out)):
            values = np.asanyarray(image.dataobj[..., trial])
            kind = values.dtype  # as read: a slope of the header has made floats of integers by now
            out[trial] = values.ravel(order="F")[flat]
    return _percent(path, out, kind)


def _read_hdf5(path: Path, mask: Mask) -> NDArray[np.float32]:
    with open_h5(path) as handle:
        betas = _dataset(path, handle)
        out = np.empty((len(betas), len(mask.ijk)), np.float32)
        if betas.chunks is None or betas.chunks[0] < len(betas):
            _by_trials(betas, mask, out)
        else:
            _by_slices(betas, mask, out)
        if betas.dtype.kind in "iu" and (scales := sorted(SCALES & set(betas.attrs))):
            raise UserError(
                f"{path}: {KEY} are scaled integers ({', '.join(scales)}), whose unit is not NSD's. Save them as "
                "floats in percent signal change."
            )
        return _percent(path, out, betas.dtype)


def _by_slices(betas: h5py.Dataset, mask: Mask, out: NDArray[np.float32]) -> None:
    """Read slice by slice of Z, only the rectangle that holds kept voxels: every chunk is met once."""
    x, y, z = mask.ijk.T
    for k in np.unique(z):
        here = np.flatnonzero(z == k)
        x0, y0 = x[here].min(), y[here].min()
        part = betas[:, int(k), int(y0) : int(y[here].max()) + 1, int(x0) : int(x[here].max()) + 1]
        out[:, here] = part[:, y[here] - y0, x[here] - x0]


def _by_trials(betas: h5py.Dataset, mask: Mask, out: NDArray[np.float32]) -> None:
    """Read a few whole trials at a time."""
    x, y, z = mask.ijk.T
    chunk = betas.chunks[0] if betas.chunks else 1
    step = max(chunk, SLAB_BYTES // (betas.dtype.itemsize * int(np.prod(betas.shape[1:]))) // chunk * chunk)
    for start in range(0, len(betas), step):
        out[start : start + step] = betas[start : start + step][:, z, y, x]


def _dataset(path: Path, handle: h5py.File) -> h5py.Dataset:
    betas = handle.get(KEY)
    if not isinstance(betas, h5py.Dataset) or betas.ndim != 4 or betas.dtype.kind not in "iuf":
        raise UserError(f"{path} holds {names_in(handle)}; wanted numbers {KEY} (trials, Z, Y, X). Fetch it again.")
    check_size(path, KEY, betas)
    return betas


def _percent(path: Path, values: NDArray[np.float32], kind: np.dtype[Any]) -> NDArray[np.float32]:
    """Values as percent signal change: integers without a scale are that times 300, anything else is that already."""
    if kind.kind in "iu":
        values /= np.float32(BETA_UNIT)
    size = float(np.median(np.abs(values[: max(1, SAMPLE // max(1, values.shape[1]))])))
    if not LEAST <= size <= MOST:
        LOG.warning(
            "%s: half of its betas are beyond %.3g percent signal change, which no brain shows: integers are read as "
            "percent times 300, floats as percent. Are they in another unit?", path, size,
        )  # fmt: skip
    return values


def scale_session(
    betas_TV: NDArray[np.float32],
    shared_T: NDArray[np.bool_],
    rule: str,
    constant: str,
    name_voxel: Callable[[int], str],
) -> NDArray[np.float32]:
    """Scale one session's betas in place and return them.

    Args:
        betas_TV: percent signal change.
        shared_T: trials of shared images.
        rule: a key of ``RULES``.
        constant: what to do with voxels that never vary over the trials that give the statistics: "refuse", or "zero".
        name_voxel: says where a voxel is, for messages.

    Raises:
        UserError: constant voxels that are refused, or fewer than two trials to take statistics from.
    """
    fit = ~shared_T if rule == "session_train" else np.ones(len(betas_TV), bool)
    if fit.sum() < 2:
        raise UserError(f"a session has {fit.sum()} trials to be scaled by, wanted at least 2. Use data.scaling=raw.")
    mean, spread = betas_TV[fit].mean(0, dtype=np.float64), betas_TV[fit].std(0, dtype=np.float64)
    flat = spread <= 10 * np.finfo(np.float32).eps * np.abs(mean)
    if flat.all():
        raise UserError(
            f"{name_voxel(0)} has the same beta in all trials of the session, and so have all others: the file holds "
            "no measurement. Fetch it again, or prepare the sessions before it alone (data.sessions)."
        )
    if flat.any() and constant == "refuse":
        raise UserError(
            f"{name_voxel(int(flat.argmax()))} has the same beta in all trials of the session, and so have "
            f"{int(flat.sum()) - 1} others: it was outside the imaged volume. Leave such voxels out of data.mask, or "
            "set them to 0 in such sessions with data.constant_voxels=zero."
        )
    if rule != "raw":
        betas_TV -= mean.astype(np.float32)
        betas_TV /= np.where(flat, 1, spread).astype(np.float32)
    betas_TV[:, flat] = 0
    return betas_TV
