"""Pictures of latents on their way, for looking at what sampling does; only on request, for they cost decoding.

S samples, R repeats, C h w latent, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.files import atomic_path
from nd.generate.base import to_uint8


class Previews:
    """One strip of the repeats of one image after every step."""

    def __init__(self, folder: Path, backbone: Backbone, repeats: int) -> None:
        self.folder, self.backbone, self.repeats = folder, backbone, repeats

    def write(self, image_ids: Sequence[int], step: int, z_SChw: Tensor) -> Path:
        """Write <folder>/image-<id>-step-<n>.png of the first image: its noisy latents, decoded."""
        with torch.inference_mode():
            pictures_RHW3 = to_uint8(self.backbone.decode(z_SChw[: self.repeats]).unsqueeze(0))[0]
        path = self.folder / f"image-{int(image_ids[0]):05d}-step-{step:03d}.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            Image.fromarray(np.concatenate(list(pictures_RHW3), axis=1)).save(temporary, format="PNG")
        return path
