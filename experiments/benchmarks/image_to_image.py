"""Takagi & Nishimoto and the dual-guided UNet: images per second on Scenes, and operations and memory at full size.

    python experiments/benchmarks/image_to_image.py [--images 8]

On Scenes: ours, batched, against the released scripts' way stated plainly (one image and one sample at a time, two UNet
passes per step), in seconds of this process's own processor time. At full size (512 px, 50 steps, strength .75, tokens
257 + 77) the dual-guided UNet is played through on tensors without contents.
"""

from __future__ import annotations

import argparse
import time

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from nd.backbone.loading import Backbone, load_backbone
from nd.backbone.versatile import dual_unet
from nd.config.application import compose
from nd.generate.memory import need_of
from nd.generate.takagi import build
from nd.generate.trajectories import add_noise, build_schedule, ddim_step
from nd.targets.vae_latent import SmallLatent

CPU = torch.device("cpu")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8, help="on Scenes")
    n = parser.parse_args().images
    torch.set_num_threads(1)
    cfg = compose(["experiment=scenes", "method=takagi", "table="])
    backbone = load_backbone(cfg.backbone)
    z40 = torch.randn(n, *SmallLatent(backbone).shape)
    c = torch.randn(n, *backbone.text_shape)
    generator = build([cfg], CPU)
    generator.use(generator.plan_for([n]))
    generator(list(range(n)), {"z40": z40, "c": c})  # warm
    ours = processor_time(lambda: generator(list(range(n)), {"z40": z40, "c": c}))
    plainly = processor_time(lambda: [plain(backbone, cfg, z40[k : k + 1], c[k : k + 1]) for k in range(n)])
    each = cfg.method.repeats
    print(f"Scenes, {n} images of {each}: ours {ours:.2f} s, plainly {plainly:.2f} s, {plainly / ours:.1f} x")
    full_size()


def processor_time(work: object) -> float:
    """Return this process's processor seconds of some work."""
    begun = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - begun


@torch.no_grad()
def plain(backbone: Backbone, cfg: object, z40: torch.Tensor, c: torch.Tensor) -> None:
    """One image as the released script makes it: the first guess, then sample after sample."""
    method = cfg.method  # type: ignore[attr-defined]
    schedule = build_schedule(backbone.scheduler, method.steps, method.strength)
    for _ in range(method.repeats):
        z0 = backbone.encode_images(backbone.decode(z40))
        z, empty = add_noise(z0, torch.randn_like(z0), schedule.start), backbone.encode_text([""])
        for t, abar, after in zip(schedule.timesteps, schedule.alpha_bar, schedule.alpha_bar_next, strict=True):
            with_it, without = (backbone.unet(z, t, encoder_hidden_states=one).sample for one in (c, empty))
            z = ddim_step(z, without + method.cfg_scale * (with_it - without), abar, after)
        backbone.decode(z)


@torch.no_grad()
def full_size() -> None:
    """Operations and memory of Versatile Diffusion's UNet at 512 px."""
    sizes = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    with torch.device("meta"):
        unet = dual_unet(UNet2DConditionModel(**sizes).config).eval()

    def step(n: int) -> None:
        latents, tokens = (torch.empty(2 * n, *shape, device="meta") for shape in ((4, 64, 64), (334, 768)))
        unet(latents, 700, encoder_hidden_states=tokens)

    for share, what in ((0.4, "both branches"), (0.0, "the image's alone")):
        unet.mixing.share = share
        with FlopCounterMode(display=False) as counted:
            step(1)
        need, flops = need_of(step), counted.get_total_flops()
        print(f"{what}: {flops / 1e12:.2f} TFLOP a step, {37 * flops / 1e12:.1f} an image of 37 steps")
        one, more = (need.fixed + need.each) / 1e9, need.each / 1e9
        print(f"  activations, float32: {one:.2f} GB for 1, {more:.2f} GB for each more")
    weights = sum(p.numel() for p in unet.parameters())
    print(
        f"weights: {weights / 1e6:.0f} M, {4 * weights / 1e9:.1f} GB in float32, {2 * weights / 1e9:.1f} GB in float16"
    )


if __name__ == "__main__":
    main()
