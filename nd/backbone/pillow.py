"""Pillow's resizing of whole batches of bytes, as released scripts do it image by image.

Pillow filters antialiased and rounds and clips to bytes after each direction; torch has no such filter. Without that,
noise of 425 px comes out up to 8 grey levels away.
Shapes: B batch, H W rows and columns, S side wanted.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image


def resized(images: NDArray[np.uint8], size: tuple[int, int], kernel: Image.Resampling) -> NDArray[np.uint8]:
    """Resize uint8 RGB images (B, H, W, 3) to `size` (rows, columns); images of that size are returned as they are."""
    if images.shape[1:3] == size:
        return images
    small = np.empty((len(images), *size, 3), np.uint8)

    def fill(row: int) -> None:
        small[row] = np.asarray(Image.fromarray(images[row]).resize(size[::-1], kernel))

    # Pillow lets go of the interpreter while it filters, so threads share the work.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(len(images))))
    return small


def lanczos(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return images as squares (B, S, S, 3) by Pillow's Lanczos filter."""
    return resized(images, (size, size), Image.Resampling.LANCZOS)


def bicubic(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return images as squares (B, S, S, 3) by Pillow's bicubic filter."""
    return resized(images, (size, size), Image.Resampling.BICUBIC)
