"""Takagi & Nishimoto (CVPR 2023): the decoded latent becomes an image, is enlarged, encoded again, and sampled anew.

Reference: yu-takagi/StableDiffusionReconstruction@e187d4b:codes/diffusion_sd1/diffusion_decoding.py. The decoded latent
is of an image of 5/8 of the backbone's size (320 of 512 px); its image, in bytes, is enlarged by Pillow's bicubic
filter; sampling runs int(50 * .8) steps with scale 5 under the decoded text condition.

B images, C h w latent, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config
from nd.generate.base import to_uint8
from nd.generate.image_to_image import (
    VARIANTS,
    ImageToImage,
    check_shape,
    first_latents,
    ids_of,
    samplers_of,
)
from nd.generate.plan import in_parts
from nd.targets.vae_latent import SmallLatent


class TwoPasses:
    """z40 through the VAE to an image, and the enlarged image through it back to a latent of full size."""

    def __init__(self, backbone: Backbone, variant: str) -> None:
        """Take the backbone, and whose arithmetic: ``nd`` or ``released``."""
        self.backbone, self.variant = backbone, variant

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor], at_once: int) -> tuple[Tensor, Tensor]:
        """Return first latents (B, C, h, w) and the condition as decoded (B, T, D)."""
        z40 = features["z40"]
        check_shape("z40", z40, SmallLatent(self.backbone).shape, "the VAE of this backbone")
        z: Tensor = in_parts(self._again, at_once, z40, ids_of(image_ids, z40))
        return z, features["c"]

    def _again(self, z40: Tensor, ids: Tensor) -> Tensor:
        images = self.backbone.decode(z40)[:, None]
        small = to_uint8(images, truncate=VARIANTS[self.variant].truncate)[:, 0]
        z = first_latents(self.backbone, small, ids, self.variant)
        # Bytes hide what is not finite: such an image is no first guess, and its sample stops at the first step.
        return torch.where(images.isfinite().flatten(1).all(1)[:, None, None, None], z, torch.nan)


def build(cfgs: Sequence[Config], device: torch.device) -> ImageToImage:
    """Load the backbone on a device, and prepare a sampler for each configuration of a sweep."""
    backbone = load_backbone(cfgs[0].backbone, device)
    return ImageToImage(TwoPasses(backbone, cfgs[0].method.variant), samplers_of(backbone, cfgs))
