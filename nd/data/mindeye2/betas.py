"""The betas of the MindEye2 release: opened, held against what is known of them, and read through once.

Shapes: T trials, V voxels.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nd.data.mindeye2 import tree
from nd.data.nsd.facts import person
from nd.data.nsd.tree import simulated
from nd.data.rows import RowFile
from nd.errors import UserError
from nd.files import open_h5


def open_betas(root: Path, subject: str) -> RowFile:
    """The betas (T, V) of one subject. UserError: missing, damaged, no such dataset, or voxels that are not NSD's."""
    path = root / tree.betas_file(subject)
    if not tree.there(path):
        raise UserError(f"{path} is missing. `nd doctor data=mindeye2` lists what belongs below data.root.")
    with open_h5(path) as handle:
        if tree.BETAS_KEY not in handle:
            held = ", ".join(sorted(handle.keys())) or "nothing"
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


def read_through(matrix: RowFile, out: h5py.Dataset | None, title: str, progress: bool) -> NDArray[np.bool_]:
    """Say which voxels (V,) never vary, and copy all rows to ``out`` where it is given.

    Memory is that of a few blocks. Raises UserError, naming trial and voxel, where a value is not finite.
    """
    n_trials, n_voxels = matrix.shape
    lowest, highest = np.full(n_voxels, np.inf, np.float32), np.full(n_voxels, -np.inf, np.float32)
    with tqdm(total=n_trials, desc=title, unit="trial", disable=not progress) as bar:
        for rows, values in matrix.blocks(np.arange(n_trials)):
            np.minimum(lowest, values.min(0), out=lowest)
            np.maximum(highest, values.max(0), out=highest)
            if out is not None:
                out[rows[0] : rows[-1] + 1] = values
            bar.update(len(rows))
    return lowest == highest


def check_constant(matrix: RowFile, constant: NDArray[np.bool_], rule: str) -> None:
    """Refuse voxels that never vary, unless ``rule`` (data.constant_voxels) is to keep them: they carry nothing."""
    if constant.any() and rule == "refuse":
        raise UserError(
            f"{matrix.path}: {constant.sum()} voxels never vary (first: voxel {constant.argmax()}, counted from 0), so "
            "they cannot be scaled. Set data.constant_voxels=zero to keep them as zeros, or fetch the file again."
        )
