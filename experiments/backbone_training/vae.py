"""Fit the autoencoder of a small backbone: images to a 4-channel latent of a quarter of their side, and back.

Shapes: N images, B batch, H W rows and columns, 3 colours, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from backbone_training.loop import Draw, Optimisation, fit


@dataclass(frozen=True, kw_only=True)
class VaeRecipe:
    """Sizes and training of the autoencoder. Three widths give a latent of a quarter of the image's side."""

    widths: tuple[int, ...] = (16, 32, 64)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_groups: int = 8
    # Enough to keep latents near a unit ball (the denoiser's task) without costing sharpness.
    kl_weight: float = 3e-4
    how: Optimisation = field(
        default_factory=lambda: Optimisation(steps=6000, batch=32, learning_rate=2e-3, average=0.998)
    )


def build_vae(recipe: VaeRecipe, image_size: int) -> AutoencoderKL:
    """An untrained autoencoder."""
    n = len(recipe.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=recipe.widths,
        layers_per_block=recipe.layers_per_block,
        latent_channels=recipe.latent_channels,
        norm_num_groups=recipe.norm_groups,
        sample_size=image_size,
    )


def fit_vae(
    images_NHW3: NDArray[np.uint8], recipe: VaeRecipe, *, seed: int, checkpoint: Path | None = None
) -> AutoencoderKL:
    """The autoencoder fitted to uint8 RGB images, its `scaling_factor` set so that latents have unit deviation."""
    torch.manual_seed(seed)
    model = build_vae(recipe, images_NHW3.shape[1]).to(memory_format=torch.channels_last)

    def loss_of_step(draw: Draw) -> Tensor:
        images_B3HW = as_tensor(images_NHW3[draw.numpy.integers(len(images_NHW3), size=recipe.how.batch)])
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.how.bf16):
            return vae_loss(model, images_B3HW, recipe.kl_weight, draw.torch)

    fit(model, loss_of_step, recipe.how, seed=seed, checkpoint=checkpoint)
    sample = images_NHW3[:2000]
    model.register_to_config(scaling_factor=float(1 / encode(model, sample, scaled=False).std()))
    return model


def vae_loss(model: AutoencoderKL, images_B3HW: Tensor, kl_weight: float, generator: torch.Generator) -> Tensor:
    """Absolute plus squared error of the reconstruction, plus the divergence of a latent from a unit normal."""
    posterior = model.encode(images_B3HW).latent_dist
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    noise = torch.randn(mean.shape, generator=generator)
    latents = mean + torch.exp(0.5 * log_variance) * noise
    error = model.decode(latents).sample.float() - images_B3HW
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
    return error.abs().mean() + error.square().mean() + kl_weight * divergence.mean()


def as_tensor(images_BHW3: NDArray[np.uint8]) -> Tensor:
    """uint8 images (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(images_BHW3)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


@torch.inference_mode()
def encode(model: AutoencoderKL, images_NHW3: NDArray[np.uint8], *, scaled: bool = True, batch: int = 64) -> Tensor:
    """Latent means (N, C, h, w) float32, times the scaling factor when `scaled`."""
    factor = float(model.config["scaling_factor"]) if scaled else 1.0
    parts = (images_NHW3[i : i + batch] for i in range(0, len(images_NHW3), batch))
    return torch.cat([model.encode(as_tensor(part)).latent_dist.mean.float() * factor for part in parts])


@torch.inference_mode()
def decode(model: AutoencoderKL, latents_NChw: Tensor, *, batch: int = 64) -> NDArray[np.uint8]:
    """Images (N, H, W, 3) uint8 of scaled latents."""
    parts = (model.decode(z / model.config["scaling_factor"]).sample for z in latents_NChw.split(batch))
    pixels = torch.cat([p.float().add(1).mul(127.5).round().clamp(0, 255) for p in parts])
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def psnr_db(a_NHW3: NDArray[np.uint8], b_NHW3: NDArray[np.uint8]) -> float:
    """Mean over images of the peak signal-to-noise ratio, in dB, of uint8 images."""
    squared = ((a_NHW3.astype(np.float64) - b_NHW3) ** 2).reshape(len(a_NHW3), -1).mean(1)
    return float(np.mean(10 * np.log10(255.0**2 / np.maximum(squared, 1e-12))))
