"""The two halves of the network: an image to features at every resolution, and latents to an image.

The encoder is deterministic. The decoder is layers of latents, coarse to fine, each adding to what those before it have
drawn.
Shapes: B batch, 3 colours, C channels (width), Z channels of a latent, R rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nd.backbone.vdvae.shape import COLOURS, BlockShape, VdvaeShape

# Standard normal numbers for the latent of one layer: (layer from 0, (B, Z, R, R)) -> a tensor of that shape.
Noise = Callable[[int, tuple[int, ...]], Tensor]


class Prior(NamedTuple):
    """What the layers so far say about the next latent: mean and log deviation (B, Z, R, R), and features (B, C, R, R)
    that are added whatever the latent turns out to be."""

    mean: Tensor
    log_std: Tensor
    features: Tensor


# The latent of one layer: (layer from 0, features before it (B, C, R, R), its prior or None) -> (B, Z, R, R).
Choose = Callable[[int, Tensor, Prior | None], Tensor]


class Block(nn.Module):
    """Four convolutions, narrow in the middle, an exact (erf) GELU before each; then, where asked, add and shrink."""

    def __init__(
        self, n_in: int, n_middle: int, n_out: int, *, kernel: int, residual: bool = False, shrink: int = 1
    ) -> None:
        """kernel: side of the two middle convolutions; shrink: side of the squares whose mean is the output."""
        super().__init__()
        self.c1 = nn.Conv2d(n_in, n_middle, 1)
        self.c2 = nn.Conv2d(n_middle, n_middle, kernel, padding=kernel // 2)
        self.c3 = nn.Conv2d(n_middle, n_middle, kernel, padding=kernel // 2)
        self.c4 = nn.Conv2d(n_middle, n_out, 1)
        self.residual, self.shrink = residual, shrink

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, n_out, H / shrink, W / shrink)."""
        out_BCHW = x_BCHW
        for convolution in (self.c1, self.c2, self.c3, self.c4):
            out_BCHW = convolution(functional.gelu(out_BCHW))  # the tanh approximation would not be what was trained
        if self.residual:
            out_BCHW = x_BCHW + out_BCHW
        return out_BCHW if self.shrink == 1 else functional.avg_pool2d(out_BCHW, self.shrink)


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


class DecoderBlock(nn.Module):
    """One layer of latents."""

    def __init__(self, shape: VdvaeShape, block: BlockShape) -> None:
        super().__init__()
        width, middle, kernel = shape.width, shape.middle, block.kernel
        self.resolution, self.mixin, self.zdim = block.resolution, block.mixin, shape.zdim
        self.enc = Block(2 * width, middle, 2 * shape.zdim, kernel=kernel)
        self.prior = Block(width, middle, 2 * shape.zdim + width, kernel=kernel)
        self.z_proj = nn.Conv2d(shape.zdim, width, 1)
        self.resnet = Block(width, middle, width, kernel=kernel, residual=True)

    def enter(self, canvas: dict[int, Tensor]) -> Tensor:
        """The features (B, C, R, R) that the block starts from; `canvas` holds those of every resolution so far."""
        x_BCRR = canvas.get(self.resolution)
        if self.mixin:
            coarse = canvas[self.mixin]
            enlarged_BCRR = functional.interpolate(coarse, scale_factor=self.resolution // self.mixin, mode="nearest")
            x_BCRR = enlarged_BCRR if x_BCRR is None else x_BCRR + enlarged_BCRR
        if x_BCRR is None:
            raise ValueError(f"nothing precedes the block at resolution {self.resolution}: no start, no mixin")
        return x_BCRR

    def posterior_of(self, x_BCRR: Tensor, seen_BCRR: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of the latent, given the encoder's features of an image."""
        mean, log_std = self.enc(torch.cat([x_BCRR, seen_BCRR], dim=1)).chunk(2, dim=1)
        return mean, log_std

    def prior_of(self, x_BCRR: Tensor) -> Prior:
        """The same without an image."""
        out = self.prior(x_BCRR)
        return Prior(out[:, : self.zdim], out[:, self.zdim : 2 * self.zdim], out[:, 2 * self.zdim :])

    def leave(self, x_BCRR: Tensor, prior: Prior, z_BZRR: Tensor) -> Tensor:
        """The features (B, C, R, R) after the layer, its latent chosen."""
        return self.resnet(x_BCRR + prior.features + self.z_proj(z_BZRR))


class MixtureHead(nn.Module):
    """Features to the numbers that describe each pixel's distribution; see `nd.backbone.vdvae.images`."""

    def __init__(self, shape: VdvaeShape) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(shape.width, shape.n_output, 1)

    def forward(self, x_BCRR: Tensor) -> Tensor:
        """(B, n_output, R, R)."""
        return self.out_conv(x_BCRR)


class Decoder(nn.Module):
    """All layers and what comes after them."""

    def __init__(self, shape: VdvaeShape) -> None:
        super().__init__()
        self.starts = shape.starts
        self.dec_blocks = nn.ModuleList(DecoderBlock(shape, block) for block in shape.decoder_blocks)
        self.bias_xs = nn.ParameterList(nn.Parameter(torch.zeros(1, shape.width, r, r)) for r in self.starts)
        self.gain = nn.Parameter(torch.ones(1, shape.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, shape.width, 1, 1))
        self.out_net = MixtureHead(shape)

    @property
    def blocks(self) -> list[DecoderBlock]:
        """The layers, coarse to fine."""
        return cast(list[DecoderBlock], list(self.dec_blocks))

    def posterior(self, activations: dict[int, Tensor], noise: Noise | None = None) -> Choose:
        """Latents as an image has them: `Encoder`'s features of it; without noise the mean, else a sample."""

        def choose(layer: int, x_BCRR: Tensor, prior: Prior | None) -> Tensor:
            block = self.blocks[layer]
            return _gaussian(layer, *block.posterior_of(x_BCRR, activations[block.resolution]), noise)

        return choose

    def given(self, latents: Sequence[Tensor], noise: Noise | None, temperature: float) -> Choose:
        """Latents as given for the first layers, then from the prior; without noise its mean."""

        def choose(layer: int, x_BCRR: Tensor, prior: Prior | None) -> Tensor:
            if layer < len(latents):
                return latents[layer].to(x_BCRR)
            if prior is None:
                raise ValueError(f"the latent of layer {layer} is to come from its prior, which was not computed")
            return _gaussian(layer, prior.mean, prior.log_std, noise, temperature)

        return choose

    def latents(self, choose: Choose, batch: int, n_layers: int) -> list[Tensor]:
        """Latents (B, Z, R, R) of the first layers; computes nothing that comes after the last of them."""
        canvas, found = self._draw(choose, batch, n_layers - 1)
        return [*found, choose(n_layers - 1, self.blocks[n_layers - 1].enter(canvas), None)]

    def forward(self, choose: Choose, batch: int) -> tuple[Tensor, list[Tensor]]:
        """Description of every pixel's distribution (B, n_output, R, R), and the latents of all layers."""
        canvas, found = self._draw(choose, batch, len(self.blocks))
        x_BCRR = canvas[self.blocks[-1].resolution]
        return self.out_net(x_BCRR * self.gain + self.bias), found

    def _draw(self, choose: Choose, batch: int, n_layers: int) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Run the first layers; returns the features at every resolution and the latents."""
        canvas = {r: start.expand(batch, -1, -1, -1) for r, start in zip(self.starts, self.bias_xs, strict=True)}
        found = []
        for layer, block in enumerate(self.blocks[:n_layers]):
            x_BCRR = block.enter(canvas)
            prior = block.prior_of(x_BCRR)
            found.append(choose(layer, x_BCRR, prior))
            canvas[block.resolution] = block.leave(x_BCRR, prior, found[-1])
        return canvas, found


def _gaussian(layer: int, mean: Tensor, log_std: Tensor, noise: Noise | None, temperature: float = 1.0) -> Tensor:
    """A draw from N(mean, (temperature * exp(log_std))^2), or without noise the mean.

    The network says the logarithm of the standard deviation, not of the variance.
    """
    if noise is None or temperature == 0:
        return mean
    return mean + torch.exp(log_std + math.log(temperature)) * noise(layer, tuple(mean.shape)).to(mean)
