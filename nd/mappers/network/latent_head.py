"""The head of a part that is a latent map.

Shapes: B samples, H hidden, C0 h0 w0 the coarse map, C H' W' the latent map, S = h0 w0 its places, D_aux auxiliary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.errors import UserError
from nd.mappers.network.draws import Draws
from nd.mappers.network.head import Head, HeadOutput
from nd.mappers.network.parts import Part

MOST_GROUPS = 32  # groups of the decoder's norms where the channels allow it, the default of diffusers


class LatentHead(Head):
    """A linear layer to a coarse map, which the decoder of a small VAE doubles up to the latent map.

    As published (HaoyyLi/NeuralDiffuser@9286cad:src/models.py, Voxel2StableDiffusionModel: lin1, norm, upsampler and
    maps_projector), for any number of doublings.
    """

    def __init__(self, config: NetworkConfig, part: Part, aux_width: int = 0) -> None:
        """aux_width: numbers of a token of the auxiliary head; 0: no such head."""
        super().__init__()
        self.shape = (config.latent_channels, *coarse_sides(part, config.decoder_channels))
        self.coarse = nn.Linear(config.hidden, math.prod(self.shape), bias=False)
        self.norm = nn.GroupNorm(1, config.latent_channels)
        self.decoder = decoder(config.latent_channels, part.shape[0], config.decoder_channels)
        self.maps_projector = maps_projector(config.latent_channels, aux_width) if aux_width else None
        self.prior = None

    def forward(self, hidden_BH: Tensor, draws: Draws | None) -> HeadOutput:
        """``predicted`` (B, C, H', W'), and ``projected`` (B, S, D_aux) where there is an auxiliary head."""
        coarse_BChw = self.norm(self.coarse(hidden_BH).unflatten(1, self.shape))
        projected = None if self.maps_projector is None else self.maps_projector(coarse_BChw).flatten(2).mT
        return HeadOutput(self._decoded(coarse_BChw), projected)

    def _decoded(self, coarse_BChw: Tensor) -> Tensor:
        if len(coarse_BChw):
            return self.decoder(coarse_BChw)
        # The attention of diffusers takes no empty batch; a process without samples decodes one and leaves it out, so
        # that all parameters still have a (zero) gradient to share.
        return self.decoder(torch.cat([coarse_BChw, coarse_BChw.new_zeros(1, *self.shape)]))[:0]


def coarse_sides(part: Part, channels: Sequence[int]) -> tuple[int, int]:
    """Sides of the map from which ``len(channels) - 1`` doublings lead to that of the part.

    Raises UserError where there is none, and says how many channels there could be.
    """
    _, height, width = part.shape
    factor = 2 ** (len(channels) - 1)
    if height % factor or width % factor:
        common = math.gcd(height, width)
        most = (common & -common).bit_length()  # 1 + how often 2 divides both sides
        lengths = "1 number" if most == 1 else f"1 to {most} numbers"
        raise UserError(
            f"network.decoder_channels={list(channels)} enlarges a map {factor} times, but {part.name} has"
            f" {height} x {width} places, which {factor} does not divide. Give decoder_channels {lengths}."
        )
    return height // factor, width // factor


def decoder(n_in: int, n_out: int, channels: Sequence[int]) -> nn.Module:
    """The decoder of a VAE: attention over the coarse map, then a block and a doubling for each of ``channels``."""
    from diffusers.models.autoencoders.vae import Decoder

    common = math.gcd(*channels)
    return Decoder(
        n_in,
        n_out,
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        norm_num_groups=max(k for k in range(1, MOST_GROUPS + 1) if common % k == 0),
    )


def maps_projector(n_in: int, width: int) -> nn.Sequential:
    """Three 1x1 convolutions with norm and ReLU between them, on each place by itself but for the norms' statistics."""
    return nn.Sequential(
        nn.Conv2d(n_in, width, 1, bias=False),
        nn.GroupNorm(1, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.GroupNorm(1, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
    )
