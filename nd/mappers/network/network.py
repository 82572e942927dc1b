"""The whole network: voxels of several subjects to every slice of the targets.

Shapes: B samples of all subjects one after the other, V_s voxels, H hidden, T tokens, D numbers of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.mappers.network.draws import Draws, ImageNoise
from nd.mappers.network.heads import Head, HeadOutput, TargetSlice, build_head
from nd.mappers.network.trunk import Front, SubjectLayers, Trunk


class Network(nn.Module):
    """One trunk (with a layer for each subject) or several, and a head for each target slice.

    Attributes:
        front: how voxels come in, of which subjects.
        slices: what is predicted, in order.
        trunks: by name.
        heads: by the slice's name.
        trunk_of: name of the trunk that feeds a slice, by the slice's name.
    """

    def __init__(
        self,
        config: NetworkConfig,
        slices: Sequence[TargetSlice],
        front: Front | Mapping[str, int],
        variant: str = "nd",
        aux_width: int = 0,
    ) -> None:
        """Make the network, its weights from PyTorch's global generator.

        Args:
            slices: what is predicted.
            front: how voxels come in; numbers of voxels by subject mean a linear layer each.
            variant: as in `MapperConfig`.
            aux_width: as of `build_head`.

        Raises:
            UserError: published code has no such trunk, or the decoder does not lead to the size of a map.
        """
        super().__init__()
        self.config, self.slices, self.variant = config, tuple(slices), variant
        self.front: Front = SubjectLayers(front) if isinstance(front, Mapping) else front
        self.trunk_of = {part.name: trunk_name(config, part) for part in slices}
        self.trunks = nn.ModuleDict()
        for name in dict.fromkeys(self.trunk_of.values()):
            for_map = any(part.is_map for part in slices if self.trunk_of[part.name] == name)
            self.trunks[name] = self.front.trunk(config, name, for_map=for_map, variant=variant)
        self.heads = nn.ModuleDict({part.name: build_head(config, part, aux_width) for part in slices})

    def forward(self, voxels: Mapping[str, Tensor], draws: Draws | None = None) -> dict[str, HeadOutput]:
        """Return what every head makes of voxels, by slice; subjects one after the other in the outputs.

        Args:
            voxels: (B_s, V_s) float32, scaled, by subject.
            draws: of a training step; without them nothing is dropped.

        Raises:
            UserError: as of `Trunk`.
        """
        hidden = {name: trunk(voxels, draws) for name, trunk in self.trunks.items()}
        return {name: head(hidden[self.trunk_of[name]], draws) for name, head in self.heads.items()}

    def head(self, part: TargetSlice) -> Head:
        """Return the head of a target slice."""
        head = self.heads[part.name]
        assert isinstance(head, Head)
        return head

    def trunk(self, name: str) -> Trunk:
        """Return the trunk of this name."""
        trunk = self.trunks[name]
        assert isinstance(trunk, Trunk)
        return trunk


def trunk_name(config: NetworkConfig, part: TargetSlice) -> str:
    """Return the name of the trunk that a target slice reads."""
    return {"part": part.name, "target": part.target, "all": "shared"}[config.share]


def predict_slices(network: Network, voxels: Mapping[str, Tensor], image_ids: Tensor, seed: int) -> dict[str, Tensor]:
    """Return standardised predictions (B, *shape) by slice: what the head says, or what the prior makes of it.

    Args:
        voxels: (B_s, V_s) float32, scaled, by subject.
        image_ids: (B,) of all of them, which fix the prior's noise.
        seed: of that noise.
    """
    outputs = network(voxels)
    predicted = {part.name: outputs[part.name].predicted for part in network.slices}
    if network.config.predict == "prior":
        for part in network.slices:
            prior = network.head(part).prior
            if prior is not None:
                noise = ImageNoise(seed, image_ids, predicted[part.name].device)
                predicted[part.name] = prior.sample(predicted[part.name], noise.of(part.name))
    return predicted
