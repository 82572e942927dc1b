"""MindDiffuser's second stage: an iteration moved in batches against one image at a time, plainly.

    command   make bench ARGS="--only minddiffuser"          the Scenes models, on a CPU
              make bench ARGS="--cuda --only minddiffuser"   Stable Diffusion's size, random weights, on a GPU
    time      2 minutes on one CPU core

An iteration samples an image, takes its features and the gradient of their distance from the decoded ones by z and c
through all steps. Plainly: one sample after another, with and without the caption in one pass of the UNet, every
sampled latent kept alive by the graph (ReedOnePeck/MindDiffuser@c9773ac, its
Reconstruction.py:357-392).
Inputs are random: only sizes matter here.
"""

from __future__ import annotations

import torch
from rows import Asked, Row, in_turns
from sampler import Shell
from torch import Tensor

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config
from nd.config.application import compose
from nd.generate.minddiffuser.sampler import ImageToImage, structure_loss, structure_weights
from nd.generate.plan import in_parts
from nd.generate.trajectories import add_noise, ddim_step


def measure(asked: Asked) -> list[Row]:
    """Time one iteration of a batch, both ways."""
    full_size = asked.cuda and not asked.quick
    steps = asked.pick(4, 20)
    cfg = compose([f"backbone={'sd14' if full_size else 'scenes'}", "method=minddiffuser", f"method.steps={steps}"])
    backbone = Shell(asked.device, "bfloat16") if full_size else load_backbone(cfg.backbone, asked.device)
    engine, n = ImageToImage(backbone, cfg), asked.pick(2, 4 if full_size else 16)
    given, at_once = inputs(engine, n), 1 if full_size else n
    weights = structure_weights(given[3], engine.method)

    def ours() -> None:
        in_parts(engine.gradient, at_once, *given, weights)

    def plainly() -> None:
        for k in range(n):
            plain_gradient(backbone, engine, cfg, *(x[k : k + 1] for x in (*given, weights)))

    mine, theirs = in_turns(asked.pick(1, 3), asked.seconds, ours, plainly)
    case = f"stage 2, an iteration of {n} images, {len(engine.schedule)} steps, {backbone.config.image_size} px"
    return [Row(case=case, unit="s", ours=mine, peer="one by one", theirs=theirs, clock=asked.clock)]


def inputs(engine: ImageToImage, n: int) -> tuple[Tensor, ...]:
    """Return random z, c, noise and g of n samples."""
    device = engine.backbone.device
    shapes = (engine.backbone.latent_shape, engine.denoise.uncond_1TD.shape[1:], engine.backbone.latent_shape)
    z, c, noise = (torch.randn(n, *shape, device=device) for shape in shapes)
    return z, c, noise, 0.3 * torch.randn(n, *engine.blocks.shape, device=device)


def plain_gradient(
    backbone: Backbone,
    engine: ImageToImage,
    cfg: Config,
    z: Tensor,
    c: Tensor,
    noise: Tensor,
    g: Tensor,
    weights: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of one sample, nothing computed again and nothing shared."""
    leaves, schedule = (z.clone().requires_grad_(True), c.clone().requires_grad_(True)), engine.schedule
    x, dtype = add_noise(leaves[0], noise, schedule.start), backbone.dtype
    for t, abar, after in zip(schedule.timesteps, schedule.alpha_bar, schedule.alpha_bar_next, strict=True):
        texts = torch.cat([engine.denoise.uncond_1TD, leaves[1]]).to(dtype)
        halves = backbone.unet(torch.cat([x, x]).to(dtype), t, encoder_hidden_states=texts).sample.float().chunk(2)
        x = ddim_step(x, halves[0] + cfg.method.cfg_scale * (halves[1] - halves[0]), abar, after)
    features = engine.blocks(backbone.tower_input(backbone.decode(x, clamp=False)))
    return torch.autograd.grad(structure_loss(features, g, weights).sum(), leaves)
