"""pixels, edge and colour: square maps of the image, which no network makes.

Edge and colour are the two halves of SoulDiffuser's target, of which only a figure is published
(LQQME/SoulDiffuser@160a2fd:Figure/nc-31.jpg: an edge map and a coarse colour mosaic); sizes, edge filter, number of
cells and their averaging are this project's reading of it.
Shapes: B batch, H W rows and columns of the stimuli, S = 64, K = 8 cells along a side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.backbone.tower import resize
from nd.errors import UserError
from nd.targets.base import Items, Needs

SIZE = 64
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, the grey of Pillow and OpenCV
# The longest gradient that a 3x3 patch of values in [0, 1] can have: 4 along one axis and 2 along the other, where a
# corner of the patch is dark and an L of five cells is bright. Dividing by it keeps maps in [0, 1] and comparable.
LONGEST = float(np.sqrt(20.0))
CELLS = 8


class Pixels:
    """RGB in [0, 1] at the stimuli's own size."""

    name = "pixels"
    needs: Needs = "images"

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, 3)."""
        return self.image_size, self.image_size, 3

    def fingerprint(self) -> dict[str, Any]:
        """The size alone."""
        return {"target": "pixels", "rule": "uint8 / 255", "image_size": self.image_size}

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Images (B, H, W, 3) float32 in [0, 1]."""
        batch = items.images
        if batch.shape[1:] != self.shape:
            raise UserError(
                f"the stimuli are {batch.shape[1]}x{batch.shape[2]} pixels but data.image_size={self.image_size}. "
                f"Set data.image_size={batch.shape[1]}."
            )
        return np.asarray(batch, np.float32) / np.float32(255)


class EdgeMap:
    """Sobel gradient magnitude of the luma at 64 px, divided by sqrt(20), the largest possible."""

    name = "edge"
    needs: Needs = "images"
    shape = (SIZE, SIZE)

    def fingerprint(self) -> dict[str, Any]:
        """The rule alone."""
        return {
            "target": "edge",
            "rule": "Sobel magnitude of BT.601 luma, borders repeated, divided by sqrt(20)",
            "resize": "bilinear, antialiased",
            "size": SIZE,
        }

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Maps (B, 64, 64) float32 in [0, 1]."""
        luma_BHW = items.images @ (LUMA / np.float32(255))
        luma_BSS = resize(torch.from_numpy(luma_BHW)[:, None], SIZE)[:, 0].numpy()
        return gradient_magnitude(luma_BSS) / np.float32(LONGEST)


def gradient_magnitude(luma_BHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, H, W) length of the gradient by Sobel's 3x3 kernels (weights 1, 2, 1), borders repeated."""
    padded = np.pad(luma_BHW, ((0, 0), (1, 1), (1, 1)), mode="edge")
    smooth_rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth_columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return np.hypot(smooth_rows[:, :, 2:] - smooth_rows[:, :, :-2], smooth_columns[:, 2:] - smooth_columns[:, :-2])


class ColourMosaic:
    """Mean colour of each cell of an 8x8 grid over the image."""

    name = "colour"
    needs: Needs = "images"
    shape = (CELLS, CELLS, 3)

    def fingerprint(self) -> dict[str, Any]:
        """The rule alone."""
        return {"target": "colour", "rule": "mean RGB over cells, pixels shared by cells count in part", "cells": CELLS}

    def __call__(self, items: Items) -> NDArray[np.float32]:
        """Mosaics (B, 8, 8, 3) float32 RGB in [0, 1]."""
        rows_KH, columns_KW = (cell_weights(side, CELLS) for side in items.images.shape[1:3])
        mosaic = np.einsum("kh,bhwc,lw->bklc", rows_KH, items.images, columns_KW, optimize=True)
        return np.asarray(mosaic / 255, np.float32)


def cell_weights(n_pixels: int, n_cells: int) -> NDArray[np.float64]:
    """(K, N) share of each pixel in the mean of each cell along a side: how far they overlap; rows sum to 1.

    Works for any sizes: a pixel on the border of two cells counts in both, in part.
    """
    edges_K1 = np.arange(n_cells + 1) * n_pixels / n_cells
    pixels_N = np.arange(n_pixels)
    ends = np.minimum(edges_K1[1:, None], pixels_N + 1) - np.maximum(edges_K1[:-1, None], pixels_N)
    return np.clip(ends, 0, None) * n_cells / n_pixels
