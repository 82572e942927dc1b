"""What every generator offers: the inputs it wants and a function from inputs to pictures.

B images, R repeats, H W picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Generator(Protocol):
    """Decoded targets to pictures, for one batch of images."""

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        """Return (B, R, H, W, 3) uint8 RGB.

        Args:
            image_ids: B stimulus numbers.
            features: each wanted target, (B, *shape) float32 on the generator's device.
        """


def to_uint8(pictures_BR3HW: Tensor) -> NDArray[np.uint8]:
    """Return pictures in [0, 1] as (B, R, H, W, 3) uint8, rounded (the released code truncates)."""
    scaled = pictures_BR3HW.float().clamp(0, 1).mul(255).round()
    return scaled.to("cpu").byte().movedim(2, -1).contiguous().numpy()
