"""Regions of the MindEye2 release: masks over the columns of the betas, under the names that NSD's own files have."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.mindeye2 import tree
from nd.data.whole_numbers import RESAVED, whole_numbers
from nd.errors import UserError
from nd.files import open_h5

LOG = logging.getLogger(__name__)

NSD_NAMES = {"nsd_general": "nsdgeneral", "V4": "hV4"}  # the others are called alike


def read_rois(root: Path, subject: str, n_voxels: int) -> dict[str, NDArray[np.bool_]]:
    """The masks (V,) of one subject; none where the release has none of it.

    Raises UserError where the file is damaged or a mask has another length.
    """
    path = root / tree.ROI_MASKS
    if not tree.there(path):
        LOG.warning("%s is missing; %s is prepared without ROIs", path, subject)
        return {}
    with open_h5(path) as handle:
        if subject not in handle:
            LOG.warning("%s holds no ROIs of %s", path, subject)
            return {}
        masks = {name: mask[()] for name, mask in handle[subject].items() if isinstance(mask, h5py.Dataset)}
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
