"""edge: where the image's brightness changes, one half of SoulDiffuser's edge-and-colour target.

Only a figure of that method is published (LQQME/SoulDiffuser@160a2fd:Figure/nc-31.jpg: an edge map and a coarse colour
mosaic); size, edge filter and scaling are this project's reading of it.
Shapes: B batch, H W rows and columns of the stimuli, S = 64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.backbone.tower import resize
from nd.targets.base import Items, Needs

SIZE = 64
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, the grey of Pillow and OpenCV
# The longest gradient that a 3x3 patch of values in [0, 1] can have: 4 along one axis and 2 along the other, where a
# corner of the patch is dark and an L of five cells is bright. Dividing by it keeps maps in [0, 1] and comparable.
LONGEST = float(np.sqrt(20.0))


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
