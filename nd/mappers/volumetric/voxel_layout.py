"""Where the voxels of a subject lie: their places on the grid, and the region each belongs to.

Shapes: V voxels, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.mappers.network.draws import key_of

if TYPE_CHECKING:
    from nd.data.subject import Subject
    from nd.mappers.volumetric.components import VolumetricSettings


@dataclass(frozen=True)
class Layout:
    """One subject's voxels.

    Attributes:
        ijk: (V, 3) int32 places on the grid, or (0, 3) where they are left out.
        region: (V,) int32, the first region of the list that holds a voxel; R where none does.
    """

    ijk: NDArray[np.int32]
    region: NDArray[np.int32]

    @property
    def n_voxels(self) -> int:
        """V."""
        return len(self.region)

    @property
    def has_places(self) -> bool:
        """Whether places are known."""
        return len(self.ijk) == len(self.region)

    @classmethod
    def of(cls, subject: Subject, config: VolumetricSettings, seed: int) -> Layout:
        """Return the layout of a subject's voxels as a mapper sees them.

        Args:
            subject: seen through its ROI.
            config: which regions, and what becomes of the coordinates.
            seed: of the permutation of ``coordinates=shuffled``, which is the subject's own.

        Raises:
            UserError: the prepared file has no coordinates, or no such region.
        """
        region = regions_of(subject, config.regions if config.tokenizer == "regions" else [])
        if config.coordinates == "none":
            return cls(np.zeros((0, 3), np.int32), region)
        ijk = check_places(subject).astype(np.int32)
        if config.coordinates == "shuffled":
            ijk = ijk[np.random.default_rng(key_of(seed, subject.name, "places")).permutation(len(ijk))]
        return cls(ijk, region)

    @classmethod
    def stand_in(cls, n_voxels: int, config: VolumetricSettings) -> Layout:
        """Return a layout of so many voxels for estimates of memory: a cubic grid cut evenly into regions."""
        side = int(np.ceil(n_voxels ** (1 / 3)))
        ijk = np.stack(np.unravel_index(np.arange(n_voxels), (side, side, side)), 1).astype(np.int32)
        region = np.arange(n_voxels) * config.n_regions // max(1, n_voxels)
        return cls(ijk[:0] if config.coordinates == "none" else ijk, region.astype(np.int32))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint keeps."""
        return {"layout_ijk": self.ijk, "layout_region": self.region}

    @classmethod
    def restore(cls, arrays: Any) -> Layout:
        """Return the layout that `arrays` gave."""
        return cls(np.asarray(arrays["layout_ijk"]), np.asarray(arrays["layout_region"]))


def check_places(subject: Subject) -> NDArray[np.int16]:
    """Return the places (V, 3) of a subject's voxels.

    Raises:
        UserError: some are not known; it says how to get them.
    """
    unknown_V = (subject.ijk < 0).any(1)
    if not unknown_V.any():
        return subject.ijk
    remedy = {
        "own": "Prepare it again with data.volume=<mask.nii.gz>, whose voxels above 0 are the columns of data.voxels.",
        "mindeye2": "The release does not hold them: prepare data=nsd, which does.",
        "digits69": "They were not published.",
    }.get(str(subject.attributes.get("source")), "Write ijk (voxels, 3) into it (nd.data.prepared.write_subject).")
    raise UserError(
        f"{subject.path} has no coordinates of {int(unknown_V.sum())} of {subject.n_voxels} voxels (ijk is -1), which"
        f" mapper=volumetric reads. {remedy} Or go without: mapper.coordinates=none (regions alone), or"
        " mapper=two_stage."
    )


def regions_of(subject: Subject, names: Sequence[str]) -> NDArray[np.int32]:
    """Return (V,) int32, the place in `names` of the first region that holds each voxel; R where none does.

    Args:
        subject: seen through its ROI.
        names: ROIs of its file, or sets joined by '+'.

    Raises:
        UserError: its file has no such ROI; lists those there are.
    """
    region = np.full(subject.n_voxels, len(names), np.int32)
    for k in reversed(range(len(names))):
        try:
            region[subject.inside(names[k])] = k
        except UserError as error:
            raise UserError(
                f"mapper.regions: {error} Name regions of that file (mapper.regions=[...]; [] makes one of all voxels)."
            ) from None
    return region
