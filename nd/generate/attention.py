"""Self-attention guidance: away from what the UNet predicts where its own attention is blurred out.

Hong et al., ICCV 2023; on by default, with scale .75, in HaoyyLi/NeuralDiffuser@9286cad
src/modules/guided_diffusion.py:331,462-478,549-575, whose settings these are.

S samples, C h w latent, N tokens of the UNet's middle block, D their width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from nd.errors import UserError
from nd.generate.schedule import add_noise, predict_x0

KERNEL, SIGMA = 9, 1.0  # of the blur, in latent pixels
ATTENDED = 1.0  # attention a token receives in all, above which it is blurred; the mean over tokens is 1


class SelfAttention:
    """The attention of a UNet's middle block, listened to while it runs."""

    def __init__(self, unet: Any, latent_side: int) -> None:
        """Find the attention.

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
    """Return latents like ``z`` (S, C, h, w) with what is attended to blurred in the clean latents ``eps`` implies."""
    x0 = predict_x0(z, eps, alpha_bar)
    side = round(received_SN.shape[1] ** 0.5)
    mask = (received_SN > ATTENDED).to(x0.dtype).view(-1, 1, side, side)
    mask = functional.interpolate(mask, x0.shape[-2:], mode="nearest")
    blurred = torch.lerp(x0, gaussian_blur(x0, [KERNEL, KERNEL], [SIGMA, SIGMA]), mask)
    return add_noise(blurred, eps, alpha_bar)
