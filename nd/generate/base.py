"""What every generator offers: a function from decoded targets to images.

B images, R repeats, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from nd.generate.plan import Plan


@dataclass(frozen=True)
class Reconstructions:
    """What one run gets for one batch of images."""

    images: NDArray[np.uint8]  # (B, R, H, W, 3) RGB
    failed: dict[int, str] = field(default_factory=dict)  # image id to what went wrong; its rows mean nothing
    captions: list[str] = field(default_factory=list)  # B of them, decoded; empty: the generator decodes none


class Generator(Protocol):
    """Decoded targets to images, for one batch of images and all runs that are made together."""

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        """Return the images for each run: one, or as many as there are points of a sweep.

        Args:
            image_ids: B stimulus numbers.
            features: each wanted target, (B, *shape) float32 on the generator's device.
        """


@runtime_checkable
class PlannedGenerator(Generator, Protocol):
    """A generator whose batches take a while: it follows a plan, and says how far it is.

    Attributes:
        watch: called with the share of a batch that is done, rising to 1; None where nobody looks.
    """

    watch: Callable[[float], object] | None

    def plan_for(self, batches: Sequence[int]) -> Plan:
        """Return the fastest plan for batches of so many images that this process's memory allows."""

    def use(self, plan: Plan) -> None:
        """Follow a plan from now on."""


def not_finite(image_ids: Sequence[int], images_BR3HW: Tensor) -> dict[int, str]:
    """Return the images of which nothing finite came, by image id, and say so: as bytes they would look black.

    Args:
        image_ids: B stimulus numbers.
        images_BR3HW: float, as ``to_uint8`` takes them.
    """
    bad = (~images_BR3HW.isfinite().flatten(2).all(2)).nonzero().tolist()
    return {
        int(image_ids[row]): f"image {image_ids[row]}, repeat {repeat}: sampling gave values that are not finite"
        for row, repeat in reversed(bad)
    }


def to_uint8(images_BR3HW: Tensor, *, truncate: bool = False) -> NDArray[np.uint8]:
    """Return images as bytes.

    Args:
        images_BR3HW: float, nominally in [0, 1]; what lies outside is clipped.
        truncate: cut off instead of round, as the released code does.

    Returns:
        (B, R, H, W, 3) uint8.
    """
    scaled = images_BR3HW.float().clamp(0, 1).mul(255)
    whole = scaled.floor() if truncate else scaled.round()
    return whole.to("cpu").byte().movedim(2, -1).contiguous().numpy()
