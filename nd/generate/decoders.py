"""What shows the image whose features guide the sampler: the VAE, the VAE at half the resolution, a tiny decoder.

S samples, C h w latent, H W image.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from nd.backbone.loading import Backbone

Decoder = Callable[[Tensor], Tensor]  # scaled latents (S, C, h, w) to unclamped images (S, 3, H, W)


def picture_decoder(backbone: Backbone, kind: str) -> Decoder:
    """Return the decoder that ``guidance.decoder`` names; differentiable.

    full: the VAE as it is. half: the VAE of latents shrunk to half their side, about a quarter of the arithmetic; the
    image tower sees 224 px of Stable Diffusion's 512 anyway. tiny: the small autoencoder of ``backbone.tiny_vae``,
    trained to read the same latents.

    Raises:
        UserError: 'tiny' without weights.
    """
    return {"full": full, "half": half, "tiny": tiny}[kind](backbone)


def full(backbone: Backbone) -> Decoder:
    """The VAE."""
    return lambda latents: backbone.decode(latents, clamp=False)


def half(backbone: Backbone) -> Decoder:
    """The VAE at half the resolution."""

    def decode(latents: Tensor) -> Tensor:
        small = functional.interpolate(latents.float(), scale_factor=0.5, mode="bilinear", antialias=True)
        return backbone.decode(small, clamp=False)

    return decode


def tiny(backbone: Backbone) -> Decoder:
    """The small autoencoder."""
    model = backbone.tiny_vae

    def decode(latents: Tensor) -> Tensor:
        # It takes latents as the UNet has them, in units of its own (its factor is 1 where the VAE's is .18215).
        scaled = latents.to(backbone.dtype) / float(model.config["scaling_factor"])
        return (model.decode(scaled).sample + 1) / 2

    return decode
