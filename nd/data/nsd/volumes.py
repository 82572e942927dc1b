"""Masks and ROIs: NIfTI volumes on the grid of the betas, with the names of their labels.

Volumes hold -1 outside cortex, 0 in cortex outside every ROI, and labels from 1 on, so "above 0" is the only right test
of membership. Voxels are numbered in C order of the (X, Y, Z) grid, as ``volume[volume > 0]`` does in NumPy.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.data.nsd import tree
from nd.data.nsd.facts import person
from nd.data.whole_numbers import RESAVED, whole_numbers
from nd.errors import UserError, did_you_mean
from nd.files import PACKED, located, parsed_by_others, unreadable

LOG = logging.getLogger(__name__)

# Volumes whose labels are known by their own names alone; labels of the others are called <volume>.<label>.
OWN_NAMES = ("prf-visualrois", "prf-eccrois", "floc-bodies", "floc-faces", "floc-places", "floc-words", "streams")
MERGED = {"V1": ("V1v", "V1d"), "V2": ("V2v", "V2d"), "V3": ("V3v", "V3d")}  # halves of prf-visualrois


@dataclass(frozen=True)
class Mask:
    """The voxels that are kept: shape of the grid, and ijk (V, 3) int16 in C order."""

    path: Path
    grid: tuple[int, ...]
    ijk: NDArray[np.int16]

    def take(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Values (V,) of a volume (X, Y, Z)."""
        i, j, k = self.ijk.T
        return volume[i, j, k]


def read_mask(root: Path, subject: str, mask: str) -> Mask:
    """Return the voxels that ``data.mask`` names.

    Args:
        root: of the tree.
        subject: "subj01" to "subj08".
        mask: name of an ROI volume of the tree, or a NIfTI file of one's own (.nii, .nii.gz): above 0 inside.

    Raises:
        UserError: missing, damaged, empty or not of whole numbers, or nsdgeneral that is not as large as NSD's.
    """
    own = tree.own_mask(mask)
    path = located(mask) if own else root / tree.roi_path(subject, mask)
    if not path.is_file():
        names = sorted(p.name.removesuffix(".nii.gz") for p in path.parent.glob("*.nii.gz"))
        hint = "" if own else f"{did_you_mean(mask, names)} ROI volumes there: {', '.join(names) or 'none'}."
        raise UserError(f"data.mask={mask}: {path} does not exist.{hint}")
    volume = whole_labels(path, read_volume(path))
    ijk = np.argwhere(volume > 0)
    if not len(ijk):
        raise UserError(f"{path} holds no voxel above 0, so nothing would be kept. Choose another data.mask.")
    known = person(subject)
    if mask == "nsdgeneral" and not tree.simulated(root) and (len(ijk), volume.shape) != (known.voxels, known.grid):
        raise UserError(
            f"{path} has {len(ijk)} voxels on a grid {volume.shape}, but nsdgeneral of {subject} has {known.voxels} on "
            f"{known.grid}. Is it the func1pt8mm volume of this subject? Fetch it again."
        )
    return Mask(path, volume.shape, ijk.astype(np.int16))


def read_rois(root: Path, subject: str, mask: Mask) -> dict[str, NDArray[np.bool_]]:
    """Return every ROI of the volumes that are there: whole volumes, their labels, and V1 to V3.

    An ROI without a voxel in the mask is said and kept empty.

    Args:
        root: of the tree.
        subject: "subj01" to "subj08".
        mask: the V voxels that are kept.

    Returns:
        Masks (V,) by name.

    Raises:
        UserError: a volume is damaged, lies on another grid or holds fractions, or two ROIs would have one name.
    """
    rois: dict[str, NDArray[np.bool_]] = {}
    for name in tree.ROI_VOLUMES:
        path = root / tree.roi_path(subject, name)
        if not path.is_file():
            LOG.warning("%s is missing; the ROIs of %s are left out", path, name)
            continue
        values = whole_labels(path, mask.take(on_grid(path, mask)))
        _add(rois, name, values > 0, path)
        if name != "nsdgeneral":
            for label, text in _names(root, subject, name, values).items():
                _add(rois, text if name in OWN_NAMES else f"{name}.{text}", values == label, path)
    for name, (ventral, dorsal) in MERGED.items():
        if ventral in rois and dorsal in rois:
            _add(rois, name, rois[ventral] | rois[dorsal], root / tree.roi_path(subject, "prf-visualrois"))
    empty = [name for name, inside in rois.items() if not inside.any()]
    if empty:
        LOG.warning("%s: no voxel that is kept lies in %s; such ROIs cannot be chosen", subject, ", ".join(empty))
    return rois


def whole_labels(path: Path, values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the labels of a volume, which may have been saved again with a scale. UserError: they are fractions."""
    advice = "Labels and masks are whole numbers, 0 outside: cut a map off at a threshold first (values > 0.5)."
    return whole_numbers(values, str(path), lowest=-1000, within=RESAVED, advice=advice)


def _add(rois: dict[str, NDArray[np.bool_]], name: str, inside: NDArray[np.bool_], path: Path) -> None:
    """Add an ROI under a name that none has yet: a second one would take the place of the first."""
    if name in rois:
        raise UserError(f"{path}: there are two ROIs {name!r}. Give one of them another name in its label table.")
    rois[name] = inside


def on_grid(path: Path, mask: Mask) -> NDArray[Any]:
    """A volume on the grid of the mask; one of another shape is a UserError."""
    volume = read_volume(path)
    if volume.shape != mask.grid:
        raise UserError(
            f"{path} has shape {volume.shape}, but the mask {mask.path} lies on a grid {mask.grid}. Take both from the "
            "same preparation (func1pt8mm) of the same subject."
        )
    return volume


def _names(root: Path, subject: str, name: str, values: NDArray[np.int64]) -> dict[int, str]:
    """Names of the labels above 0; numbers where there is no table."""
    tables = [root / path for path in tree.label_paths(subject, name)]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        present = [int(label) for label in np.unique(values) if label > 0]
        LOG.warning("no label table of %s (%s); its ROIs are called by number", name, tables[0])
        return {label: f"{name}-{label}" for label in present}
    return {label: text for label, text in read_labels(table).items() if label > 0}


def read_labels(path: Path) -> dict[int, str]:
    """Read a FreeSurfer colour table: a number and a name on every line; lines that begin with # are passed over.

    UserError: damaged, or two labels of one name or number.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        pairs = [(int(words[0]), words[1].replace("/", "_")) for words in lines if not words[0].startswith("#")]
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is not a table of labels ('1 V1v' on a line): {error}. Fetch it again.") from None
    labels, names = [label for label, _ in pairs], [text for label, text in pairs if label > 0]
    twice = [value for column in (labels, names) for n, value in enumerate(column) if value in column[:n]]
    if twice:
        raise UserError(
            f"{path} holds {twice[0]!r} twice, so that the voxels of one label would be lost. Give every label a "
            "number and a name of its own."
        )
    return dict(pairs)


def read_volume(path: Path) -> NDArray[Any]:
    """A 3-D NIfTI volume. Raises UserError where it is damaged or not 3-D."""
    if not path.is_file():
        raise UserError(f"{path} is missing. `nd doctor data=nsd` lists what belongs below data.root.")
    image = open_nifti(path)
    check_claim(path, image)
    with nifti_values(path):
        volume = np.asanyarray(image.dataobj)
    if volume.ndim != 3:
        raise UserError(f"{path} has shape {volume.shape}; wanted a volume (X, Y, Z). Fetch it again.")
    return volume


def open_nifti(path: Path) -> Any:
    """A NIfTI image whose values are still on disk. Raises UserError where the header cannot be read."""
    import nibabel

    with parsed_by_others(path, f"{path} is not a readable NIfTI file", "Fetch it again."):
        # Kept open, so that reading one volume after the other unpacks a compressed file once and not every time.
        return nibabel.load(path, keep_file_open=True)


def check_claim(path: Path, image: Any) -> None:
    """Refuse a header that claims more values than its file can hold, before room is made for them."""
    claimed = math.prod(image.shape) * image.get_data_dtype().itemsize
    if claimed > PACKED * path.stat().st_size:
        raise UserError(f"{path} claims to hold {image.shape} values, more than the file can. Fetch it again.")


def nifti_values(path: Path) -> AbstractContextManager[None]:
    """Say of a file whose header is sound that its values are not."""
    return parsed_by_others(path, f"{path} is truncated or damaged", "Fetch it again; what is finished is kept.")
