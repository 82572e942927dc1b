"""colour: the image as a coarse mosaic, one half of SoulDiffuser's edge-and-colour target.

Only a figure of that method is published (LQQME/SoulDiffuser@160a2fd:Figure/nc-31.jpg: an edge map and a coarse colour
mosaic); the number of cells and their averaging are this project's reading of it.
Shapes: B batch, H W rows and columns of the stimuli, K = 8 cells along a side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.targets.base import Items, Needs

CELLS = 8


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
