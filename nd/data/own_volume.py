"""Where the voxels of people's own data lie, and which ROIs they are in.

A NIfTI mask's voxels above 0, in C order of the grid as ``volume[mask > 0]`` gives them, are the columns of the
responses. ROIs are volumes on the same grid, or .npy masks over the columns, each file named after its ROI.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nd.data.npy import open_npy
from nd.data.nsd.volumes import Mask, on_grid, read_volume, whole_labels
from nd.data.subject_file import check_roi
from nd.data.whole_numbers import whole_numbers
from nd.errors import UserError

NIFTI = (".nii", ".nii.gz")
ENDINGS = {"roi_volumes": NIFTI, "rois": (".npy",)}  # of the files of an ROI, by the field of data
KINDS = {"roi_volumes": "NIfTI volume (.nii, .nii.gz)", "rois": "mask (.npy)"}


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


def roi_files(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Return the file of every ROI by its name.

    Args:
        paths: where given, the folders ``roi_volumes`` and ``rois``.

    Raises:
        UserError: a folder holds none, two files are of one name, or one that no ROI can have.
    """
    found: dict[str, Path] = {}
    for field in (field for field in ENDINGS if field in paths):
        folder, endings = paths[field], ENDINGS[field]
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        files = [path for path in files if path.name.endswith(endings) and not path.name.startswith(".")]
        if not files:
            raise UserError(f"data.{field}={folder} is no folder with a {KINDS[field]} for every ROI, named after it.")
        for path in files:
            name = next(path.name.removesuffix(end) for end in reversed(endings) if path.name.endswith(end))
            check_roi(str(path), name)
            if name in found:
                raise UserError(f"{found[name]} and {path} are both named after ROI {name}. Keep one of them.")
            found[name] = path
    return found


def read_roi(path: Path, n_voxels: int, mask: Mask | None) -> NDArray[np.bool_]:
    """Return a mask (V,) over the columns of the responses.

    Args:
        path: .npy (V,), true or above 0 inside the ROI, or a NIfTI volume that is above 0 there.
        n_voxels: columns of the responses.
        mask: the voxels, where ``data.volume`` says where they lie.

    Raises:
        UserError: a file of another shape or grid, one that is damaged or holds fractions.
    """
    if path.name.endswith(NIFTI):
        assert mask is not None  # data.roi_volumes needs data.volume
        return whole_labels(path, mask.take(on_grid(path, mask))) > 0
    values = open_npy(path, "bool")
    if values.shape != (n_voxels,):
        raise UserError(
            f"{path} has shape {values.shape}, but data.voxels has {n_voxels} columns. Wanted ({n_voxels},), true "
            "inside the ROI; of a list of columns: mask = np.zeros(n, bool); mask[columns] = True."
        )
    return whole_numbers(values, f"{path}: a mask of an ROI", highest=1) > 0
