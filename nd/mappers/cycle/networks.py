"""The two networks of mapper=cycle: an encoder that predicts voxels from maps, and a decoder back.

SoulDiffuser's figure draws both as one box, without shapes (LQQME/SoulDiffuser@160a2fd:Figure/nc-31.jpg,
"fMRI-EdgeColorNet"); these are this project's, small enough for a thousand images.

Shapes: B images, V voxels, C colours, S side of a map, K channels, h side of the coarse map, P = h * h its places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

COARSE = 8  # side to which maps are halved: a voxel's receptive field is seldom smaller than an eighth of the image
NO_PLACE = 0.02  # spread of the first weights of places


def halvings(side: int) -> int:
    """Return how often a side can be halved without falling below ``COARSE`` or becoming odd.

    >>> [halvings(side) for side in (64, 8, 28, 33)]
    [3, 0, 1, 0]
    """
    n = 0
    while side % 2 == 0 and side // 2 >= COARSE:
        side, n = side // 2, n + 1
    return n


class MapsToVoxels(nn.Module):
    """Convolutions, halving the map, and for each voxel where it looks and what it responds to there.

    A voxel's weights are a product of places and channels (Klindt et al., NeurIPS 2017, arXiv:1711.02653), so that they
    can be learned from few images.
    """

    def __init__(self, side: int, colours: int, n_voxels: int, channels: int) -> None:
        """Make untrained weights.

        Args:
            side: S.
            colours: C.
            n_voxels: V.
            channels: K.
        """
        super().__init__()
        n = halvings(side)
        widths = [colours, *[channels] * (n + 1)]
        strides = [*[2] * n, 1]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, 1)
            for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        coarse = side >> n
        self.places = nn.Parameter(torch.randn(n_voxels, coarse * coarse) * NO_PLACE)
        self.features = nn.Parameter(torch.randn(n_voxels, channels + colours) * channels**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_voxels))

    def forward(self, maps_BCSS: Tensor) -> Tensor:
        """Return voxels (B, V), standardised, of maps standardised likewise."""
        x = maps_BCSS
        for convolution in self.convolutions:
            x = functional.gelu(convolution(x))
        # The map itself, coarse, beside what was made of it: most of what a voxel says is linear in it.
        x = torch.cat([x, functional.adaptive_avg_pool2d(maps_BCSS, x.shape[-1])], 1).flatten(2)
        return torch.einsum("bkp,vp,vk->bv", x, self.places, self.features) + self.bias


class VoxelsToMaps(nn.Module):
    """One linear layer to a coarse map of channels, which convolutions double up to the map.

    Convolutions come before a doubling, and the last one gives the four places of the map for each of its own (Shi et
    al., CVPR 2016, arXiv:1609.05158): what is decoded from voxels is coarse, and a step costs a third of what
    convolutions of the doubled maps cost.
    """

    def __init__(self, side: int, colours: int, n_voxels: int, channels: int, dropout: float) -> None:
        """Make untrained weights.

        Args:
            side: S.
            colours: C.
            n_voxels: V.
            channels: K.
            dropout: share of the voxels that are hidden while training.
        """
        super().__init__()
        n = halvings(side)
        self.shape = (channels, side >> n, side >> n)
        self.hide = nn.Dropout(dropout)
        self.coarse = nn.Linear(n_voxels, channels * (side >> n) ** 2)
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(n))
        self.last = nn.Conv2d(channels, colours * 4 if n else colours, 3, 1, 1)

    def forward(self, voxels_BV: Tensor) -> Tensor:
        """Return maps (B, C, S, S), standardised."""
        x = self.coarse(self.hide(voxels_BV)).unflatten(1, self.shape)
        for k, convolution in enumerate(self.convolutions):
            x = functional.interpolate(x, scale_factor=2, mode="bilinear") if k else x
            x = x + functional.gelu(convolution(x))
        return functional.pixel_shuffle(self.last(x), 2) if len(self.convolutions) else self.last(x)
