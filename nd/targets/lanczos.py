"""Pillow's resizing of whole batches of bytes, as released scripts do it image by image.

Shapes: B batch, H W rows and columns, S side wanted.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image


def lanczos(
    images: NDArray[np.uint8], size: int, kernel: Image.Resampling = Image.Resampling.LANCZOS
) -> NDArray[np.uint8]:
    """Resize uint8 RGB images (B, H, W, 3) to (B, S, S, 3) uint8; images of that size are returned as they are.

    Pillow filters antialiased and rounds to bytes after each direction; torch has no such filter.
    """
    if images.shape[1:3] == (size, size):
        return images
    resized = np.empty((len(images), size, size, 3), np.uint8)

    def fill(row: int) -> None:
        resized[row] = np.asarray(Image.fromarray(images[row]).resize((size, size), kernel))

    # Pillow lets go of the interpreter while it filters, so threads share the work.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(len(images))))
    return resized


def bicubic(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the same by Pillow's bicubic filter."""
    return lanczos(images, size, Image.Resampling.BICUBIC)
