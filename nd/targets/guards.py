"""What images and features must be before a target is extracted or stored: mistakes that would stay unseen otherwise.

Shapes: B batch, H W rows and columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.errors import UserError

# Share of an image's values that are exactly 0 or 255 from which on it counts as broken: floats in [0, 1] cast to
# bytes, or contrast multiplied once too often, leave nothing else. White drawings on black ground have grey borders:
# among the handwritten digits of digits69 the largest share is 0.944, among 3,200 Scenes images 0.074.
SATURATED = 0.999
NAMED = 5  # images that a message names

CHANGED = "Find out how the file was made, mend it there and prepare it again."


def check_pictures(images: NDArray[Any], ids: NDArray[Any]) -> None:
    """Refuse images from which no sensible feature could come.

    Args:
        images: wanted are uint8 RGB images (B, H, W, 3).
        ids: (B,) their image ids, for messages.

    Raises:
        UserError: another type or shape; images of one single value; saturated images.
    """
    _check_form(images)
    flat_BP = images.reshape(len(images), -1)
    constant_B = flat_BP.min(axis=1) == flat_BP.max(axis=1)
    if constant_B.any():
        raise UserError(
            f"{_named(ids, constant_B)}: every value of the image is the same. Empty images come from files that "
            f"were decoded or copied in part. {CHANGED}"
        )
    saturated_B = saturated_share(images) >= SATURATED
    if saturated_B.any():
        raise UserError(
            f"{_named(ids, saturated_B)}: at least {SATURATED:.1%} of the image's values are exactly 0 or 255, as "
            f"floats in [0, 1] become when they are cast to bytes or scaled twice. {CHANGED}"
        )


def saturated_share(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(B,) the share of each image's values that are exactly 0 or 255. images: uint8 (B, H, W, 3)."""
    # One pass and one temporary: 0 and 255 are the bytes that become 0 or 1 when 1 is added modulo 256.
    return ((images + np.uint8(1)) <= 1).reshape(len(images), -1).mean(axis=1)


def check_features(name: str, features: NDArray[Any], ids: NDArray[Any]) -> None:
    """Refuse features that are not finite.

    Args:
        name: the target.
        features: (B, ...) floats.
        ids: (B,) the image ids.

    Raises:
        UserError: NaN or infinite values; names the images.
    """
    bad_B = ~np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if bad_B.any():
        raise UserError(
            f"the features {name!r} of {_named(ids, bad_B)} are not finite. Are the weights whole? Networks in "
            "target.precision=float16 may also overflow: use bfloat16 or float32."
        )


def _check_form(images: NDArray[Any]) -> None:
    if images.dtype.kind == "f":
        raise UserError(
            f"pictures are {images.dtype} {images.shape}; wanted uint8 (B, H, W, 3). Extractors divide by 255 "
            "themselves, so floats in [0, 1] would be scaled twice and come out black: give round(255 x) as uint8."
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"pictures are {images.dtype} {images.shape}; wanted uint8 RGB (B, H, W, 3). Repeat the channel of grey "
            "pictures three times, put channels last."
        )


def _named(ids: NDArray[Any], bad_B: NDArray[np.bool_]) -> str:
    """'image 7', or '12 of 64 images (3, 4, 5, 9, 11, ...)'."""
    bad = [str(i) for i in np.asarray(ids)[bad_B]]
    if len(bad) == 1:
        return f"image {bad[0]}"
    more = ", ..." if len(bad) > NAMED else ""
    return f"{len(bad)} of {len(bad_B)} images ({', '.join(bad[:NAMED])}{more})"
