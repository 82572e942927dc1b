"""Subject layers and the trunk behind them.

Shapes: B samples, V_s voxels of a subject, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from nd.mappers.network.draws import Draws
from nd.schema import NetworkConfig


class Trunk(nn.Module):
    """Voxels of several subjects to the shared space (B, H).

    Attributes: ``subject_layers`` one linear layer for each subject by name, whose outputs are alike for all of them.
    """

    subject_layers: nn.ModuleDict

    def forward(self, voxels: Mapping[str, Tensor], draws: Draws | None) -> Tensor:
        """(B, H), subjects in the order of ``voxels``, of which each must have a layer."""
        raise NotImplementedError


def build_trunk(
    config: NetworkConfig, n_voxels: Mapping[str, int], name: str, *, for_map: bool, variant: str = "nd"
) -> Trunk:
    """The trunk of a configuration; ``name`` tells its random streams from those of other trunks."""
    raise NotImplementedError
