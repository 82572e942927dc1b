"""The mapper that `nd train mapper=volumetric` leaves: as `TwoStage`, with voxels that have places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from nd.config import MapperConfig
from nd.mappers.network.trunk import Front
from nd.mappers.two_stage import TwoStage
from nd.mappers.volumetric.components import VolumetricSettings
from nd.mappers.volumetric.encoder import Volume
from nd.mappers.volumetric.voxel_layout import Layout

if TYPE_CHECKING:
    from nd.data.subject import Subject


class Volumetric(TwoStage):
    """One subject's voxels to one target through a trained volumetric encoder; made by `of` or `restore`."""

    name = "volumetric"

    @classmethod
    def front(cls, config: MapperConfig, subjects: Sequence[Subject], seed: int) -> Front:
        """Return the voxels of some subjects with their places and regions; arguments as of `TwoStage.front`.

        Raises:
            UserError: a subject's file has no coordinates, or no such region.
        """
        assert isinstance(config, VolumetricSettings)
        return Volume(config, {subject.name: Layout.of(subject, config, seed) for subject in subjects})

    @classmethod
    def stand_in(cls, config: MapperConfig, n_voxels: Mapping[str, int]) -> Front:
        """Return voxels on a cubic grid, for estimates of memory."""
        assert isinstance(config, VolumetricSettings)
        return Volume(config, {name: Layout.stand_in(n, config) for name, n in n_voxels.items()})

    @classmethod
    def restored_front(
        cls, config: MapperConfig, subject: str, n_voxels: int, state: Mapping[str, NDArray[Any]]
    ) -> Front:
        """Return the voxels of a checkpoint's subject, whose arrays are `state`."""
        assert isinstance(config, VolumetricSettings)
        return Volume(config, {subject: Layout.restore(state)})
