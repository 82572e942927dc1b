"""The whole network: voxels of several subjects to every part of the targets.

Shapes: B samples of all subjects one after the other, V_s voxels, H hidden, T tokens, D numbers of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.mappers.network.draws import Draws, ImageNoise
from nd.mappers.network.heads import Head, HeadOutput, TargetSlice, build_head
from nd.mappers.network.trunk import Trunk, build_trunk


class Network(nn.Module):
    """One trunk (with a layer for each subject) or several, and a head for each part.

    Attributes: ``trunks`` by name, ``heads`` by the part's name; ``trunk_of`` says which trunk feeds a part.
    """

    def __init__(
        self,
        config: NetworkConfig,
        slices: Sequence[TargetSlice],
        n_voxels: Mapping[str, int],
        variant: str = "nd",
        aux_width: int = 0,
    ) -> None:
        """n_voxels: by name of the subject; ``variant`` as in ``MapperConfig``; ``aux_width`` as of ``build_head``."""
        super().__init__()
        self.config, self.slices, self.variant = config, tuple(slices), variant
        self.trunk_of = {part.name: trunk_name(config, part) for part in slices}
        self.trunks = nn.ModuleDict()
        for name in dict.fromkeys(self.trunk_of.values()):
            for_map = any(part.is_map for part in slices if self.trunk_of[part.name] == name)
            self.trunks[name] = build_trunk(config, n_voxels, name, for_map=for_map, variant=variant)
        self.heads = nn.ModuleDict({part.name: build_head(config, part, variant, aux_width) for part in slices})

    def forward(self, voxels: Mapping[str, Tensor], draws: Draws | None = None) -> dict[str, HeadOutput]:
        """What every head makes of (B_s, V_s) voxels by subject; subjects one after the other in the outputs."""
        hidden = {name: trunk(voxels, draws) for name, trunk in self.trunks.items()}
        return {name: head(hidden[self.trunk_of[name]], draws) for name, head in self.heads.items()}

    def head(self, part: TargetSlice) -> Head:
        """The head of a part."""
        head = self.heads[part.name]
        assert isinstance(head, Head)
        return head

    def trunk(self, name: str) -> Trunk:
        """The trunk of this name."""
        trunk = self.trunks[name]
        assert isinstance(trunk, Trunk)
        return trunk


def trunk_name(config: NetworkConfig, part: TargetSlice) -> str:
    """Name of the trunk that a part reads."""
    return {"part": part.name, "target": part.target, "all": "shared"}[config.share]


def predict_slices(network: Network, voxels: Mapping[str, Tensor], image_ids: Tensor, seed: int) -> dict[str, Tensor]:
    """Standardised predictions (B, *shape) by part: what the trunk says, or what the prior makes of it.

    voxels: (B_s, V_s) scaled, by subject; image_ids: (B,) of all of them, which fix the prior's noise.
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
