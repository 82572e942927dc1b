"""Images as the network takes them, and as it gives them: a mixture of logistic distributions for every pixel.

Green is given red, and blue is given both. The decoder describes a pixel by `n_output` channels: M logits, then for
each colour M means, M logarithms of scales and M mixing coefficients (Salimans et al., ICLR 2017, arXiv:1701.05517,
section 2). Arithmetic is float32 whatever arrives.
Shapes: B batch, M mixture components, H W rows and columns, S the network's image size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nd.backbone.pillow import resized
from nd.backbone.vdvae.shape import COLOURS

MIN_LOG_SCALE = -7.0  # 1/1096 of the half range: narrower than a step of 1/127.5
MARGIN = 1e-5  # uniform numbers keep this far from 0 and 1, whose logarithms are infinite

# Uniform numbers in [0, 1): (shape) -> a tensor of that shape.
Uniform = Callable[[tuple[int, ...]], Tensor]


def to_pixels(images_BHW3: NDArray[np.uint8], size: int) -> Tensor:
    """Images of any size as floats (B, 3, S, S) in [0, 255].

    Resized as bytes by PIL's bilinear filter, which widens when it shrinks (antialiasing) and rounds: that is what
    torchvision's resize does to a PIL image, by which the released code makes its images
    (ozcelikfu/brain-diffuser@31d52c0:scripts/vdvae_extract_features.py).
    """
    small = resized(images_BHW3, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.ascontiguousarray(small.transpose(0, 3, 1, 2))).float()


def mode(described: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1]: the mean of each pixel's weightiest component. Differentiable."""
    logits_BMHW, triples = _split(described)
    means_B3HW, _, mixing_B3HW = _component(triples, logits_BMHW.argmax(dim=1))
    return _colours(means_B3HW, mixing_B3HW)


def sample(described: Tensor, uniform: Uniform) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] drawn from the distribution.

    uniform: asked twice, first for (B, M, H, W), which choose the component (by the Gumbel maximum), then for
        (B, 3, H, W), which place each colour within its own.
    """
    logits_BMHW, triples = _split(described)
    u_BMHW = _inside(uniform, logits_BMHW)
    chosen_BHW = (logits_BMHW - torch.log(-torch.log(u_BMHW))).argmax(dim=1)
    means_B3HW, log_scales_B3HW, mixing_B3HW = _component(triples, chosen_BHW)
    u_B3HW = _inside(uniform, means_B3HW)
    logistic_B3HW = torch.log(u_B3HW) - torch.log(1 - u_B3HW)
    return _colours(means_B3HW + torch.exp(log_scales_B3HW) * logistic_B3HW, mixing_B3HW)


def to_uint8(pictures_B3HW: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes (B, H, W, 3), trunc((x + 1) * 127.5): 255 for 1 alone, as in the released code."""
    return ((pictures_B3HW + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _split(described: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, M, H, W), and means, log scales and coefficients (B, 3, 3 M, H, W)."""
    batch, n_channels, height, width = described.shape
    n_mixtures = n_channels // (1 + 3 * COLOURS)
    described = described.float()
    return described[:, :n_mixtures], described[:, n_mixtures:].reshape(batch, COLOURS, 3 * n_mixtures, height, width)


def _component(triples: Tensor, chosen_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means, log scales and mixing coefficients (B, 3, H, W) of the chosen component of every pixel."""
    index = chosen_BHW[:, None, None].expand(-1, COLOURS, 1, -1, -1)
    means, log_scales, mixing = (part.gather(2, index).squeeze(2) for part in triples.chunk(3, dim=2))
    return means, log_scales.clamp(min=MIN_LOG_SCALE), torch.tanh(mixing)


def _colours(own_B3HW: Tensor, mixing_B3HW: Tensor) -> Tensor:
    """Red, green and blue of each colour's own value: green leans on red, blue on red and green; all in [-1, 1]."""
    red = own_B3HW[:, 0].clamp(-1, 1)
    green = (own_B3HW[:, 1] + mixing_B3HW[:, 0] * red).clamp(-1, 1)
    blue = (own_B3HW[:, 2] + mixing_B3HW[:, 1] * red + mixing_B3HW[:, 2] * green).clamp(-1, 1)
    return torch.stack([red, green, blue], dim=1)


def _inside(uniform: Uniform, like: Tensor) -> Tensor:
    """Uniform numbers in [MARGIN, 1 - MARGIN) of the shape and on the device of `like`."""
    return uniform(tuple(like.shape)).to(like) * (1 - 2 * MARGIN) + MARGIN
