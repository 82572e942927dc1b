"""The released sampler once more, slowly: one image and one noise at a time, every line a line of its description.

Nothing is batched, kept or shared: each repeat encodes the empty caption, each guided step runs the conditional UNet
again, and all intermediate latents are decoded at the end and thrown away, as HaoyyLi/NeuralDiffuser@9286cad
src/modules/stable_diffusion_pipe/guided_diffusion.py does. It is the oracle of the engine and what the engine's speed
is measured against, so it uses nothing of the engine. Latents are float32, networks compute in the backbone's dtype.

B = 1 everywhere: C h w latent, T tokens, D width, L layers, N tokens of the UNet's middle block, M attention heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn import functional

from nd.backbone.loading import Backbone

A = (1.5, 1.2, 1.0, 1.0, 1.0, 1.0)  # factor of each layer, src/recon.py:131-162
BLUR_KERNEL, BLUR_SIGMA = 9, 1.0


@dataclass(frozen=True)
class Numbers:
    """The settings of a run; the defaults are the released ones."""

    steps: int = 50
    strength: float = 0.75
    cfg: float = 7.5
    sag: float = 0.75
    kappa: float = 300_000.0
    eta: float = 0.2


def plain_scheduler(backbone: Backbone, steps: int) -> DDIMScheduler:
    """The DDIM scheduler with its timesteps set."""
    scheduler = DDIMScheduler.from_config(backbone.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(steps)
    return scheduler


def plain_picture(
    backbone: Backbone, z_Chw: Tensor, c_TD: Tensor, g_LTD: Tensor, noise_Chw: Tensor, numbers: Numbers
) -> Tensor:
    """The image (3, H, W) float32 in [0, 1] of one image and one noise."""
    scheduler = plain_scheduler(backbone, numbers.steps)
    n_sampled = int(numbers.steps * numbers.strength)
    n_guided = int(n_sampled * numbers.eta)
    uncond = backbone.encode_text([""])
    cond = c_TD[None]
    # Noised to the level of 740, but sampled from 721 on: the slip of the released code.
    noise_level = torch.tensor([min(int(n_sampled / numbers.steps * 1000), 999)])
    z = scheduler.add_noise(z_Chw[None], noise_Chw[None], noise_level)
    intermediate = []
    for step, t in enumerate(scheduler.timesteps[-n_sampled:]):
        with torch.no_grad():
            eps = plain_eps(backbone, scheduler, z, t, uncond, cond, numbers)
        if step < n_guided and numbers.kappa > 0:
            gradient = plain_gradient(backbone, z, t, cond, g_LTD, numbers)
            eps = eps + torch.sqrt(1 - scheduler.alphas_cumprod[t]) * numbers.kappa * gradient
        with torch.no_grad():
            z = scheduler.step(eps, t, z).prev_sample
        intermediate.append(z)
    with torch.no_grad():
        for latents in intermediate:
            plain_decode(backbone, latents)
        return ((plain_decode(backbone, z)[0].float() + 1) / 2).clamp(0, 1)


# ---- the noise prediction of a step --------------------------------------------------------------------------------


def plain_unet(backbone: Backbone, z: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """One pass."""
    dtype = backbone.dtype
    return backbone.unet(z.to(dtype), t, encoder_hidden_states=text.to(dtype)).sample.float()


def plain_eps(
    backbone: Backbone,
    scheduler: DDIMScheduler,
    z: Tensor,
    t: Tensor,
    uncond: Tensor,
    cond: Tensor,
    numbers: Numbers,
) -> Tensor:
    """Classifier-free guidance, then self-attention guidance."""
    with hearing(middle_attention(backbone)) as heard:
        both = plain_unet(backbone, torch.cat([z, z]), t, torch.cat([uncond.to(cond.dtype), cond]))
    eps_uncond, eps_cond = both[0:1], both[1:2]
    eps = eps_uncond + numbers.cfg * (eps_cond - eps_uncond)
    if numbers.sag > 0:
        x_ND = heard[0][0]
        mask = attended(middle_attention(backbone), x_ND)
        degraded = plain_degraded(z, eps_uncond, float(scheduler.alphas_cumprod[t]), mask)
        eps = eps + numbers.sag * (eps_uncond - plain_unet(backbone, degraded, t, uncond))
    return eps


def middle_attention(backbone: Backbone) -> Any:
    """The self-attention of the UNet's middle block."""
    return backbone.unet.mid_block.attentions[0].transformer_blocks[0].attn1


@contextmanager
def hearing(attention: Any) -> Iterator[list[Tensor]]:
    """What is given to the attention while this context is open, call after call."""
    heard: list[Tensor] = []

    def hear(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        heard.append(args[0] if args else kwargs["hidden_states"])

    hook = attention.register_forward_pre_hook(hear, with_kwargs=True)
    yield heard
    hook.remove()


def attended(attention: Any, x_ND: Tensor) -> Tensor:
    """Which tokens receive more than 1 in all, averaged over heads: (side, side) of zeros and ones, float32."""
    query, key = attention.to_q(x_ND), attention.to_k(x_ND)
    width = query.shape[1] // attention.heads
    total = torch.zeros(len(x_ND), device=x_ND.device)
    for head in range(attention.heads):
        columns = slice(head * width, (head + 1) * width)
        scores_QK = (query[:, columns] @ key[:, columns].T).float() / width**0.5
        probabilities_QK = torch.exp(scores_QK - scores_QK.max(dim=1, keepdim=True).values)
        probabilities_QK = probabilities_QK / probabilities_QK.sum(dim=1, keepdim=True)
        total = total + probabilities_QK.sum(dim=0) / attention.heads
    side = round(len(x_ND) ** 0.5)
    return (total > 1).float().reshape(side, side)


def plain_degraded(z: Tensor, eps_uncond: Tensor, abar: float, mask: Tensor) -> Tensor:
    """The noisy latents of clean ones that are blurred where ``mask`` is 1."""
    x0 = (z - (1 - abar) ** 0.5 * eps_uncond) / abar**0.5
    factor = x0.shape[-1] // mask.shape[-1]
    mask = mask.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)
    x0 = mask * blurred(x0) + (1 - mask) * x0
    return abar**0.5 * x0 + (1 - abar) ** 0.5 * eps_uncond


def blurred(x_1Chw: Tensor) -> Tensor:
    """A Gaussian blur of each channel, mirrored at the edges without repeating them."""
    half = BLUR_KERNEL // 2
    places = torch.arange(-half, half + 1, device=x_1Chw.device, dtype=x_1Chw.dtype)
    bell = torch.exp(-(places**2) / (2 * BLUR_SIGMA**2))
    kernel = torch.outer(bell, bell) / torch.outer(bell, bell).sum()
    padded = functional.pad(x_1Chw, (half, half, half, half), mode="reflect")
    channels = [functional.conv2d(padded[:, i : i + 1], kernel[None, None]) for i in range(padded.shape[1])]
    return torch.cat(channels, dim=1)


# ---- the gradient --------------------------------------------------------------------------------------------------


def plain_gradient(
    backbone: Backbone, z_1Chw: Tensor, t: Tensor, cond_1TD: Tensor, g_LTD: Tensor, numbers: Numbers
) -> Tensor:
    """d loss / d z (1, C, h, w) through decoder, image tower and the conditional UNet; t: one timestep."""
    abar = plain_scheduler(backbone, numbers.steps).alphas_cumprod[t]
    with torch.enable_grad():
        z = z_1Chw.detach().clone().requires_grad_(True)
        e = plain_unet(backbone, z, t, cond_1TD)
        x0 = (z - (1 - abar) * e) / torch.sqrt(abar)  # without the root that belongs there
        fac = torch.sqrt(1 - abar)
        shown = fac * x0 + (1 - fac) * z
        picture = ((plain_decode(backbone, shown) + 1) / 2).clamp(0, 1)
        loss = numbers.kappa * plain_loss(plain_features(backbone, picture), g_LTD)
        (gradient,) = torch.autograd.grad(loss, z)
    return gradient / numbers.kappa


def plain_decode(backbone: Backbone, z: Tensor) -> Tensor:
    """An image, nominally in [-1, 1]."""
    return backbone.vae.decode(z.to(backbone.dtype) / backbone.vae.config.scaling_factor).sample


def plain_features(backbone: Backbone, picture: Tensor) -> list[Tensor]:
    """Outputs (T, D) of c_proj in blocks 0 .. 5, by hooks on the whole tower; image (1, 3, H, W) in [0, 1]."""
    config = backbone.config
    if picture.shape[-1] != config.tower_size:
        size = (config.tower_size, config.tower_size)
        picture = functional.interpolate(
            picture.float(), size, mode="bilinear", align_corners=False, antialias=config.tower_antialias
        )
    mean, std = (torch.tensor(x, device=picture.device) for x in (config.tower_mean, config.tower_std))
    found: list[Tensor] = []
    blocks = backbone.tower.transformer.resblocks[:6]
    hooks = [block.mlp.c_proj.register_forward_hook(lambda m, i, output: found.append(output[0])) for block in blocks]
    backbone.tower(((picture - mean[:, None, None]) / std[:, None, None]).to(backbone.dtype))
    for hook in hooks:
        hook.remove()
    return found


def plain_loss(features: list[Tensor], g_LTD: Tensor) -> Tensor:
    """sum_l w_l * mean((f_l - g_l)^2), w_l = a_l * (1/||g_l||) / sum_k (1/||g_k||)."""
    inverse = [1 / torch.sqrt((g_TD.float() ** 2).sum()) for g_TD in g_LTD]
    loss = torch.zeros((), device=g_LTD.device)
    for layer in range(6):
        weight = A[layer] * inverse[layer] / sum(inverse)
        loss = loss + weight * ((features[layer].float() - g_LTD[layer]) ** 2).mean()
    return loss
