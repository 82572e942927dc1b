"""The whole network: images to latents of up to 75 layers, and latents to images.

Shapes: B batch, R rows and columns of an image, Z r channels and side of one layer's latent, P latent numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nd.backbone.vdvae.halves import Decoder, Encoder, Noise
from nd.backbone.vdvae.images import Uniform, mode, sample
from nd.backbone.vdvae.shape import COLOURS, IMAGENET64, VdvaeShape
from nd.errors import UserError

# Mean and standard deviation of ImageNet's 64 px images, 0 to 255, over all colours together: the published model
# was trained on (x - mean) / std (ozcelikfu/brain-diffuser@31d52c0:vdvae/model_utils.py:39-78).
PIXEL_MEAN = 115.92961967
PIXEL_STD = 69.37404


class Vdvae(nn.Module):
    """Encoder and decoder. Everything is deterministic unless noise is handed in, and differentiable throughout."""

    def __init__(self, shape: VdvaeShape = IMAGENET64) -> None:
        super().__init__()
        self.shape = shape
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)

    def encode(self, pixels_B3RR: Tensor) -> dict[int, Tensor]:
        """Resolution -> features, of images as floats in [0, 255] at the model's size; another is a UserError."""
        wanted = (COLOURS, self.shape.image_size, self.shape.image_size)
        if tuple(pixels_B3RR.shape[1:]) != wanted:
            raise UserError(f"the VDVAE was built for images {wanted} but was given {tuple(pixels_B3RR.shape[1:])}.")
        normalised = ((pixels_B3RR - PIXEL_MEAN) / PIXEL_STD).to(self.decoder.gain)
        if normalised.device.type == "cpu":  # a fifth faster; the convolutions hand the layout on
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        features: dict[int, Tensor] = self.encoder(normalised)
        return features

    def posterior(
        self, activations: dict[int, Tensor], n_layers: int | None = None, noise: Noise | None = None
    ) -> list[Tensor]:
        """Latents (B, Z, r, r) of the first layers as the encoder's features have them.

        Args:
            activations: of `encode`.
            n_layers: how many layers, all by default; what lies beyond them is not computed.
            noise: standard normal numbers by layer, for a sample; without them the mean of every layer, given the
                means of the layers before it.
        """
        shapes = self.shape.latent_shapes(n_layers)
        batch = len(next(iter(activations.values())))
        return self.decoder.latents(self.decoder.posterior(activations, noise), batch, len(shapes))

    def decode(self, latents: Sequence[Tensor], noise: Noise | None = None, temperature: float | None = None) -> Tensor:
        """Describe every pixel's distribution, (B, n_output, R, R); see `picture` for what to do with it.

        Args:
            latents: (B, Z, r, r) of the first layers, at least one; those of the others come from the prior.
            noise: standard normal numbers by layer, for a draw from the prior; without them its mean.
            temperature: factor of the prior's standard deviation, at least 0; None means 1, and 0 the mean.

        Raises:
            UserError: latents of other shapes than the layers have.
        """
        if temperature and noise is None:
            raise ValueError("a temperature has no effect without noise: hand in noise, or leave the temperature out")
        if temperature is not None and not (0 <= temperature < math.inf):
            raise ValueError(f"temperature is {temperature}; wanted a number of at least 0")
        self._check(latents)
        choose = self.decoder.given(latents, noise, 1.0 if temperature is None else temperature)
        described, _ = self.decoder(choose, len(latents[0]))
        return described

    def forward(self, pixels_B3RR: Tensor, noise: Noise | None = None) -> tuple[Tensor, list[Tensor]]:
        """Encode and decode in one pass; returns every pixel's distribution and the latents of all layers."""
        choose = self.decoder.posterior(self.encode(pixels_B3RR), noise)
        described, latents = self.decoder(choose, len(pixels_B3RR))
        return described, latents

    @staticmethod
    def picture(described: Tensor, uniform: Uniform | None = None) -> Tensor:
        """Images (B, 3, R, R) in [-1, 1]: without random numbers each pixel's mode (differentiable), else a draw."""
        return mode(described) if uniform is None else sample(described, uniform)

    def split(self, features_BP: Tensor) -> list[Tensor]:
        """The latents (B, Z, r, r) that lie one after another in a row, each in C order; undoes `join`.

        UserError: P is not the size of any number of first layers.
        """
        sizes = [math.prod(shape) for shape in self.shape.latent_shapes()]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        if features_BP.ndim != 2 or features_BP.shape[1] not in ends:
            raise UserError(
                f"latents of shape {tuple(features_BP.shape)} fit no number of the VDVAE's layers; wanted a row per "
                f"picture, for example of {ends[0]} numbers for 1 layer or {ends[-1]} for all {len(ends)}."
            )
        n_layers = ends.index(features_BP.shape[1]) + 1
        parts = features_BP.split(sizes[:n_layers], dim=1)
        return [p.reshape(-1, *s) for p, s in zip(parts, self.shape.latent_shapes(n_layers), strict=True)]

    @staticmethod
    def join(latents: Sequence[Tensor]) -> Tensor:
        """Latents of layers one after another, (B, P)."""
        return torch.cat([latent.flatten(1) for latent in latents], dim=1)

    def _check(self, latents: Sequence[Tensor]) -> None:
        shapes = self.shape.latent_shapes()
        if not 1 <= len(latents) <= len(shapes):
            raise UserError(f"{len(latents)} latents for the VDVAE's {len(shapes)} layers; hand in 1 to {len(shapes)}.")
        for layer, latent in enumerate(latents):
            wanted = (len(latents[0]), *shapes[layer])
            if tuple(latent.shape) != wanted:
                raise UserError(f"latent {layer} of the VDVAE has shape {tuple(latent.shape)}; wanted {wanted}.")
