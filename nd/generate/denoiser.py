"""The noise prediction of a step, with classifier-free and self-attention guidance, in as few UNet passes as it takes.

S samples, C h w latent, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nd.backbone.loading import Backbone
from nd.config import Config
from nd.generate.attention import SelfAttention, degraded


class Denoiser:
    """eps_uncond + cfg (eps_cond - eps_uncond) + sag (eps_uncond - eps_degraded)."""

    def __init__(self, backbone: Backbone, cfg: Config) -> None:
        """Prepare for a method's scales. Raises UserError where the UNet allows no self-attention guidance."""
        self.backbone = backbone
        self.cfg_scale, self.sag_scale = cfg.method.cfg_scale, cfg.method.sag_scale
        self.unet: Any = torch.compile(backbone.unet) if cfg.trainer.compile else backbone.unet
        with torch.no_grad():
            self.uncond_1TD = backbone.uncond()
        self.attention = SelfAttention(backbone.unet, backbone.latent_shape[1]) if self.sag_scale else None

    @property
    def passes(self) -> int:
        """UNet passes per sample of a step."""
        return 1 + (self.cfg_scale != 1 or bool(self.sag_scale)) + bool(self.sag_scale)

    def conditional(self, z: Tensor, t: int, c: Tensor) -> Tensor:
        """Noise prediction (S, C, h, w) float32 under the text condition. Differentiable."""
        dtype = self.backbone.dtype  # the network's; everything around it is float32
        return self.unet(z.to(dtype), t, encoder_hidden_states=c.to(dtype)).sample.float()

    def __call__(self, z: Tensor, t: int, c: Tensor, alpha_bar: float, eps_cond: Tensor | None = None) -> Tensor:
        """Return the noise prediction after both guidances, (S, C, h, w) float32.

        Args:
            z: noisy latents (S, C, h, w).
            t: timestep.
            c: text condition (S, T, D).
            alpha_bar: at the timestep.
            eps_cond: the conditional prediction where it is known already.
        """
        if self.passes == 1:
            return self.conditional(z, t, c) if eps_cond is None else eps_cond
        if self.attention is None:
            eps_uncond, eps_cond = self._both(z, t, c, eps_cond)
            return eps_uncond + self.cfg_scale * (eps_cond - eps_uncond)
        with self.attention.listening():
            eps_uncond, eps_cond = self._both(z, t, c, eps_cond)
        blurred = degraded(z, eps_uncond, alpha_bar, self.attention.received(len(z)))
        eps_blurred = self.conditional(blurred, t, self._uncond(len(z)))
        eps = eps_uncond + self.cfg_scale * (eps_cond - eps_uncond)
        return eps + self.sag_scale * (eps_uncond - eps_blurred)

    def _both(self, z: Tensor, t: int, c: Tensor, eps_cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unconditional and conditional prediction: one pass over both halves, or over the one that is missing."""
        uncond = self._uncond(len(z))
        if eps_cond is not None:
            return self.conditional(z, t, uncond), eps_cond
        eps_uncond, eps_cond = self.conditional(torch.cat([z, z]), t, torch.cat([uncond, c])).chunk(2)
        return eps_uncond, eps_cond

    def _uncond(self, n: int) -> Tensor:
        return self.uncond_1TD.expand(n, -1, -1)
