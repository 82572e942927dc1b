"""The deterministic half: an image to features at every resolution.

Shapes: B batch, 3 colours, C channels, R rows and columns.
"""

from __future__ import annotations

from torch import Tensor, nn

from nd.backbone.vdvae.blocks import Block
from nd.backbone.vdvae.shape import COLOURS, VdvaeShape


class Encoder(nn.Module):
    """A convolution and a row of residual blocks that shrink the image to one pixel."""

    def __init__(self, shape: VdvaeShape) -> None:
        super().__init__()
        self.in_conv = nn.Conv2d(COLOURS, shape.width, 3, padding=1)
        width, middle = shape.width, shape.middle
        self.enc_blocks = nn.ModuleList(
            Block(width, middle, width, kernel=block.kernel, residual=True, shrink=block.shrink)
            for block in shape.encoder_blocks
        )

    def forward(self, pictures_B3RR: Tensor) -> dict[int, Tensor]:
        """Resolution -> features (B, C, R, R): the last that were computed at that resolution."""
        x_BCRR = self.in_conv(pictures_B3RR)
        activations = {x_BCRR.shape[-1]: x_BCRR}
        for block in self.enc_blocks:
            x_BCRR = block(x_BCRR)
            activations[x_BCRR.shape[-1]] = x_BCRR
        return activations
