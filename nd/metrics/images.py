"""Images as the metrics want them: checked, as floats in [0, 1], channels first, resized with everything said.

N images, R repeats, B batch, C = 3 channels (RGB), H W image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nd.errors import UserError, unknown
from nd.metrics.correlation import constant_rows

FILTERS = ("bilinear", "bicubic")
RESIZES = ("floats", "bytes")
# ITU-R BT.709 luma as scikit-image's rgb2gray rounds it; published SSIM values were computed with these three.
LUMA = (0.2125, 0.7154, 0.0721)
OVERSHOOT = 1 / 255  # by which floats may leave [0, 1], a grey level: sums and filters do; they are clamped


def check_images(images: NDArray[Any], what: str) -> None:
    """Refuse images that cannot be scored.

    Args:
        images: (..., H, W, 3) RGB, uint8 or finite floats in [0, 1], which they may leave by ``OVERSHOOT``.
        what: their name in messages.

    Raises:
        UserError: another shape or type, NaN, or values further outside [0, 1].
    """
    if images.ndim < 3 or images.shape[-1] != 3:
        raise UserError(
            f"{what}: shape {images.shape} was found, RGB images (..., H, W, 3) were wanted. "
            "Repeat the channel of grey images three times; put channels last."
        )
    if images.dtype == np.uint8:
        return
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"{what}: {images.dtype} pixels were found, uint8 or floats in [0, 1] were wanted.")
    bad = int((~np.isfinite(images)).sum())
    if bad:
        raise UserError(f"{what}: {bad} pixels are NaN or infinite. Find out where they come from; none is scored.")
    if images.min() < -OVERSHOOT or images.max() > 1 + OVERSHOOT:
        advice = "Divide 0-255 values by 255, or store them as uint8." if images.max() > 2 else "Clamp or rescale them."
        raise UserError(
            f"{what}: pixels run from {images.min():.7g} to {images.max():.7g}, floats in [0, 1] were wanted. {advice}"
        )


def n_overshooting(images: NDArray[Any]) -> int:
    """Return how many values of checked images lie outside [0, 1]; ``to_float`` clamps them."""
    return 0 if images.dtype == np.uint8 else int(((images < 0) | (images > 1)).sum())


def to_float(images: NDArray[Any]) -> Tensor:
    """Turn checked images (N, H, W, 3) into float32 (N, 3, H, W) in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return tensor.float().div(255) if images.dtype == np.uint8 else tensor.float().clamp(0, 1)


def resize(images_BCHW: Tensor, size: int, method: str, antialias: bool, arithmetic: str = "floats") -> Tensor:
    """Resize to ``size`` x ``size``, clipped to [0, 1]; images of that size are returned as they are.

    Antialias is never left to a library's default: it changed between torchvision 0.16 and 0.17, and scores with it.

    Args:
        images_BCHW: float in [0, 1].
        size: side.
        method: one of ``FILTERS``.
        antialias: low-pass before shrinking.
        arithmetic: ``floats``, or ``bytes``: by Pillow, which rounds to 0-255 and always low-passes.

    Raises:
        UserError: unknown filter or arithmetic, or Pillow without antialias.
    """
    if method not in FILTERS:
        raise unknown("resize filter", method, FILTERS)
    if arithmetic not in RESIZES:
        raise unknown("resize arithmetic", arithmetic, RESIZES)
    if images_BCHW.shape[-2:] == (size, size):
        return images_BCHW
    if arithmetic == "bytes":
        resized = _by_pillow(images_BCHW, size, method, antialias)
    else:
        resized = F.interpolate(images_BCHW, (size, size), mode=method, align_corners=False, antialias=antialias)
    # Rounding makes a constant image vary by a last digit, which would then be correlated with the other side.
    constant = is_constant(images_BCHW)
    resized[constant] = images_BCHW[constant, :, :1, :1]
    return resized.clamp(0, 1)


def _by_pillow(images_BCHW: Tensor, size: int, method: str, antialias: bool) -> Tensor:
    if not antialias:
        raise UserError("resize: Pillow (arithmetic bytes) always low-passes; antialias=false needs arithmetic floats.")
    kind = Image.Resampling[method.upper()]
    images = (images_BCHW * 255).round().byte().permute(0, 2, 3, 1).numpy()
    sized = [np.asarray(Image.fromarray(image).resize((size, size), kind)) for image in images]
    return to_float(np.stack(sized))


def to_grey(images_BCHW: Tensor) -> Tensor:
    """RGB (B, 3, H, W) to luma (B, H, W) in [0, 1]."""
    return torch.einsum("bchw,c->bhw", images_BCHW, images_BCHW.new_tensor(LUMA))


def is_constant(images_BCHW: Tensor) -> Tensor:
    """(B,) bool: images whose every value is the same."""
    return constant_rows(images_BCHW.flatten(1))
