"""Takagi & Nishimoto and Brain-Diffuser: images per second on Scenes, and operations and memory at full size.

    python experiments/benchmarks/image_to_image.py [--images 8] [--method brain_diffuser]

On Scenes: ours, batched, against the released scripts' way stated plainly (one image and one sample at a time, both
halves of classifier-free guidance in one pass of the UNet), in seconds of this process's own processor time. At full
size (512 px, 50 steps, strength .75, tokens 257 + 77) the dual-guided UNet is played through on tensors without
contents.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from rows import COUNTED, Asked, Row, in_turns
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nd.backbone.loading import Backbone
from nd.backbone.versatile import dual_unet
from nd.config import Config
from nd.config.application import compose
from nd.config.components import component
from nd.generate.brain_diffuser import DualStart
from nd.generate.memory import Need, need_of
from nd.generate.takagi import TwoPasses
from nd.generate.trajectories import add_noise, build_schedule, ddim_step
from nd.targets.vae_latent import SmallLatent

CPU = torch.device("cpu")
METHODS = ("takagi", "brain_diffuser")
TOKENS, STEPS = 257 + 77, 37  # of image and text; int(50 * .75)
FULL = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
TINY = FULL | {"sample_size": 8, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "attention_head_dim": 2}


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8, help="on Scenes")
    parser.add_argument("--method", choices=METHODS, nargs="*", default=METHODS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for method in asked.method:
        on_scenes(method, asked.images)
    for share, what in ((0.4, "both branches"), (0.0, "the image's alone")):
        size = full_size(share)
        print(f"{what}: {size.flops / 1e12:.2f} TFLOP a step, {STEPS * size.flops / 1e12:.1f} an image of {STEPS}")
        one, more = (size.need.fixed + size.need.each) / 1e9, size.need.each / 1e9
        print(f"  activations, float32: {one:.2f} GB for 1, {more:.2f} GB for each more")
    print(f"weights: {size.weights / 1e6:.0f} M, {4 * size.weights / 1e9:.1f} GB in float32")


def measure(asked: Asked) -> list[Row]:
    """Return the rows of both methods on Scenes and of the dual-guided UNet counted, or of that on a GPU."""
    if asked.cuda:
        return [dual_steps(asked, n) for n in asked.pick((1,), (1, 8))]
    rows = [scenes_row(method, asked) for method in METHODS]
    for share, what in ((0.4, "both branches"), (0.0, "the image's branch alone")):
        size = full_size(share)
        sizes = {
            f"a step, {what}": (size.flops / 1e12, "TFLOP"),
            f"activations of one, {what}": (size.bytes / 1e9, "GB"),
        }
        rows += [Row(case=f"Versatile Diffusion at 512 px: {case}", unit=unit, ours=[value], clock=COUNTED)
                 for case, (value, unit) in sizes.items()]  # fmt: skip
    return rows


def scenes_row(method: str, asked: Asked) -> Row:
    """Return what making some images takes, both ways."""
    n = asked.pick(2, 8)
    cfg, ours, plainly = ways(method, n)
    mine, theirs = in_turns(asked.pick(1, 3), asked.seconds, ours, plainly, warm=not asked.quick)
    case = f"{method}, {n} images of {cfg.method.repeats} samples, Scenes models"
    return Row(case=case, unit="s", ours=mine, peer="one by one, as released", theirs=theirs, clock=asked.clock)


@torch.no_grad()
def dual_steps(asked: Asked, n: int) -> Row:
    """Return the time of a step of the dual-guided UNet at full size, random weights, n images at once."""
    unet = (
        dual_unet(UNet2DConditionModel(**(TINY if asked.quick else FULL)).config)
        .to(asked.device, torch.bfloat16)
        .eval()
    )
    unet.mixing.share = 0.4
    side = 8 if asked.quick else 64
    latents, tokens = (torch.randn(2 * n, *shape, device=asked.device, dtype=torch.bfloat16)
                       for shape in ((4, side, side), (TOKENS, 768)))  # fmt: skip
    (taken,) = in_turns(asked.pick(1, 10), asked.seconds, lambda: unet(latents, 700, encoder_hidden_states=tokens))
    case = f"Versatile Diffusion at 512 px: a step of {n} images, bfloat16"
    return Row(case=case, unit="s", ours=taken, clock=asked.clock)


# ---- Scenes ---------------------------------------------------------------------------------------------------------


def ways(method: str, n: int) -> tuple[Config, Callable[[], None], Callable[[], None]]:
    """Return the configuration of a method and what makes n images, both ways, of features that mean nothing."""
    cfg = compose(["experiment=scenes", f"method={method}", "table="])
    generator, plain = component("generator", method).build([cfg], CPU), PLAIN[method]
    features = {name: torch.randn(n, *shape) for name, shape in shapes_of(cfg, generator.first).items()}
    each = [{name: values[k : k + 1] for name, values in features.items()} for k in range(n)]
    generator.use(generator.plan_for([n]))

    def ours() -> None:
        generator(list(range(n)), features)

    def plainly() -> None:
        for one in each:
            plain(cfg, generator.first, one)

    return cfg, ours, plainly


def on_scenes(method: str, n: int) -> None:
    """Time a method both ways."""
    cfg, ours, plainly = ways(method, n)
    ours()  # warm
    fast, slow = processor_time(ours), processor_time(plainly)
    print(
        f"Scenes, {method}, {n} images of {cfg.method.repeats}, {cfg.method.sampled_steps} steps: ours {n / fast:.2f} a"
        f" second, plainly {n / slow:.2f}, {slow / fast:.1f} x"
    )


def shapes_of(cfg: Config, first: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the decoded targets."""
    if isinstance(first, TwoPasses):
        return {"z40": SmallLatent(first.backbone).shape, "c": first.backbone.text_shape}
    clip, n_layers = first.backbone.conditions, cfg.decoding("vdvae").target.vdvae_layers
    width = first.guess.model.shape.n_numbers(n_layers)
    return {"vdvae": (width,), "clip_vision": clip.vision_shape, "clip_text": clip.text_shape}


def processor_time(work: Callable[[], object]) -> float:
    """Return this process's processor seconds of some work."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


@torch.no_grad()
def plain_takagi(cfg: Config, first: TwoPasses, one: Mapping[str, Tensor]) -> None:
    """One image as the released script makes it: for every sample the first guess and the empty caption once more."""
    backbone = first.backbone
    for _ in range(cfg.method.repeats):
        z0, empty = backbone.encode_images(enlarged(backbone, backbone.decode(one["z40"]))), backbone.encode_text([""])
        sampled(backbone, cfg, z0, torch.cat([empty, one["c"]]))


@torch.no_grad()
def plain_brain_diffuser(cfg: Config, first: DualStart, one: Mapping[str, Tensor]) -> None:
    """One image as the released scripts make it: VDVAE, the VAE, and sampling under both branches."""
    backbone, vdvae = first.backbone, first.guess.model  # type: ignore[union-attr]
    backbone.unet.mixing.share = cfg.method.text_share
    guess = vdvae.picture(vdvae.decode(vdvae.split(one["vdvae"])))
    z0 = backbone.encode_images(enlarged(backbone, guess / 2 + 0.5))
    tokens = torch.cat([one["clip_vision"], one["clip_text"]], dim=1)
    for _ in range(cfg.method.repeats):
        sampled(backbone, cfg, z0, torch.cat([backbone.uncond(), tokens]))


PLAIN: dict[str, Callable[[Config, Any, Mapping[str, Tensor]], None]] = {
    "takagi": plain_takagi, "brain_diffuser": plain_brain_diffuser,
}  # fmt: skip


def enlarged(backbone: Backbone, image_13HW: Tensor) -> NDArray[np.uint8]:
    """Return an image in bytes, (1, S, S, 3), by Pillow."""
    small = (image_13HW[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    side = backbone.config.image_size
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))[None].copy()


def sampled(backbone: Backbone, cfg: Config, z0: Tensor, conditions: Tensor) -> Tensor:
    """Return one sample (1, 3, S, S); conditions: the empty one and the decoded one, (2, T, D)."""
    schedule = build_schedule(backbone.scheduler, cfg.method.steps, cfg.method.strength)
    z = add_noise(z0, torch.randn_like(z0), schedule.start)
    for t, abar, after in zip(schedule.timesteps, schedule.alpha_bar, schedule.alpha_bar_next, strict=True):
        without, with_it = backbone.unet(torch.cat([z, z]), t, encoder_hidden_states=conditions).sample.chunk(2)
        z = ddim_step(z, without + cfg.method.cfg_scale * (with_it - without), abar, after)
    return backbone.decode(z)


# ---- full size ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """What one step of classifier-free guidance costs, of one image.

    Attributes:
        flops: floating-point operations, a product and its sum being two.
        need: bytes of activations in float32.
        weights: numbers of the UNet.
    """

    flops: int
    need: Need
    weights: int

    @property
    def bytes(self) -> float:
        """Bytes of activations of one image."""
        return self.need.fixed + self.need.each


@torch.no_grad()
def full_size(share: float) -> Size:
    """Return the size of Versatile Diffusion's UNet at 512 px with one share of the text."""
    with torch.device("meta"):
        unet = dual_unet(UNet2DConditionModel(**FULL).config).eval()
    unet.mixing.share = share

    def step(n: int) -> None:
        latents, tokens = (torch.empty(2 * n, *shape, device="meta") for shape in ((4, 64, 64), (TOKENS, 768)))
        unet(latents, 700, encoder_hidden_states=tokens)

    with FlopCounterMode(display=False) as counted:
        step(1)
    return Size(counted.get_total_flops(), need_of(step), sum(p.numel() for p in unet.parameters()))


if __name__ == "__main__":
    main()
