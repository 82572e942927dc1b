"""The noise prediction of a step, with classifier-free and self-attention guidance, in as few UNet passes as it takes.

Self-attention guidance leads away from what the UNet predicts where its own attention is blurred out (Hong et al., ICCV
2023). It is on, with scale .75, in HaoyyLi/NeuralDiffuser@9286cad
src/modules/stable_diffusion_pipe/guided_diffusion.py:331,462-478,549-575, whose settings these are.

S samples, C h w latent, T tokens of the text, N tokens of the UNet's middle block, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from nd.backbone.loading import Backbone
from nd.config import Config
from nd.errors import UserError
from nd.generate.trajectories import add_noise, predict_x0

KERNEL, SIGMA = 9, 1.0  # of the blur, in latent pixels
ATTENDED = 1.0  # attention a token receives in all, above which it is blurred; the mean over tokens is 1


class SelfAttention:
    """The attention of a UNet's middle block, listened to while it runs."""

    def __init__(self, unet: Any, latent_side: int) -> None:
        """Find the attention.

        Args:
            unet: a diffusers UNet2DConditionModel.
            latent_side: h.

        Raises:
            UserError: the UNet has none, or its latents are too small for the blur.
        """
        blocks = getattr(getattr(unet, "mid_block", None), "attentions", None)
        if not blocks:
            raise UserError(
                "method.sag_scale needs a UNet with attention in its middle block, and this backbone's has none. "
                "Set method.sag_scale=0."
            )
        if latent_side <= KERNEL // 2:
            raise UserError(
                f"method.sag_scale: latents of {latent_side} x {latent_side} are too small for a blur of {KERNEL}; "
                f"more than {KERNEL // 2} are needed. Set method.sag_scale=0."
            )
        self.attention = blocks[0].transformer_blocks[0].attn1
        self._heard: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the input of the attention while the UNet runs inside this context."""
        hook = self.attention.register_forward_pre_hook(self._hear, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _hear(self, module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        self._heard = args[0] if args else kwargs["hidden_states"]

    def received(self, n_samples: int) -> Tensor:
        """Attention each token of the first samples receives, (S, N): summed over queries, averaged over heads."""
        assert self._heard is not None
        x_SND, heads = self._heard[:n_samples], self.attention.heads
        q, k = (
            project(x_SND).unflatten(-1, (heads, -1)).transpose(1, 2)
            for project in (self.attention.to_q, self.attention.to_k)
        )
        probabilities = (q @ k.transpose(-1, -2) * self.attention.scale).float().softmax(dim=-1)
        return probabilities.mean(dim=1).sum(dim=1)


def degraded(z: Tensor, eps: Tensor, alpha_bar: float, received_SN: Tensor) -> Tensor:
    """Return noisy latents with what is attended to blurred.

    Args:
        z: noisy latents (S, C, h, w).
        eps: noise prediction without condition, same shape; implies the clean latents that are blurred.
        alpha_bar: at the timestep.
        received_SN: attention each token receives, of ``SelfAttention.received``.
    """
    x0 = predict_x0(z, eps, alpha_bar)
    side = round(received_SN.shape[1] ** 0.5)
    mask = (received_SN > ATTENDED).to(x0.dtype).view(-1, 1, side, side)
    mask = functional.interpolate(mask, x0.shape[-2:], mode="nearest")
    blurred = torch.lerp(x0, gaussian_blur(x0, [KERNEL, KERNEL], [SIGMA, SIGMA]), mask)
    return add_noise(blurred, eps, alpha_bar)


class Denoiser:
    """eps_uncond + cfg (eps_cond - eps_uncond) + sag (eps_uncond - eps_degraded)."""

    def __init__(self, backbone: Backbone, cfg: Config, uncond_1TD: Tensor | None = None) -> None:
        """Prepare for a method's scales.

        Args:
            backbone: whose UNet and empty caption.
            cfg: its method.cfg_scale, method.sag_scale where the method has one, and trainer.compile.
            uncond_1TD: the empty caption where conditions have other than the text encoder's full number of tokens.

        Raises:
            UserError: the UNet allows no self-attention guidance.
        """
        self.backbone = backbone
        self.cfg_scale, self.sag_scale = cfg.method.cfg_scale, getattr(cfg.method, "sag_scale", 0.0)
        self.unet: Any = torch.compile(backbone.unet) if cfg.trainer.compile else backbone.unet
        with torch.no_grad():
            self.uncond_1TD = backbone.uncond() if uncond_1TD is None else uncond_1TD
        self.attention = SelfAttention(backbone.unet, backbone.latent_shape[1]) if self.sag_scale else None

    @property
    def passes(self) -> int:
        """UNet passes per sample of a step."""
        return 1 + (self.cfg_scale != 1 or bool(self.sag_scale)) + bool(self.sag_scale)

    def conditional(self, z: Tensor, t: int, c: Tensor, added: Sequence[Tensor] = ()) -> Tensor:
        """Return the noise prediction under the text condition, (S, C, h, w), no coarser than float32. Differentiable.

        Args:
            z: noisy latents (S, C, h, w).
            t: timestep.
            c: text condition (S, T, D).
            added: features of adapters (S, ...), added in the UNet's blocks on its way down.
        """
        dtype = self.backbone.dtype  # the network's; everything around it is float32
        # The UNet empties the list that it is given.
        more = {"down_intrablock_additional_residuals": [one.to(dtype) for one in added]} if added else {}
        eps = self.unet(z.to(dtype), t, encoder_hidden_states=c.to(dtype), **more).sample
        return eps.to(torch.promote_types(dtype, torch.float32))

    def __call__(
        self,
        z: Tensor,
        t: int,
        c: Tensor,
        alpha_bar: float,
        eps_cond: Tensor | None = None,
        added: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return the noise prediction after both guidances, (S, C, h, w) float32.

        Args:
            z: noisy latents (S, C, h, w).
            t: timestep.
            c: text condition (S, T, D).
            alpha_bar: at the timestep.
            eps_cond: the conditional prediction where it is known already.
            added: as of ``conditional``; in every pass, with and without the text condition.
        """
        if self.passes == 1:
            return self.conditional(z, t, c, added) if eps_cond is None else eps_cond
        if self.attention is None:
            eps_uncond, eps_cond = self._both(z, t, c, eps_cond, added)
            return eps_uncond + self.cfg_scale * (eps_cond - eps_uncond)
        with self.attention.listening():
            eps_uncond, eps_cond = self._both(z, t, c, eps_cond, added)
        blurred = degraded(z, eps_uncond, alpha_bar, self.attention.received(len(z)))
        eps_blurred = self.conditional(blurred, t, self._uncond(len(z)), added)
        eps = eps_uncond + self.cfg_scale * (eps_cond - eps_uncond)
        return eps + self.sag_scale * (eps_uncond - eps_blurred)

    def _both(
        self, z: Tensor, t: int, c: Tensor, eps_cond: Tensor | None, added: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Unconditional and conditional prediction: one pass over both halves, or over the one that is missing."""
        uncond = self._uncond(len(z))
        if eps_cond is not None:
            return self.conditional(z, t, uncond, added), eps_cond
        twice = [torch.cat([one, one]) for one in added]
        eps_uncond, eps_cond = self.conditional(torch.cat([z, z]), t, torch.cat([uncond, c]), twice).chunk(2)
        return eps_uncond, eps_cond

    def _uncond(self, n: int) -> Tensor:
        return self.uncond_1TD.expand(n, -1, -1)
