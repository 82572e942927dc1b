"""pixels: the image itself, the target of the plain ridge baseline.

Shapes: B batch, H W rows and columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError
from nd.targets.base import Items, Needs


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
        """Pictures (B, H, W, 3) float32 in [0, 1]."""
        batch = items.images
        if batch.shape[1:] != self.shape:
            raise UserError(
                f"the stimuli are {batch.shape[1]}x{batch.shape[2]} pixels but data.image_size={self.image_size}. "
                f"Set data.image_size={batch.shape[1]}."
            )
        return np.asarray(batch, np.float32) / np.float32(255)
