"""Subject layers and the trunk behind them.

Shapes: B samples, V_s voxels of a subject, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.errors import UserError
from nd.mappers.network.draws import Draws
from nd.mappers.network.mixer import Mixer
from nd.mappers.network.residual import PublishedResidual, Residual
from nd.mappers.network.subject_layer import layer_of, subject_layers


class Trunk(nn.Module):
    """Voxels of several subjects to the shared space (B, H).

    Attributes: ``subject_layers`` one layer (``SubjectLayer``) for each subject by ``key_of`` its name, whose outputs
    are alike for all of them; ``body`` what follows, the same for every subject.
    """

    def __init__(self, layers: nn.ModuleDict, body: nn.Module) -> None:
        super().__init__()
        self.subject_layers, self.body = layers, body

    def forward(self, voxels: Mapping[str, Tensor], draws: Draws | None) -> Tensor:
        """(B, H), subjects in the order of ``voxels``, of which each must have a layer; some may have no samples.

        Raises UserError for a subject without a layer, and for a number of voxels that its layer was not made for.
        """
        hidden = [layer_of(self.subject_layers, name, x.shape[-1])(x) for name, x in voxels.items()]
        return self.body(torch.cat(hidden), draws)


def build_trunk(
    config: NetworkConfig, n_voxels: Mapping[str, int], name: str, *, for_map: bool, variant: str = "nd"
) -> Trunk:
    """The trunk of a configuration; ``name`` tells its random streams from those of other trunks.

    for_map: whether it feeds a latent map. Published code has no mixer there, so that is a UserError under
    ``variant="released"``.
    """
    released = variant == "released"
    if config.trunk == "mixer":
        if released and for_map:
            raise UserError(
                f"trunk {name!r} feeds a latent map, before which published code has residual blocks and no mixer. Add"
                " network=released_z for that target, or choose mapper.variant=nd to put a mixer there."
            )
        body: nn.Module = Mixer(config.hidden, config.blocks, config.dropout, name)
        return Trunk(subject_layers(n_voxels, config.hidden), body)
    body = (PublishedResidual if released else Residual)(
        config.hidden, config.blocks, config.subject_dropout, config.dropout, name
    )
    return Trunk(subject_layers(n_voxels, config.hidden, normed=released), body)
