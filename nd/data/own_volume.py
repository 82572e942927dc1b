"""Where the voxels of people's own data lie, and which ROIs they are in: NIfTI volumes on one grid.

The mask's voxels above 0, in C order of the grid as ``volume[mask > 0]`` gives them, are the columns of the responses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nd.data.nsd.volumes import Mask, on_grid, read_volume, whole_labels
from nd.errors import UserError

ENDINGS = (".nii", ".nii.gz")


def read_places(path: Path, n_voxels: int) -> Mask:
    """Return the mask whose voxels the columns of the responses are.

    Args:
        path: NIfTI volume, above 0 at the voxels.
        n_voxels: columns of the responses.

    Raises:
        UserError: the volume is damaged, holds fractions, or another number of voxels.
    """
    volume = whole_labels(path, read_volume(path))
    ijk = np.argwhere(volume > 0)
    if len(ijk) != n_voxels:
        raise UserError(
            f"data.volume={path} has {len(ijk)} voxels above 0 on a grid {volume.shape}, but data.voxels has {n_voxels}"
            " columns. Give the mask by which the responses were taken: voxels = betas[:, mask > 0]."
        )
    return Mask(path, volume.shape, ijk.astype(np.int16))


def volumes_in(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder, sorted by name.

    Raises:
        UserError: there are none.
    """
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS)) if folder.is_dir() else [folder]
    if not files or not files[0].name.endswith(ENDINGS):
        raise UserError(f"data.roi_volumes={folder} holds no NIfTI volume (.nii, .nii.gz), one for every ROI.")
    return files


def read_areas(folder: Path, mask: Mask) -> dict[str, NDArray[np.bool_]]:
    """Return masks (V,) over the voxels of `mask`, one for each NIfTI volume of a folder, by the file's name.

    Args:
        folder: of volumes that are above 0 inside an ROI.
        mask: the voxels.

    Raises:
        UserError: a volume lies on another grid, is damaged or holds fractions.
    """
    found = {}
    for path in volumes_in(folder):
        name = next(path.name.removesuffix(ending) for ending in reversed(ENDINGS) if path.name.endswith(ending))
        found[name] = whole_labels(path, mask.take(on_grid(path, mask))) > 0
    return found
