"""Pictures as the network takes them.

Shapes: B batch, H W rows and columns, S the network's image size.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def to_pixels(images_BHW3: NDArray[np.uint8], size: int) -> Tensor:
    """Pictures of any size as floats (B, 3, S, S) in [0, 255].

    Resized as bytes by PIL's bilinear filter, which widens when it shrinks (antialiasing) and rounds: that is what
    torchvision's resize does to a PIL image, by which the released code makes its images
    (ozcelikfu/brain-diffuser@31d52c0:scripts/vdvae_extract_features.py).
    """
    wanted = (size, size)
    if images_BHW3.shape[1:3] != wanted:
        resized = [np.asarray(Image.fromarray(p).resize(wanted, Image.Resampling.BILINEAR)) for p in images_BHW3]
        images_BHW3 = np.stack(resized) if resized else np.empty((0, size, size, 3), np.uint8)
    return torch.from_numpy(np.ascontiguousarray(images_BHW3.transpose(0, 3, 1, 2))).float()
