"""z: the latent of the picture, from which the sampler starts.

Shapes: B batch, C h w latent channels, rows and columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.backbone.loading import Backbone
from nd.targets.base import Items, Needs, library


class VaeLatent:
    """Mode of the VAE's posterior times the scaling factor, of the picture resized to the backbone's size."""

    name = "z"
    needs: Needs = "images"

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        return self.backbone.latent_shape

    def fingerprint(self) -> dict[str, Any]:
        """Weights, picture size and rule."""
        return {
            "target": "z",
            "rule": "posterior mode * scaling factor, bilinear antialiased resize",
            "image_size": self.backbone.config.image_size,
            "vae": self.backbone.hash_of("vae"),
            "library": library("diffusers"),
        }

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Latents (B, C, h, w) float32."""
        with torch.inference_mode():
            return self.backbone.encode_images(items.images).float().cpu().numpy()
