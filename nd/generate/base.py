"""What every generator offers: the inputs it wants and a function from inputs to images.

B images, R repeats, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """The images of one batch of images for one run."""

    images: NDArray[np.uint8]  # (B, R, H, W, 3) RGB
    failed: dict[int, str] = field(default_factory=dict)  # image id to what went wrong; its rows mean nothing


class Generator(Protocol):
    """Decoded targets to images, for one batch of images and all runs that are made together."""

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Pictures]:
        """Return the images for each run: one, or as many as there are points of a sweep.

        Args:
            image_ids: B stimulus numbers.
            features: each wanted target, (B, *shape) float32 on the generator's device.
        """


def to_uint8(pictures_BR3HW: Tensor, *, truncate: bool = False) -> NDArray[np.uint8]:
    """Return images in [0, 1] as (B, R, H, W, 3) uint8, rounded; ``truncate`` as the released code does."""
    scaled = pictures_BR3HW.float().clamp(0, 1).mul(255)
    whole = scaled.floor() if truncate else scaled.round()
    return whole.to("cpu").byte().movedim(2, -1).contiguous().numpy()
