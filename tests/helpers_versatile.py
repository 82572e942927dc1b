"""A tiny untrained Versatile Diffusion folder, CLIP model and VDVAE, which fit each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel
from helpers_backbone import _scheduler, _vae
from helpers_clip import tiny_clip

from nd.backbone.clip import Clip
from nd.backbone.vdvae.loading import save_vdvae
from nd.backbone.vdvae.model import Vdvae
from nd.backbone.vdvae.shape import VdvaeShape
from nd.backbone.versatile import VersatileBackbone
from nd.config import BackboneConfig

SIDE = 16
WIDTH = 24  # of tiny_clip
TINY_VDVAE = VdvaeShape(
    width=8, zdim=2, n_mixtures=2, image_size=8,
    encoder="8x1,8d2,4x1,4d2,2x1,2d2,1x1", decoder="1x1,2m1,4m2,8m4",
)  # fmt: skip


def unet_settings(**changes: Any) -> dict[str, Any]:
    """The shape that both branches have."""
    return {
        "sample_size": SIDE // 4, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": WIDTH, "attention_head_dim": 4, **changes,
    }  # fmt: skip


def image_unet(dual: bool = False) -> UNet2DConditionModel:
    """The image's branch, or diffusers' own UNet with both."""
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    return UNet2DConditionModel(
        **unet_settings(down_block_types=down, up_block_types=up, dual_cross_attention=dual)
    ).eval()


def text_unet() -> Any:
    """The text's branch as diffusers builds it."""
    down, up = ("CrossAttnDownBlockFlat", "DownBlockFlat"), ("UpBlockFlat", "CrossAttnUpBlockFlat")
    return UNetFlatConditionModel(**unet_settings(down_block_types=down, up_block_types=up)).eval()


@dataclass(frozen=True)
class Tiny:
    """Where everything lies."""

    versatile: Path
    clip: Path
    vdvae: Path

    def backbone(self, folder: Path | None = None, clip: Path | None = None) -> VersatileBackbone:
        """Return the backbone of these folders, or of others."""
        config = BackboneConfig(name="tiny", image_size=SIDE)
        return VersatileBackbone(
            config, str(folder or self.versatile), Clip(str(clip or self.clip), torch.device("cpu"))
        )


def tiny_versatile(folder: Path, seed: int = 0) -> Tiny:
    """Write random weights below `folder`: 16 px images, latents (4, 4, 4), 17 + 16 tokens of 24, VDVAE of 8 px."""
    torch.manual_seed(seed)
    image_unet().save_pretrained(folder / "versatile" / "image_unet")
    text_unet().save_pretrained(folder / "versatile" / "text_unet")
    _vae(SIDE).save_pretrained(folder / "versatile" / "vae")
    _scheduler().save_pretrained(folder / "versatile" / "scheduler")
    model = Vdvae(TINY_VDVAE)
    for value in model.parameters():
        value.data = 0.3 * torch.randn(value.shape)
    save_vdvae(folder / "vdvae.safetensors", model)
    return Tiny(folder / "versatile", tiny_clip(folder / "clip", seed), folder / "vdvae.safetensors")
