"""The volumetric encoder as a trunk of the trained network: tokens, a mixer over all of them, and what reads them out;
and the mapper that `nd train mapper=volumetric` leaves.

It stands where `two_stage` has subject layers, and is followed by the same residual trunk and heads, so that everything
behind the shared space is the same.

Shapes: B samples, B_s of one subject, V_s its voxels, T tokens that there could be, D numbers of a token, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nd.config import MapperConfig, NetworkConfig
from nd.mappers.network.draws import Draws
from nd.mappers.network.trunk import Front, Residual, Trunk, key_of, layer_of
from nd.mappers.two_stage import TwoStage
from nd.mappers.volumetric.components import VolumetricSettings
from nd.mappers.volumetric.sequence_mixers import Mixer
from nd.mappers.volumetric.tokenizers import CubeTokenizer, RegionTokenizer, RegionVoxels, SubjectVoxels, Tokenizer
from nd.mappers.volumetric.voxel_layout import Layout

if TYPE_CHECKING:
    from nd.data.subject import Subject

UNSHAPED = ("name", "variant", "rescale", "spread")  # settings that say nothing of the encoder


@dataclass(frozen=True)
class Volume:
    """The voxels of subjects as the volumetric encoder takes them. A `Front`.

    Attributes:
        config: of the encoder.
        layouts: by name of the subject.
    """

    config: VolumetricSettings
    layouts: Mapping[str, Layout]
    aligns: bool = False

    @property
    def n_voxels(self) -> Mapping[str, int]:
        """V by name of the subject."""
        return {name: layout.n_voxels for name, layout in self.layouts.items()}

    @property
    def shape(self) -> dict[str, Any]:
        """Everything that shapes the weights which subjects share, as plain JSON values."""
        every = asdict(self.config).items()
        return {f"mapper.{name}": value for name, value in every if name not in UNSHAPED}

    def of(self, subject: str) -> Volume:
        """Return the same of one subject alone."""
        return Volume(self.config, {subject: self.layouts[subject]})

    def arrays(self, subject: str) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint keeps of one subject."""
        return self.layouts[subject].arrays()

    def trunk(self, config: NetworkConfig, name: str, *, for_map: bool, variant: str) -> Trunk:
        """Return a trunk; arguments as of `build_trunk`."""
        return VolumetricTrunk(config, self, name)


class VolumetricTrunk(Trunk):
    """Voxels of several subjects to the shared space (B, H): tokens, mixed, all of them read by one linear layer.

    Attributes: as of `Trunk`, with a `SubjectVoxels` for each subject; `tokenizer`, `mixer`, `readout`.
    """

    def __init__(self, config: NetworkConfig, volume: Volume, name: str) -> None:
        """Make the trunk.

        Args:
            config: what follows the encoder.
            volume: of the encoder and its subjects.
            name: tells its random streams from those of other trunks.
        """
        own = volume.config
        tokenizer: Tokenizer = (
            RegionTokenizer(own, config.dropout, name) if own.tokenizer == "regions" else CubeTokenizer(own)
        )
        layers = {key_of(subject): tokenizer.subject(layout) for subject, layout in volume.layouts.items()}
        body = Residual(config.hidden, config.blocks, config.subject_dropout, config.dropout, name)
        super().__init__(nn.ModuleDict(layers), body)
        self.tokenizer, self.width = tokenizer, own.width
        self.mixer = Mixer(own, own.blocks, config.dropout, f"{name}/whole")
        self.readout = nn.Linear(tokenizer.n_tokens * own.width, config.hidden)
        self._leave_out_what_nobody_has()

    def forward(self, voxels: Mapping[str, Tensor], draws: Draws | None) -> Tensor:
        """As of `Trunk`."""
        hidden, first = [], 0
        for name, x_BV in voxels.items():
            rows = slice(first, first + len(x_BV))
            own = layer_of(self.subject_layers, name, x_BV.shape[-1])
            assert isinstance(own, SubjectVoxels)
            hidden.append(self._read(x_BV, own, draws.part(rows) if draws is not None else None))
            first = rows.stop
        return self.body(torch.cat(hidden), draws)

    def _read(self, voxels_BV: Tensor, own: SubjectVoxels, draws: Draws | None) -> Tensor:
        tokens_BLD = self.mixer(self.tokenizer(voxels_BV, own, draws), draws)
        if len(own.present) < self.tokenizer.n_tokens:
            whole = tokens_BLD.new_zeros(len(tokens_BLD), self.tokenizer.n_tokens, self.width)
            places = torch.tensor(own.present, device=tokens_BLD.device)
            tokens_BLD = whole.index_copy(1, places, tokens_BLD)
        return self.readout(tokens_BLD.flatten(1))

    def _leave_out_what_nobody_has(self) -> None:
        """Processes that share a step wait for the gradient of every weight; mixers of empty regions get none."""
        if isinstance(self.tokenizer, RegionTokenizer):
            had = {k for own in self.subject_layers.values() if isinstance(own, RegionVoxels) for k in own.regions}
            for k, mixer in enumerate(self.tokenizer.mixers):
                mixer.requires_grad_(k in had)


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
