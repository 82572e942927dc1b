"""Images as CLIP's vision transformer sees them: resized, cropped and normalised as its training data were.

Shapes: B batch, 3 colours, H W rows and columns, S side of the transformer's input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nd.backbone.pillow import resized
from nd.errors import UserError

# Mean and standard deviation of CLIP's training images, RGB in [0, 1]: openai/CLIP@3bee281:clip/clip.py, load.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def to_pixels(images: NDArray[np.uint8], size: int, device: torch.device) -> Tensor:
    """Bring images to CLIP's vision transformer: shorter side to `size` by Pillow's bicubic filter, centre crop.

    The same numbers as transformers' CLIPImageProcessorPil. CLIPImageProcessor, which resizes with torchvision, is one
    or two grey levels away in one value of a hundred.

    Args:
        images: uint8 RGB (B, H, W, 3).
        size: S.
        device: where the result lies.

    Returns:
        (B, 3, S, S) float32, `MEAN` subtracted and divided by `STD`.

    Raises:
        UserError: images of another type or form; floats above all, which would be divided by 255 twice.
    """
    _check(images)
    height, width = (size * side // min(images.shape[1:3]) for side in images.shape[1:3])
    top, left = (height - size) // 2, (width - size) // 2
    small = resized(images, (height, width), Image.Resampling.BICUBIC)[:, top : top + size, left : left + size]
    bytes_B3SS = torch.from_numpy(np.ascontiguousarray(small.transpose(0, 3, 1, 2)))
    pixels_B3SS = bytes_B3SS.to(device).float() / 255
    return (pixels_B3SS - pixels_B3SS.new_tensor(MEAN).view(3, 1, 1)) / pixels_B3SS.new_tensor(STD).view(3, 1, 1)


def _check(images: NDArray[Any]) -> None:
    if images.dtype != np.uint8:
        raise UserError(
            f"pictures for CLIP are {images.dtype}; wanted uint8, 0 to 255. CLIP's preprocessing divides by 255, so "
            "floats in [0, 1] would be rescaled twice and every image would come out nearly black. Give bytes: "
            "(255 * images).round().astype(uint8)."
        )
    if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise UserError(f"pictures for CLIP have the shape {images.shape}; wanted (B, H, W, 3), colours last.")
