"""Versatile Diffusion at full size, on tensors without contents: operations, and memory at 512 px."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from helpers_scripts import load_script

from nd.backbone.clip import Clip
from nd.backbone.versatile import VersatileBackbone, dual_unet
from nd.config import BackboneConfig
from nd.config.application import compose
from nd.errors import UserError
from nd.generate.brain_diffuser import DualGuided
from nd.generate.image_to_image import sampler_of
from nd.generate.memory import needs_of, weight_bytes
from nd.generate.plan import SIZES, UNSEEN

N_IMAGE, N_TEXT, WIDTH = 257, 77, 768
# Of Stable Diffusion v1's UNet: width of the features, side of the latent, transformers.
SLOTS = ((320, 64, 5), (640, 32, 5), (1280, 16, 5), (1280, 8, 1))


def flops_of_transformers(n_tokens: int) -> int:
    """Count by hand what all transformers of one branch take for one latent."""
    found = 0
    for c, side, n_slots in SLOTS:
        n = side**2
        own = (2 + 4) * n * c * c + 2 * n * n * c  # into and out of the slot; self-attention
        cross = 2 * n * c * c + 2 * n_tokens * WIDTH * c + 2 * n * n_tokens * c
        forward = n * c * 8 * c + n * 4 * c * c  # gated, four times as wide
        found += n_slots * 2 * (own + cross + forward)
    return found


def test_operations_and_memory_at_full_size_are_those_of_one_unet_and_the_other_branch() -> None:
    script = load_script("benchmarks/image_to_image.py")
    both, image = script.full_size(0.4), script.full_size(0.0)
    assert both.flops - image.flops == 2 * flops_of_transformers(N_TEXT)  # a step is two latents
    # While the second branch runs, the first one's features are held: the largest are 320 x 64 x 64, for two latents.
    assert both.need.each - image.need.each == 2 * 320 * 64 * 64 * 4
    with torch.device("meta"):
        single = UNet2DConditionModel(sample_size=64, cross_attention_dim=WIDTH, attention_head_dim=8)
    assert both.weights == image.weights > sum(p.numel() for p in single.parameters())


def full_size(*given: str) -> DualGuided:
    """Return Brain-Diffuser's sampler over Versatile Diffusion without contents, at 512 px."""
    cfg = compose(["method=brain_diffuser", "target.clip=x", "backbone=sd14", "trainer.accelerator=cpu", *given])
    config, clip = BackboneConfig(name="versatile", image_size=512), Clip("x", torch.device("meta"))
    backbone = VersatileBackbone(config, "x", clip, "meta")
    with torch.device("meta"):
        unet = dual_unet(UNet2DConditionModel(sample_size=64, cross_attention_dim=WIDTH, attention_head_dim=8).config)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        )  # fmt: skip
        empty = torch.empty(1, N_IMAGE + N_TEXT, WIDTH)
    parts = {"unet": unet, "vae": vae}
    vars(backbone).update({name: module.eval().requires_grad_(False) for name, module in parts.items()})
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    vars(backbone).update(scheduler=DDIMScheduler(**schedule, clip_sample=False), _uncond=empty)
    found = sampler_of(backbone, cfg, DualGuided)
    assert isinstance(found, DualGuided)
    found.text_share = cfg.method.text_share
    return found


def test_memory_of_512_px_decides_how_many_images_move_together() -> None:
    sampler = full_size("trainer.memory_gb=8")
    weights = weight_bytes(sampler.sampler)
    decoder = sum(p.numel() for p in sampler.sampler.backbone.vae.parameters())
    assert weights == 4 * (859_520_964 + 267_239_360 + decoder)
    needs = needs_of(sampler.sampler)
    assert needs["decode"].each > needs["plain"].each > 2 * 4096 * 8 * 320 * 4  # the gated layer of 64 x 64
    plan = sampler.plan_for([120])  # of which 8 and 3 leave none over
    room = (8e9 - weights) / UNSEEN
    for kind, need in needs.items():
        most = getattr(plan, kind)
        above = next(size for size in SIZES if size > most)
        assert need.fixed + most * need.each <= room < need.fixed + above * need.each
    with pytest.raises(UserError, match=r"trainer.memory_gb: 5 GB cannot hold one sample: weights take 4.8 GB"):
        full_size("trainer.memory_gb=5").plan_for([20])
