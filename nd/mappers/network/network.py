"""The whole network: voxels of several subjects to every part of the targets.

Shapes: B samples of all subjects one after the other, V_s voxels, H hidden, T tokens, D numbers of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.mappers.network.draws import Draws
from nd.mappers.network.heads import Head, HeadOutput, build_head
from nd.mappers.network.parts import Part
from nd.mappers.network.trunk import Trunk, build_trunk


class Network(nn.Module):
    """One trunk (with a layer for each subject) or several, and a head for each part.

    Attributes: ``trunks`` by name, ``heads`` by the part's name; ``trunk_of`` says which trunk feeds a part.
    """

    def __init__(
        self,
        config: NetworkConfig,
        parts: Sequence[Part],
        n_voxels: Mapping[str, int],
        variant: str = "nd",
        aux_width: int = 0,
    ) -> None:
        """n_voxels: by name of the subject; ``variant`` as in ``MapperConfig``; ``aux_width`` as of ``build_head``."""
        super().__init__()
        self.config, self.parts, self.variant = config, tuple(parts), variant
        self.trunk_of = {part.name: trunk_name(config, part) for part in parts}
        self.trunks = nn.ModuleDict()
        for name in dict.fromkeys(self.trunk_of.values()):
            for_map = any(part.is_map for part in parts if self.trunk_of[part.name] == name)
            self.trunks[name] = build_trunk(config, n_voxels, name, for_map=for_map, variant=variant)
        self.heads = nn.ModuleDict({part.name: build_head(config, part, variant, aux_width) for part in parts})

    def forward(self, voxels: Mapping[str, Tensor], draws: Draws | None = None) -> dict[str, HeadOutput]:
        """What every head makes of (B_s, V_s) voxels by subject; subjects one after the other in the outputs."""
        hidden = {name: trunk(voxels, draws) for name, trunk in self.trunks.items()}
        return {name: head(hidden[self.trunk_of[name]], draws) for name, head in self.heads.items()}

    def head(self, part: Part) -> Head:
        """The head of a part."""
        head = self.heads[part.name]
        assert isinstance(head, Head)
        return head

    def trunk(self, name: str) -> Trunk:
        """The trunk of this name."""
        trunk = self.trunks[name]
        assert isinstance(trunk, Trunk)
        return trunk


def trunk_name(config: NetworkConfig, part: Part) -> str:
    """Name of the trunk that a part reads."""
    return {"part": part.name, "target": part.target, "all": "shared"}[config.share]
