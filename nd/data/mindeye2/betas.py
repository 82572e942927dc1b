"""What the MindEye2 release measured: the betas, held against what is known of them, and the ROIs of their columns.

Shapes: T trials, V voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nd.data.mindeye2 import tree
from nd.data.nsd.facts import person
from nd.data.nsd.tree import simulated
from nd.data.rows import RowFile
from nd.data.whole_numbers import RESAVED, whole_numbers
from nd.errors import UserError
from nd.h5_values import read_whole
from nd.hdf5 import names_in, open_h5

LOG = logging.getLogger(__name__)

NSD_NAMES = {"nsd_general": "nsdgeneral", "V4": "hV4"}  # ROIs that the release calls otherwise than NSD


def open_betas(root: Path, subject: str) -> RowFile:
    """The betas (T, V) of one subject. UserError: missing, damaged, no such dataset, or voxels that are not NSD's."""
    path = root / tree.betas_file(subject)
    if not tree.there(path):
        raise UserError(f"{path} is missing. `nd doctor data=mindeye2` lists what belongs below data.root.")
    with open_h5(path) as handle:
        if tree.BETAS_KEY not in set(handle):
            held = names_in(handle)
            raise UserError(f"{path} holds no {tree.BETAS_KEY!r} but {held}. Is it the release's? Fetch it again.")
    matrix = RowFile(path, tree.BETAS_KEY)
    known = person(subject).voxels
    if matrix.shape[1] != known and not simulated(root):
        raise UserError(
            f"{path} has {matrix.shape[1]} voxels, but nsdgeneral of {subject} has {known}. Is it this subject's file? "
            "Fetch it again."
        )
    return matrix


def check_trials(matrix: RowFile, subject: str, n_trials: int) -> None:
    """The betas have one row for every trial that the tars tell of."""
    if matrix.shape[0] != n_trials:
        raise UserError(
            f"{matrix.path} has betas of {matrix.shape[0]} trials, but the tars of {subject} hold {n_trials}. One of "
            f"them is cut short; fetch it and wds/{subject} again."
        )


def read_through(
    matrix: RowFile, write: Callable[[int, NDArray[np.float32]], None], title: str, progress: bool
) -> NDArray[np.bool_]:
    """Read all betas once: copy them, and find the voxels that never vary. Memory is that of a few blocks.

    Args:
        matrix: the betas (T, V).
        write: takes the number of the first trial of a block, and its betas (n, V).
        title: of the bar.
        progress: show the bar.

    Returns:
        (V,) whether a voxel never varies.

    Raises:
        UserError: a value that is not finite, naming trial and voxel.
    """
    n_trials, n_voxels = matrix.shape
    lowest, highest = np.full(n_voxels, np.inf, np.float32), np.full(n_voxels, -np.inf, np.float32)
    with tqdm(total=n_trials, desc=title, unit="trial", disable=not progress) as bar:
        for rows, values in matrix.blocks(np.arange(n_trials)):
            np.minimum(lowest, values.min(0), out=lowest)
            np.maximum(highest, values.max(0), out=highest)
            write(int(rows[0]), values)
            bar.update(len(rows))
    return lowest == highest


def check_constant(matrix: RowFile, constant: NDArray[np.bool_], rule: str) -> None:
    """Refuse voxels that never vary, unless ``rule`` (data.constant_voxels) is to keep them: they carry nothing."""
    if constant.all():
        raise UserError(f"{matrix.path}: none of its {len(constant)} voxels ever varies. Fetch the file again.")
    if constant.any() and rule == "refuse":
        raise UserError(
            f"{matrix.path}: {constant.sum()} voxels never vary (first: voxel {constant.argmax()}, counted from 0), so "
            "they cannot be scaled. Set data.constant_voxels=zero to keep them as zeros, or fetch the file again."
        )


def read_rois(root: Path, subject: str, n_voxels: int) -> dict[str, NDArray[np.bool_]]:
    """Return the masks of one subject; none where the release has none of it.

    Args:
        root: of the release.
        subject: "subj01" to "subj08".
        n_voxels: V, columns of the betas.

    Returns:
        Masks (V,) by name.

    Raises:
        UserError: the file is damaged, or a mask has another length or holds fractions.
    """
    path = root / tree.ROI_MASKS
    if not tree.there(path):
        LOG.warning("%s is missing; %s is prepared without ROIs", path, subject)
        return {}
    with open_h5(path) as handle:
        if subject not in handle:
            LOG.warning("%s holds no ROIs of %s", path, subject)
            return {}
        if not isinstance(handle[subject], h5py.Group):
            raise UserError(f"{path}: {subject} is no group of masks. Fetch the file again.")
        names = [name for name in handle[subject] if isinstance(handle[subject].get(name), h5py.Dataset)]
        masks = {name: read_whole(handle, f"{subject}/{name}") for name in names}
    for name, mask in masks.items():
        if mask.shape != (n_voxels,):
            raise UserError(
                f"{path}: {subject}/{name} has shape {mask.shape}, but the betas of {subject} have {n_voxels} voxels. "
                "Fetch both again, or move the masks away to go without ROIs."
            )
    found: dict[str, NDArray[np.bool_]] = {}
    for name, mask in masks.items():
        found[NSD_NAMES.get(name, name)] = whole_numbers(mask, f"{path}: {subject}/{name}", within=RESAVED) > 0
    return found
