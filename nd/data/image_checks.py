"""What images must be before anything is made of them: mistakes that would stay unseen otherwise.

Shapes: B batch, H W rows and columns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError

log = logging.getLogger(__name__)

# Share of an image's values that are exactly 0 or 255 from which on it counts as broken: floats in [0, 1] cast to
# bytes, or contrast multiplied once too often, leave nothing else. White drawings on black ground have grey borders:
# among the handwritten digits of digits69 the largest share is 0.944, among 3,200 Scenes images 0.074.
SATURATED = 0.999
NAMED = 5  # images that a message names

CHANGED = "Find out how the file was made, mend it there and prepare it again."


def check_images(images: NDArray[Any], ids: NDArray[Any]) -> None:
    """Refuse images from which no sensible feature could come.

    Args:
        images: wanted are uint8 RGB images (B, H, W, 3).
        ids: (B,) their image ids, for messages.

    Raises:
        UserError: another type or shape; images of one single value; saturated images, but for drawings in black and
            white.
    """
    _check_form(images)
    flat_BP = images.reshape(len(images), -1)
    constant_B = flat_BP.min(axis=1) == flat_BP.max(axis=1)
    if constant_B.any():
        raise UserError(
            f"{named_ids(ids, constant_B)}: every value of the image is the same. A blank stimulus (a catch trial) "
            "holds nothing that could be reconstructed: leave it and its trials out. Other empty images come from "
            f"files that were decoded or copied in part. {CHANGED}"
        )
    saturated_B = (saturated_share(images) >= SATURATED) & ~black_and_white(images)
    if saturated_B.any():
        raise UserError(
            f"{named_ids(ids, saturated_B)}: at least {SATURATED:.1%} of the image's values are exactly 0 or 255, as "
            f"floats in [0, 1] become when they are cast to bytes or scaled twice. {CHANGED}"
        )


def checked(
    images: Iterable[tuple[int, NDArray[np.uint8]]], ids: NDArray[Any]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (position, image (H, W, 3) uint8) again, after ``check_images``; ``ids`` by position.

    Ends with a warning of images that hold black and white alone.
    """
    drawn_N = np.zeros(len(ids), bool)
    for position, image in images:
        check_images(image[None], ids[position : position + 1])
        drawn_N[position] = black_and_white(image[None])[0]
        yield position, image
    if drawn_N.any():
        log.warning(
            "%s: every value is 0 or 255. Right for drawings in black and white; photographs were scaled twice.",
            named_ids(ids, drawn_N),
        )


def black_and_white(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(B,) whether an image holds 0 and 255 alone, alike in all channels. images: uint8 (B, H, W, 3)."""
    grey_B = (images == images[..., :1]).reshape(len(images), -1).all(axis=1)
    return grey_B & (saturated_share(images) == 1) & (images.reshape(len(images), -1).max(axis=1) == 255)


def saturated_share(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(B,) the share of each image's values that are exactly 0 or 255. images: uint8 (B, H, W, 3)."""
    # One pass and one temporary: 0 and 255 are the bytes that become 0 or 1 when 1 is added modulo 256.
    return ((images + np.uint8(1)) <= 1).reshape(len(images), -1).mean(axis=1)


def _check_form(images: NDArray[Any]) -> None:
    if images.dtype.kind == "f":
        raise UserError(
            f"images are {images.dtype} {images.shape}; wanted uint8 (B, H, W, 3). Extractors divide by 255 "
            "themselves, so floats in [0, 1] would be scaled twice and come out black: give round(255 x) as uint8."
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"images are {images.dtype} {images.shape}; wanted uint8 RGB (B, H, W, 3). Repeat the channel of grey "
            "images three times, put channels last."
        )


def named_ids(ids: NDArray[Any], bad_B: NDArray[np.bool_]) -> str:
    """'image 7', or '12 of 64 images (3, 4, 5, 9, 11, ...)'."""
    bad = [str(i) for i in np.asarray(ids)[bad_B]]
    if len(bad) == 1:
        return f"image {bad[0]}"
    more = ", ..." if len(bad) > NAMED else ""
    return f"{len(bad)} of {len(bad_B)} images ({', '.join(bad[:NAMED])}{more})"
