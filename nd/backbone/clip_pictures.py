"""Images as CLIP's vision transformer sees them: resized, cropped and normalised as its training data were.

Shapes: B batch, 3 colours, H W rows and columns, S side of the transformer's input.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.errors import UserError

# Mean and standard deviation of CLIP's training images, RGB in [0, 1]: openai/CLIP@3bee281:clip/clip.py, load.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

CUBIC_A = -0.5  # Pillow's bicubic filter
WEIGHT_BITS = 22  # fixed point of Pillow's filter weights: 32 bits less 8 of the image and 2 of headroom


def to_pixels(images: NDArray[np.uint8], size: int, device: torch.device) -> Tensor:
    """Bring images to CLIP's vision transformer: shorter side to `size` by Pillow's bicubic filter, centre crop.

    The same numbers as transformers' CLIPImageProcessorPil on any device, for images at most twice as tall as wide
    (newer Pillows shrink taller ones in the other order). CLIPImageProcessor, which resizes with torchvision, is one or
    two grey levels away in one value of a hundred. Torch's antialiased bicubic filter on floats will not do: Pillow
    rounds and clips to bytes after each direction. Without that, noise of 425 px comes out up to 8 grey levels away.

    Args:
        images: uint8 RGB (B, H, W, 3).
        size: S.
        device: where the arithmetic is done and the result lies.

    Returns:
        (B, 3, S, S) float32, `MEAN` subtracted and divided by `STD`.

    Raises:
        UserError: images of another type or form; floats above all, which would be divided by 255 twice.
    """
    _check(images)
    exact = torch.device("cpu") if device.type == "mps" else device  # Metal has no float64
    height, width = images.shape[1:3]
    rows_SH = _filter(height, size, min(height, width)).to(exact)
    columns_SW = _filter(width, size, min(height, width)).to(exact)
    # One image at a time: as float64 a batch would be eight times as large as it came.
    small = [_resize(torch.from_numpy(image).to(exact), rows_SH, columns_SW) for image in images]
    pixels_B3SS = torch.stack(small).to(device) / 255
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


def _resize(image_HW3: Tensor, rows_SH: Tensor, columns_SW: Tensor) -> Tensor:
    """(3, S, S) float32, whole numbers. Products and sums are whole numbers below 2^53, so exact in any order."""
    image_3HW = image_HW3.permute(2, 0, 1).double()
    return _to_bytes(rows_SH @ _to_bytes(image_3HW @ columns_SW.T)).float()


def _to_bytes(sums: Tensor) -> Tensor:
    """Fixed point to the nearest of 0 to 255."""
    return (sums / 2**WEIGHT_BITS + 0.5).floor().clamp(0, 255)


@lru_cache(maxsize=8)
def _filter(n_in: int, size: int, shorter: int) -> Tensor:
    """Weights (S, n_in) of the pixels along one side for each pixel that the centre crop keeps, in fixed point.

    The filter of Pillow's Image.resize (src/libImaging/Resample.c): bicubic, as many times wider than two pixels as the
    image shrinks, its weights normalised to sum 1 and rounded.
    """
    n_out = size * n_in // shorter
    scale = n_in / n_out
    first = (n_out - size) // 2
    centres_S = (np.arange(first, first + size) + 0.5) * scale
    weights_SN = _cubic((np.arange(n_in) + 0.5 - centres_S[:, None]) / max(scale, 1.0))
    weights_SN /= weights_SN.sum(axis=1, keepdims=True)
    return torch.from_numpy(np.rint(weights_SN * 2**WEIGHT_BITS))


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel, zero from two pixels on."""
    x, a = np.abs(x), CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
