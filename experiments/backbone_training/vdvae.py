"""Fit a small VDVAE: the bound on the likelihood of images' bytes, in nats per number.

Child, ICLR 2021 (arXiv:2011.10650); the likelihood of a byte is the share of a mixture of logistic distributions that
falls into its step of 1/127.5 (Salimans et al., ICLR 2017, arXiv:1701.05517, section 2).

Shapes: N images, B batch, M mixture components, H W rows and columns.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from backbone_training.loop import Draw, Optimisation, fit
from nd.backbone.vdvae.halves import Prior
from nd.backbone.vdvae.images import MIN_LOG_SCALE, to_pixels
from nd.backbone.vdvae.model import Vdvae
from nd.backbone.vdvae.shape import COLOURS, VdvaeShape

HALF_STEP = 1 / 255  # half of the distance of two bytes in [-1, 1]
EDGE = 0.999  # beyond it a byte is 0 or 255, which have the rest of the line


def fit_vdvae(
    images_NHW3: NDArray[np.uint8], shape: VdvaeShape, how: Optimisation, *, seed: int, checkpoint: Path | None = None
) -> Vdvae:
    """Return a VDVAE fitted to images, which are brought to its size."""
    torch.manual_seed(seed)
    model = Vdvae(shape)
    with torch.no_grad():  # residual branches begin small, the deeper the network the smaller
        for name, value in model.named_parameters():
            if name.endswith("c4.weight"):
                value.mul_(1 / math.sqrt(len(shape.decoder_blocks)))

    def loss_of_step(draw: Draw) -> Tensor:
        rows = draw.numpy.integers(len(images_NHW3), size=how.batch)
        return bound(model, to_pixels(images_NHW3[rows], shape.image_size), draw.torch).mean()

    return fit(model, loss_of_step, how, seed=seed, checkpoint=checkpoint)  # type: ignore[return-value]


def bound(model: Vdvae, pixels_B3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Return the negative bound (B,) in nats per number of an image, whose pixels are floats in [0, 255]."""
    activations, apart = model.encode(pixels_B3HW), []
    decoder = model.decoder

    def choose(layer: int, x: Tensor, prior: Prior | None) -> Tensor:
        assert prior is not None
        mean, log_std = decoder.blocks[layer].posterior_of(x, activations[decoder.blocks[layer].resolution])
        apart.append(divergence(mean, log_std, prior.mean, prior.log_std).flatten(1).sum(1))
        return mean + log_std.exp() * torch.randn(mean.shape, generator=generator)

    described, _ = decoder(choose, len(pixels_B3HW))
    likelihood = log_likelihood(described, pixels_B3HW / 127.5 - 1).flatten(1).sum(1)
    return (torch.stack(apart).sum(0) - likelihood) / pixels_B3HW[0].numel()


def divergence(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of normal distributions, element by element, in nats."""
    spread = (2 * (log_std - other_log_std)).exp() + ((mean - other_mean) * (-other_log_std).exp()).square()
    return other_log_std - log_std + (spread - 1) / 2


def log_likelihood(described: Tensor, values_B3HW: Tensor) -> Tensor:
    """Return the log probability (B, H, W) of bytes, given as numbers in [-1, 1], under each pixel's distribution."""
    batch, n_channels, height, width = described.shape
    n = n_channels // (1 + 3 * COLOURS)
    weights_BMHW = functional.log_softmax(described[:, :n].float(), dim=1)
    triples = described[:, n:].float().reshape(batch, COLOURS, 3, n, height, width)
    own, scales, mixing = triples[:, :, 0], triples[:, :, 1].clamp(min=MIN_LOG_SCALE), triples[:, :, 2].tanh()
    red, green = (values_B3HW[:, k, None] for k in (0, 1))
    leaning = (torch.zeros_like(own[:, 0]), mixing[:, 0] * red, mixing[:, 1] * red + mixing[:, 2] * green)
    means = own + torch.stack(leaning, dim=1)
    away, narrow = values_B3HW[:, :, None] - means, (-scales).exp()
    above, below = narrow * (away + HALF_STEP), narrow * (away - HALF_STEP)
    inside = (torch.sigmoid(above) - torch.sigmoid(below)).clamp_min(1e-12).log()
    values = values_B3HW[:, :, None].expand_as(inside)
    inside = torch.where(values < -EDGE, functional.logsigmoid(above), inside)
    inside = torch.where(values > EDGE, functional.logsigmoid(-below), inside)
    return torch.logsumexp(weights_BMHW + inside.sum(1), dim=1)
